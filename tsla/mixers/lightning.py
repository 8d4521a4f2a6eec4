"""Decayed sums that are not divided: Lightning Attention-2 (arXiv 2401.04658), TransNormerLLM (arXiv 2307.14995)."""

from typing import Unpack

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from tsla.mixers.base import MODES, HeadOptions
from tsla.mixers.decay import decay_table
from tsla.mixers.features import FeatureAttention, FeatureMap, Weighed, per_query_head
from tsla.ops.checks import check_choice
from tsla.ops.norm import srms_norm

ACTIVATIONS = ("silu", "none")
LRPE_LAYERS = ("first", "all", "none")


class SiluFeatures(FeatureMap):
    """phi(x) = silu(x), or x itself; of either sign, so that their sums are not to divide by.

    Args:
        head_dim: d, and the number of features.
        activation: ``"silu"`` or ``"none"``.
    """

    positive = False

    def __init__(self, head_dim: int, activation: str = "silu") -> None:
        super().__init__(head_dim)
        self.activation = check_choice("activation", activation, ACTIVATIONS)

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        return silu(x) if self.activation == "silu" else x


class LrpeFeatures(FeatureMap):
    """LRPE: [a cos(theta t), a sin(theta t)] of a = phi(x_t), so that weights are sum_i a_i b_i cos(theta_i (t - s)).

    theta ``(g, d)`` is learned, and starts at 10000^(-2 n / (g d)), n = 0 ... g d - 1 (arXiv 2307.14995).

    Args:
        inner: the map that positions act on.
        kv_heads: g; query heads have the theta of theirs.
    """

    placed = True
    undecayed = ("theta",)

    def __init__(self, inner: FeatureMap, kv_heads: int) -> None:
        super().__init__(2 * inner.dim_out)
        self.inner, self.positive, size = inner, False, kv_heads * inner.dim_out
        self.theta = nn.Parameter((10_000.0 ** (-2 * torch.arange(size) / size)).reshape(kv_heads, inner.dim_out))

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        assert places is not None
        features = self.inner(x, is_query=is_query)
        theta = per_query_head(self.theta.to(x.dtype), x.shape[1])  # (h, d)
        places = places.to(x.dtype)[:, None] if places.dim() == 2 else places.to(x.dtype)  # (b, 1, n) or (n,)
        angle = places[..., None] * theta[:, None]
        return torch.cat([features * angle.cos(), features * angle.sin()], dim=-1)


class LightningAttention(FeatureAttention):
    """o_i = sum_{j <= i} lambda_h^(i - j) (phi(q_i).phi(k_j)) v_j, then SRMSNorm over all heads together.

    Not divided by the sum of weights, and not scaled by 1 / sqrt(head_dim): the norm sets the size. Lightning
    Attention-2 is the tiled evaluation of that sum, which `tsla.ops.linear_attention` is too. Bidirectional, the
    weight is lambda_h^|i - j|. With ``activation="none", decay="retention"`` and rotary positions it is a retention.

    >>> layer = LightningAttention(dim=256, heads=8, causal=True, layer=0, depth=2)

    Args:
        dim: model width.
        activation: ``"silu"`` or ``"none"``, phi.
        decay: ``"alibi"``, ``"paper"``, ``"retention"`` or ``"none"``; see `decay_table`.
        layer, depth: where the mixer stands, for the table.
        options: as in `HeadMixer`.
    """

    supports = MODES - {"cross"}  # distance between two sequences has no meaning
    normalize = False
    log_decay: Tensor | None

    def __init__(
        self, dim: int, *, activation: str = "silu", decay: str = "alibi", layer: int = 0, depth: int = 1,
        **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        super().__init__(dim, **options)
        self.feature_map: FeatureMap = SiluFeatures(self.head_dim, activation)
        self.register_buffer("log_decay", decay_table(self.heads, decay, layer=layer, depth=depth), persistent=False)
        self.decays = self.log_decay is not None

    def weigh(self, q: Tensor, k: Tensor, x: Tensor, places: Tensor | None) -> Weighed:
        return super().weigh(q, k, x, places)._replace(log_decay=self.log_decay)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        normed = srms_norm(rearrange(out, "b h n e -> b n (h e)"))
        return rearrange(normed, "b n (h e) -> b h n e", h=self.heads)


class TransNormerAttention(LightningAttention):
    """The gated linear attention of TransNormerLLM: `LightningAttention` with LRPE, its output times u = x W_u.

    Args:
        dim, activation, decay, layer, depth, options: as in `LightningAttention`.
        lrpe: which layers have LRPE: the ``"first"``, as in the paper, ``"all"`` or ``"none"``.
    """

    def __init__(
        self, dim: int, *, lrpe: str = "first", activation: str = "silu", decay: str = "alibi", layer: int = 0,
        depth: int = 1, **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        check_choice("lrpe", lrpe, LRPE_LAYERS)
        super().__init__(dim, activation=activation, decay=decay, layer=layer, depth=depth, **options)
        if lrpe == "all" or (lrpe == "first" and layer == 0):
            self.feature_map = LrpeFeatures(self.feature_map, self.kv_heads)
        self.to_u = nn.Linear(dim, self.width, bias=options.get("bias", False))

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        u = rearrange(self.to_u(x), "b n (h e) -> b h n e", h=self.heads)
        return super().finish(out, x) * u
