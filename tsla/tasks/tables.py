"""Files of other people as columns: CSV, JSONL, Parquet, texts in folders, saved data sets and those of the Hub.

CSV and JSONL are read here and not by `datasets` 5, whose readers guess types: a class called ``nan`` or ``NA`` is
lost to them, ``001`` turns into 1, a text like ``2020-01-01`` into a time, and brackets in a path into a pattern.
"""

import csv
import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test",
}  # fmt: skip
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

Columns = dict[str, list[Any] | Any]  # a list, or Arrow's column until it is needed


def read(path: str, *, revision: str | None = None, scratch: Path) -> dict[str, Columns]:
    """The columns of a source, by split (``train``, ``val``, ``test``), or under ``""`` if it has no splits.

    Args:
        path: a file, a folder or the id of a data set on the Hub.
        revision: of that data set.
        scratch: an existing folder for what is downloaded; nothing else is written anywhere.

    Raises:
        ValueError: a file that breaks the rules of its kind, with the place, or a source that is neither of these.
        FileNotFoundError: no such path.
    """
    local = Path(path).expanduser()
    if not local.exists():
        return _from_hub(path, revision, scratch)
    if revision is not None:
        raise ValueError(f"revision ({revision!r}) belongs to a data set of the Hub, and {path} is on this disk")
    if local.is_file():
        return {"": read_file(local)}
    if (local / "dataset_dict.json").is_file() or (local / "dataset_info.json").is_file():
        return _splits(load_from_disk(str(local)))
    files = _data_files(local)
    if files:
        return {split: read_file(file) for split, file in files.items()}
    return _text_folders(local)


def sources(path: str) -> dict[str, list[int]]:
    """Size and time of change of every file that `read` would look at; nothing for what is not on this disk."""
    local = Path(os.path.realpath(Path(path).expanduser()))
    levels = ("*", "*/*", "*/*/*")  # and not rglob, which leaves out what is behind a link to a folder
    found = [file for level in levels for file in local.glob(level) if file.is_file()]
    stats = {str(file): file.stat() for file in ([local] if local.is_file() else sorted(found))}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def read_file(path: Path) -> Columns:
    """The columns of one file, by its ending.

    Raises:
        ValueError: a broken or foreign file, with the place.
        OSError: no such file, or no access to it.
    """
    match path.suffix.lower():
        case ".csv":
            return _csv(path, ",")
        case ".tsv":
            return _csv(path, "\t")
        case ".jsonl" | ".ndjson" | ".json":
            return _json(path)
        case ".parquet":
            try:
                return _from_dataset(Dataset(pq.read_table(path, partitioning=None)))
            except pa.ArrowException as error:
                raise ValueError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
        case ending:
            raise ValueError(f"{path} ends in {ending!r}, which must be one of {', '.join(ENDINGS)}")


def column(columns: Columns, name: str, option: str, place: str) -> list[Any]:
    """The cells of a column, as plain values or arrays.

    Raises:
        ValueError: no such column, with those there are.
    """
    if name not in columns:
        raise ValueError(f"{option} ({name!r}) must be a column of {place}{nearest(name, columns)}; "
                         f"it has {', '.join(map(repr, columns))}")  # fmt: skip
    found = columns[name]
    return found if isinstance(found, list) else _cells(found)


def rows(columns: Columns) -> int:
    """How many rows there are."""
    return max(map(len, columns.values()), default=0)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name nearest to a wrong one, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]!r}?)" if found else ""


def read_text(path: Path) -> str:
    """A file of UTF-8 text, with its line ends as they are and without a byte-order mark.

    Raises:
        ValueError: other bytes, with the place of the first.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at position {error.start}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, which end in LF or CRLF."""
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _csv(path: Path, delimiter: str) -> Columns:
    """Every cell is a text. Quoted cells may hold delimiters, line ends and anything else."""
    reader = csv.reader(_keep_line_ends(read_text(path)), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(2**31 - 1)  # a setting of the whole process, 131072 characters: too few for a book
    found: list[list[str]] = []
    places: list[int] = []
    try:
        for row in reader:
            found.append(row)
            places.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}: a cell with quotes, commas or line ends must "
                         "stand in quotes, with every quote in it doubled") from None  # fmt: skip
    finally:
        csv.field_size_limit(limit)
    while found and not found[-1]:
        found.pop()
    if not found:
        raise ValueError(f"{path} is empty: a line of column names is needed")
    header, *body = found
    _check_header(header, path)
    if len(header) == 1:  # there an empty line is an empty cell
        body = [row or [""] for row in body]
    for row, line in zip(body, places[1:], strict=False):
        if row and len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} cells, but there are {len(header)} columns")
    body = [row for row in body if row]
    if not body:
        raise ValueError(f"{path} has 0 rows after the line of column names")
    return {name: list(cells) for name, cells in zip(header, zip(*body, strict=True), strict=True)}


def _keep_line_ends(text: str) -> list[str]:
    """Lines with their ends. `str.splitlines` would also cut at form feeds and the like, within a cell."""
    return [line + "\n" for line in text.removesuffix("\n").split("\n")] if text else []


def _check_header(header: list[str], path: Path) -> None:
    for name in header:
        if not name.strip():
            raise ValueError(f"{path}, line 1: column {header.index(name) + 1} has no name")
        if header.count(name) > 1:
            raise ValueError(f"{path}, line 1: {header.count(name)} columns are called {name!r}")


