"""What is compared on a GPU alone: programs that visit every pair and hold its weight on the chip.

Exact Taylor attention as a program of torch's FlexAttention, and the kernel of flash-linear-attention's Based layer.
"""

from typing import Any

import torch
from torch import Tensor

from tsla.bench.cases import CUDA, TAYLOR, Case, Implementation, Made, Unavailable, repeated
from tsla.bench.exact import of_scores, second_order

WIDEST = 128  # width of q and k that flash-linear-attention's kernel takes
LACKS_FLA = "not installed: pip install flash-linear-attention"


def gpu_implementations() -> list[Implementation]:
    """Both."""
    return [Implementation("flex", TAYLOR, _flex), Implementation("fla-based", TAYLOR, _based)]


def log_second_order(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """log(1 + s + s^2 / 2): FlexAttention's softmax of it has the weights of Taylor attention, divided by their sum.

    The polynomial is at least 1/2, so that the logarithm is finite.
    """
    return torch.log(second_order(score))


def _flex(case: Case) -> Made:
    """Compiled on a GPU; on the CPU, where torch has no backward pass for it, with all weights in memory."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend: Any = flex_attention
    mask: Any = create_block_mask
    if case.device == CUDA:  # uncompiled, weights and mask of all pairs would be made
        attend, mask = torch.compile(attend, dynamic=False), torch.compile(mask)
    blocks = mask(_seen, None, None, case.length, case.length, device=case.device) if case.causal else None

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(
            q, k, v, score_mod=log_second_order, block_mask=blocks, scale=case.d**-0.5,
            enable_gqa=case.kv_heads != case.heads,
        )  # fmt: skip

    return Made(form, of_scores(second_order, case.d**-0.5, case.causal))


def _seen(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    return row >= column


def _based(case: Case) -> Made:
    """Its tensors are ``(b, n, h, d)`` from outside and heads first inside, so that turning ours round copies nothing.

    To the sum of weights, 1/2 at least for a pair, it adds 1e-6.
    """
    if not case.causal:
        raise Unavailable("causal only")
    if case.d > WIDEST:
        raise Unavailable(f"d ({case.d}) must be at most {WIDEST}")
    try:
        from fla.ops.based import parallel_based
    except ImportError as error:
        raise Unavailable(LACKS_FLA) from error

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return parallel_based(*turned, scale=case.d**-0.5, use_norm=True).transpose(1, 2)

    return Made(repeated(form, case), of_scores(second_order, case.d**-0.5, case.causal))
