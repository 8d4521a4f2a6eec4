"""ListOps rows for tests."""

from pathlib import Path

import pytest

from tsla.tasks import listops
from tsla.tasks.listops import ListOps, evaluate
from tsla.tasks.listops_grammar import TOKENS


def ids(text: str) -> bytes:
    return bytes(TOKENS.index(token) for token in text.split())


def task(folder: Path, **changes: object) -> ListOps:
    """A small set of short rows, with changes."""
    settings = {"name": "listops_short", "min_length": 20, "max_length": 100, "train_rows": 300, "eval_rows": 20}
    return ListOps(**(settings | {"cache_dir": folder} | changes))  # type: ignore[arg-type]


def rows(source: ListOps, split: str) -> list[tuple[bytes, int]]:
    data = source.split(split)
    return [(bytes(row["input_ids"]), row["label"]) for row in data]


def expressions(*texts: str) -> list[tuple[bytes, int]]:
    return [(ids(text), evaluate(ids(text))) for text in texts]


def binary(tokens: bytes) -> str:
    """A row as the release writes it: every node a pair, `( ( ( [MAX 4 ) 7 ) ] )`."""

    def node(at: int) -> tuple[str, int]:
        text, at = TOKENS[tokens[at]], at + 1
        if text.isdigit():
            return text, at
        while TOKENS[tokens[at]] != "]":
            argument, at = node(at)
            text = f"( {text} {argument} )"
        return f"( {text} ] )", at + 1

    return node(0)[0]


FILES = {
    "train": expressions("[MAX 4 7 ]", "[MIN [SM 4 5 6 ] 9 ]", "[MED 1 2 ]", "[MAX 4 7 ]"),
    "val": expressions("[SM 9 9 ]"),
    "test": expressions("[MIN 3 [MAX 0 1 2 [MED 3 4 5 ] ] ]", "[SM 1 1 ]"),
}


def write_files(folder: Path, splits: dict[str, list[tuple[bytes, int]]]) -> Path:
    """The three files of the release."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        lines = ["Source\tTarget", *(f"{binary(tokens)}\t{label}" for tokens, label in split)]
        (folder / f"basic_{name}.tsv").write_bytes("".join(line + "\r\n" for line in lines).encode())
    return folder


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of what is published are those of `FILES`."""
    monkeypatch.setattr(listops, "ALL", {split: len(rows) for split, rows in FILES.items()})
