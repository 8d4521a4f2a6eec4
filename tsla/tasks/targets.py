"""What users write in label columns, as what is learnt: a class, labels that apply, or numbers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.base import SPLITS
from tsla.tasks.encoding import numbers, shorten
from tsla.tasks.tables import each

Array = NDArray[Any]
CONSTANT = 1e-9  # a deviation that is less of the mean is mostly rounding, which also makes one of what has none
FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}


class Targets(NamedTuple):
    """The targets of all rows: classes ``(rows,)`` int64, labels ``(rows, outputs)`` uint8, numbers float64."""

    values: Array
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def parse_cells(target: str, columns: dict[str, list[Any]], place: str) -> list[Any]:
    """Of each row its class name, its set of labels, or its list of numbers.

    Args:
        target: ``"class"``, ``"labels"`` or ``"numbers"``.
        columns: cells by name, as many as were asked for.
        place: of the columns, for errors.

    Raises:
        ValueError: a cell that is none of it, with its row.
    """
    parsed = {
        name: each(cells, _maker(target, len(columns)), f"{place}, column {name!r}") for name, cells in columns.items()
    }
    parts = list(zip(*parsed.values(), strict=True))
    match target:
        case "class":
            return [name for (name,) in parts]
        case "labels" if len(columns) > 1:
            return [{name for name, on in zip(columns, row, strict=True) if on} for row in parts]
        case "labels":
            return [names for (names,) in parts]
        case _:
            return [[x for cell in row for x in cell] for row in parts]


def make_targets(
    target: str, cells: Sequence[Any], splits: dict[str, NDArray[np.int64]], columns: Sequence[str]
) -> Targets:
    """Numbers a model learns, with what names and scales them: that of the training rows.

    Raises:
        ValueError: fewer than two classes, a class or label that no training row has, or ragged or too few numbers.
    """
    match target:
        case "class":
            return _classes(cells, splits)
        case "labels":
            return _labels(cells, splits, columns)
        case _:
            return _numbers(cells, splits, columns)


def moments(values: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column of ``(n, columns)``; 1 for one that is constant, or nearly so."""
    exact = values.astype(np.float64, copy=False)
    mean, std = exact.mean(0), exact.std(0)
    varies = std > CONSTANT * np.abs(mean)
    return tuple(mean.tolist()), tuple(np.where(varies, std, 1.0).tolist())


def name_of(cell: Any) -> str:
    """A class or label as text: of a text, a whole number, or true or false.

    Raises:
        ValueError: anything else, and nothing at all.
    """
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, str) and cell.strip():
        return cell.strip()
    raise ValueError(f"label ({shorten(cell)}) must be a class: a text, a whole number, true or false"
                     + ("; real numbers need target=numbers" if isinstance(cell, float) else ""))  # fmt: skip


def _maker(target: str, columns: int) -> Any:
    if target == "labels":
        return _flag if columns > 1 else _names_in
    return name_of if target == "class" else numbers


def _flag(cell: Any) -> bool:
    told = str(cell).strip().lower()
    if told not in FLAGS:
        raise ValueError(f"label ({shorten(cell)}) must be 0 or 1, as each of several label columns is")
    return FLAGS[told]


def _names_in(cell: Any) -> set[str]:
    if isinstance(cell, list | tuple | np.ndarray):
        return {name_of(item) for item in cell}
    if isinstance(cell, str):
        return {part.strip() for part in cell.split(";" if ";" in cell else ",") if part.strip()}
    if cell is None:
        raise ValueError("label (None) must be labels: a list, which may be empty, or a text with ; or , between them")
    return {name_of(cell)}


def _sorted(names: set[str]) -> tuple[str, ...]:
    """Whole numbers by their size, else by the alphabet."""
    if all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _unseen(found: dict[str, set[str]], what: str) -> None:
    for split in ("val", "test"):
        if strangers := sorted(found[split] - found["train"]):
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            raise ValueError(f"the {split} split has {what} that no training row has: "
                             f"{', '.join(map(shorten, strangers[:3]))}{more}")  # fmt: skip


def _classes(cells: Sequence[str], splits: dict[str, NDArray[np.int64]]) -> Targets:
    found = {split: {cells[row] for row in splits[split]} for split in SPLITS}
    if len(found["train"]) < 2:
        raise ValueError(f"the training rows have one class only, {shorten(cells[splits['train'][0]])}: two are needed")
    _unseen(found, "classes")
    names = _sorted(found["train"])
    place = {name: number for number, name in enumerate(names)}
    return Targets(np.array([place[name] for name in cells], dtype=np.int64), names)


def _labels(cells: Sequence[set[str]], splits: dict[str, NDArray[np.int64]], columns: Sequence[str]) -> Targets:
    found = {split: {name for row in splits[split] for name in cells[row]} for split in SPLITS}
    _unseen(found, "labels")
    if not found["train"]:
        raise ValueError("no training row has a label: at least one is needed")
    names = tuple(columns) if len(columns) > 1 else _sorted(found["train"])
    values = np.zeros((len(cells), len(names)), dtype=np.uint8)
    place = {name: number for number, name in enumerate(names)}
    for row, labels in enumerate(cells):
        values[row, [place[name] for name in labels]] = 1
    return Targets(values, names)


def _numbers(cells: Sequence[list[float]], splits: dict[str, NDArray[np.int64]], columns: Sequence[str]) -> Targets:
    width = len(cells[0])
    for row, cell in enumerate(cells, 1):
        if len(cell) != width:
            raise ValueError(f"row {row} has {len(cell)} numbers to learn, row 1 has {width}: all need as many")
    for split in ("val", "test"):
        if len(splits[split]) < 2:
            raise ValueError(f"the {split} split has {len(splits[split])} row: r2 needs at least 2")
    values = np.array(cells, dtype=np.float64)
    mean, std = moments(values[splits["train"]])
    names = tuple(columns) if len(columns) == width else ()
    return Targets(values, names, mean, std)
