"""Induction heads and selective copying: rows as defined, evenly drawn, the same for the same seed."""

import numpy as np
import pytest
from scipy.stats import chisquare

from tsla.tasks import recall
from tsla.tasks.base import IGNORE, Task
from tsla.tasks.recall import Induction, SelectiveCopy, draw_induction, draw_selective_copy

HEADS = {"train": ["16/60"], "val": ["16/7"], "test": ["16/9", "32/5"]}
COPIES = {"train": ["16/3/60"], "val": ["16/3/7"], "test": ["16/3/9", "32/2/5"]}
BOTH = pytest.mark.parametrize(("make", "small"), [(Induction, HEADS), (SelectiveCopy, COPIES)])


def even(values, low, high):
    return chisquare(np.bincount(np.ravel(values) - low, minlength=high - low)).pvalue > 1e-4


def test_what_followed_the_special_token_is_the_target_where_it_comes_again():
    tokens, targets, slices = draw_induction(12, 5000, 6, np.random.default_rng(0))
    for row, target, gap in zip(tokens, targets, slices["gap"], strict=True):
        (places,) = (row == 5).nonzero()
        assert len(places) == 2 and places[1] == 11 and places[1] - places[0] - 1 == gap
        assert target.tolist() == [IGNORE] * 11 + [row[places[0] + 1]]
        assert ((row >= 0) & (row < 6)).all() and row[places[0] + 1] != 5
    assert even((tokens == 5)[:, :10].argmax(1), 0, 10)
    assert even(tokens[tokens != 5], 0, 5) and even(targets[:, -1], 0, 5)


def test_the_tokens_among_noise_are_the_targets_in_their_order():
    tokens, targets, slices = draw_selective_copy(10, 3, 5000, 7, np.random.default_rng(0))
    assert tokens.shape == targets.shape == (5000, 13)
    for row, target in zip(tokens, targets, strict=True):
        given = row[:10][row[:10] > 0]
        assert len(given) == 3 and given.max() < 6 and row[10:].tolist() == [6] * 3
        assert target.tolist() == [IGNORE] * 10 + given.tolist()
    assert even((tokens[:, :10] > 0).nonzero()[1], 0, 10) and even(targets[:, 10:], 1, 6)
    assert (slices["place"] == [1, 2, 3]).all() and (slices["data"] == 3).all() and (slices["length"] == 10).all()


def test_all_of_a_row_may_be_data():
    tokens, targets, _ = draw_selective_copy(3, 3, 50, 7, np.random.default_rng(0))
    assert np.array_equal(tokens[:, :3], targets[:, 3:])


def test_induction_as_a_task(tmp_path):
    task: Task = Induction(**HEADS, vocab_size=6, cache_dir=tmp_path)
    assert (task.spec.name, task.spec.target, task.spec.vocab_size, task.spec.outputs) == ("induction", "tokens", 7, 6)
    assert task.spec.max_length == 32
    assert [len(task.split(name)) for name in ("train", "val", "test")] == [60, 7, 14]
    assert str(task.split("train").features["input_ids"]) == "List(Value('uint8'))"
    right = 0
    for row in task.split("test"):
        ids, labels = row["input_ids"], row["label"]
        assert len(ids) == len(labels) == row["length"] and min(ids) >= 1 and max(ids) == ids[-1] == 6
        assert ids[len(ids) - 1 - row["gap"]] == labels[-1] + 1
        right += max(range(1, 6), key=ids.count) == labels[-1] + 1  # the first of equals
    assert task.references() == {"any token": 1 / 5, "commonest token of the row": right / 14}
    assert sum(task.manifest["labels"]["test"]) == 14 and task.manifest["length"]["max"] == 32


def test_selective_copying_as_a_task(tmp_path):
    task: Task = SelectiveCopy(**COPIES, vocab_size=6, cache_dir=tmp_path)
    assert (task.spec.name, task.spec.max_length, task.spec.outputs) == ("selective_copy", 34, 6)
    test = task.split("test")
    assert [len(task.split(name)) for name in ("train", "val")] == [60, 7] and len(test) == 14
    assert [(row["length"], row["data"], row["place"]) for row in test][8:10] == [(16, 3, [1, 2, 3]), (32, 2, [1, 2])]
    for row in test:
        given = [token for token in row["input_ids"][: row["length"]] if token > 1]
        assert [label + 1 for label in row["label"][row["length"] :]] == given
    guess = (9 * (1 / 3 + 2 / 3 / 4) + 5 * (1 / 2 + 1 / 2 / 4)) / 14
    assert task.references() == {"any data token": 1 / 4, "any data token of the row": pytest.approx(guess)}
    assert sum(task.manifest["labels"]["test"]) == 9 * 3 + 5 * 2


@BOTH
def test_the_same_seed_gives_the_same_rows(tmp_path, make, small):
    def everything(folder, **changes):
        task = make(**{**small, **changes}, cache_dir=tmp_path / folder)
        return [task.split(name).to_list() for name in ("train", "val", "test")]

    first = everything("a")
    assert first == everything("b") != everything("c", seed=1)
    assert first[0] != everything("d", vocab_size=30)[0]
    train, val, test = first
    assert not {str(row["input_ids"]) for row in train} & {str(row["input_ids"]) for row in val}
    assert everything("e", test=small["test"][:1])[2] == test[:9]  # a segment does not depend on those after it


@BOTH
def test_many_tokens_and_more_rows_than_one_block(tmp_path, monkeypatch, make, small):
    monkeypatch.setattr(recall, "BLOCK", 25)
    rows = make(**small, vocab_size=1000, cache_dir=tmp_path).split("train")
    assert len({str(row["input_ids"]) for row in rows}) == len(rows) == 60
    assert str(rows.features["input_ids"]) == "List(Value('uint16'))"
    assert max(max(row["input_ids"]) for row in rows) == 1000


@BOTH
def test_what_cannot_be_made(make, small):
    form = "length/rows" if make is Induction else "length/data/rows"
    wrong = {"2/60": "length (2) must be at least 3"} if make is Induction else {"4/5/60": "data (5) must be at most"}
    wrong |= dict.fromkeys(["16", "16/3/4/60", "16/x/60", "0/60", "16/0/60"], f"must have the form {form}, of numbers")
    changes = [({"train": [text]}, message) for text, message in wrong.items()]
    changes += [
        ({"test": []}, "test ([]) must name at least one segment"),
        ({"seed": -1}, "seed (-1) must be at least 0"),
        ({"vocab_size": 3}, "vocab_size (3) must be from 4 to 65535"),
        ({"vocab_size": 2**16}, "vocab_size (65536) must be from 4 to 65535"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError) as caught:
            make(**{**small, **change})
        assert message in str(caught.value)
