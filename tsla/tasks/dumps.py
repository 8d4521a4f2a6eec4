"""Long Range Arena as others have written it out: lines of numbers, as Mega reads them, and Nystromformer's pickles.

Mega (arXiv 2209.10655) has a row of pixels on each line of ``input/{train,valid,test}.src`` and its class on that of
``label/*.label``. Its ListOps, Text and Retrieval are known as files of fairseq's own binary form, which are not read;
only where such rows are lines of numbers too, with the dictionary that says what they stand for (`dictionary`), does
ListOps take them. Nobody here has seen such a dump of ListOps, nor one where all files lie in one folder.

Nystromformer (arXiv 2102.03902) writes ``TASK.{train,dev,test}.pickle``: lists of dicts with `input_ids_0`, for pairs
`input_ids_1`, and `label`. A text is cut and filled up with zeros. Its ListOps cannot be read: which number stands for
which symbol differed from run to run, and was not kept.
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.base import SPLITS
from tsla.tasks.pickles import load_pickle, plain
from tsla.tasks.sources import stamps

LINES, PICKLES = ("train", "valid", "test"), ("train", "dev", "test")  # what the splits are called
SPECIAL = 4  # ids before those of a dictionary: beginning, padding, end, unknown
END = 2  # the id of the end of a row


class Dump(NamedTuple):
    """Files of a dump.

    layout: ``"mega"`` or ``"nystromformer"``.
    files: of each split: rows and classes, or both in one.
    """

    layout: str
    files: dict[str, tuple[Path, ...]]

    @property
    def key(self) -> dict[str, object]:
        """Which layout, and which files: plain data."""
        return {"layout": self.layout, "files": stamps(file for files in self.files.values() for file in files)}


class DumpRow(NamedTuple):
    """A row: one or two inputs, whole numbers ``(n,)`` each; its class; and where it stands, for errors."""

    inputs: tuple[NDArray[np.int64], ...]
    label: int
    place: str


def find_dump(path: Path, stem: str, *, allow_pickle: bool, lines: bool = True) -> Dump | None:
    """The dump of a task in `path`, told by the names of its files; None if there is none.

    Args:
        path: a folder.
        stem: what the pickles of the task are called; empty if it has none.
        allow_pickle: whether they may be read.
        lines: whether the task can be read from lines of numbers.

    Raises:
        FileNotFoundError: a part of a dump.
        ValueError: pickles that may not be read.
    """
    layouts: list[tuple[str, list[tuple[Path, ...]]]] = []
    if lines:
        places = ((path / "input", path / "label"), (path, path))
        layouts += [("mega", [(rows / f"{n}.src", labels / f"{n}.label") for n in LINES]) for rows, labels in places]
    if stem:
        layouts.append(("nystromformer", [(path / f"{stem}.{n}.pickle",) for n in PICKLES]))
    for layout, splits in layouts:
        missing = [str(file.relative_to(path)) for files in splits for file in files if not file.is_file()]
        if len(missing) == sum(map(len, splits)):
            continue
        if missing:
            raise FileNotFoundError(
                f"path ({path}) holds a part of the dump of {layout}; it lacks {', '.join(missing)}"
            )
        if layout == "nystromformer" and not allow_pickle:
            raise ValueError(f"path ({path}) holds pickles, such as {splits[0][0].name}: allow_pickle (False) must be "
                             "True to read them. Nothing that they hold is run")  # fmt: skip
        return Dump(layout, dict(zip(SPLITS, splits, strict=True)))
    return None


def dump_rows(dump: Dump, split: str) -> Iterator[DumpRow]:
    """The rows of a split in their order: of lines one after another; a pickle is in memory as a whole.

    Raises:
        ValueError: what is no row, with its place.
    """
    if dump.layout == "mega":
        yield from _lines(*dump.files[split])
        return
    (file,) = dump.files[split]
    for number, row in enumerate(_pickled(file), 1):
        place = f"{file}, row {number}"
        try:
            names = ("input_ids_0", "input_ids_1")[: 1 + ("input_ids_1" in row)]
            inputs = tuple(_whole(row[name], axes=1) for name in names)
            label = int(_whole(row["label"], axes=0))
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(
                f"{place}: must be a dict of input_ids_0 and label, in whole numbers ({error!r})"
            ) from None
        yield DumpRow(inputs, label, place)


def count_rows(dump: Dump, split: str) -> int:
    """How many rows a split has."""
    if dump.layout == "mega":
        with dump.files[split][1].open("rb") as lines:
            return sum(1 for _ in lines)
    return len(_pickled(*dump.files[split]))


def check_count(dump: Dump, split: str, found: int, expected: int) -> None:
    """Raise ValueError unless a split has as many rows as Long Range Arena."""
    if found != expected:
        raise ValueError(f"{dump.files[split][0]} must have {expected} rows, as in Long Range Arena, got {found}")


def dump_bytes(row: DumpRow) -> tuple[bytes, ...]:
    """The texts of a row whose ids are a byte + 1 each, with zeros after the last.

    Raises:
        ValueError: another id.
    """
    texts = []
    for ids in row.inputs:
        ids = ids[: np.flatnonzero(ids)[-1] + 1] if ids.any() else ids[:0]
        if ids.size and not 1 <= ids.min() <= ids.max() <= 256:
            raise ValueError(f"{row.place}: ids must be a byte + 1, and 0 after the last; they are from {ids.min()} to "
                             f"{ids.max()}")  # fmt: skip
        texts.append((ids - 1).astype(np.uint8).tobytes())
    return tuple(texts)


def dump_pixels(row: DumpRow, size: int) -> NDArray[np.uint8]:
    """The grey values of a row that is an image, ``(size, size)``.

    Raises:
        ValueError: another number of pixels, or what is no grey value.
    """
    if len(row.inputs) != 1:
        raise ValueError(f"{row.place}: must have one input, got {len(row.inputs)}")
    (pixels,) = row.inputs
    if len(pixels) != size**2:
        raise ValueError(f"{row.place}: must have {size} x {size} pixels, got {len(pixels)}")
    if not 0 <= pixels.min() <= pixels.max() <= 255:
        raise ValueError(f"{row.place}: grey values must be 0 to 255, got {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.uint8).reshape(size, size)


def dictionary(dump: Dump) -> dict[int, str]:
    """What the numbers of a row stand for: `dict.txt` beside the rows has a symbol and its count on each line.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line of another form.
    """
    file = dump.files["train"][0].parent / "dict.txt"
    symbols = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        symbol, _, count = line.rpartition(" ")
        if not symbol or not count.isdecimal():
            raise ValueError(f"{file}, line {number + 1}: must be a symbol and its count, got {line!r}")
        symbols[SPECIAL + number] = symbol
    return symbols


def _lines(rows: Path, labels: Path) -> Iterator[DumpRow]:
    with rows.open("rb") as inputs, labels.open("rb") as classes:
        for number, (row, label) in enumerate(zip_longest(inputs, classes), 1):
            place = f"{rows}, line {number}"
            if row is None or label is None:
                raise ValueError(f"{place}: {rows.name} and {labels.name} must have as many lines as each other")
            yield DumpRow((_line(row, place),), int(_line(label, f"{labels}, line {number}", 1)[0]), place)


def _line(line: bytes, place: str, count: int | None = None) -> NDArray[np.int64]:
    """The numbers of a line, `count` of them or at least one."""
    try:
        numbers = np.array(line.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        numbers = np.zeros(0, np.int64)
    if not len(numbers) or len(numbers) != (count or len(numbers)):
        raise ValueError(f"{place}: must hold {'one whole number' if count else 'whole numbers'}, "
                         f"got {line[:40].decode(errors='replace')!r}")  # fmt: skip
    return numbers


def _pickled(file: Path) -> list[Any]:
    try:
        found = load_pickle(file)
        if not isinstance(found, list):
            raise ValueError(f"it holds a {type(found).__name__}")
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{file} cannot be read as a list of rows ({error!r})") from None
    return found


def _whole(values: object, axes: int) -> NDArray[np.int64]:
    """Whole numbers of a pickle along so many axes, of whatever type: labels come as fractions, too."""
    found = np.asarray(plain(values))
    with np.errstate(invalid="ignore"):  # what is no number is unequal below
        whole = found.astype(np.int64)
    if found.ndim != axes or not np.array_equal(whole, found):
        raise ValueError(f"got {found.dtype} of shape {found.shape} or other values")
    return whole
