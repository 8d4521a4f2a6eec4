"""What rows of ListOps should be like: the statistics of the published generator, and what must hold of every row.

Means and shares were measured on 80,000 rows of a re-implementation of that generator (arXiv 2011.04006), with the
tolerance that 5,000 rows need.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.expected import Statistic, exactly, near, widened
from tsla.tasks.listops_grammar import CLOSER, DIGIT, OPENER, TOKENS, Grammar, Row, evaluate

ROWS = 5000  # that are looked at, the first ones
LRA = Grammar(500, 2000, 10, 10)
ACCEPTANCE = {
    LRA: (0.0829, 0.004),
    Grammar(200, 500, 10, 10): (0.035, 0.002),
    Grammar(20, 100, 10, 10): (0.024, 0.0015),
}
LABELS = (0.170, 0.088, 0.078, 0.081, 0.089, 0.088, 0.077, 0.074, 0.083, 0.172)
LENGTHS = {1: 508, 5: 538, 25: 702, 50: 958, 75: 1313, 95: 1800, 99: 1954}  # percentiles
ROOT_ARITY = (0.043, 0.063, 0.084, 0.099, 0.115, 0.133, 0.145, 0.151, 0.166)  # of 2 to 10 arguments

Array = NDArray[np.int64]


def statistics(rows: Sequence[Row], grammar: Grammar, acceptance: float | None) -> list[Statistic]:
    """Of the first `ROWS` rows, beside what they should be.

    Lengths, labels, arities and tokens are known for the settings of Long Range Arena; what holds of every row, and the
    operators of roots, for all.

    Args:
        rows: of the training split.
        grammar: by whose settings they are generated.
        acceptance: the share of trees that were kept; None where rows are a user's.
    """
    rows = rows[:ROWS]
    wider = widened(len(rows), ROWS)
    lengths = np.array([len(tokens) for tokens, _ in rows])
    roots = np.array([tokens[0] - OPENER for tokens, _ in rows])
    walked = [_walk(tokens) for tokens, _ in rows]
    found = [
        Statistic("shortest row", float(lengths.min()), grammar.min_length + 1, grammar.max_length - 1),
        Statistic("longest row", float(lengths.max()), grammar.min_length + 1, grammar.max_length - 1),
        exactly("rows whose label is not their value", sum(_value(tokens) != label for tokens, label in rows), 0),
        Statistic("deepest digit", float(max(depth for depth, _ in walked)), 2, grammar.max_depth),
        *(near(f"share of roots {TOKENS[OPENER + place]}", float(np.mean(roots == place)), 0.25, 0.02 * wider)
          for place in range(CLOSER - OPENER)),
    ]  # fmt: skip
    if acceptance is not None and grammar in ACCEPTANCE:
        share, tolerance = ACCEPTANCE[grammar]
        found.append(near("share of trees kept", acceptance, share, tolerance * wider))
    if grammar == LRA:
        labels = np.array([label for _, label in rows])
        tokens = np.bincount(np.frombuffer(b"".join(row for row, _ in rows), np.uint8), minlength=len(TOKENS))
        found += [*_lengths(lengths, wider), *_labels(labels, roots, wider), *_trees(walked, wider),
                  *_tokens(tokens / tokens.sum(), wider)]  # fmt: skip
    return found


def _lengths(lengths: Array, wider: float) -> Iterator[Statistic]:
    yield near("mean length", lengths.mean(), 1037, 17 * wider)
    yield near("sd of lengths", lengths.std(), 395, 12 * wider)
    for percentile, length in LENGTHS.items():
        yield near(f"length, {percentile} %", np.percentile(lengths, percentile), length, 0.03 * length * wider)
    yield near("share longer than 1,024", np.mean(lengths > 1024), 0.44, 0.02 * wider)


def _labels(labels: Array, roots: Array, wider: float) -> Iterator[Statistic]:
    for label, share in enumerate(LABELS):
        yield near(f"share of label {label}", np.mean(labels == label), share, 0.016 * wider)
    yield near("label 0 of roots [MIN", _share(labels[roots == 0] == 0), 0.567, 0.04 * wider)
    yield near("label 9 of roots [MAX", _share(labels[roots == 1] == 9), 0.572, 0.04 * wider)
    yield near("labels 4 and 5 of roots [MED", _share(labels[roots == 2] // 2 == 2), 0.42, 0.05 * wider)
    for label in range(10):
        yield near(f"label {label} of roots [SM", _share(labels[roots == 3] == label), 0.1, 0.03 * wider)


def _trees(walked: list[tuple[int, list[int]]], wider: float) -> Iterator[Statistic]:
    yield exactly("share of rows with a digit at depth 10", np.mean([depth == 10 for depth, _ in walked]), 1)
    first = np.array([counts[0] for _, counts in walked])
    every = np.concatenate([counts for _, counts in walked])
    for arity, share in enumerate(ROOT_ARITY, 2):
        yield near(f"share of roots with {arity} arguments", np.mean(first == arity), share, 0.016 * wider)
    for arity in range(2, 11):
        yield near(f"share of operators with {arity} arguments", np.mean(every == arity), 1 / 9, 0.003 * wider)
    yield near("mean number of arguments", every.mean(), 6.02, 0.03 * wider)


def _tokens(shares: NDArray[np.float64], wider: float) -> Iterator[Statistic]:
    for token, name in enumerate(TOKENS[DIGIT:], DIGIT):
        share = 0.0716 if token < OPENER else 0.0356 if token < CLOSER else 0.1422
        yield near(f"share of tokens {name}", shares[token], share, 0.001 * wider)


def _value(tokens: bytes) -> int | None:
    try:
        return evaluate(tokens)
    except ValueError:
        return None


def _walk(tokens: bytes) -> tuple[int, list[int]]:
    """The depth of the deepest digit, where that of the root is 1, and the number of arguments of each operator."""
    deepest = 0
    open_ones: list[int] = []
    counts: list[int] = []
    for token in tokens:
        if token == CLOSER:
            del open_ones[-1:]
            continue
        if open_ones:
            counts[open_ones[-1]] += 1
        if token >= OPENER:
            open_ones.append(len(counts))
            counts.append(0)
        else:
            deepest = max(deepest, len(open_ones) + 1)
    return deepest, counts


def _share(true: NDArray[np.bool_]) -> float:
    return float(true.mean()) if true.size else 0.0
