"""Forgetting: how fast a key's weight falls with its distance; learned, by head or by token, or by a table."""

from math import log, log2

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tsla.ops.checks import check_choice
from tsla.ops.types import accumulation_dtype, full_precision

KINDS = ("none", "fixed", "selective")
TABLES = ("alibi", "paper", "retention", "none")


class Decay(nn.Module):
    """Log decays, log sigmoid(bias_h), or log sigmoid(w_h . x + bias_h) where each token decides (arXiv 2312.06635).

    The time scales of the heads start out spread in equal ratios; a token's own say starts at 0.

    Args:
        dim: model width.
        heads: query heads.
        kind: ``"fixed"``, a learned rate for each head; or ``"selective"``, for each head and token.
        shortest, longest: tokens after which the first and last head have forgotten all but 1/e, at the start.
    """

    def __init__(
        self, dim: int, heads: int, kind: str, *, shortest: float = 4.0, longest: float = 4096.0
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("decay", kind, KINDS[1:])
        place = torch.linspace(0, 1, heads) if heads > 1 else torch.full((1,), 0.5)
        keep = torch.exp(-1 / (shortest * (longest / shortest) ** place))
        self.bias = nn.Parameter(keep.logit())
        self.weight = nn.Parameter(torch.zeros(heads, dim)) if kind == "selective" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(h,)``, or ``(b, h, n)`` of tokens ``(b, n, dim)``; float32 at least, since it will be summed over them."""
        if self.weight is None:
            return logsigmoid(self.bias.to(accumulation_dtype(x.dtype)))
        with full_precision(x.device):
            x, weight, bias = (y.to(accumulation_dtype(x.dtype)) for y in (x, self.weight, self.bias))
            return logsigmoid(x @ weight.T + bias).transpose(1, 2)


def decay_table(heads: int, kind: str, *, layer: int = 0, depth: int = 1) -> Tensor | None:
    """Log decays ``(h,)`` that are not learned, of heads h = 0 ... H-1 in layer l of L; None where nothing decays.

    alibi      -s_h (1 - l / (L - 1) + 1e-5), s_h = 2^(-8 (h + 1) / H): TransNormerLLM's code, and Lightning Attention's
    paper      -(8 h / H) (1 - l / L): equation 10 of TransNormerLLM's paper (arXiv 2307.14995), another table
    retention  log(1 - 2^(-5 - h)): RetNet (arXiv 2307.08621), the same in all layers
    none

    Where H is no power of two, the s_h are those of the largest one below, then every second of twice as many.

    Raises:
        ValueError: another kind, or a layer that is not one of `depth`.
    """
    check_choice("decay", kind, TABLES)
    if not 0 <= layer < depth:
        raise ValueError(f"layer ({layer}) must be one of depth ({depth}), counted from 0")
    match kind:
        case "alibi":
            left = 1 - (layer / (depth - 1) if depth > 1 else 0) + 1e-5
            return torch.tensor([-slope * left for slope in _slopes(heads)])
        case "paper":
            return torch.tensor([-(8 * h / heads) * (1 - layer / depth) for h in range(heads)])
        case "retention":
            return torch.tensor([log(1 - 2.0 ** (-5 - h)) for h in range(heads)])
        case _:
            return None


def _slopes(heads: int) -> list[float]:
    """ALiBi's (arXiv 2108.12409)."""
    whole = 2 ** int(log2(heads))
    slopes = [2 ** (-8 * (h + 1) / whole) for h in range(whole)]
    return slopes + [2 ** (-4 * (h + 1) / whole) for h in range(0, 2 * (heads - whole), 2)]
