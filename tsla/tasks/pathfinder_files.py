"""Images of Pathfinder in a folder of Long Range Arena, counted against their metadata, or in a data set of the Hub."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from numpy.typing import NDArray
from PIL import Image

from tsla.tasks.base import SPLITS
from tsla.tasks.sources import refused

FOLDERS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
PARENTS = (
    "lra_release/lra_release",
    "lra_release",
    "pathfinder",
    "",
)  # of two copies in the release the inner is right
FIELDS = 11  # of a line: folder, file, number, label, continuity, contour, ...
SEED = 42  # of the split that published figures have, which is that of S4
SHARE = 0.1  # of validation, and of test


class Listing(NamedTuple):
    """What a folder holds.

    folder: with `imgs` and `metadata`.
    files: of the images, in the order of the metadata.
    labels: of these.
    empty: images of no bytes, which are left out.
    """

    folder: Path
    files: list[str]
    labels: NDArray[np.uint8]
    empty: int


def find(path: Path, size: int, contour: int) -> Path:
    """The folder of such images: `path` itself, or where the unpacked release, or S4, keeps it.

    Raises:
        FileNotFoundError: there is none.
    """
    inner = f"pathfinder{size}/{FOLDERS[contour]}"
    layouts = [os.path.join(parent, inner) for parent in PARENTS] + [FOLDERS[contour], ""]
    for folder in (path / layout for layout in layouts):
        if (folder / "metadata").is_dir() and (folder / "imgs").is_dir():
            return folder
    raise FileNotFoundError(
        f"path ({path}) must hold folders imgs and metadata, itself or in {', '.join(layouts[:-1])}"
    )


def state(folder: Path) -> list[list[object]]:
    """Names, sizes and times of the metadata and of the folders of images: differs if these do."""
    found = sorted([*(folder / "metadata").iterdir(), *(folder / "imgs").iterdir()])
    stats = [(path, path.stat()) for path in found]
    return [[str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def listing(folder: Path, contour: int) -> Listing:
    """The images of a folder, without those of no bytes.

    Raises:
        FileNotFoundError: images that the metadata name are not there, with their count.
        ValueError: metadata that cannot be read, name an image twice, are of other images, or lack some.
    """
    lines = [line for file in _numbered(folder / "metadata") for line in _lines(file, contour)]
    sizes = _sizes(folder)
    names = [name for name, _ in lines]
    if missing := [name for name in names if name not in sizes]:
        raise FileNotFoundError(f"{folder}: {len(missing)} of the {len(names)} images that the metadata name are "
                                f"missing, the first is {missing[0]}")  # fmt: skip
    if twice := len(names) - len(set(names)):
        raise ValueError(f"{folder}: {twice} of the {len(names)} lines of the metadata name an image again")
    if unknown := sorted(sizes.keys() - set(names)):
        raise ValueError(f"{folder}: the metadata name {len(names)} images, but there are {len(sizes)}; the first of "
                         f"the others is {unknown[0]}")  # fmt: skip
    kept = [(name, label) for name, label in lines if sizes[name]]
    if len(kept) < 1 / SHARE:
        raise ValueError(f"{folder}: {len(kept)} images are too few to split; at least {round(1 / SHARE)} are needed")
    labels = np.array([label for _, label in kept], np.uint8)
    return Listing(folder, [name for name, _ in kept], labels, len(lines) - len(kept))


def split_rows(count: int, protocol: str = "default") -> dict[str, NDArray[np.int64]]:
    """Which of so many images are in each split: one after another for ``"lra"``, else as S4 draws them.

    That is the order of `torch.utils.data.random_split` with its seed.
    """
    if protocol == "lra":
        order = np.arange(count)
    else:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).numpy()
    held = int(SHARE * count)
    parts = np.split(order, [count - 2 * held, count - held])
    return dict(zip(SPLITS, parts, strict=True))


def read_images(found: Listing, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """The grey values of these images, ``(rows, size, size)``.

    Raises:
        ValueError: a file that is no such image.
    """
    return np.stack([_image(found.folder / found.files[row], size) for row in rows])


def from_hub(hub_id: str, revision: str | None, scratch: Path) -> Dataset:
    """The images and classes of all parts of a data set of the Hub, one after another, fetched into `scratch`.

    Raises:
        Unavailable: the Hub does not give it.
        ValueError: it is another kind of data set, or too small.
    """
    try:
        found = load_dataset(hub_id, revision=revision, cache_dir=str(scratch))
    except Exception as error:  # of the Hub, the network or the data set: to the reader, it cannot be had
        raise refused(hub_id, error) from None
    parts = list(found.values())
    if not all({"image", "label"} <= set(part.column_names) for part in parts):
        raise ValueError(f"hub_id ({hub_id}) must have images in the column image and classes in label; it has "
                         f"{', '.join(parts[0].column_names)}")  # fmt: skip
    data = concatenate_datasets([part.select_columns(["image", "label"]) for part in parts])
    if len(data) < 1 / SHARE:
        raise ValueError(f"hub_id ({hub_id}): {len(data)} images are too few to split; at least {round(1 / SHARE)} are "
                         "needed")  # fmt: skip
    if odd := sorted(set(data["label"][:]) - {0, 1}, key=str):
        raise ValueError(f"hub_id ({hub_id}): classes must be 0 and 1, got {odd[0]!r}")
    return data


def read_hub(data: Dataset, rows: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """The grey values of these rows of `from_hub`, ``(rows, size, size)``.

    Raises:
        ValueError: an image of another size.
    """
    return np.stack([_grey(data[int(row)]["image"], size, f"row {row} of the data set") for row in rows])


def _image(file: Path, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            return _grey(image, size, str(file))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} must be a PNG image: {error}") from None


def _grey(image: Image.Image, size: int, place: str) -> NDArray[np.uint8]:
    if image.size != (size, size):  # told by the header: nothing large is decoded
        raise ValueError(f"{place} must have {size} x {size} pixels, got {image.size[0]} x {image.size[1]}")
    return np.array(image.convert("L"))


def _numbered(folder: Path) -> list[Path]:
    """The files `0.npy`, `1.npy`, ... by number: 10 comes after 9."""
    files = [file for file in folder.iterdir() if file.suffix == ".npy"]
    if odd := [file.name for file in files if not file.stem.isdecimal()]:
        raise ValueError(f"{folder / min(odd)} must have a number for a name, as in 0.npy")
    return sorted(files, key=lambda file: int(file.stem))


def _lines(file: Path, contour: int) -> list[tuple[str, int]]:
    """Image and label of each line. The released files are text, whatever they are called; those of numpy are, too."""
    with file.open("rb") as opened:
        binary = opened.read(6) == b"\x93NUMPY"
    if binary:
        try:
            table = np.load(file)  # never a pickle: that is its default
        except Exception as error:  # a damaged table can raise anything
            raise ValueError(f"{file} must be a table of texts: {error}") from None
        if table.ndim != 2 or table.dtype.kind not in "US":
            raise ValueError(f"{file} must be a table of texts, got {table.dtype} of shape {table.shape}")
        lines = table.astype(str).tolist()
    else:
        lines = [line.split() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    return [_line(fields, contour, f"{file}, line {number}") for number, fields in enumerate(lines, 1)]


def _line(fields: list[str], contour: int, place: str) -> tuple[str, int]:
    if len(fields) != FIELDS:
        raise ValueError(f"{place}: {len(fields)} fields, there must be {FIELDS}")
    folder, name, _, label, _, length, *_ = fields
    parent, _, batch = folder.partition("/")
    if parent != "imgs" or any(part != os.path.basename(part) or part in ("", "..") for part in (batch, name)):
        raise ValueError(f"{place}: the image ({folder}/{name}) must be one in a folder of imgs")
    if label not in ("0", "1"):
        raise ValueError(f"{place}: the label ({label!r}) must be 0 or 1")
    if length != str(contour):
        raise ValueError(f"{place}: the contour length ({length}) must be {contour}, as task.contour says")
    return f"{folder}/{name}", int(label)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each image."""
    found: dict[str, int] = {}
    for batch in (path for path in (folder / "imgs").iterdir() if path.is_dir()):
        with os.scandir(batch) as entries:
            found |= {f"imgs/{batch.name}/{entry.name}": entry.stat().st_size
                      for entry in entries if entry.name.endswith(".png")}  # fmt: skip
    return found
