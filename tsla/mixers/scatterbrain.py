"""Scatterbrain (arXiv 2110.15343) and LoLCATs' hybrid (arXiv 2410.10254): exact on a sparse support, linear off it."""

from math import log
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn

from tsla.mixers.base import MODES, HeadMixer, HeadOptions, State
from tsla.mixers.features import FeatureMap
from tsla.mixers.hedgehog import HedgehogFeatures
from tsla.mixers.linear import EluFeatures, TaylorFeatures
from tsla.mixers.performer import FavorFeatures
from tsla.mixers.window import WindowState, run_of
from tsla.ops import cluster_kernel_attention, linear_attention, window_kernel_attention
from tsla.ops.checks import check_choice
from tsla.ops.types import KernelState, accumulation_dtype, full_precision

SUPPORTS = ("local", "lsh")
MAPS = ("favor", "taylor", "hedgehog", "elu")
WINDOW, CLUSTER, ROUNDS = 32, 32, 2
REDRAW = 1000
START = 0.1  # of gamma (LoLCATs)


class ScatterbrainState(NamedTuple):
    """Sums over the keys that have left the window, the last `window` keys and values, and tokens seen ``(b,)``."""

    far: KernelState
    near: WindowState
    length: Tensor


class _Weighed(NamedTuple):
    """Features of queries and keys, and the log ``(b, h, n)`` of what makes their products weights."""

    queries: Tensor
    keys: Tensor
    log_scale: Tensor


class ScatterbrainAttention(HeadMixer):
    """Exact weights on a sparse support, a feature map's off it, one denominator: o_i = sum_j w_ij v_j / sum_j w_ij.

    w_ij = exp(q_i.k_j / sqrt(d)) on the support: a window (``"local"``), or clusters of queries and keys that random
    hashes put together (``"lsh"``, bidirectional only). Off it w_ij = phi(q_i).phi(k_j): of favor and taylor in the
    scale of exp itself, which they are near. Those of hedgehog and elu are not, and are left as they are; the support
    counts beside them by gamma exp(q_i.k_j / sqrt(d) - c_i), c_i the query's largest score there and gamma learned for
    each head, which is the hybrid of LoLCATs.

    >>> layer = ScatterbrainAttention(dim=256, heads=8, window=64, causal=True)

    Args:
        dim: model width.
        support: ``"local"`` or ``"lsh"``.
        window: of local: how far a token sees exactly; None = 32.
        cluster: of lsh: tokens of a cluster; None = 32.
        rounds: of lsh: how often tokens are put in clusters; None = 2.
        map: ``"favor"``, ``"taylor"``, ``"hedgehog"`` or ``"elu"``.
        features: of favor, see `FavorFeatures`.
        redraw_every: of favor: optimiser steps after which training draws new features; None = never.
        options: as in `HeadMixer`.

    Raises:
        ValueError: as in `HeadMixer`; another support or map; an option that the support or the map does not read.
    """

    supports = MODES - {"cross"}
    state_type = ScatterbrainState
    undecayed = ("log_gamma",)
    hashes: Tensor

    def __init__(
        self, dim: int, *, support: str = "local", window: int | None = None, cluster: int | None = None,
        rounds: int | None = None, map: str = "favor", features: int | None = None, redraw_every: int | None = REDRAW,
        **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        self.support = check_choice("support", support, SUPPORTS)
        check_choice("map", map, MAPS)
        for name, value, least, needs in (("window", window, 0, "local"), ("cluster", cluster, 1, "lsh"),
                                          ("rounds", rounds, 1, "lsh")):  # fmt: skip
            if value is not None and support != needs:
                raise ValueError(f"{name} ({value}) needs support={needs!r}, got {support!r}")
            if value is not None and value < least:
                raise ValueError(f"{name} ({value}) must be at least {least}")
        if map != "favor" and features is not None:
            raise ValueError(f"features ({features}) needs map='favor', got {map!r}")
        if map != "favor" and redraw_every not in (None, REDRAW):
            raise ValueError(f"redraw_every ({redraw_every}) needs map='favor', got {map!r}")
        if support == "lsh":  # a later token would change the clusters of earlier ones
            self.supports = frozenset({"bidirectional", "packed"})
        super().__init__(dim, **options)
        self.feature_map = self._make(map, features, redraw_every)
        self.window, self.cluster = WINDOW if window is None else window, cluster or CLUSTER
        if support == "lsh":
            self.register_buffer("hashes", torch.randn(rounds or ROUNDS, self.head_dim + 2))
        self.log_gamma = None if self.feature_map.exponential else nn.Parameter(torch.full((self.heads,), log(START)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        weighed = self._weigh(q, k)
        if self.support == "local":
            return self._windowed(q, k, v, weighed, mask, None)
        return cluster_kernel_attention(
            q, k, v, weighed.queries, weighed.keys, self.hashes, cluster=self.cluster, log_scale=weighed.log_scale,
            relative=self.log_gamma is not None, key_mask=mask,
        ).to(v.dtype)  # fmt: skip

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        past = None if state is None else ScatterbrainState(*state)
        run = run_of(q, k, v, mask, past and past.near, self.window)
        weighed, far = self._weigh(run.queries, run.keys), past and past.far
        out = self._windowed(run.queries, run.keys, run.values, weighed, run.filled, far)
        far = linear_attention(  # of no queries: what leaves the window goes to the sums
            weighed.keys[:, :, :0], weighed.keys, run.values, key_mask=run.left(), state=far, return_state=True
        ).state  # fmt: skip
        assert far is not None
        near = run.ring()
        return run.put_back(out), ScatterbrainState(far, near, near.length)

    def state_bytes(self, length: int) -> int:
        """Sums in float32 at least, and the last `window` keys and values, or all where there are clusters."""
        size = accumulation_dtype(self.to_k.weight.dtype).itemsize
        sums = size * self.kv_heads * self.feature_map.dim_out * (self.value_dim + 1)
        return sums + self.key_value_bytes(self.window if self.support == "local" else length)

    def _windowed(
        self, q: Tensor, k: Tensor, v: Tensor, weighed: _Weighed, mask: Tensor | None, far: KernelState | None
    ) -> Tensor:  # fmt: skip
        return window_kernel_attention(
            q, k, v, weighed.queries, weighed.keys, window=self.window, causal=self.causal,
            log_scale=weighed.log_scale, relative=self.log_gamma is not None, key_mask=mask, state=far,
        ).to(v.dtype)  # fmt: skip

    def _weigh(self, q: Tensor, k: Tensor) -> _Weighed:
        with full_precision(q.device):
            q, k = (y.to(accumulation_dtype(y.dtype)) for y in (q, k))
            fq, fk = self.feature_map(q, is_query=True), self.feature_map(k, is_query=False)
            if self.log_gamma is None:
                return _Weighed(fq, fk, self.feature_map.log_scale(q))
            return _Weighed(fq, fk, -self.log_gamma.to(q.dtype)[:, None].expand(q.shape[:3]))

    def _make(self, map: str, features: int | None, redraw_every: int | None) -> FeatureMap:
        match map:
            case "taylor":
                return TaylorFeatures(self.head_dim)
            case "hedgehog":
                return HedgehogFeatures(self.heads, self.kv_heads, self.head_dim)
            case "elu":
                return EluFeatures(self.head_dim)
            case _:
                return FavorFeatures(self.head_dim, features=features, redraw_every=redraw_every)
