"""Low-rank adaptation (LoRA, arXiv 2106.09685) of the projections of attention."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tsla.mixers import HeadMixer

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class LoraLinear(nn.Module):
    """y = W x + b + scale * B A x with W and b frozen; B starts as 0, so that nothing has changed at the start.

    Args:
        base: the layer with W and b, which is frozen here.
        rank: of B A.
        alpha: scale = alpha / rank; None = 2 * rank (arXiv 2410.10254).

    Raises:
        ValueError: a rank below 1, or above what W has.
    """

    def __init__(self, base: nn.Linear, rank: int, *, alpha: float | None = None) -> None:
        super().__init__()
        if not 1 <= rank <= min(base.weight.shape):
            raise ValueError(f"rank ({rank}) must be 1 to {min(base.weight.shape)}, the smaller side of the weights")
        self.base = base.requires_grad_(False)
        self.scale = 2.0 if alpha is None else alpha / rank
        kind, device = base.weight.dtype, base.weight.device
        spread = base.in_features**-0.5
        self.a = nn.Parameter(torch.randn(rank, base.in_features, dtype=kind, device=device) * spread)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, dtype=kind, device=device))

    @property
    def weight(self) -> Tensor:
        """W + scale * B A."""
        return self.base.weight + self.scale * (self.b @ self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * linear(linear(x, self.a), self.b)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The plain layer, with `weight` for its weights."""
        self.base.weight.copy_(self.weight)
        return self.base.requires_grad_(True)


def add_lora(model: nn.Module, rank: int, *, alpha: float | None = None) -> int:
    """Put a `LoraLinear` in the place of each mixer's q, k, v and output projections, and freeze all else.

    Returns the number of parameters that are left to learn.

    Raises:
        ValueError: as in `LoraLinear`.
    """
    model.requires_grad_(False)
    for mixer in [m for m in model.modules() if isinstance(m, HeadMixer)]:
        for name in PROJECTIONS:
            if isinstance(layer := getattr(mixer, name), nn.Linear):  # without an output projection there is none
                setattr(mixer, name, LoraLinear(layer, rank, alpha=alpha))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def merge_lora(model: nn.Module) -> None:
    """Undo `add_lora`, with what was learnt in the weights; all parameters learn again."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
    model.requires_grad_(True)
