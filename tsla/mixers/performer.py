"""Performer (arXiv 2009.14794): softmax attention in the mean over random features, FAVOR+."""

from math import log
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn.functional import relu, threshold

from tsla.mixers.base import HeadOptions
from tsla.mixers.features import TINY, FeatureAttention, FeatureMap
from tsla.ops.checks import check_choice

KINDS = ("positive", "hyperbolic", "relu")
SCALINGS = ("random", "fixed")
REACH = 50.0  # exponents of a key's features go from -50 to 50: float32 holds sums of exp(50) over millions of keys


class FavorFeatures(FeatureMap):
    """FAVOR+: E phi(q).phi(k) = exp(q.k / sqrt(d)) over random rows w_r, of which there are m; x' = x / d^(1/4).

    positive    phi(x) = exp(w_r.x' - |x'|^2 / 2) / sqrt(m)
    hyperbolic  the same of w_r and of -w_r, over sqrt(2 m): 2 m features, which vary less than as many positive ones
    relu        phi(x) = (relu(w_r.x') + 0.001) / sqrt(m): another kernel, which is not near softmax's

    The rows are orthogonal in blocks of d, each uniform on a sphere of a radius drawn as a Gaussian vector's length, or
    of radius sqrt(d) (``"fixed"``: less variance, with a bias). All heads share them.

    A query's largest exponent is taken from all of its own, which changes no average. For keys the field takes the
    largest of all keys, and adds 0.0001 to features: later keys then change what earlier tokens see. Here a key's
    features depend on it alone: an exponent is at most |w_r|^2 / 2, which is put at 50, and counts as -50 where it is
    lower than that, as for keys so long that float32 could not hold what they are beside others.

    Args:
        head_dim: d.
        features: of a head, of as many rows, or of half as many if hyperbolic; None = int(d ln d), or the even number
            below it if hyperbolic, of one row at least.
        kind: see above.
        scaling: ``"random"`` or ``"fixed"``, the radii.
        redraw_every: optimiser steps after which training draws new rows; None = never.

    Raises:
        ValueError: another kind or scaling; features below 1 or, if hyperbolic, not even; redraw_every below 1.
    """

    projection: Tensor
    eps = TINY

    def __init__(
        self, head_dim: int, *, features: int | None = None, kind: str = "hyperbolic", scaling: str = "random",
        redraw_every: int | None = 1000,
    ) -> None:  # fmt: skip
        self.kind = check_choice("kind", kind, KINDS)
        self.scaling = check_choice("scaling", scaling, SCALINGS)
        each = 2 if kind == "hyperbolic" else 1
        if features is None:
            features = max(int(head_dim * log(head_dim)) // each, 1) * each
        if features < 1 or features % each:
            raise ValueError(f"features ({features}) must be at least {each}" + " and even" * (each - 1))
        super().__init__(features)
        self.exponential = kind != "relu"
        self.redraw_every = check_redraw_every(redraw_every)
        self.register_buffer("projection", torch.empty(features // each, head_dim))
        self.resample()

    @torch.no_grad()
    def resample(self, generator: torch.Generator | None = None) -> None:
        """New rows, by a generator of the CPU or torch's own."""
        self.projection.copy_(orthogonal_rows(*self.projection.shape, scaling=self.scaling, generator=generator))

    def shift(self) -> Tensor:
        """What is added to the exponents of keys, whatever they are: that of the longest row then comes to `REACH`."""
        return REACH - self.projection.square().sum(-1).amax() / 2

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        if self.kind == "relu":
            return (relu(self._turned(x)) + 1e-3) * self.dim_out**-0.5
        exponent = self._turned(x, both=self.kind == "hyperbolic")
        if is_query:  # any number will do: it is the query's own, and `log_scale` knows it
            return (exponent - exponent.detach().amax(-1, keepdim=True)).exp()
        least = -REACH - log(self.dim_out) / 2
        exponent = (exponent - _half_square(x)[..., None]).add_(self._added())
        return threshold(exponent, least, least).exp()  # `clamp` would do, in a slower backward pass

    def log_scale(self, q: Tensor) -> Tensor:
        """What `forward` leaves out of a query's features, and what it adds to all keys' exponents, taken back."""
        largest = self._turned(q.detach(), both=self.kind == "hyperbolic").amax(-1)
        return largest - _half_square(q) - self._added() - log(self.dim_out)

    def _added(self) -> Tensor:
        """`shift`, and what divides by sqrt(m): one number, so that what rounds off it is taken back too."""
        return self.shift() - log(self.dim_out) / 2

    def _turned(self, x: Tensor, *, both: bool = False) -> Tensor:
        """w_r.x' of every row, and of their opposites if `both`."""
        rows = self.projection.to(x.dtype)
        return x * x.shape[-1] ** -0.25 @ (torch.cat([rows, -rows]) if both else rows).T


def _half_square(x: Tensor) -> Tensor:
    """|x'|^2 / 2."""
    return x.square().sum(-1) * (x.shape[-1] ** -0.5 / 2)


def orthogonal_rows(
    *shape: int, scaling: str = "random", generator: torch.Generator | None = None
) -> Tensor:  # fmt: skip
    """Rows ``(..., count, width)``, each block of `width` of them orthogonal, each of uniformly random direction.

    scaling: their lengths: ``"random"``, as of a Gaussian vector, or ``"fixed"``, sqrt(width).
    """
    *others, count, width = shape
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float32}  # whatever the default is
    q, r = torch.linalg.qr(torch.randn(*others, -(-count // width), width, width, **kind))
    signed = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # without signs some directions are likelier
    directions = signed.transpose(-1, -2).flatten(-3, -2)[..., :count, :]
    if scaling == "fixed":
        return directions * width**0.5
    return directions * torch.randn(shape, **kind).norm(dim=-1, keepdim=True)


def check_redraw_every(steps: int | None) -> int | None:
    """`steps`, if it is a number of steps or None."""
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ValueError(f"redraw_every ({steps}) must be a whole number of at least 1, or None for never")
    return steps


class PerformerAttention(FeatureAttention):
    """Performer: attention by the random features of `FavorFeatures` (arXiv 2009.14794).

    >>> layer = PerformerAttention(dim=256, heads=8, causal=True)

    Args:
        dim: model width.
        features, kind, scaling, redraw_every: see `FavorFeatures`.
        options: as in `HeadMixer`.
    """

    def __init__(
        self, dim: int, *, features: int | None = None, kind: str = "hyperbolic", scaling: str = "random",
        redraw_every: int | None = 1000, **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        super().__init__(dim, **options)
        self.feature_map = FavorFeatures(
            self.head_dim, features=features, kind=kind, scaling=scaling, redraw_every=redraw_every
        )
