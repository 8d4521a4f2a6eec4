"""Counts what the GPU kernels move and compute, and the times that follow on some cards: computed, never measured.

python scripts/triton_roofline.py [out=docs/results/triton]

For every launch: bytes that it must read and write if nothing is read twice, operations of the matrix units, and single
operations of the others. Its time is that of the slowest of the three at the card's peak; the bound beside it is that
of the caller's tensors alone, each read or written once.
"""

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import torch

from tsla.kernels.taylor import Inputs
from tsla.kernels.triton.layout import pairs_of, tiles_of
from tsla.kernels.triton.plan import Plan, plan_of

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "triton"
TILE = 16
CASES = [(16, 64, 16384), (16, 64, 1048576), (16, 16, 16384), (32, 32, 16384), (64, 64, 16384)]
HEADS = 64  # times batch; of the million tokens there is one


class Card(NamedTuple):
    """Peaks by the vendor's data sheet: bytes, bfloat16 operations of the matrix units, float32 ones, per second.

    A multiply-add counts as two operations in these, and as one in what is counted here of single ones.
    """

    name: str
    bandwidth: float
    matrix: float
    single: float


CARDS = [
    Card("A100 80GB SXM", 2.039e12, 312e12, 19.5e12),
    Card("H100 SXM", 3.35e12, 989e12, 67e12),
    Card("B200", 8.0e12, 2250e12, 75e12),
]


class Work(NamedTuple):
    """Of one launch."""

    name: str
    moved: float
    matrix: float
    single: float

    def seconds(self, card: Card) -> float:
        """Of the slowest of the three."""
        return max(self.moved / card.bandwidth, self.matrix / card.matrix, self.single / (card.single / 2))


def forward(plan: Plan, causal: bool) -> Iterator[Work]:
    """Launches of the forward pass without options, in bfloat16."""
    keys, queries = plan.units * plan.m, plan.b * plan.h * plan.n
    yield _sums("key_sums", plan, keys, 2 * (plan.d + plan.e), plan.chunks)
    yield _running(plan, plan.chunks, causal)
    yield _read("read_queries", plan, queries, 2 * plan.d + 2 * plan.e + 4, causal, moved_near=2 * (plan.d + plan.e))


def backward(plan: Plan, causal: bool) -> Iterator[Work]:
    """Those of the backward pass; of causal attention, the states before each chunk are made again."""
    keys, queries = plan.units * plan.m, plan.b * plan.h * plan.n
    if causal:
        yield _sums("key_sums", plan, keys, 2 * (plan.d + plan.e), plan.chunks)
        yield _running(plan, plan.chunks, causal)
    yield _sums("query_sums", plan, queries, 2 * (plan.d + 2 * plan.e) + 12, plan.chunks)
    yield _running(plan, plan.chunks, causal)
    rows = 2 * (plan.d + plan.e) + 8  # of the other side, where scores are made
    yield _read("read_keys", plan, keys, 2 * plan.d + 2 * plan.e, causal, moved_near=rows)
    yield _pull("pull_keys", plan, keys, 2 * (2 * plan.d + plan.e), causal, moved_near=rows)
    yield _pull("pull_queries", plan, queries, 2 * (2 * plan.d + plan.e) + 8, causal, moved_near=rows)


def bound(plan: Plan, passes: str) -> float:
    """Bytes of the caller's tensors."""
    keys, queries = plan.units * plan.m, plan.b * plan.h * plan.n
    inputs = 2 * (keys * (plan.d + plan.e) + queries * plan.d)
    output = 2 * queries * plan.e
    return inputs + output if passes == "forward" else 2 * inputs + 2 * output  # out and its gradient; dq, dk, dv


def _states(plan: Plan, count: int, size: int) -> float:
    return plan.units * count * plan.rows * (plan.e * size + 4)


