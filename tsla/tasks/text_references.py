"""Scores of trivial rules on texts: naive Bayes on pieces of a few bytes, and the likeness of two bags of words."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB

Rows = Sequence[NDArray[np.uint8]]


class Pairs(NamedTuple):
    """Pairs of texts, and the label of each."""

    first: list[str]
    second: list[str]
    labels: NDArray[np.int64]


HASH_BITS = 18  # of the table that pieces are counted in
CHUNK = 2_000  # rows that are counted together
ALPHA = 0.1  # added to every count; 1 drowns rare classes in a table of this size
PAIRS = 4_000  # training pairs from which words are weighed and the threshold is taken


def class_lines(train: Rows, labels: NDArray[np.int64], test: Rows, expected: NDArray[np.int64]) -> dict[str, float]:
    """Test accuracy of the commonest class, and of naive Bayes on single bytes and on runs of four, in rising order."""
    majority = float(np.mean(expected == np.bincount(labels).argmax()))
    lines = {"majority": majority}
    for name, size in (("single bytes", 1), ("byte 4-grams", 4)):
        classes, model = np.arange(max(labels.max(), expected.max()) + 1), MultinomialNB(alpha=ALPHA)
        for part in _parts(len(train)):
            model.partial_fit(_counts(train[part], size), labels[part], classes)
        right = sum(int((model.predict(_counts(test[p], size)) == expected[p]).sum()) for p in _parts(len(test)))
        lines[name] = right / len(test)
    return dict(sorted(lines.items(), key=lambda line: line[1]))


def pair_lines(folder: Path, train_rows: int, shift: int = -1) -> dict[str, float]:
    """Test accuracy of the commoner answer, and of a threshold on the cosine of tf-idf vectors, in rising order.

    The threshold is the one that is right most often on training pairs; words count by how few of these have them.

    Args:
        folder: with `train.arrow` and `test.arrow`, as `save_split` writes them.
        train_rows: how many the former has.
        shift: from ids to bytes.
    """
    train = list(_pairs(folder / "train.arrow", -(-train_rows // PAIRS), shift))  # some from everywhere
    words = TfidfVectorizer().fit([text for part in train for text in (*part.first, *part.second)])
    least = _best_threshold(*_scored(words, train))
    scores, expected = _scored(words, _pairs(folder / "test.arrow", shift=shift))
    lines = {
        "majority": float(np.mean(expected == np.bincount(np.concatenate([part.labels for part in train])).argmax())),
        "tf-idf cosine": float(np.mean((scores >= least) == expected)),
    }
    return dict(sorted(lines.items(), key=lambda line: line[1]))


def _parts(count: int) -> Iterator[slice]:
    return (slice(at, at + CHUNK) for at in range(0, count, CHUNK))


def _counts(rows: Rows, size: int) -> csr_matrix:
    """How often each run of `size` ids occurs in each row, ``(rows, table)``; a run may stand in several entries."""
    pieces = []
    for row in rows:
        ids = row.astype(np.uint32)
        run = np.zeros(max(len(ids) - size + 1, 0), np.uint32)
        for at in range(size):
            run = run * np.uint32(256) + ids[at : at + len(run)]
        pieces.append(run if size == 1 else (run * np.uint32(2_654_435_761)) >> np.uint32(32 - HASH_BITS))
    ends = np.cumsum([0, *map(len, pieces)])
    table = 2**8 if size == 1 else 2**HASH_BITS
    return csr_matrix((np.ones(ends[-1], np.float32), np.concatenate(pieces), ends), shape=(len(rows), table))


def _pairs(file: Path, step: int = 1, shift: int = -1) -> Iterator[Pairs]:
    """Every `step`-th pair, a batch of the file at a time; read and not mapped, so that what is done leaves memory."""
    place = 0
    with pa.OSFile(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            rows = batch.take(pa.array(np.arange(-place % step, len(batch), step)))
            place += len(batch)
            if len(rows):
                first, second = (_texts(rows[name], shift) for name in ("input_ids", "input_ids_2"))
                yield Pairs(first, second, rows["label"].to_numpy())


def _texts(rows: pa.ListArray, shift: int) -> list[str]:
    ends = rows.offsets.to_numpy() - rows.offsets[0].as_py()
    flat = (rows.flatten().to_numpy() + np.uint8(shift % 256)).tobytes()
    return [flat[start:end].decode("utf-8", "replace") for start, end in pairwise(ends)]


def _scored(words: TfidfVectorizer, found: Iterable[Pairs]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The cosine of each pair, and its label."""
    scores, labels = [], []
    for part in found:
        first, second = words.transform(part.first), words.transform(part.second)
        scores.append(np.asarray(first.multiply(second).sum(1)).ravel())
        labels.append(part.labels)
    return np.concatenate(scores), np.concatenate(labels)


def _best_threshold(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The score from which on to say 1, so that most labels are met."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(2 * labels[order] - 1)  # by how many more answers are right if all up to here are 1
    last = np.append(np.diff(scores[order]) < 0, True)  # equal scores get one answer
    best = int(np.where(last, right, right.min() - 1).argmax())
    return float(scores[order[best]]) if right[best] > 0 else float("inf")
