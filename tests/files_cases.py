"""Rows of somebody's own data, the files they may stand in, and what the task `files` makes of them."""

import csv
import json
from pathlib import Path

import numpy as np

from tsla.tasks.base import SPLITS
from tsla.tasks.encoding import decode
from tsla.tasks.files import Files

TEXTS = [f'text {i}, with a "quote"\nand a line é' for i in range(40)]
CLASSES = ["nan", "NA", "007", "=1+1"]
ROWS = [{"text": text, "label": CLASSES[i % 4], "lang": "de" if i % 3 else "fr"} for i, text in enumerate(TEXTS)]


def write_csv(rows, name="data.csv", *, delimiter=",", ends="\r\n") -> str:
    with Path(name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=ends)
        writer.writeheader()
        writer.writerows(rows)
    return name


def write_json(rows, name="data.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def write_texts(folder, rows) -> str:
    for number, row in enumerate(rows):
        path = Path(folder, row["label"], f"{number:03}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["text"].encode())
    return str(folder)


def task(path, **options) -> Files:
    return Files(path=str(path), cache_dir="cache", **options)


def held(made: Files, split: str) -> list[tuple]:
    """The rows of a split as they were given: input, and class name or target."""
    spec, data = made.spec, made.split(split)
    found = []
    for row in data:
        values = np.array(row["input_ids"] if "input_ids" in row else row["values"])
        values = values if spec.channels is None else values.reshape(-1, spec.channels)
        found.append((decode(spec, values), spec.names[row["label"]] if spec.target == "class" else row["label"]))
    return found


def everything(made: Files) -> list[tuple]:
    return [row for split in SPLITS for row in held(made, split)]


def given(rows=ROWS) -> list[tuple]:
    return [(row["text"], row["label"]) for row in rows]


def tiny(**options) -> dict:
    return {"val_fraction": 0.25, "test_fraction": 0.25, **options}
