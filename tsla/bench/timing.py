"""Times of several functions, taken in turns, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

WARM_UP, FEWEST, MOST, SECONDS = 1, 3, 25, 0.2  # rounds before, at least, at most; and time after which to stop
SIZE = 768  # of the yardstick's matrices
MATMUL, MATMUL_OPERATIONS = "torch.mm", 2 * SIZE**3

Clock = Callable[[], float]


class Timing(NamedTuple):
    """Seconds of a call: the median over `rounds`, and the quartiles."""

    median: float
    low: float
    high: float
    rounds: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = SECONDS, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time each of `calls`, one after the other, round after round, until `seconds` are over and `FEWEST` are done."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    began = clock()
    for turn in range(WARM_UP + MOST):
        for name in order(names, turn):
            start = clock()
            calls[name]()
            end = clock()
            if turn >= WARM_UP:
                times[name].append(end - start)
        if turn + 1 >= WARM_UP + FEWEST and clock() - began > seconds:
            break
    return {name: timing(own) for name, own in times.items()}


def order(names: Sequence[str], turn: int) -> list[str]:
    """The names in the order of a round, a Williams design: none follows the same one all the time.

    What comes after a large product of matrices finds its own inputs gone from the caches, for one.
    """
    zigzag = [(place + 1) // 2 * (-1) ** (place + 1) for place in range(len(names))]  # 0, 1, -1, 2, -2 ...
    return [names[(step + turn) % len(names)] for step in zigzag]


def timing(times: list[float]) -> Timing:
    """Median and quartiles of some times."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(middle, low, high, len(times))


def matmul() -> Callable[[], object]:
    """torch's own product of two float32 matrices: what the machine can do, to time beside others."""
    a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    return lambda: torch.mm(a, b)


def matmul_rate() -> float:
    """Operations per second of that product."""
    return MATMUL_OPERATIONS / interleaved({MATMUL: matmul()})[MATMUL].median
