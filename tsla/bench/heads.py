"""What the number of heads costs at a fixed width D.

With h heads of width D / h, operations of the linear form, N (4 D^3 / h^2 + ...), fall with h, and those of the direct
form, N^2 (4 D + 6 h), rise (TaylorShift, arXiv 2403.02920).
"""

from collections.abc import Sequence
from typing import NamedTuple

from tsla.bench.forms import Shape, calls, errors
from tsla.bench.memory import peak_bytes
from tsla.bench.timing import interleaved
from tsla.ops import taylor_feature_dim
from tsla.ops.crossover import linear_operations

MOST = 64
CHECKED = 80  # tokens at which forms are held against float64


class Heads(NamedTuple):
    """One form at one number of heads; d is the width of each.

    seconds: of a call on one sequence of `length` tokens, median; quartiles beside it.  peak_bytes: of the tensors
    alive at once.  state_bytes: that later tokens would need; of keys and values for the direct form, as softmax.
    operations: per token, forward, counted by formula.  error: against float64.
    """

    heads: int
    d: int
    length: int
    causal: bool
    backward: bool
    form: str
    seconds: float
    quartile_1: float
    quartile_3: float
    peak_bytes: int
    state_bytes: int
    operations: float
    error: float


def sweep(width: int, length: int, causal: bool, passes: Sequence[bool]) -> list[Heads]:
    """Both forms at 1, 2, 4 ... heads that divide `width`."""
    found = []
    for heads in (2**power for power in range(MOST.bit_length())):
        if heads > width or width % heads:
            continue
        for backward in passes:
            shape = Shape(width // heads, width // heads, heads, causal, backward)
            found += _forms(shape, length)
    return found


def _forms(shape: Shape, length: int) -> list[Heads]:
    worst = errors(shape, min(CHECKED, length))
    run = {name: call for name, call in calls(shape, length).items() if name != "sdpa"}
    times = interleaved(run)
    made = []
    for name, call in run.items():
        made.append(Heads(
            shape.heads, shape.d, length, shape.causal, shape.backward, name, times[name].median, times[name].low,
            times[name].high, peak_bytes(call), _state_bytes(shape, length, name), _operations(shape, length, name),
            worst[name],
        ))  # fmt: skip
    return made


def _state_bytes(shape: Shape, length: int, form: str) -> int:
    """In float32: sums of phi(k) v^T and phi(k), or all keys and values."""
    if form == "direct":
        return 4 * shape.heads * length * (shape.d + shape.e)
    return 4 * shape.heads * taylor_feature_dim(shape.d) * (shape.e + 1)


def _operations(shape: Shape, length: int, form: str) -> float:
    if form == "direct":
        return shape.heads * length * (2 * (shape.d + shape.e) + 6)
    products = taylor_feature_dim(shape.d) - 1 - shape.d
    return shape.heads * linear_operations(shape.d, shape.e, products)
