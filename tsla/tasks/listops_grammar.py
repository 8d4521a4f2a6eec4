"""The expressions of ListOps (arXiv 1804.06028, as Long Range Arena draws them, arXiv 2011.04006): ids, value, trees.

    node(depth) = a digit 0-9                    with probability 3/4, and always at max_depth (the root is at depth 1)
                | [OP node(depth + 1) ... ]      with 2 to max_args arguments, OP one of MIN, MAX, MED, SM; all uniform

A row is the token ids of an expression without padding, one byte each: 2 tokens per operator, 1 per digit. Rows are
kept where min_length < length < max_length, both strict. MED is `int(median)`, SM the sum modulo 10.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A fixed table, never built from data: ids are the same for every data set and every run.
TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>", "<cls>", "<mask>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
DIGIT, OPENER, CLOSER = (TOKENS.index(token) for token in ("0", "[MIN", "]"))  # digits 6-15, openers 16-19, closer 20

NAMES = np.array([token.removeprefix("[") for token in TOKENS])  # of operators, as people say them
OPERATOR_PROBABILITY = 0.25
TREES = 1024  # per shard: the unit of seeding, so another number gives other rows

Row = tuple[bytes, int]  # the token ids of an expression, and its value
Array = NDArray[np.int64]


class Closing(NamedTuple):
    """A closing bracket: where it stands, the value of the operator that it closes, and how deep that one's tree is.

    depth: operators on the longest way down, with this one.
    operator: its token id.
    """

    position: int
    value: int
    depth: int
    operator: int


def evaluate(tokens: Iterable[int]) -> int:
    """The value of a token row, 0-9; ValueError where it is not one complete expression."""
    return _evaluate(tokens)[0]


def closings(tokens: Iterable[int]) -> list[Closing]:
    """Every closing bracket of a token row, in order; the last is the root's. Errors as in `evaluate`."""
    return _evaluate(tokens)[1]


def _evaluate(tokens: Iterable[int]) -> tuple[int, list[Closing]]:
    """By a stack."""
    arguments: list[list[int]] = [[]]
    depths, operators = [0], list[int]()
    found = []
    for position, token in enumerate(tokens):
        if DIGIT <= token < OPENER:
            arguments[-1].append(token - DIGIT)
        elif OPENER <= token < CLOSER:
            operators.append(token)
            arguments.append([])
            depths.append(0)
        elif token == CLOSER and operators and arguments[-1]:
            operator = operators.pop()
            found.append(Closing(position, _value(operator, arguments.pop()), depths.pop() + 1, operator))
            arguments[-1].append(found[-1].value)
            depths[-1] = max(depths[-1], found[-1].depth)
        elif token == CLOSER:
            raise ValueError(f"token {position} closes an operator without arguments, or none at all")
        else:
            raise ValueError(f"token {position} ({token}) must be one of {DIGIT}-{CLOSER}: a digit, an operator or ]")
    if operators or len(arguments[0]) != 1:
        raise ValueError(f"{len(operators)} open operators and {len(arguments[0])} values are left, not 0 and 1")
    return arguments[0][0], found


def _value(operator: int, values: list[int]) -> int:
    match TOKENS[operator]:
        case "[MIN":
            return min(values)
        case "[MAX":
            return max(values)
        case "[SM":
            return sum(values) % 10
        case _:
            ranked = sorted(values)
            return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) // 2


def to_text(tokens: Iterable[int]) -> str:
    """A token row as people read it, `[MAX 4 [MIN 2 9 ] ]`."""
    return " ".join(TOKENS[token] for token in tokens)


class Grammar(NamedTuple):
    """Which expressions are drawn and kept."""

    min_length: int
    max_length: int
    max_depth: int
    max_args: int

    def check(self) -> None:
        """ValueError where no expression can satisfy the bounds."""
        low, high, depth, args = self
        if low < 1:
            raise ValueError(f"min_length ({low}) must be at least 1")
        if high < 5:
            raise ValueError(f"max_length ({high}) must be at least 5: the shortest expression has 4 tokens")
        if low >= high - 1:
            raise ValueError(f"min_length ({low}) must be below max_length - 1 ({high - 1})")
        if depth < 2:
            raise ValueError(f"max_depth ({depth}) must be at least 2: an operator and its digits")
        if args < 2:
            raise ValueError(f"max_args ({args}) must be at least 2")
        longest = 1
        for _ in range(depth - 1):
            longest = 2 + args * longest
            if longest > low:
                return
        raise ValueError(
            f"min_length ({low}) must be below {longest}, the longest row of max_depth {depth} and max_args {args}"
        )


class Level(NamedTuple):
    """All nodes of one depth, in order: tree beside tree, siblings beside each other. Three arrays of a length."""

    token: Array  # a digit or an opener
    arity: Array  # 0 for a digit
    tree: Array  # which tree of the shard it belongs to


