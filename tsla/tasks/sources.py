"""Where rows of a task may come from, and which of them are taken."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SOURCES = ("offline", "lra", "hub")


def split_limits(train_rows: int | None, eval_rows: int | None) -> dict[str, int | None]:
    """How many rows each split has at most; None takes all.

    Raises:
        ValueError: a number below 1.
    """
    for name, rows in (("train_rows", train_rows), ("eval_rows", eval_rows)):
        if rows is not None and rows < 1:
            raise ValueError(f"{name} ({rows}) must be at least 1, or None for all")
    return {"train": train_rows, "val": eval_rows, "test": eval_rows}


def stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of each of a user's files, for the key of what is made of them."""
    found = {str(file.resolve()): file.stat() for file in files}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in found.items()}


def check_source(source: str, path: object, *, seed: int) -> None:
    """Raise ValueError unless the options that such tasks share go together."""
    if source not in SOURCES:
        raise ValueError(f"source ({source!r}) must be one of {', '.join(SOURCES)}")
    if (path is None) == (source == "lra"):
        raise ValueError(f"path ({path}) must be given for source=lra, and for no other: source is {source}")
    if seed < 0:
        raise ValueError(f"seed ({seed}) must be at least 0")


def first_rows(count: int, limit: int | None, *seed: int) -> NDArray[np.int64]:
    """The first `limit` of `count` rows in an order that `seed` fixes, so that fewer are always among more."""
    return np.random.default_rng(seed).permutation(count)[:limit]
