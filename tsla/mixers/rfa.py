"""Random feature attention (RFA, arXiv 2103.02143), and with a gate that lets it forget."""

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from tsla.mixers.base import MODES, HeadOptions
from tsla.mixers.decay import Decay
from tsla.mixers.features import FeatureAttention, FeatureMap, Weighed, per_query_head
from tsla.mixers.performer import check_redraw_every, orthogonal_rows
from tsla.ops.checks import check_choice
from tsla.ops.norm import unit

KINDS = ("gaussian", "arccos")
FEWEST = 32  # random vectors that a head has by default
SHORTEST, LONGEST = 10.0, 100.0  # tokens after which a head of RFA-Gate has forgotten all but 1/e, at the start


class RandomFeatures(FeatureMap):
    """Random features of unit vectors x' = x / |x|, rows W_h scaled by a learned sigma_h (arXiv 2103.02143).

    gaussian  phi(x) = [sin(W s x'), cos(W s x')] / sqrt(r), r rows: E phi(q).phi(k) = exp(-|s (q' - k')|^2 / 2)
    arccos    phi(x) = relu(W s x') / sqrt(r): the arc-cosine kernel, which grows with the angle's cosine too

    The estimate of a Gaussian weight may fall below 0. Each key/value head has its own rows, the same for its queries.

    Args:
        kv_heads: g.
        head_dim: d.
        features: of a head; gaussian ones come in pairs. None = of d rows, as in the paper, but of 32 at least: with
            few, sums of weights come near 0.
        kind: see above.
        redraw_every: optimiser steps after which training draws new rows, 1 in the paper; None = never.

    Raises:
        ValueError: another kind; features below 1 or, if gaussian, not even; redraw_every below 1.
    """

    projection: Tensor
    undecayed = ("sigma",)

    def __init__(
        self, kv_heads: int, head_dim: int, *, features: int | None = None, kind: str = "gaussian",
        redraw_every: int | None = 1000,
    ) -> None:  # fmt: skip
        self.kind = check_choice("kind", kind, KINDS)
        each = 2 if kind == "gaussian" else 1
        features = max(head_dim, FEWEST) * each if features is None else features
        if features < 1 or features % each:
            raise ValueError(f"features ({features}) must be at least {each}" + " and even" * (each - 1))
        super().__init__(features)
        self.positive = kind == "arccos"
        self.redraw_every = check_redraw_every(redraw_every)
        self.sigma = nn.Parameter(torch.ones(kv_heads, head_dim))
        self.register_buffer("projection", torch.empty(kv_heads, features // each, head_dim))
        self.resample()

    @torch.no_grad()
    def resample(self, generator: torch.Generator | None = None) -> None:
        """New rows, by a generator of the CPU or torch's own."""
        self.projection.copy_(orthogonal_rows(*self.projection.shape, generator=generator))

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        rows = per_query_head(self.projection.to(x.dtype) * self.sigma[:, None].to(x.dtype), x.shape[1])
        turned = unit(x) @ rows.transpose(-1, -2)
        size = rows.shape[-2] ** -0.5
        if self.kind == "arccos":
            return relu(turned) * size
        return torch.cat([turned.sin(), turned.cos()], dim=-1) * size


class RFAAttention(FeatureAttention):
    """Random feature attention: the features of `RandomFeatures`, sums of weights kept away from 0.

    >>> layer = RFAAttention(dim=256, heads=8)

    Args:
        dim: model width.
        features, kind, redraw_every: see `RandomFeatures`.
        options: as in `HeadMixer`.
    """

    def __init__(
        self, dim: int, *, features: int | None = None, kind: str = "gaussian", redraw_every: int | None = 1000,
        **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        super().__init__(dim, **options)
        self.feature_map = RandomFeatures(
            self.kv_heads, self.head_dim, features=features, kind=kind, redraw_every=redraw_every
        )


class RFAGateAttention(RFAAttention):
    """RFA-Gate: causal RFA that forgets, S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T, g_t = sigmoid(w_h.x_t + b_h).

    Query heads have gates of their own, and so states of their own. The gates start between 0.905 and 0.990.

    Args:
        dim, features, kind, redraw_every, options: as in `RFAAttention`; causal must be True.
    """

    supports = MODES - {"bidirectional", "cross"}
    decays = True
    floor = 1e-5  # a gate near 1 writes little: 1 - g is part of each sum, and is not to come under the floor

    def __init__(
        self, dim: int, *, features: int | None = None, kind: str = "gaussian", redraw_every: int | None = 1000,
        **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        super().__init__(dim, features=features, kind=kind, redraw_every=redraw_every, **options)
        self.forgetting = Decay(dim, self.heads, "selective", shortest=SHORTEST, longest=LONGEST)

    def weigh(self, q: Tensor, k: Tensor, x: Tensor, places: Tensor | None) -> Weighed:
        queries, keys, _ = super().weigh(q, k, x, places)
        kept = self.forgetting(x)
        keys = keys.repeat_interleave(self.heads // self.kv_heads, dim=1)
        return Weighed(queries, keys * -kept.expm1()[..., None], kept)
