"""Digits: the splits, their tokens, and the reference lines."""

import itertools

import numpy as np
import pytest
from datasets import List, Value
from sklearn.datasets import load_digits

from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.digits import Digits
from tsla.tasks.loading import Rows

SIZES = {"train": 1257, "val": 180, "test": 360}


def rows(task: Digits, split: str) -> list[tuple[bytes, int]]:
    return [(bytes(row["input_ids"]), row["label"]) for row in task.split(split)]


def test_splits_share_out_the_images_once():
    pixels, labels = load_digits(return_X_y=True)
    images = sorted(
        (bytes(image.astype(np.uint8) + 1), int(label)) for image, label in zip(pixels, labels, strict=True)
    )
    found = {split: rows(Digits(), split) for split in SPLITS}
    assert {split: len(part) for split, part in found.items()} == SIZES
    assert sorted(itertools.chain.from_iterable(found.values())) == images


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_stratified(split):
    share = np.bincount(load_digits(return_X_y=True)[1]) / 1797
    counts = np.bincount([label for _, label in rows(Digits(seed=3), split)])
    assert np.abs(counts - share * SIZES[split]).max() <= 1.5


def test_the_seed_decides():
    assert rows(Digits(seed=0), "test") == rows(Digits(), "test")
    assert rows(Digits(seed=0), "test") != rows(Digits(seed=1), "test")


def test_spec_fits_the_rows():
    task = Digits()
    assert task.spec == TaskSpec("digits", "tokens", "class", 10, 64, 18, image=(8, 8))
    for split in SPLITS:
        data = task.split(split)
        assert data.features == {"input_ids": List(Value("uint8")), "label": Value("int64")}
        loaded = Rows(data, task.spec)
        (values,) = loaded.inputs[0].pieces
        assert set(loaded.lengths) == {64} and values.min() == 1 and values.max() == 17
        assert set(loaded.targets) == set(range(10))


def test_unknown_split():
    with pytest.raises(ValueError, match=r"split \('dev'\) must be one of train, val, test"):
        Digits().split("dev")


def test_references():
    lines = Digits().references()
    test = [label for _, label in rows(Digits(), "test")]
    train = [label for _, label in rows(Digits(), "train")]
    commonest = max(range(10), key=train.count)
    assert lines["majority"] == test.count(commonest) / 360
    assert list(lines) == ["majority", "linear", "3-NN"] and list(lines.values()) == sorted(lines.values())
    assert 0.90 < lines["linear"] < 0.96 and 0.97 < lines["3-NN"] < 1
