"""ListOps expressions: their values, and the distribution Long Range Arena defines."""

import hashlib
import random
from collections import Counter

import numpy as np
import pytest
from listops_cases import ids

from tsla.tasks.listops import evaluate, to_text
from tsla.tasks.listops_grammar import TOKENS, TREES, Grammar, shard
from tsla.tasks.listops_references import arguments

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SHARDS = 20
DIGEST = (82, "ba965c2501edf1f0")


class Parsed:
    """What a tree is made of, read off its row by a recursive descent of its own."""

    def __init__(self, tokens: bytes) -> None:
        self.tokens = [TOKENS[token] for token in tokens]
        self.arities: list[int] = []  # the root's first
        self.depth = 0  # of the deepest digit; the root is at depth 1
        self.value, end = self.node(0, 1)
        assert end == len(tokens)

    def node(self, at: int, depth: int) -> tuple[int, int]:
        operator = self.tokens[at]
        if operator.isdigit():
            self.depth = max(self.depth, depth)
            return int(operator), at + 1
        assert operator in OPERATORS
        place = len(self.arities)
        self.arities.append(0)
        values, at = [], at + 1
        while self.tokens[at] != "]":
            value, at = self.node(at, depth + 1)
            values.append(value)
        self.arities[place] = len(values)
        return self.apply(operator, values), at + 1

    @staticmethod
    def apply(operator: str, values: list[int]) -> int:
        if operator == "[SM":
            return sum(values) % 10
        return {"[MIN": min, "[MAX": max, "[MED": lambda values: int(np.median(values))}[operator](values)


@pytest.fixture(scope="module")
def long_rows() -> list[tuple[bytes, int]]:
    """About 7000 expressions of the published size."""
    return [row for index in range(SHARDS) for row in shard(Grammar(500, 2000, 10, 10), 0, index)]


@pytest.fixture(scope="module")
def parsed(long_rows) -> list[Parsed]:
    return [Parsed(tokens) for tokens, _ in long_rows[:1500]]


# --- values and text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[SM 4 2 9 ]", 5),
        ("[SM 9 9 9 9 9 9 9 9 9 9 ]", 0),
        ("[MED 9 0 4 ]", 4),
        ("[MED 7 2 ]", 4),  # 4.5, truncated
        ("[MED 1 9 2 3 ]", 2),  # 2.5
        ("[MED 0 1 ]", 0),
        ("[MED 8 8 8 9 9 9 ]", 8),
        ("[MED 5 ]", 5),
        ("[MAX 2 [MIN 9 [SM 8 7 ] 6 ] [MED 1 0 3 ] ]", 5),
        ("7", 7),
    ],
)
def test_value_of_an_expression(text, value):
    assert evaluate(ids(text)) == value
    assert evaluate(list(ids(text))) == value
    assert to_text(ids(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 open operators and 0 values are left"),
        ("[MIN 1 2", "1 open operators"),
        ("1 2", "2 values are left"),
        ("1 ]", "token 1 closes"),
        ("[MIN ]", "token 1 closes an operator without arguments"),
        ("[MIN 1 <pad> ]", r"token 2 \(0\) must be one of 6-20"),
    ],
)
def test_what_is_no_expression_has_no_value(text, message):
    with pytest.raises(ValueError, match=message):
        evaluate(ids(text))


def test_token_table_is_fixed():
    assert to_text([0, 1, 2, 3, 4, 5]) == "<pad> <unk> <bos> <eos> <cls> <mask>"
    assert to_text(range(6, 21)) == "0 1 2 3 4 5 6 7 8 9 [MIN [MAX [MED [SM ]"
    assert len(TOKENS) == 21


# --- the distribution (tolerances: three standard deviations of 5000 rows, and there are more) ------------------------


