"""ListOps rows for tests."""

from pathlib import Path

from tsla.tasks.listops import ListOps, evaluate
from tsla.tasks.listops_grammar import TOKENS


def ids(text: str) -> bytes:
    return bytes(TOKENS.index(token) for token in text.split())


def task(folder: Path, **changes: object) -> ListOps:
    """A small set of short rows, with changes."""
    rows = {"train_rows": 300, "val_rows": 20, "test_rows": 50}
    settings = {"name": "short", "min_length": 20, "max_length": 100, **rows, "cache_dir": folder}
    return ListOps(**(settings | changes))  # type: ignore[arg-type]


def rows(source: ListOps, split: str) -> list[tuple[bytes, int]]:
    data = source.split(split)
    return [(bytes(row["input_ids"]), row["label"]) for row in data]


def expressions(*texts: str) -> list[tuple[bytes, int]]:
    return [(ids(text), evaluate(ids(text))) for text in texts]
