"""CIFAR-10 in shades of grey: from a user's own folder, in the binary or the Python version, or from the Hub."""

from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from numpy.typing import NDArray

from tsla.tasks.pickles import load_pickle, plain

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE, CHANNELS = 32, 3
BATCH_ROWS = 10_000  # images of each of the six files
PARTS = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
PARENTS = ("", "cifar", "cifar10", "cifar-10")
ENDINGS = (".bin", "")  # of the binary and of the Python version
GREY = np.array([2989, 5870, 1140], np.uint32)  # ten-thousandths of red, green and blue, as PIL and TensorFlow weigh
PART = 1000  # images of the Hub that are unpacked at a time


class Labelled(NamedTuple):
    """Grey images ``(n, height, width)`` uint8 and their classes ``(n,)`` int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def cifar_files(path: Path) -> dict[str, list[Path]]:
    """The files of each part of CIFAR-10, in `path` or where its archives and common layouts put them.

    Raises:
        FileNotFoundError: there is no such folder, or it lacks some of the files.
    """
    names = [name for part in PARTS.values() for name in part]
    for folder in (path / parent / inner for parent in PARENTS for inner in FOLDERS):
        for ending in ENDINGS:
            missing = [name + ending for name in names if not (folder / (name + ending)).is_file()]
            if not missing:
                return {part: [folder / (name + ending) for name in own] for part, own in PARTS.items()}
            if len(missing) < len(names):
                raise FileNotFoundError(f"{folder} holds a part of CIFAR-10; it lacks {', '.join(missing)}")
    raise FileNotFoundError(
        f"path ({path}) must hold data_batch_1.bin to data_batch_5.bin and test_batch.bin (the binary version of "
        "CIFAR-10), or the same without .bin (the Python version), itself or in cifar-10-batches-bin or -py"
    )


def read_cifar(files: list[Path]) -> Labelled:
    """The images of CIFAR-10 files, in their order.

    Raises:
        ValueError: a file that is none of CIFAR-10, or has not as many images as it must.
    """
    parts = [_read_binary(file) if file.suffix == ".bin" else _read_pickle(file) for file in files]
    for file, part in zip(files, parts, strict=True):
        if len(part.labels) != BATCH_ROWS:
            raise ValueError(f"{file} holds {len(part.labels)} images; each file of CIFAR-10 has {BATCH_ROWS}")
    return Labelled(np.concatenate([p.pixels for p in parts]), np.concatenate([p.labels for p in parts]))


def read_hub(hub_id: str, revision: str | None, scratch: Path) -> dict[str, Labelled]:
    """The parts `train` and `test` of a data set of the Hub with 32 x 32 colour images, downloaded into `scratch`.

    Raises:
        ConnectionError: it cannot be had, with what `datasets` says.
        ValueError: it is another kind of data set.
    """
    try:
        found = datasets.load_dataset(hub_id, revision=revision, cache_dir=str(scratch))
    except Exception as error:  # of the Hub, the network or the data set: to the reader, it cannot be had
        told = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ConnectionError(f"hub_id ({hub_id}) cannot be had: {told}") from None
    if missing := [part for part in PARTS if part not in found]:
        raise ValueError(f"hub_id ({hub_id}) has no part {' and '.join(missing)}: it has {', '.join(found)}")
    return {part: _from_dataset(found[part], hub_id) for part in PARTS}


def _from_dataset(data: Any, hub_id: str) -> Labelled:
    columns = [
        next((c for c in own if c in data.column_names), None) for own in (("img", "image"), ("label", "labels"))
    ]
    image, label = columns
    if image is None or label is None or not isinstance(data.features[image], datasets.Image):
        raise ValueError(f"hub_id ({hub_id}) must have images in the column img or image and classes in label or "
                         f"labels; it has {', '.join(data.column_names)}")  # fmt: skip
    shades = []
    for part in data.iter(PART):
        colours = [np.asarray(picture.convert("RGB")) for picture in part[image]]
        if sizes := {array.shape for array in colours} - {(SIDE, SIDE, CHANNELS)}:
            height, width, _ = min(sizes)
            raise ValueError(f"hub_id ({hub_id}) has an image of {height} x {width} pixels, it must be {SIDE} x {SIDE}")
        shades.append(to_grey(np.stack(colours).transpose(0, 3, 1, 2)))
    return Labelled(np.concatenate(shades), _classes(np.array(data[label][:]), f"hub_id ({hub_id})"))


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0.2989 R + 0.587 G + 0.114 B, rounded (halves up), of colours ``(n, 3, height, width)``: exact on any machine."""
    shades = (pixels * GREY[:, None, None]).sum(1)
    return ((shades + 5000) // 10_000).astype(np.uint8)


def _read_binary(file: Path) -> Labelled:
    """Of records of one byte for the class and 3072 for the pixels: red, green, blue, each row by row."""
    data = np.fromfile(file, np.uint8)
    size = 1 + CHANNELS * SIDE**2
    if len(data) % size:
        raise ValueError(f"{file} has {len(data)} bytes, which is no number of whole records of {size}")
    records = data.reshape(-1, size)
    labels = _classes(records[:, 0].astype(np.int64), str(file))
    return Labelled(to_grey(records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE)), labels)


def _classes(labels: NDArray[np.int64], place: str) -> NDArray[np.int64]:
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise ValueError(f"{place}: classes must be 0 to {len(CLASSES) - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)


def _read_pickle(file: Path) -> Labelled:
    try:
        found = load_pickle(file, encoding="bytes")
        data = plain(found[b"data"])
        if data.dtype != np.uint8:
            raise ValueError(f"its array must be one of bytes, got {data.dtype}")
        pixels = data.reshape(-1, CHANNELS, SIDE, SIDE)
        labels = np.array(found[b"labels"], dtype=np.int64).reshape(len(pixels))
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{file} cannot be read as the Python version of CIFAR-10 ({error!r}); "
                         "the binary version (data_batch_1.bin) holds the same images") from None  # fmt: skip
    return Labelled(to_grey(pixels), _classes(labels, str(file)))
