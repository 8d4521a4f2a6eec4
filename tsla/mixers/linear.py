"""Linear attention by a map to choose: elu + 1, ReLU, cosFormer's, ReBased's, Taylor's, T2R's."""

from math import pi
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, layer_norm, relu

from tsla.mixers.base import MODES, HeadOptions
from tsla.mixers.features import FeatureAttention, FeatureMap, per_query_head
from tsla.ops import taylor_feature_dim, taylor_feature_map
from tsla.ops.checks import check_choice

MAPS = ("elu", "relu", "cosine", "rebased", "taylor", "t2r")


class EluFeatures(FeatureMap):
    """phi(x) = elu(x) + 1: x + 1 above 0, exp(x) below (arXiv 2006.16236)."""

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        return elu(x) + 1


class ReluFeatures(FeatureMap):
    """phi(x) = max(x, 0). A query without a positive entry sees nothing: its output is 0."""

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        return relu(x)


class CosineFeatures(FeatureMap):
    """cosFormer (arXiv 2202.08791): weights relu(q_i).relu(k_j) cos(pi/2 (i - j) / horizon), less for far keys.

    phi(x_i) = [relu(x_i) cos a_i, relu(x_i) sin a_i], a_i = pi/2 * i / horizon.

    Args:
        head_dim: d; there are 2 d features.
        horizon: tokens of the longest input; further apart, weights would be negative.

    Raises:
        ValueError: a horizon below 1; on the CPU, an input that is longer.
    """

    placed = True

    def __init__(self, head_dim: int, horizon: int) -> None:
        if horizon < 1:
            raise ValueError(f"horizon ({horizon}) must be at least 1")
        super().__init__(2 * head_dim)
        self.horizon = horizon

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        assert places is not None
        known = places.device.type == "cpu" and not torch.compiler.is_exporting()  # a GPU would have to be waited for
        if places.numel() and known and (last := int(places.max())) >= self.horizon:
            raise ValueError(f"input of {last + 1} tokens is longer than the horizon ({self.horizon})")
        angle = (pi / 2 / self.horizon * places.to(x.dtype))[..., None]
        angle = angle[:, None] if angle.dim() == 3 else angle
        return torch.cat([relu(x) * angle.cos(), relu(x) * angle.sin()], dim=-1)


class RebasedFeatures(FeatureMap):
    """ReBased (arXiv 2402.10644): weights (q'.k')^2 / d of x' = gamma * norm(x) + beta, a layer norm that is learned.

    Queries and keys have a gamma and beta of their own. The features are x_i^2 and sqrt(2) x_i x_j, over sqrt(d).

    Args:
        head_dim: d; there are d (d + 1) / 2 features.
    """

    undecayed = ("gamma", "beta")

    def __init__(self, head_dim: int) -> None:
        self.skipped = taylor_feature_dim(head_dim, order=2) - head_dim * (head_dim + 1) // 2
        super().__init__(head_dim * (head_dim + 1) // 2)
        self.gamma = nn.Parameter(torch.ones(2, head_dim))
        self.beta = nn.Parameter(torch.zeros(2, head_dim))

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        own, d = int(is_query), x.shape[-1]
        normed = layer_norm(x, (d,)) * self.gamma[own].to(x.dtype) + self.beta[own].to(x.dtype)
        second = taylor_feature_map(normed, order=2)[..., self.skipped :]  # its products are (q.k)^2 / 2
        return second * (2 / d) ** 0.5


class TaylorFeatures(FeatureMap):
    """The features of `TaylorAttention`: weights T(q.k / sqrt(d)), T the Taylor polynomial of exp (arXiv 2402.18668).

    Args:
        head_dim: d.
        order: even degree of the polynomial.
    """

    eps = 0.0
    exponential = True

    def __init__(self, head_dim: int, *, order: int = 2) -> None:
        super().__init__(taylor_feature_dim(head_dim, order=order))
        self.order = order

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        return taylor_feature_map(x * x.shape[-1] ** -0.25, order=self.order)

    def log_scale(self, q: Tensor) -> Tensor:
        """0: a polynomial near exp, as it is."""
        return q.new_zeros(q.shape[:-1])


class HeadLinear(nn.Module):
    """x W + b with a matrix for each head, ``(b, heads, n, d) -> (b, heads, n, width)``; the identity at first.

    Args:
        heads: g; more heads of x share a matrix, head i that of i * g // h.
        head_dim: d.
        width: of the output; beyond d its first values are 0.
    """

    undecayed = ("bias",)

    def __init__(self, heads: int, head_dim: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_dim, width).repeat(heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (per_query_head(y.to(x.dtype), x.shape[1]) for y in (self.weight, self.bias))
        return x @ weight + bias[:, None]


class T2RFeatures(FeatureMap):
    """T2R (arXiv 2103.13076): phi(x) = relu(x W_h + b_h), learned for each head, of queries and of keys.

    Args:
        heads, kv_heads: of queries and of keys.
        head_dim: d, and the number of features.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__(head_dim)
        self.query = HeadLinear(heads, head_dim, head_dim)
        self.key = HeadLinear(kv_heads, head_dim, head_dim)

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        return relu(self.query(x) if is_query else self.key(x))


class LinearAttention(FeatureAttention):
    """Linear attention with a chosen map (arXiv 2006.16236): weights phi(q).phi(k), cost O(n), state O(1).

    >>> layer = LinearAttention(dim=256, heads=8, map="elu")

    Args:
        dim: model width.
        map: ``"elu"``, ``"relu"``, ``"cosine"``, ``"rebased"``, ``"taylor"`` or ``"t2r"``; see the maps.
        horizon: for ``"cosine"``: tokens of the longest input.
        options: as in `HeadMixer`.

    Raises:
        ValueError: as in `HeadMixer`; another map; a horizon that is missing, or that the map has no use for.
    """

    def __init__(
        self, dim: int, *, map: str = "elu", horizon: int | None = None, **options: Unpack[HeadOptions]
    ) -> None:  # fmt: skip
        check_choice("map", map, MAPS)
        if map == "cosine" and horizon is None:
            raise ValueError("map='cosine' needs a horizon: the tokens of the longest input")
        if map != "cosine" and horizon is not None:
            raise ValueError(f"horizon ({horizon}) is for map='cosine' alone, got map={map!r}")
        super().__init__(dim, **options)
        self.feature_map = self._make(map, horizon)
        if self.feature_map.placed:
            self.supports = MODES - {"cross"}  # distance between two sequences has no meaning

    def _make(self, map: str, horizon: int | None) -> FeatureMap:
        d = self.head_dim
        match map:
            case "cosine":
                return CosineFeatures(d, horizon or 0)
            case "rebased":
                return RebasedFeatures(d)
            case "taylor":
                return TaylorFeatures(d)
            case "t2r":
                return T2RFeatures(self.heads, self.kv_heads, d)
            case "relu":
                return ReluFeatures(d)
            case _:
                return EluFeatures(d)