def test_acceptance_and_lengths(long_rows):
    assert len(long_rows) > 5000
    assert 0.25 * len(long_rows) / (SHARDS * TREES) == pytest.approx(0.0829, abs=0.004)
    lengths = np.array([len(tokens) for tokens, _ in long_rows])
    assert lengths.min() > 500 and lengths.max() < 2000
    assert lengths.mean() == pytest.approx(1037, abs=17)
    assert lengths.std() == pytest.approx(395, abs=12)
    quantiles = np.quantile(lengths, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    assert quantiles == pytest.approx([508, 538, 702, 958, 1313, 1800, 1954], rel=0.03)
    assert (lengths > 1024).mean() == pytest.approx(0.44, abs=0.02)


def test_labels(long_rows):
    labels = np.bincount([label for _, label in long_rows], minlength=10) / len(long_rows)
    assert labels == pytest.approx([0.170, 0.088, 0.078, 0.081, 0.089, 0.088, 0.077, 0.074, 0.083, 0.172], abs=0.016)


def test_labels_given_the_root(long_rows):
    roots = Counter(TOKENS[tokens[0]] for tokens, _ in long_rows)
    assert [roots[operator] / len(long_rows) for operator in OPERATORS] == pytest.approx([0.25] * 4, abs=0.02)
    given = {
        operator: np.bincount([label for tokens, label in long_rows if TOKENS[tokens[0]] == operator], minlength=10)
        / roots[operator]
        for operator in OPERATORS
    }
    assert given["[MIN"][0] == pytest.approx(0.567, abs=0.04)
    assert given["[MAX"][9] == pytest.approx(0.572, abs=0.04)
    assert given["[MED"][4:6] == pytest.approx([0.21, 0.21], abs=0.03) and given["[MED"].argmax() in (4, 5)
    assert given["[SM"] == pytest.approx([0.1] * 10, abs=0.025)


def test_tokens(long_rows):
    counts = np.bincount(np.frombuffer(b"".join(tokens for tokens, _ in long_rows), np.uint8), minlength=21)
    assert counts[:6].sum() == 0
    assert counts[16:20].sum() == counts[20]
    assert counts[6:] / counts.sum() == pytest.approx([0.0716] * 10 + [0.0356] * 4 + [0.1422], abs=0.001)


def test_trees(parsed, long_rows):
    assert [tree.value for tree in parsed] == [label for _, label in long_rows[: len(parsed)]]
    assert {tree.depth for tree in parsed} == {10}
    arities = np.bincount([arity for tree in parsed for arity in tree.arities], minlength=11)
    assert len(arities) == 11 and arities[:2].sum() == 0
    assert arities[2:] / arities.sum() == pytest.approx([1 / 9] * 9, abs=0.003)


def test_arity_of_the_root_is_size_biased(long_rows):
    counts = np.bincount([len(arguments(tokens)) for tokens, _ in long_rows[:3000]], minlength=11) / 3000
    assert counts[2:] == pytest.approx([0.043, 0.063, 0.084, 0.099, 0.115, 0.133, 0.145, 0.151, 0.166], abs=0.021)


def test_evaluator_agrees(long_rows):
    assert all(evaluate(tokens) == label for tokens, label in long_rows[-500:])


def plain_tree(rng: random.Random, depth: int, max_depth: int, max_args: int) -> list[str]:
    """The published definition, word for word."""
    if depth == max_depth or rng.random() > 0.25:
        return [str(rng.randrange(10))]
    children = [plain_tree(rng, depth + 1, max_depth, max_args) for _ in range(rng.randint(2, max_args))]
    return [rng.choice(OPERATORS), *(token for child in children for token in child), "]"]


def test_same_distribution_as_the_plain_definition():
    """Shares of many features of accepted rows, against a rejection sampler that does draw lone-digit roots."""
    low, high, depth, args = 6, 40, 5, 4
    rng = random.Random(0)
    trees = [plain_tree(rng, 1, depth, args) for _ in range(60_000)]
    plain = [bytes(map(TOKENS.index, tree)) for tree in trees if low < len(tree) < high]
    fast = [tokens for index in range(15) for tokens, _ in shard(Grammar(low, high, depth, args), 1, index)]
    accepted = 0.25 * len(fast) / (15 * TREES)
    assert accepted == pytest.approx(len(plain) / len(trees), rel=0.05)

    def features(sample: list[bytes]) -> tuple[Counter[object], int]:
        counts: Counter[object] = Counter()
        for tokens in sample:
            tree = Parsed(tokens)
            counts.update([("length", len(tokens)), ("depth", tree.depth), ("value", tree.value)])
            counts.update([("root", tree.tokens[0], tree.arities[0]), ("nodes", len(tree.arities))])
            counts.update([("second", tree.tokens[1]), ("last", tree.tokens[-2])])
        return counts, len(sample)

    (first, first_size), (second, second_size) = features(plain), features(fast)
    worst = 0.0
    for feature in first.keys() | second.keys():
        pooled = (first[feature] + second[feature]) / (first_size + second_size)
        deviation = (pooled * (1 - pooled) * (1 / first_size + 1 / second_size)) ** 0.5
        worst = max(worst, abs(first[feature] / first_size - second[feature] / second_size) / deviation)
    assert worst < 4.0


def test_smallest_trees_are_all_equally_likely():
    counts = Counter(tokens for index in range(30) for tokens, _ in shard(Grammar(3, 5, 2, 2), 0, index))
    expected = sum(counts.values()) / 400  # four operators, two digits
    assert len(counts) == 400
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared == pytest.approx(399, abs=4 * (2 * 399) ** 0.5)


def test_other_depths_and_arities():
    found = [Parsed(tokens) for tokens, _ in shard(Grammar(10, 60, 3, 7), 0, 0)]
    assert max(tree.depth for tree in found) == 3
    assert {arity for tree in found for arity in tree.arities} == set(range(2, 8))


def test_rows_of_a_seed_stay_what_they_are():
    """Whoever changes this digest changes everybody's data: raise `VERSION` in `listops.py` with it."""
    found = shard(Grammar(20, 100, 10, 10), 0, 0)
    digest = hashlib.sha256(b"".join(tokens + bytes([value]) for tokens, value in found)).hexdigest()
    assert (len(found), digest[:16]) == DIGEST
