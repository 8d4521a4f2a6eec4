"""What rules that look at a small part of a ListOps expression reach: the lines to read an accuracy against.

Published plateaus sit on them. A model at "root operator" has learnt which operator comes first and nothing more;
one at the last line reads the top of the tree and evaluates no sub-tree.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.listops_grammar import CLOSER, DIGIT, OPENER, Row, evaluate

SAMPLE = 2000  # at most so many rows, of train for the marginals and of test for the votes
DRAWS = 1000  # per test row
ABSENT = 10  # stands where an expression has no further argument: ranks behind every digit, adds 0 modulo 10

Values = NDArray[np.int8]


def reference_lines(train: Sequence[Row], test: Sequence[Row]) -> dict[str, float]:
    """Test accuracy (0-1) of four rules, in rising order; each knows the tree down to a certain point.

    The two that know digits replace every sub-tree of the root by draws from the values that such sub-trees have in
    train (of all operators together, or of the sub-tree's own), and answer with the most frequent result.
    """
    by_operator = _subtree_values(train[:SAMPLE])
    pooled = np.broadcast_to(by_operator.sum(axis=0), by_operator.shape)
    lines = {
        "majority": _lookup(train, test, lambda tokens: 0),
        "root operator": _lookup(train, test, lambda tokens: tokens[0]),
        "root + digits": _vote(test[:SAMPLE], pooled),
        "root + digits + child operators": _vote(test[:SAMPLE], by_operator),
    }
    return dict(sorted(lines.items(), key=lambda line: line[1]))


def arguments(tokens: bytes) -> list[bytes]:
    """The arguments of the root operator, each a token row."""
    parts, start, depth = [], 1, 0
    for position in range(1, len(tokens) - 1):
        depth += (tokens[position] >= OPENER) - 2 * (tokens[position] == CLOSER)
        if depth == 0:
            parts.append(tokens[start : position + 1])
            start = position + 1
    return parts


def _lookup(train: Iterable[Row], test: Sequence[Row], feature: Callable[[bytes], int]) -> float:
    """Accuracy of the most frequent train label among the rows of the same feature."""
    labels: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for tokens, label in train:
        labels[feature(tokens)][label] += 1
    best = {value: counts.most_common(1)[0][0] for value, counts in labels.items()}
    return sum(best.get(feature(tokens)) == label for tokens, label in test) / len(test)


def _subtree_values(rows: Iterable[Row]) -> NDArray[np.int64]:
    """How often the root's sub-trees of each operator have each value: (4, 10).

    Counts begin at one, so that an operator that a tiny set lacks has a distribution too.
    """
    counts = np.ones((CLOSER - OPENER, 10), np.int64)
    for tokens, _ in rows:
        for part in arguments(tokens):
            if len(part) > 1:
                counts[part[0] - OPENER, evaluate(part)] += 1
    return counts


def _vote(rows: Sequence[Row], counts: NDArray[np.int64]) -> float:
    """Accuracy of the most frequent value of the root when its sub-trees take values in proportion to `counts`."""
    parts = [arguments(tokens) for tokens, _ in rows]
    arity = np.array([len(part) for part in parts])
    heads = np.zeros((len(rows), arity.max()), np.int64)  # first token of each argument, 0 beyond the last
    for row, part in zip(heads, parts, strict=True):
        row[: len(part)] = [argument[0] for argument in part]

    values = np.where(heads > 0, heads - DIGIT, ABSENT).astype(np.int8)[:, None].repeat(DRAWS, axis=1)
    random = np.random.default_rng(0)
    for operator, weight in enumerate(counts):
        row, column = np.nonzero(heads == OPENER + operator)
        values[row, :, column] = random.choice(10, (len(row), DRAWS), p=weight / weight.sum())

    root = np.array([tokens[0] - OPENER for tokens, _ in rows])
    result = _apply(root, values, arity)
    votes = np.stack([(result == value).sum(axis=1) for value in range(10)], axis=1)
    return float(np.mean(votes.argmax(axis=1) == [label for _, label in rows]))


def _apply(operator: NDArray[np.int64], values: Values, arity: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values of operators on many draws of their arguments: (r,), (r, draws, arguments), (r,) -> (r, draws)."""
    ranked = np.sort(values, axis=-1)
    row = np.arange(len(arity))
    median = (ranked[row, :, (arity - 1) // 2] + ranked[row, :, arity // 2]) // 2
    total = values.sum(axis=-1, dtype=np.int64) % 10
    return np.choose(operator[:, None], [ranked[..., 0], ranked[row, :, arity - 1], median, total])