def _sums(name: str, plan: Plan, tokens: int, moved: int, chunks: int) -> Work:
    pairs, columns = pairs_of(plan.d), plan.columns
    matrix = 2 * pairs * (TILE**2 + TILE) * columns * plan.width + 2 * 4 * pairs * TILE**2  # TF32: at half the rate
    single = columns * pairs * (TILE**2 + 4 * TILE + 4 * plan.width)
    return Work(name, tokens * moved + _states(plan, chunks, 4), tokens * matrix, tokens * single)


def _running(plan: Plan, chunks: int, causal: bool) -> Work:
    return Work("running", _states(plan, chunks, 4) + _states(plan, chunks if causal else 1, 2), 0.0, 0.0)


def _near(plan: Plan, causal: bool) -> float:
    """Tokens of the own chunk that a token is multiplied with, on average."""
    return (plan.chunk + plan.products.reading[0]) / 2 if causal else 0.0


def _read(name: str, plan: Plan, tokens: int, moved: int, causal: bool, moved_near: int) -> Work:
    tiles, pairs, columns, near = tiles_of(plan.d), pairs_of(plan.d), plan.columns, _near(plan, causal)
    matrix = 2 * (pairs * TILE**2 + tiles * TILE) * columns * plan.width + 2 * 4 * pairs * TILE**2
    single = columns * pairs * 2 * TILE**2
    broad = max(16, 1 << (plan.d - 1).bit_length())
    matrix += columns * near * 2 * (broad + plan.width)
    single += columns * near * 8
    return Work(name, tokens * (moved + moved_near * causal) + _states(plan, plan.chunks if causal else 1, 2),
                tokens * matrix, tokens * single)  # fmt: skip


def _pull(name: str, plan: Plan, tokens: int, moved: int, causal: bool, moved_near: int) -> Work:
    tiles, near = tiles_of(plan.d), _near(plan, causal)
    wide = plan.columns * plan.width
    matrix = 2 * (tiles * tiles * TILE**2 + tiles * TILE) * wide + 2 * 4 * tiles * tiles * TILE**2
    single = tiles * tiles * 2 * TILE**2 + tiles * wide
    broad = max(16, 1 << (plan.d - 1).bit_length())
    matrix += tiles * near * 2 * (wide + broad + TILE)
    single += tiles * near * 8
    return Work(name, tokens * (moved + moved_near * causal) + _states(plan, plan.chunks if causal else 1, 2),
                tokens * matrix, tokens * single)  # fmt: skip


def plan_for(d: int, e: int, n: int, heads: int, causal: bool) -> Plan:
    """As the passes would make it."""
    q, k, v = (torch.empty(1, heads, n, x, dtype=torch.bfloat16, device="meta") for x in (d, d, e))
    return plan_of(Inputs(q, k, v, None, None, None, None, None, 1.0, [1.0] * 3, causal, False, True, True, False))


def rows() -> Iterator[dict[str, object]]:
    """One for each card, case and pass."""
    for d, e, n in CASES:
        for causal in (False, True):
            plan = plan_for(d, e, n, HEADS if n < 1 << 20 else 1, causal)
            for passes, launches in (("forward", forward), ("backward", backward)):
                work = list(launches(plan, causal))
                for card in CARDS:
                    least = bound(plan, passes) / card.bandwidth
                    seconds = sum(one.seconds(card) for one in work)
                    yield {
                        "card": card.name, "d": d, "e": e, "n": n, "heads": plan.h, "causal": causal, "pass": passes,
                        "bytes": round(sum(one.moved for one in work)),
                        "matrix_operations": round(sum(one.matrix for one in work)),
                        "single_operations": round(sum(one.single for one in work)),
                        "seconds": f"{seconds:.3e}", "bytes_only_seconds": f"{least:.3e}",
                        "over_bound": f"{seconds / least:.2f}",
                    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write the table."""
    out = Path(arguments[0].removeprefix("out=")) if arguments else OUT
    out.mkdir(parents=True, exist_ok=True)
    table = list(rows())
    with (out / "roofline.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    print(out / "roofline.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
