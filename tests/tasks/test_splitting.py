"""Splits of your own data: drawn, by column, by file, or as the data has them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from files_cases import ROWS, everything, given, held, task, tiny, write_csv, write_json, write_texts

from tsla.tasks.base import SPLITS


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_drawn_splits_are_complete_disjoint_and_stratified():
    rows = [{"text": f"{i}", "label": "abbbcccccc"[i % 10]} for i in range(500)]
    made = task(write_csv(rows), val_fraction=0.1, test_fraction=0.2)
    assert sorted(everything(made)) == sorted(given(rows))
    for split, size in {"train": 350, "val": 50, "test": 100}.items():
        found = Counter(name for _, name in held(made, split))
        assert sum(found.values()) == size
        assert all(abs(found[name] - share * size) <= 2 for name, share in {"a": 0.1, "b": 0.3, "c": 0.6}.items())
    assert made.references() == {"majority": 0.6}
    texts = [text for text, _ in held(made, "test")]
    assert texts == [text for text, _ in held(task("data.csv", val_fraction=0.1, test_fraction=0.2), "test")]
    assert texts != [text for text, _ in held(task("data.csv", val_fraction=0.1, test_fraction=0.2, seed=1), "test")]
    assert np.diff([int(text) for text in texts]).max() < 40, "not one stretch of the file"


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_trained_on(seed):
    rows = [{"text": f"{i}", "label": "rare" if i == 7 else "ab"[i % 2]} for i in range(30)]
    assert "rare" in {name for _, name in held(task(write_csv(rows), seed=seed, **tiny()), "train")}


def test_splits_by_column():
    words = ["train", "Training", "validation", "dev", "val", "test", " test "]
    rows = [{**row, "part": words[i % 7]} for i, row in enumerate(ROWS)]
    made = task(write_csv(rows), split="column", split_column="part")
    for split, known in {"train": {0, 1}, "val": {2, 3, 4}, "test": {5, 6}}.items():
        assert held(made, split) == [pair for i, pair in enumerate(given()) if i % 7 in known]


def test_what_no_column_names_is_drawn_from_the_training_rows():
    rows = [{**row, "split": "test" if i >= 20 else "train"} for i, row in enumerate(ROWS)]
    made = task(write_csv(rows), split="column", val_fraction=0.2)
    assert held(made, "test") == given(ROWS[20:])
    assert len(held(made, "val")) == 4 and sorted(held(made, "train") + held(made, "val")) == sorted(given(ROWS[:20]))


def test_splits_by_file():
    for name, part in {"a.csv": ROWS[:20], "b.jsonl": ROWS[20:28], "c.csv": ROWS[28:]}.items():
        (write_json if name.endswith("l") else write_csv)(part, name)
    made = task("a.csv", split="file", val_path="b.jsonl", test_path="c.csv")
    assert {split: held(made, split) for split in SPLITS} == {
        "train": given(ROWS[:20]), "val": given(ROWS[20:28]), "test": given(ROWS[28:]),
    }  # fmt: skip
    made = task("a.csv", split="file", test_path="c.csv", val_fraction=0.2)
    assert len(held(made, "val")) == 4 and held(made, "test") == given(ROWS[28:])


@pytest.mark.parametrize("kind", ["texts", "files", "data set"])
def test_splits_that_the_data_has(kind):
    parts = {"train": ROWS[:20], "validation": ROWS[20:28], "test": ROWS[28:]}
    match kind:
        case "texts":
            for name, part in parts.items():
                write_texts(f"all/{name}", part)
        case "files":
            Path("all").mkdir()
            for name, part in parts.items():
                write_csv(part, f"all/{name}.csv")
        case _:
            more = {"unsupervised": Dataset.from_list([{"text": "x", "label": "?", "lang": "de"}])}
            DatasetDict({name: Dataset.from_list(p) for name, p in parts.items()} | more).save_to_disk("all")
    made = task("all", split="column")
    for name, part in parts.items():
        assert sorted(held(made, name[:3] if name == "validation" else name)) == sorted(given(part))
    with pytest.raises(ValueError, match=r"all has the splits .* already: take them by split=column"):
        task("all").folder  # noqa: B018


def test_duplicates_across_splits_are_counted():
    rows = [{"text": str(i % 9), "label": i % 2, "split": ["train", "val", "test"][i // 9]} for i in range(27)]
    assert set(task(write_csv(rows), split="column").manifest["duplicates"].values()) == {9}
    assert set(task(write_csv(ROWS)).manifest["duplicates"].values()) == {0}
