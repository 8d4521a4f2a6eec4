"""Recall: rows as the definition wants them, drawn as it says, the same for the same seed."""

import numpy as np
import pytest
from scipy.stats import chisquare

from tsla.tasks.base import IGNORE, Task
from tsla.tasks.mqar import Mqar, Segment, draw, lay_out

SMALL = {"vocab_size": 40, "train": ["16/4/60"], "val": ["16/4/7"], "test": ["16/4/9", "32/3/5"]}


SEGMENT = Segment(32, 4, 500)


def rows(segment=SEGMENT, vocab_size=64, power=0.01, filler=False, seed=0):
    return draw(segment, vocab_size, power, filler=filler, random=np.random.default_rng(seed))


def test_the_published_sample():
    """Row 0 of the original generator at vocab 64, 3 examples, length 32, seed 1, 4 pairs, no random non-queries."""
    keys, values, slots = np.array([[28, 4, 20, 24]]), np.array([[53, 51, 57, 63]]), np.array([[1, 0, 2, 4]])
    tokens, targets = lay_out(keys, values, slots, 32)
    assert tokens[0].tolist() == [28, 53, 4, 51, 20, 57, 24, 63, 4, 0, 28, 0, 20, 0, 0, 0, 24] + [0] * 15
    expected = [IGNORE] * 32
    expected[8], expected[10], expected[12], expected[16] = 51, 53, 57, 63
    assert targets[0].tolist() == expected


def test_every_key_is_asked_once_and_its_value_is_the_target():
    for row, target in zip(*rows(), strict=True):
        given = dict(zip(row[0:8:2].tolist(), row[1:8:2].tolist(), strict=True))
        assert len(given) == 4 and len(set(given.values())) == 4
        assert all(1 <= key < 32 <= value < 64 for key, value in given.items())
        (asked,) = (target != IGNORE).nonzero()
        assert (asked >= 8).all() and (asked % 2 == 0).all()
        assert {int(row[at]): int(target[at]) for at in asked} == given
        assert not row[8:][~np.isin(np.arange(8, 32), asked)].any()


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_queries_stand_where_the_power_law_puts_them(power):
    """With one pair, the place of its query is drawn with probability proportional to place^(power - 1)."""
    _, targets = rows(Segment(32, 1, 20_000), power=power)
    places = ((targets != IGNORE).argmax(1) - 2) // 2
    weight = np.arange(1, 16) ** (power - 1.0)
    seen = np.bincount(places, minlength=15)
    assert chisquare(seen, 20_000 * weight / weight.sum()).pvalue > 1e-4


def test_draws_without_replacement_are_those_of_one_draw_after_the_other():
    """The first two places of two queries against the joint probabilities p(i) p(j) / (1 - p(i))."""
    tokens, targets = rows(Segment(8, 2, 30_000), vocab_size=16)
    asked = (targets != IGNORE).nonzero()[1].reshape(-1, 2)
    first_key = tokens[:, 0]
    first = np.where(tokens[np.arange(30_000), asked[:, 0]] == first_key, asked[:, 0], asked[:, 1])
    weight = np.arange(1, 3) ** -0.99
    seen = np.bincount((first - 4) // 2, minlength=2)
    assert chisquare(seen, 30_000 * weight / weight.sum()).pvalue > 1e-4


def test_keys_and_values_are_uniform():
    tokens, _ = rows(Segment(32, 4, 20_000))
    for part, low, high in ((tokens[:, 0:8:2], 1, 32), (tokens[:, 1:8:2], 32, 64)):
        for column in part.T:
            assert chisquare(np.bincount(column - low, minlength=high - low)).pvalue > 1e-4


def test_filler_is_anything_and_only_where_nothing_is():
    empty, targets = rows()
    filled, same = rows(filler=True)
    assert np.array_equal(targets, same) and np.array_equal(filled[empty > 0], empty[empty > 0])
    free = filled[empty == 0]
    assert free.min() == 0 and free.max() == 63 and chisquare(np.bincount(free, minlength=64)).pvalue > 1e-4


def test_the_task(tmp_path):
    task: Task = Mqar(**SMALL, cache_dir=tmp_path)
    assert (task.spec.target, task.spec.vocab_size, task.spec.outputs, task.spec.max_length) == ("tokens", 41, 40, 32)
    assert [len(task.split(name)) for name in ("train", "val", "test")] == [60, 7, 14]
    for row in task.split("test"):
        ids, labels = np.array(row["input_ids"]), np.array(row["label"])
        assert len(ids) == len(labels) and ids.min() >= 1 and ids.max() <= 40
        (asked,) = (labels != IGNORE).nonzero()
        assert row["pairs"] == len(asked) == len(row["gap"])
        for at, gap in zip(asked, row["gap"], strict=True):
            assert ids[at - gap] == ids[at] and (at - gap) % 2 == 0 and ids[at - gap + 1] == labels[at] + 1
    assert task.references() == {
        "any value": 2 / 40,
        "any value of the row": pytest.approx((9 / 4 + 5 / 3) / 14),
    }


def test_the_same_seed_gives_the_same_rows(tmp_path):
    def everything(folder, **changes):
        task = Mqar(**{**SMALL, **changes}, cache_dir=tmp_path / folder)
        return [task.split(name).to_list() for name in ("train", "val", "test")]

    first = everything("a")
    assert first == everything("b") != everything("c", seed=1)
    assert first[0] != everything("d", filler=False)[0]
    train, val, _ = first
    assert not {str(row["input_ids"]) for row in train} & {str(row["input_ids"]) for row in val}


def test_more_rows_than_one_chunk(monkeypatch):
    monkeypatch.setattr("tsla.tasks.mqar.CHUNK", 100)
    tokens, targets = rows()
    assert tokens.shape == targets.shape == (500, 32)
    assert len({row.tobytes() for row in tokens}) == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ["16-4-60"]}, "segment ('16-4-60') must have the form length/pairs/rows"),
        ({"train": ["15/3/60"]}, "even length"),
        ({"val": ["16/5/60"]}, "at least 4 * pairs"),
        ({"test": []}, "test ([]) must name at least one segment"),
        ({"vocab_size": 16}, "vocab_size (16) must be above length (16)"),
        ({"train": ["36/9/60"], "vocab_size": 18}, "vocab_size (18) must be above length (36)"),
    ],
)
def test_what_cannot_be_made(change, message):
    with pytest.raises(ValueError) as caught:
        Mqar(**{**SMALL, **change})
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="split"):
        Mqar(**SMALL).split("dev")