def _json(path: Path) -> Columns:
    """An object on each line, or one list of objects. A key that some rows lack is None there."""
    text = read_text(path)
    if text.lstrip().startswith("["):
        found = _load_json(text, str(path))
        places = [f"{path}, item {number}" for number in range(1, len(found) + 1)]
    else:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [f"{path}, line {number}" for number, _ in lines]
        found = [_load_json(line, place) for (_, line), place in zip(lines, places, strict=True)]
    if not found:
        raise ValueError(f"{path} has 0 rows")
    for row, place in zip(found, places, strict=True):
        if not isinstance(row, dict):
            raise ValueError(f'{place}: must be an object such as {{"text": ...}}, got {type(row).__name__}')
    names = dict.fromkeys(name for row in found for name in row)
    return {name: [row.get(name) for row in found] for name in names}


def _load_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: no JSON: {error}") from None


def _data_files(folder: Path) -> dict[str, Path]:
    """Files called train, val or test with the ending of a table, by split."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in ENDINGS]
    found: dict[str, Path] = {}
    for file in files:
        split = SPLIT_NAMES.get(file.stem)
        if split is None:
            raise ValueError(f"{folder} holds {file.name}: tables in a folder must be called train, val or test; "
                             "or give one of them as path")  # fmt: skip
        if split in found:
            raise ValueError(f"{folder} holds two files for the {split} split: {found[split].name} and {file.name}")
        found[split] = file
    return found


def _text_folders(folder: Path) -> dict[str, Columns]:
    """Texts in folders by class, those perhaps in folders by split: the columns `text` (bytes) and `label`."""
    inner = _folders(folder)
    if not inner:
        raise ValueError(f"{folder} must hold a data set, files called train, val and test, or folders by class with "
                         ".txt files in them")  # fmt: skip
    if all(child.name in SPLIT_NAMES for child in inner):
        names = [SPLIT_NAMES[child.name] for child in inner]
        if len(set(names)) < len(names):
            raise ValueError(f"{folder} holds two folders for a split: {', '.join(child.name for child in inner)}")
        return {name: _texts(child) for name, child in zip(names, inner, strict=True)}
    return {"": _texts(folder)}


def _texts(folder: Path) -> Columns:
    texts: list[Any] = []
    labels: list[Any] = []
    for child in _folders(folder):
        files = sorted(file for file in child.glob("*.txt") if file.is_file())  # and no folder or link to nowhere
        if not files:
            raise ValueError(f"{child} holds no .txt files; every folder in {folder} must be a class")
        texts += [file.read_bytes().removeprefix(b"\xef\xbb\xbf") for file in files]
        labels += [child.name] * len(files)
    if not texts:
        raise ValueError(f"{folder} must hold folders by class with .txt files in them")
    return {"text": texts, "label": labels}


def _folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _from_hub(path: str, revision: str | None, scratch: Path) -> dict[str, Columns]:
    if not HUB_ID.fullmatch(path) or path.lower().endswith(ENDINGS) or os.sep * 2 in path:
        raise FileNotFoundError(f"path ({path}) does not exist")
    try:
        found = load_dataset(path, revision=revision, cache_dir=str(scratch))
    except Exception as error:  # of the Hub, the network or the data set: to the reader, it cannot be had
        told = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise ValueError(
            f"path ({path}) is not on this disk, and the Hub does not give it ({told}). Three ways out: a path to a "
            "CSV, JSONL or Parquet file or a folder of texts; a folder made elsewhere by "
            f"datasets.load_dataset({path!r}).save_to_disk(FOLDER); or the same command with a network"
        ) from None
    return _splits(found)


def _splits(data: Dataset | DatasetDict) -> dict[str, Columns]:
    """By split; parts of other names, such as unlabelled rows, are left out."""
    if isinstance(data, Dataset):
        return {"": _from_dataset(data)}
    found: dict[str, Columns] = {}
    for name, part in data.items():
        split = SPLIT_NAMES.get(str(name))
        if split in found:
            raise ValueError(f"the data set has two parts for the {split} split: {', '.join(map(str, data))}")
        if split is not None:
            found[split] = _from_dataset(part)
    if not found:
        raise ValueError(f"the data set has the parts {', '.join(map(str, data))}; one must be called train")
    return {"": found["train"]} if list(found) == ["train"] else found


def _from_dataset(data: Dataset) -> Columns:
    table = data.with_format("arrow")[:]
    columns: Columns = {name: table[name] for name in table.column_names}
    for name, feature in data.features.items():
        if isinstance(feature, ClassLabel):  # -1 is how data sets say that there is none
            columns[name] = [
                feature.int2str(value) if value is not None and value >= 0 else None
                for value in table[name].to_pylist()
            ]
    if not len(data):
        raise ValueError("the data set has 0 rows")
    return columns


def _cells(values: pa.ChunkedArray) -> list[Any]:
    """Plain values; lists of numbers as arrays, which take a tenth of the memory."""
    kind = values.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (listed and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))):
        return values.to_pylist()
    cells: list[Any] = []
    for chunk in values.chunks:
        flat = chunk.flatten()
        if chunk.null_count or flat.null_count:
            cells += chunk.to_pylist()
            continue
        ends = np.cumsum(chunk.value_lengths().to_numpy(zero_copy_only=False))
        cells += np.split(flat.to_numpy(zero_copy_only=False), ends)[:-1]
    return cells


def each(cells: Sequence[Any], make: Callable[[Any], Any], place: str) -> list[Any]:
    """`make` of every cell; an error names the row, counted from 1.

    Raises:
        ValueError: what `make` raised, after `place` and the row.
    """
    made = []
    for number, cell in enumerate(cells, 1):
        try:
            made.append(make(cell))
        except ValueError as error:
            raise ValueError(f"{place}, row {number}: {error}") from None
    return made
