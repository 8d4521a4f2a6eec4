"""Rows of a task on disk: one Arrow file for each split, and `manifest.json`, which people can read."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray

from tsla.tasks.base import SPLITS

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
PART = 10_000  # rows of a record batch at most
MANIFEST = "manifest.json"


Columns = Mapping[str, list[NDArray[Any]] | NDArray[Any]]


def ragged(rows: list[NDArray[Any]]) -> pa.ListArray:
    """Rows of any lengths, of 2^31 numbers together at most, as one column of lists."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(rows))


def save_split(folder: Path, name: str, parts: Iterable[Columns]) -> None:
    """Write the rows of a split, part after part, of which only one is in memory.

    A column of a part is a list of arrays, one for each row, or an array ``(rows,)`` of one number for each. All parts
    have the same columns and types, and there is at least one.
    """
    writer = None
    with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as file:
        for columns in parts:
            for batch in _cut(columns):
                writer = writer or pa.ipc.new_stream(file, batch.schema)
                writer.write_batch(batch)
        assert writer is not None
        writer.close()


def _cut(columns: Columns) -> Iterator[pa.RecordBatch]:
    for at in range(0, len(next(iter(columns.values()))), PART):
        part = slice(at, at + PART)
        yield pa.record_batch({
            name: ragged(values[part]) if isinstance(values, list) else pa.array(values[part])
            for name, values in columns.items()
        })  # fmt: skip


def load_split(folder: Path, name: str) -> Dataset:
    """A split that `save_split` wrote, mapped into memory.

    Raises:
        ValueError: another name, or a damaged file.
    """
    if name not in SPLITS:
        raise ValueError(f"split ({name!r}) must be one of {', '.join(SPLITS)}")
    file = folder / f"{name}.arrow"
    try:
        data = Dataset.from_file(str(file))
        data.data.validate(full=True)  # of bounds of rows alone; Arrow trusts them and would read behind the file
    except Exception as error:  # a damaged file can raise anything
        raise _damaged(file, error) from None
    return data


def describe(lengths: Mapping[str, NDArray[Any]], labels: Mapping[str, NDArray[Any]], classes: int) -> dict[str, Any]:
    """Of each split its rows and how often each label occurs, and lengths over all of them, as plain data."""
    found = np.concatenate([np.asarray(values) for values in lengths.values()])
    return {
        "rows": {split: len(values) for split, values in lengths.items()},
        "labels": {split: np.bincount(values, minlength=classes).tolist() for split, values in labels.items()},
        "length": {
            "min": int(found.min()),
            "max": int(found.max()),
            "mean": round(float(found.mean()), 2),
            "sd": round(float(found.std()), 2),
            "percentiles": dict(zip(map(str, PERCENTILES), np.percentile(found, PERCENTILES).tolist(), strict=True)),
        },
    }


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Facts of a build, for people and for `read_manifest`."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote; ValueError if it is damaged."""
    file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from None
    return manifest


def _damaged(file: Path, error: Exception) -> ValueError:
    told = " ".join(str(error).split())
    return ValueError(f"{file} is damaged ({told}): remove {file.parent}, and its rows are made anew")
