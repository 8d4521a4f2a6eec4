"""Series: the archive's rows in three splits, standardised by the training rows, from a package or a user's files."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_files import write_series, write_ts

from tsla.config.tasks import SERIES
from tsla.tasks import series
from tsla.tasks.base import SPLITS, Task
from tsla.tasks.loading import Rows
from tsla.tasks.packages import Unavailable
from tsla.tasks.series import DATASETS, Series
from tsla.tasks.ts_files import read_ts


@pytest.fixture
def tiny(tmp_path):
    return write_series(tmp_path / "tiny")


def made(path, tmp_path, **options) -> Series:
    return Series(path=path, cache_dir=tmp_path / "cache", **options)


def rows(task, split):
    return [(tuple(row["values"]), row["label"]) for row in task.split(split)]


def test_the_task(tiny, tmp_path):
    task: Task = made(tiny.parent, tmp_path)
    train, test = read_ts(tiny), read_ts(tiny.with_name("tiny_TEST.ts"))
    assert [len(task.split(name)) for name in SPLITS] == [16, 4, 10]
    given = [(tuple(x.ravel().tolist()), y) for x, y in zip(train.series, train.labels.tolist(), strict=True)]
    assert sorted(rows(task, "train") + rows(task, "val")) == sorted(given)
    assert rows(task, "test") == [(tuple(x.ravel()), y) for x, y in zip(test.series, test.labels, strict=True)]
    for seed in range(5):
        assert made(tiny, tmp_path, seed=seed).manifest["labels"]["val"] == [2, 2]  # the classes in proportion
    spec = task.spec
    assert (spec.name, spec.inputs, spec.target, spec.channels, spec.vocab_size) == (
        "series",
        "series",
        "class",
        2,
        None,
    )
    assert spec.names == ("a", "b") and spec.outputs == 2
    assert spec.max_length == max(map(len, [*train.series, *test.series]))


def test_training_rows_have_mean_0_and_deviation_1(tiny, tmp_path):
    task = made(tiny, tmp_path)
    batch = Rows(task.split("train"), task.spec).__getitems__(list(range(16)))
    steps = batch.inputs[batch.mask].numpy()
    assert batch.inputs.shape[::2] == (16, 2) and len({int(n) for n in batch.mask.sum(1)}) > 1
    np.testing.assert_allclose(steps.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(steps.std(0), 1, atol=1e-6)


def test_a_channel_that_never_changes(tmp_path):
    for part in ("TRAIN", "TEST"):
        write_ts(tmp_path / f"x_{part}.ts", [f"{n},{-n}:3,3:{'ab'[n % 2]}" for n in range(6)])
    task = made(tmp_path, tmp_path)
    assert task.spec.input_std[1] == 1 and task.spec.input_mean[1] == 3
    assert np.isfinite(Rows(task.split("test"), task.spec)[0].inputs.numpy()).all()


def test_references_are_what_they_say(tmp_path):
    """Rows of one length, so that nothing is stretched; the nearest one by a loop."""
    random = np.random.default_rng(0)
    for part, count in (("TRAIN", 30), ("TEST", 12)):
        texts = [
            ",".join(map(str, random.normal(row % 2, 1, 5).round(3))) + f":{'ab'[row % 2]}" for row in range(count)
        ]
        write_ts(tmp_path / f"x_{part}.ts", texts)
    task = made(tmp_path, tmp_path)
    train, test = rows(task, "train"), rows(task, "test")
    nearest = [min(train, key=lambda row, at=values: np.square(np.subtract(row[0], at)).sum())[1] for values, _ in test]
    lines = task.references()
    assert lines["nearest"] == np.mean([found == label for found, (_, label) in zip(nearest, test, strict=True)])
    assert lines["majority"] == 0.5 <= min(lines.values()) and set(lines) == {"majority", "nearest", "linear"}
    assert list(lines.values()) == sorted(lines.values())


def test_rows_of_other_lengths_are_stretched():
    assert series._stretched(np.array([[0.0, 9], [2, 7]]), 5).tolist() == [0, 0.5, 1, 1.5, 2, 9, 8.5, 8, 7.5, 7]


def test_one_class_is_not_classified(tmp_path):
    for part in ("TRAIN", "TEST"):
        write_ts(tmp_path / f"x_{part}.ts", ["1,2:a", "2,1:a", "0,0:a"])
    assert made(tmp_path, tmp_path).references() == {"majority": 1.0, "nearest": 1.0}


def test_fewer_rows(tiny, tmp_path):
    whole, few = made(tiny, tmp_path), made(tiny, tmp_path, train_rows=5, eval_rows=3)
    assert [len(few.split(name)) for name in SPLITS] == [5, 3, 3]
    for split in SPLITS:
        assert set(rows(few, split)) < set(rows(whole, split))
    assert set(rows(few, "train")) < set(rows(made(tiny, tmp_path, train_rows=6), "train"))
    assert rows(made(tiny, tmp_path, train_rows=500), "train") == rows(whole, "train")
    assert whole.spec.input_mean != few.spec.input_mean


def test_seed_and_fraction_choose_the_validation_rows(tiny, tmp_path):
    first = made(tiny, tmp_path)
    assert rows(first, "val") != rows(made(tiny, tmp_path, seed=1), "val")
    assert len(made(tiny, tmp_path, val_fraction=0.5).split("val")) == 10
    assert rows(first, "test") == rows(made(tiny, tmp_path, seed=1), "test")


def test_files_that_change_are_read_anew(tiny, tmp_path):
    before = made(tiny, tmp_path)
    assert before.fingerprint == made(tiny, tmp_path).fingerprint
    tiny.write_text(tiny.read_text() + "1,2:3,4:a\n")
    after = made(tiny, tmp_path)
    assert after.fingerprint != before.fingerprint
    assert len(after.split("train")) + len(after.split("val")) == 21


def test_classes_in_another_order(tmp_path):
    write_ts(tmp_path / "x_TRAIN.ts", ["1,2:a", "1,3:b", "1,4:c", "1,5:a"], classes="abc")
    write_ts(tmp_path / "x_TEST.ts", ["1,2:a", "1,3:b", "1,4:c"], classes="cab")
    assert [label for _, label in rows(made(tmp_path, tmp_path), "test")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [(["1:a"], "ac", "both files must list the same classes, got a, b and a, c"),
     (["1:2:a"], "ab", "both files must have the same channels, got 1 and 2")],
)  # fmt: skip
def test_files_that_are_no_pair(tmp_path, rows, classes, message):
    write_ts(tmp_path / "x_TRAIN.ts", ["1:a", "2:b"])
    write_ts(tmp_path / "x_TEST.ts", rows, classes=classes)
    with pytest.raises(ValueError, match=message):
        made(tmp_path, tmp_path).split("train")


def test_where_files_must_lie(tiny, tmp_path):
    write_series(tiny.parent, "other")
    assert len(made(tiny, tmp_path).split("test")) == 10
    wrong = {tiny.parent: ", got other_TRAIN.ts, tiny_TRAIN.ts", tiny.with_name("tiny_TEST.ts"): "", tmp_path: ", got "}
    shutil.copy(tiny, tmp_path / "alone_TRAIN.ts")
    wrong[tmp_path / "alone_TRAIN.ts"] = ""
    for path, told in wrong.items():
        said = f"path ({path}) must be a folder with one pair of NAME_TRAIN.ts and NAME_TEST.ts, or the first of a pair"
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(said + told)}"):
            made(path, tmp_path)


def test_the_package_is_asked_for_the_pair(tiny, tmp_path, monkeypatch):
    asked = []

    def package_file(package, member, cache_dir):
        asked.append((package.name, member, cache_dir))
        return tiny.with_name("tiny" + member[member.rindex("_") :])

    monkeypatch.setattr(series, "package_file", package_file)
    task = Series(dataset="GunPoint", cache_dir=tmp_path)
    assert not asked  # before it is used
    assert len(task.split("test")) == 10 and task.fingerprint is None
    stem = "aeon/datasets/data/GunPoint/GunPoint"
    assert asked == [("aeon", f"{stem}_TRAIN.ts", tmp_path), ("aeon", f"{stem}_TEST.ts", tmp_path)]
    assert Series(dataset="OSULeaf", cache_dir=tmp_path).folder != task.folder


def test_no_package_names_the_alternative(tmp_path, monkeypatch):
    def package_file(*_):
        raise Unavailable("aeon 1.6.0 could not be fetched: no index")

    monkeypatch.setattr(series, "package_file", package_file)
    with pytest.raises(Unavailable, match=r"no index; or give task\.path, a folder with a pair of \.ts files"):
        Series(cache_dir=tmp_path).split("train")
    assert not [path for path in Path(tmp_path).rglob("*") if path.suffix == ".arrow"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "GunPoints"}, "dataset ('GunPoints') must be one of ACSF1, ArrowHead"),
        ({"val_fraction": 0}, "val_fraction (0) must be above 0 and below 1"),
        ({"val_fraction": 1.0}, "val_fraction (1.0) must be above 0"),
        ({"train_rows": 0}, "train_rows (0) must be at least 1, or None for all"),
        ({"eval_rows": -1}, "eval_rows (-1) must be at least 1"),
    ],
)
def test_what_cannot_be_made(change, message):
    with pytest.raises(ValueError) as caught:
        Series(**change)
    assert message in str(caught.value)


def test_the_options_name_the_data_sets():
    assert SERIES == DATASETS
