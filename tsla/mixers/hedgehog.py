"""Hedgehog (arXiv 2402.04347): feature maps that learn to be as sharp and as monotonic as softmax."""

from typing import Unpack

import torch
from torch import Tensor

from tsla.mixers.base import HeadOptions
from tsla.mixers.features import TINY, FeatureAttention, FeatureMap
from tsla.mixers.linear import HeadLinear
from tsla.mixers.performer import REACH
from tsla.ops.checks import check_choice

KINDS = ("softmax", "exp", "max", "joint")


class HedgehogFeatures(FeatureMap):
    """phi of z = x W_h + b_h, of queries and of keys by themselves; W starts as the identity, b as 0.

    softmax  [softmax(z), softmax(-z)]             LoLCATs (arXiv 2410.10254)
    exp      [exp(z), exp(-z)]                     the paper's main text; of keys, |z| counts as 50 at most
    max      [exp(z - max z), exp(-z + min z)]     LoLCATs
    joint    softmax([2 z, -2 z])                  flash-linear-attention

    Four functions, not four ways to one: what a key's features are divided by weighs the key.

    Args:
        heads, kv_heads: of queries and of keys.
        head_dim: d.
        width: of z; there are 2 * width features. None = d.
        kind: see above.

    Raises:
        ValueError: another kind, or a width below 1.
    """

    eps = TINY

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, *, width: int | None = None, kind: str = "softmax"
    ) -> None:  # fmt: skip
        width = head_dim if width is None else width
        if width < 1:
            raise ValueError(f"width ({width}) must be at least 1")
        super().__init__(2 * width)
        self.kind = check_choice("kind", kind, KINDS)
        self.query = HeadLinear(heads, head_dim, width)
        self.key = HeadLinear(kv_heads, head_dim, width)

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        z = self.query(x) if is_query else self.key(x)
        match self.kind:
            case "softmax":
                return torch.cat([z.softmax(-1), (-z).softmax(-1)], dim=-1)
            case "max":
                return torch.cat([(z - z.amax(-1, keepdim=True)).exp(), (z.amin(-1, keepdim=True) - z).exp()], dim=-1)
            case "joint":
                return torch.cat([2 * z, -2 * z], dim=-1).softmax(-1)
            case _ if is_query:  # may be divided by anything: by its largest feature, which exp could not hold
                most = z.detach().abs().amax(-1, keepdim=True)
                return torch.cat([(z - most).exp(), (-z - most).exp()], dim=-1)
            case _:
                z = z.clamp(-REACH, REACH)
                return torch.cat([z.exp(), (-z).exp()], dim=-1)


class HedgehogAttention(FeatureAttention):
    """Linear attention by `HedgehogFeatures`, from scratch or in the place of softmax (`tsla distill`).

    >>> layer = HedgehogAttention(dim=256, heads=8)

    Args:
        dim: model width.
        width, kind: see `HedgehogFeatures`.
        options: as in `HeadMixer`.
    """

    def __init__(
        self, dim: int, *, width: int | None = None, kind: str = "softmax", **options: Unpack[HeadOptions]
    ) -> None:  # fmt: skip
        super().__init__(dim, **options)
        self.feature_map = HedgehogFeatures(self.heads, self.kv_heads, self.head_dim, width=width, kind=kind)