def shard(grammar: Grammar, seed: int, index: int) -> list[Row]:
    """The accepted expressions among `TREES` trees whose root is an operator; the same on every machine.

    All trees grow together, a depth at a time. LRA draws the root like any node and rejects a lone digit, which is
    too short; trees whose root is an operator, kept under the same bounds, therefore have the same distribution.
    """
    levels, length = _grow(grammar, np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(1, index))))
    accepted = (grammar.min_length < length) & (length < grammar.max_length)
    levels = [Level(*(column[accepted[level.tree]] for column in level)) for level in levels]
    length = length[accepted]
    if not length.size:
        return []
    tokens, values = _emit(levels)
    bounds = np.concatenate([[0], np.cumsum(length)]).tolist()
    return [(tokens[start:end], value) for (start, end), value in zip(pairwise(bounds), values.tolist(), strict=True)]


def _grow(grammar: Grammar, bits: np.random.PCG64) -> tuple[list[Level], Array]:
    """The levels of a shard's trees, and the length of every tree in tokens.

    The length of a tree is known before its nodes are: each is counted as one token when its parent is drawn. So
    a tree is given up (it gets no more children) at the first depth where it would reach max_length.
    """
    arities = np.arange(2, grammar.max_args + 1)
    # One draw per node, from a list of equally likely symbols: 3/4 of digits, then 1/4 of (operator, arity) pairs.
    count = math.lcm(40, 16 * len(arities))
    digits = int(count * (1 - OPERATOR_PROBABILITY))
    token = np.repeat(np.arange(DIGIT, CLOSER), [digits // 10] * 10 + [(count - digits) // 4] * 4)
    arity = np.concatenate([np.zeros(digits, np.int64), np.resize(arities, count - digits)])

    levels = []
    tree = np.arange(TREES)
    length = np.ones(TREES, np.int64)
    for depth in range(1, grammar.max_depth + 1):
        low, high = digits if depth == 1 else 0, digits if depth == grammar.max_depth else count
        symbol = low + _below(high - low, tree.size, bits)
        level = Level(token[symbol], arity[symbol], tree)
        growth = np.bincount(tree, level.arity + (level.arity > 0), TREES)  # an operator adds its arguments and its ]
        length += growth.astype(np.int64)
        level.arity[length[tree] >= grammar.max_length] = 0
        levels.append(level)
        tree = np.repeat(tree, level.arity)
        if not tree.size:
            break
    return levels, length


def _below(bound: int, count: int, bits: np.random.PCG64) -> Array:
    """`count` draws from 0 to bound - 1, uniform to one part in 2**32 / bound.

    From the raw bits, because numpy promises the same stream of those for ever, but not of its distributions.
    """
    return np.asarray((bits.random_raw(count) >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def _emit(levels: list[Level]) -> tuple[bytes, Array]:
    """The token rows of all trees end to end, and the value of each tree."""
    none = np.zeros(0, np.int64)
    sizes, value = [none], none  # tokens under each node of a level, values of the level's nodes: from the deepest up
    for level in reversed(levels):
        inner = level.arity > 0
        first = _starts(level.arity[inner])  # where each operator's arguments begin, in the level below
        size, arguments = np.ones_like(level.token), value
        value = level.token - DIGIT
        if first.size:
            size[inner] = 2 + np.add.reduceat(sizes[-1], first)
            value[inner] = _values(level.token[inner], arguments, first, level.arity[inner])
        sizes.append(size)

    sizes.reverse()
    tokens = np.empty(sizes[0].sum(), np.uint8)
    start = _starts(sizes[0])
    for level, size, below in zip(levels, sizes[:-1], sizes[1:], strict=True):
        inner = level.arity > 0
        tokens[start] = level.token
        tokens[(start + size - 1)[inner]] = CLOSER
        offset = _starts(below)  # as if the level below lay end to end; each family then moves behind its opener
        arity = level.arity[inner]
        start = offset + np.repeat(start[inner] + 1 - offset[_starts(arity)], arity)
    return tokens.tobytes(), value


def _starts(sizes: Array) -> Array:
    """Where each of the pieces begins when they are laid end to end."""
    return np.cumsum(sizes) - sizes


def _values(operator: Array, arguments: Array, first: Array, arity: Array) -> Array:
    """The values of operators whose arguments lie side by side, `arity` of them from `first` on."""
    family = np.repeat(np.arange(0, 10 * len(arity), 10), arity)
    ranked = np.sort(family + arguments) - family  # sorted within each operator's arguments
    median = (ranked[first + (arity - 1) // 2] + ranked[first + arity // 2]) // 2
    total = np.add.reduceat(arguments, first) % 10
    return np.choose(operator - OPENER, [ranked[first], ranked[first + arity - 1], median, total])
