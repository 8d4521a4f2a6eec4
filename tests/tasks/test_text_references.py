"""Trivial rules against the same rules written out plainly."""

from math import log

import numpy as np
import pytest

from tsla.tasks import text_references
from tsla.tasks.store import save_split
from tsla.tasks.text_references import class_lines, pair_lines


def test_naive_bayes_is_the_one_of_the_books(monkeypatch):
    """log p(class) + sum of log (count + a) / (all + a * table), over single bytes."""
    monkeypatch.setattr(text_references, "CHUNK", 7)
    random = np.random.default_rng(0)
    weights = random.dirichlet(np.ones(4), 3)
    labels = random.integers(0, 3, 60)
    rows = [(random.choice(4, random.integers(3, 9), p=weights[label]) + 97).astype(np.uint8) for label in labels]
    train, test = slice(40), slice(40, 60)
    alpha = text_references.ALPHA
    right = 0
    for row, label in zip(rows[test], labels[test], strict=True):
        scores = []
        for c in range(3):
            own = np.concatenate([r for r, y in zip(rows[train], labels[train], strict=True) if y == c])
            scores.append(log(np.mean(labels[train] == c)) + sum(
                log((np.sum(own == x) + alpha) / (len(own) + alpha * 256)) for x in row
            ))  # fmt: skip
        right += int(np.argmax(scores)) == label
    lines = class_lines(rows[train], labels[train], rows[test], labels[test])
    assert lines["single bytes"] == right / 20 > lines["majority"]
    assert list(lines.values()) == sorted(lines.values()) and len(lines) == 3


def test_runs_of_four_see_the_order_of_bytes():
    """Two classes with the same bytes in another order, and rows shorter than a run."""
    rows = [np.frombuffer(text, np.uint8) for text in (b"abcdabcd", b"dcbadcba", b"abc") * 10]
    labels = np.array([0, 1, 1] * 10)
    lines = class_lines(rows, labels, rows, labels)
    assert lines["byte 4-grams"] == 1.0 > lines["single bytes"]
    assert text_references._counts(rows[2:3], 4).sum() == 0 and text_references._counts(rows[:1], 4).sum() == 5


def store(folder, split, rows):
    """Pairs on disk, in parts of 10."""
    rows = [tuple(np.frombuffer(text.encode(), np.uint8) + np.uint8(1) for text in row[:2]) + row[2:] for row in rows]
    save_split(folder, split, [
        {"input_ids": [row[0] for row in part], "input_ids_2": [row[1] for row in part],
         "label": np.array([row[2] for row in part])}
        for part in (rows[at : at + 10] for at in range(0, len(rows), 10))
    ])  # fmt: skip


def test_the_cosine_of_words_tells_pairs_that_share_rare_ones(tmp_path):
    store(tmp_path, "train", [(f"rare{n} é", f"own rare{n if n % 2 else n + 50}", n % 2) for n in range(40)])
    store(tmp_path, "test", [(f"rare{n} é", f"own rare{n if n % 2 else n + 20}", n % 2) for n in range(21)])
    assert pair_lines(tmp_path, 40) == {"majority": pytest.approx(11 / 21), "tf-idf cosine": 1.0}


@pytest.mark.parametrize("step", [1, 3, 7, 25])
def test_pairs_are_taken_from_everywhere(tmp_path, step):
    rows = [(f"a{n}", f"é{n}", n % 2) for n in range(33)]
    store(tmp_path, "train", rows)
    found = list(text_references._pairs(tmp_path / "train.arrow", step))
    assert [row for part in found for row in zip(*part, strict=True)] == rows[::step]


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_there_is(seed):
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 6, 12) / 4, random.integers(0, 2, 12)
    least = text_references._best_threshold(scores, labels)
    best = max(int(((scores >= at) == labels).sum()) for at in [*scores, np.inf])
    assert int(((scores >= least) == labels).sum()) == best
