"""Times of `linear_attention`, of both its forms, beside torch's SDPA on inputs of one width, and torch.mm's rate.

python scripts/bench_features.py [length ...]

From these are the lengths at which `impl="auto"` begins to take the linear form (docs/kernels.md).
"""

import sys
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tsla import linear_attention
from tsla.bench.timing import MATMUL, MATMUL_OPERATIONS, interleaved, matmul

LENGTHS = (64, 128, 256, 1024, 4096)
WIDTHS = ((16, 16), (32, 32), (64, 64), (128, 64))  # of features and values
HEADS, LONGEST_PAIRS = 8, 2048  # beyond it only what is linear is timed


def given(causal: bool, impl: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Ours."""
    return lambda q, k, v: linear_attention(q, k, v, causal=causal, impl=impl, return_state=False).output


def softmax(causal: bool, width: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's, of inputs padded with zeros to one width, which its fast kernel asks for."""
    return lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=causal)[..., :width]


def timed(
    form: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], backward: bool
) -> Callable[[], object]:
    """A call of a pass or of both."""
    leaves = [x.clone().requires_grad_(backward) for x in inputs]

    def call() -> object:
        out = form(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out)) if backward else out

    return call


def line(f: int, e: int, n: int, causal: bool, backward: bool) -> str:
    """A row of the table: milliseconds."""
    inputs = [torch.rand(1, HEADS, n, f), torch.rand(1, HEADS, n, f), torch.randn(1, HEADS, n, e)]
    padded = [pad(x, (0, max(f, e) - x.shape[-1])) for x in inputs]
    calls = {"linear": timed(given(causal, "linear"), inputs, backward), MATMUL: matmul()}
    if n <= LONGEST_PAIRS:
        calls["direct"] = timed(given(causal, "direct"), inputs, backward)
    calls["sdpa"] = timed(softmax(causal, e), padded, backward)
    found = interleaved(calls, seconds=0.5)
    cells = [f"{1e3 * found[name].median:.2f}" if name in found else "–" for name in ("direct", "linear", "sdpa")]
    rate = MATMUL_OPERATIONS / found[MATMUL].median / 1e9
    kind = f"{'causal' if causal else 'bidirectional'}, {'both passes' if backward else 'forward'}"
    return f"| {kind} | {f} | {e} | {n} | {' | '.join(cells)} | {rate:.0f} |"


def main(lengths: list[int]) -> None:
    """Print the table row by row."""
    print("| pass | f | e | tokens | direct, ms | linear, ms | SDPA, ms | torch.mm, GFLOP/s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for causal, backward, (f, e), n in product((False, True), (False, True), WIDTHS, lengths):
        print(line(f, e, n, causal, backward), flush=True)


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or list(LENGTHS))
