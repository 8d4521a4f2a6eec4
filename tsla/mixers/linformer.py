"""Linformer (arXiv 2006.04768): softmax attention to a few learned sums of all keys and values."""

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tsla.mixers.base import HeadMixer, HeadOptions
from tsla.ops.checks import check_choice
from tsla.ops.types import accumulation_dtype, full_precision

SHARING = ("none", "head", "kv", "layer")


class LinformerProjection(nn.Module):
    """E and F: a row for each of the first `max_length` tokens, by which it counts in each of `rank` slots.

    Args:
        max_length: tokens of the longest input.
        rank: slots, max_length at most; None = 64, or max_length if that is less.
        heads: each has an E and an F of its own; None: all share one.
        tied: F is E.

    Raises:
        ValueError: a size below 1, or a rank above max_length.
    """

    def __init__(
        self, max_length: int, rank: int | None = None, *, heads: int | None = None, tied: bool = False
    ) -> None:  # fmt: skip
        for name, size in (("max_length", max_length), ("rank", rank)):
            if size is not None and size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1")
        rank = min(64, max_length) if rank is None else rank
        if rank > max_length:
            raise ValueError(f"rank ({rank}) must be at most max_length ({max_length})")
        super().__init__()
        self.max_length, self.rank = max_length, rank
        shape = (max_length, rank) if heads is None else (heads, max_length, rank)
        self.keys = nn.Parameter(torch.randn(shape) * rank**-0.5)
        self.values = None if tied else nn.Parameter(torch.randn(shape) * rank**-0.5)

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """E^T K ``(b, g, rank, d)`` and F^T V ``(b, g, rank, e)`` of keys and values of n tokens."""
        return self._sums(self.keys, k), self._sums(self.keys if self.values is None else self.values, v)

    def _sums(self, weight: Tensor, x: Tensor) -> Tensor:
        rows = weight[..., : x.shape[2], :].to(x.dtype)
        return torch.einsum("nr, bgnd -> bgrd" if rows.dim() == 2 else "gnr, bgnd -> bgrd", rows, x)


class LinformerAttention(HeadMixer):
    """softmax(Q K'^T / sqrt(head_dim)) V', K' = E^T K and V' = F^T V: `rank` slots for any number of tokens.

    A token has the row of E and F that its position among the real ones tells, so padding of any kind changes nothing;
    fewer tokens have the first rows. E mixes all tokens, later ones too, so there is no causal form.

    >>> layer = LinformerAttention(dim=256, heads=8, max_length=4096, rank=128)

    Args:
        dim: model width.
        max_length: tokens of the longest input, or context; a longer one is refused.
        rank: slots, max_length at most; None = 64, or max_length if that is less.
        sharing: what has an E and an F of its own: each key/value head (``"none"``) or the layer (``"head"``); with
            ``"kv"`` the layer has one matrix, which is both, and with ``"layer"`` all layers have one.
        projection: for ``"layer"``, that of another layer, its `projection`; None makes one.
        options: as in `HeadMixer`.

    Raises:
        ValueError: as in `HeadMixer`; sizes that a `LinformerProjection` refuses; another sharing; a projection that is
            of other sizes, of several matrices, or not to be shared.
    """

    supports = frozenset({"bidirectional", "cross", "packed"})

    def __init__(
        self, dim: int, *, max_length: int, rank: int | None = None, sharing: str = "head",
        projection: LinformerProjection | None = None, **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        check_choice("sharing", sharing, SHARING)
        if projection is not None and sharing != "layer":
            raise ValueError(f"a projection is for sharing='layer' alone, got sharing={sharing!r}")
        super().__init__(dim, **options)
        self.sharing = sharing
        if projection is None:
            heads = self.kv_heads if sharing == "none" else None
            projection = LinformerProjection(max_length, rank, heads=heads, tied=sharing in ("kv", "layer"))
        if sharing == "layer" and (projection.values is not None or projection.keys.dim() > 2):
            raise ValueError("projection must be one matrix, for keys, values and all heads")
        if projection.max_length != max_length or rank not in (None, projection.rank):
            raise ValueError(f"projection is of max_length {projection.max_length} and rank {projection.rank}, "
                             f"got {max_length} and {rank}")  # fmt: skip
        self.projection = projection

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        if k.shape[2] > self.projection.max_length:
            raise ValueError(f"{k.shape[2]} tokens are more than max_length ({self.projection.max_length})")
        if mask is not None:
            order = torch.argsort(~mask, dim=1, stable=True)[:, None, :, None]
            k, v = (_in_order(y.masked_fill(~mask[:, None, :, None], 0.0), order) for y in (k, v))
        with full_precision(x.device):
            q, *kv = (y.to(accumulation_dtype(y.dtype)) for y in (q, k, v))
            keys, values = self.projection(*kv)
            out = scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        return out.to(v.dtype)

    def state_bytes(self, length: int) -> int:
        """The slots of keys and values, in float32 at least, whatever the length."""
        size = accumulation_dtype(self.to_k.weight.dtype).itemsize
        return size * self.kv_heads * self.projection.rank * (self.head_dim + self.value_dim)


def _in_order(x: Tensor, order: Tensor) -> Tensor:
    """Tokens `order` ``(b, 1, m, 1)`` of x ``(b, g, m, .)``: real ones first, so that their place is their position."""
    return x.gather(2, order.expand(-1, x.shape[1], -1, x.shape[3]))
