"""Poly-attention of order 2 (arXiv 2602.02422) with Taylor weights: tokens read others through a middle token."""

from typing import Unpack

from einops import rearrange
from torch import Tensor, nn

from tsla.mixers.base import HeadMixer, HeadNorm, HeadOptions, positions
from tsla.ops import rotary, taylor_feature_dim, taylor_poly_attention
from tsla.ops.attention import FORMS
from tsla.ops.checks import check_choice, check_crossover
from tsla.ops.feature_map import check_order
from tsla.ops.types import accumulation_dtype

ROOTS = ("none", "value", "sigmoid")


class TaylorPolyAttention(HeadMixer):
    """Three tokens at a time, o_i = sum_jk w(q1_i.q2_j) w(q2_j.q3_k) v_k / sum_jk w(q1_i.q2_j) w(q2_j.q3_k), in O(n).

    w is the Taylor polynomial of exp, of scores that are not divided by sqrt(head_dim), since q1, q2 and q3 are
    RMS-normalised (`qk_norm`, here True unless turned off); see `tsla.ops.taylor_poly_attention`. Bidirectional only.
    With fewer `kv_heads`, q2, q3 and v have so many heads, and query head i reads head i * kv_heads // heads.

    Args:
        dim: model width.
        order: even degree of the polynomial.
        normalize_first: average over k by itself, then over j; else a middle token counts by the weights of its keys.
        root: multiply each output by a projection of the token it belongs to (``"value"``) or by its ``"sigmoid"``, one
            number per channel; or ``"none"``.
        impl, crossover: form of the computation of both attentions, see `tsla.ops.taylor_attention`.
        options: as in `HeadMixer`; head_dim defaults to 16, since cost grows with its square, and qk_norm to True.

    Raises:
        ValueError: as in `HeadMixer`; an odd order, or another root or impl.
    """

    supports = frozenset({"bidirectional", "packed"})
    default_head_dim = 16

    def __init__(
        self, dim: int, *, order: int = 2, normalize_first: bool = False, root: str = "none", impl: str = "auto",
        crossover: float | None = None, **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        check_order(order)
        settings: HeadOptions = {"qk_norm": True, **options}
        super().__init__(dim, **settings)
        self.order, self.normalize_first = order, normalize_first
        self.root, self.impl = check_choice("root", root, ROOTS), check_choice("impl", impl, FORMS)
        self.crossover = check_crossover(crossover, impl)
        bias = settings.get("bias", False)
        self.to_middle = nn.Linear(dim, self.kv_heads * self.head_dim, bias=bias)
        self.middle_norm = HeadNorm(self.head_dim) if settings["qk_norm"] else nn.Identity()
        self.to_root = None if root == "none" else nn.Linear(dim, self.width, bias=bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        middle = self.middle_norm(rearrange(self.to_middle(x), "b n (g d) -> b g n d", g=self.kv_heads))
        if self.rotary:
            middle = rotary(middle, positions(mask, x))
        out = taylor_poly_attention(
            q, middle, k, v, order=self.order, key_mask=mask, normalize_first=self.normalize_first, impl=self.impl,
            crossover=self.crossover,
        ).to(v.dtype)  # fmt: skip
        if self.to_root is None:
            return out
        root = rearrange(self.to_root(x), "b n (h e) -> b h n e", h=self.heads)
        return out * (root.sigmoid() if self.root == "sigmoid" else root)

    def state_bytes(self, length: int) -> int:
        """The sums over middle tokens that any query reads, in float32 at least, whatever the length."""
        size = accumulation_dtype(self.to_k.weight.dtype).itemsize
        return size * self.kv_heads * taylor_feature_dim(self.head_dim, order=self.order) * (self.value_dim + 1)
