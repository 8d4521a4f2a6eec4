"""Forgetting: how fast the weight of a key falls with its distance, per head, fixed or by the token in between."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tsla.ops.checks import check_choice
from tsla.ops.types import accumulation_dtype, full_precision

KINDS = ("none", "fixed", "selective")
SHORTEST, LONGEST = 4.0, 4096.0  # tokens after which a head has forgotten all but 1/e, at the start of training


class Decay(nn.Module):
    """Log decays, log sigmoid(bias_h), or log sigmoid(w_h . x + bias_h) where each token decides (arXiv 2312.06635).

    The time scales of the heads start out spread from 4 to 4096 tokens, in equal ratios; a token's own say starts at 0.

    Args:
        dim: model width.
        heads: query heads.
        kind: ``"fixed"``, a learned rate for each head; or ``"selective"``, for each head and token.
    """

    def __init__(self, dim: int, heads: int, kind: str) -> None:
        super().__init__()
        check_choice("decay", kind, KINDS[1:])
        place = torch.linspace(0, 1, heads) if heads > 1 else torch.full((1,), 0.5)
        keep = torch.exp(-1 / (SHORTEST * (LONGEST / SHORTEST) ** place))
        self.bias = nn.Parameter(keep.logit())
        self.weight = nn.Parameter(torch.zeros(heads, dim)) if kind == "selective" else None

    def forward(self, x: Tensor) -> Tensor:
        """``(h,)``, or ``(b, h, n)`` of tokens ``(b, n, dim)``; float32 at least, since it will be summed over them."""
        if self.weight is None:
            return logsigmoid(self.bias.to(accumulation_dtype(x.dtype)))
        with full_precision(x.device):
            x, weight, bias = (y.to(accumulation_dtype(x.dtype)) for y in (x, self.weight, self.bias))
            return logsigmoid(x @ weight.T + bias).transpose(1, 2)
