"""Dumps of Long Range Arena in the forms of others, some dozens of rows each."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNTS = {"train": 30, "val": 6, "test": 8}
LINES = dict(zip(COUNTS, ("train", "valid", "test"), strict=True))
PICKLES = dict(zip(COUNTS, ("train", "dev", "test"), strict=True))

Arrays = Mapping[str, tuple[NDArray[Any], ...]]


def images_of(size: int = 32, classes: int = 2, seed: int = 0) -> dict[str, tuple[NDArray[Any], ...]]:
    """Pixels and classes of each split."""
    random = np.random.default_rng(seed)
    return {split: (random.integers(0, 256, (n, size * size)), random.permutation(np.arange(n) % classes))
            for split, n in COUNTS.items()}  # fmt: skip


def write_lines(splits: Arrays, folder: Path = Path("own"), *, flat: bool = False, end: str = "\n") -> None:
    """Mega's files, in two folders or in one."""
    for split, (rows, labels) in splits.items():
        for kind, inner, lines in (("src", "input", rows), ("label", "label", labels[:, None])):
            file = folder / ("" if flat else inner) / f"{LINES[split]}.{kind}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(" ".join(map(str, row)) + end for row in lines), newline="")


def write_pickles(
    stem: str, splits: Arrays, *, label: Callable[[Any], Any] = np.int64, protocol: int | None = None
) -> None:
    """Lists of dicts with arrays, as TensorFlow gives them; `splits` has the inputs, one or two, and the labels."""
    Path("own").mkdir(exist_ok=True)
    for split, (*inputs, labels) in splits.items():
        rows = [
            {**{f"input_ids_{place}": row.astype(np.int32) for place, row in enumerate(own)}, "label": label(answer)}
            for *own, answer in zip(*inputs, labels, strict=True)
        ]
        Path("own", f"{stem}.{PICKLES[split]}.pickle").write_bytes(pickle.dumps(rows, protocol=protocol))
