"""A first look at data of which nothing is known yet: its columns, and which of them to learn from."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tsla.tasks import tables
from tsla.tasks.encoding import shorten

SAMPLE = 1000  # rows that are looked at
INPUTS = ("text", "input", "inputs", "input_ids", "tokens", "sequence", "values", "series", "signal", "sentence",
          "review", "document", "content", "body")  # fmt: skip
LABELS = ("label", "labels", "class", "target", "category", "sentiment", "score", "rating", "y")
SPLITS = ("split", "fold", "subset", "partition", "set")


class Guess(NamedTuple):
    """What a source holds, to show, and what suits it.

    parts: its rows, and a table of its columns.  columns: their names.
    options: of the task `files`, those left out whose default fits; None if no two columns make a pair.
    """

    parts: list[RenderableType]
    columns: list[str]
    options: dict[str, object] | None


def guess(path: Path | str) -> Guess:
    """The columns of a file, folder or data set on the Hub, what they hold, and the options that suit them.

    Raises:
        ValueError, FileNotFoundError: as `tsla.tasks.tables.read`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found = tables.read(str(path), scratch=Path(scratch))
        columns = next(iter(found.values()))
        cells = {name: tables.column(columns, name, "column", str(path)) for name in columns}
        rows = {split: tables.rows(part) for split, part in found.items()}
    kinds = {name: kind_of(values[:SAMPLE]) for name, values in cells.items()}
    table = Table(box=None, pad_edge=False)
    for heading in ("column", "holds", "different", "first"):
        table.add_column(heading)
    for name, values in cells.items():
        sample = [str(value) for value in values[:SAMPLE]]
        first = values[0].decode() if kinds[name] == "texts" and isinstance(values[0], bytes) else values[0]
        table.add_row(Text(repr(name)), kinds[name], f"{len(set(sample))} of {len(sample)}", Text(shorten(first)))
    told = ", ".join(f"{split} {count:,} rows" if split else f"{count:,} rows" for split, count in rows.items())
    return Guess([Text(f"{path}: {told}"), "", table], list(cells), suggest(cells, splits=list(found) != [""]))


def suggest(cells: dict[str, list[Any]], *, splits: bool) -> dict[str, object] | None:
    """Options of the task `files` for these columns, those left out whose default fits; None if there is no pair."""
    kinds = {name: kind_of(values[:SAMPLE]) for name, values in cells.items()}
    split = next((name for name in cells if name.lower() in SPLITS and _splits(cells[name])), None)
    left = [name for name in cells if name != split]
    source = _input(left, kinds, cells)
    left = [name for name in left if name != source]
    label = _label(left, cells)
    if source is None or label is None:
        return None
    made: dict[str, object] = {"input": source, "label": [label], "kind": _KINDS.get(kinds[source], "bytes"),
            "target": _target(kinds[label], cells[label])}  # fmt: skip
    if splits or split:
        made["split"] = "column"
    if split not in (None, "split"):
        made["split_column"] = split
    defaults = {"input": "text", "label": ["label"], "kind": "bytes", "target": "class"}
    return {key: value for key, value in made.items() if defaults.get(key) != value}


_KINDS = {"lists of whole numbers": "tokens", "whole numbers in a text": "tokens", "lists of numbers": "series",
          "numbers in a text": "series", "lists of lists": "series"}  # fmt: skip


def kind_of(values: list[Any]) -> str:
    """What the cells of a column are, in a few words."""
    values = [value for value in values if value is not None and (not isinstance(value, str) or value.strip())]
    if not values:
        return "nothing"
    kinds = {type(value) for value in values}
    if kinds <= {bool}:
        return "true or false"
    if kinds <= {int, bool}:
        return "whole numbers"
    if kinds <= {int, float}:
        return "numbers"
    if all(isinstance(value, list | np.ndarray) for value in values):
        return _kind_of_lists(values)
    if kinds <= {str}:
        return _kind_of_texts(values)
    if kinds <= {bytes}:
        return "texts" if all(map(_is_text, values)) else "bytes"
    return "a mix" if len(kinds) > 1 else kinds.pop().__name__


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _kind_of_lists(values: list[Any]) -> str:
    items = [item for value in values[:100] for item in list(value)[:100]]
    if all(isinstance(item, list | np.ndarray) for item in items):
        return "lists of lists"
    if all(isinstance(item, int | np.integer) for item in items):
        return "lists of whole numbers"
    return "lists of numbers" if all(isinstance(item, int | float | np.number) for item in items) else "lists of texts"


def _kind_of_texts(values: list[str]) -> str:
    pieces = [value.replace(",", " ").replace(";", " ").strip(" []").split()[:200] for value in values[:100]]
    several = any(len(piece) > 1 for piece in pieces)
    for kind, one, many in ((int, "whole numbers", "whole numbers in a text"), (float, "numbers", "numbers in a text")):
        try:
            for piece in pieces:
                for number in piece:
                    kind(number)
        except ValueError:
            continue
        return many if several else one
    return "texts"


def _input(names: list[str], kinds: dict[str, str], cells: dict[str, list[Any]]) -> str | None:
    """The column with a usual name, or else the one with most in its cells."""
    fitting = [name for name in names if kinds[name] in {"texts", "bytes", *_KINDS}]
    for usual in INPUTS:
        if found := [name for name in fitting if name.lower() == usual]:
            return found[0]
    return max(fitting, key=lambda name: sum(map(_size, cells[name][:SAMPLE])), default=None)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | np.ndarray) else 0


def _label(names: list[str], cells: dict[str, list[Any]]) -> str | None:
    """The column with a usual name, or else the one with fewest different values, of more than one."""
    for usual in LABELS:
        if found := [name for name in names if name.lower() == usual]:
            return found[0]
    counts = {name: len({str(value) for value in cells[name][:SAMPLE]}) for name in names}
    return min((name for name in names if counts[name] > 1), key=lambda name: counts[name], default=None)


def _target(kind: str, cells: list[Any]) -> str:
    sample = [str(cell) for cell in cells[:SAMPLE]]
    if kind.startswith("lists of") or (kind == "texts" and sum(";" in cell for cell in sample) > len(sample) // 10):
        return "labels"
    many = len(set(sample)) > max(20, len(sample) // 20)
    return "numbers" if kind == "numbers" or (kind == "whole numbers" and many) else "class"


def _splits(cells: list[Any]) -> bool:
    return all(isinstance(cell, str) and cell.strip().lower() in tables.SPLIT_NAMES for cell in cells)
