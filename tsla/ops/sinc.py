"""Sums over channels c of log(sinc^2 x + 1e-12), x = R_c (q_c - k_c), their softmax and slopes: tile by tile of pairs.

A tile is ``(b, rows, keys)``, made of queries ``(b, d, rows, 1)`` and keys ``(b, d, 1, keys)``, channel by channel.
In float32 on a CPU native code makes it (tsla/kernels/cpu/sinc.cpp). Elsewhere its operations are the few that torch
runs at the speed of memory, besides a sine: `where` and masks take longer than that.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.native import available

FLOOR = 1e-12  # added to sinc^2, which has zeros, before the logarithm
TINY = 1e-30  # added to sin^2 x and x^2 alike: at 0 their quotient is then 1, and elsewhere what it was
GAP = 16  # numbers between channels: a power of 2 from each to the next would put all in the same places of a cache
COTANGENT = (1 / 3, 1 / 45, 2 / 945, 1 / 4725)  # (1 / x - cot x) / x as a series in x^2


class Tile(NamedTuple):
    """Heads and queries of a tile, and how many of the first keys they see."""

    heads: slice
    rows: slice
    keys: int


def tiles(b: int, n: int, m: int, *, causal: bool, numel: int) -> Iterator[Tile]:
    """All pairs of n queries and m keys in tiles of `numel`, or of one row where that is longer.

    causal: the queries are the last of the keys, and a tile ends with the last key that one of its rows sees.
    """
    rows = max(1, min(n, numel // max(m, 1)))
    heads = max(1, numel // max(rows * m, 1))
    for head in range(0, b if m else 0, heads):
        for row in range(0, n, rows):
            seen = m - n + min(row + rows, n) if causal else m
            yield Tile(slice(head, head + heads), slice(row, min(row + rows, n)), seen)


class Waves(NamedTuple):
    """x ``(b, d, n)``, and the sine and cosine of R x, their channels side by side but for `GAP`."""

    x: Tensor
    sin: Tensor
    cos: Tensor

    def queries(self, rows: slice) -> "Waves":
        """Those of a tile, ``(b, d, rows, 1)``."""
        return Waves(*(x[:, :, rows, None] for x in self))

    def keys(self, count: int) -> "Waves":
        """The first ones, ``(b, d, 1, count)``."""
        return Waves(*(x[:, :, None, :count] for x in self))


def waves(x: Tensor, radius: Tensor) -> Waves:
    """Of x ``(b, d, n)`` and R ``(d,)``. R x is made in float64: however large q and k are, it is q - k that counts."""
    if _compiled(x):
        from tsla.kernels.cpu.sinc import waves as native

        return Waves(*native(x, radius, GAP))
    wide = torch.float32 if x.device.type == "mps" else torch.float64  # which has no other
    angle = x.to(wide) * radius.to(wide)[:, None]
    return Waves(*(pad(y.to(x.dtype), (0, GAP))[..., : x.shape[-1]] for y in (x, angle.sin(), angle.cos())))


def _compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and available("sinc")


def log_sinc(q: Waves, k: Waves, radius: Tensor) -> Tensor:
    """sum_c log(sinc^2(R_c (q_c - k_c)) + 1e-12) of a tile, ``(b, rows, keys)``."""
    if _compiled(q.x):
        from tsla.kernels.cpu.sinc import log_sinc as native

        return native(q, k, radius)
    return _log_sinc(q.x, k.x, radius)


def _log_sinc(q: Tensor, k: Tensor, radius: Tensor) -> Tensor:
    """One logarithm serves as many channels as a product of such numbers can have without falling below the least."""
    d, together = q.shape[1], 3 if q.dtype == torch.float32 else 24
    floor, tiny = q.new_full((), FLOOR), q.new_full((), TINY)
    total: Tensor | None = None
    for first in range(0, d, together):
        product: Tensor | None = None
        for c in range(first, min(first + together, d)):
            x = (q[:, c] - k[:, c]).mul_(radius[c])
            sine = x.sin()
            torch.addcmul(tiny, sine, sine, out=sine)
            torch.addcmul(tiny, x, x, out=x)
            torch.addcdiv(floor, sine, x, out=x)
            product = x if product is None else product.mul_(x)
        assert product is not None
        total = product.log_() if total is None else total.add_(product.log_())
    assert total is not None
    return total


def softmax(logs: Tensor, *, scale: float, hidden: Tensor | None, causal: bool) -> Tensor:
    """Shares of ``exp(scale * logs)`` in its sum over the keys that are seen, in the place of logs ``(b, rows, keys)``.

    A row that sees no key is 0. Where native code makes them, so is a share of less than e^-64 of the largest: such
    numbers change no sum, and in products with others end as denormals, which slow a CPU down.

    Args:
        hidden: ``(b, 1, keys)``, -inf where no query sees the key, and 0; None: every key is seen.
        causal: a row sees no key behind its own, and the last row's is the last.
    """
    if _compiled(logs):
        from tsla.kernels.cpu.sinc import softmax as native

        return native(logs, scale, hidden, causal)
    logits, rows = logs.mul_(scale), logs.shape[1]
    if hidden is not None:  # added: to fill in by a mask takes longer than a sine
        logits += hidden
    if causal:
        logits[..., -rows:] += logits.new_full((rows, rows), -torch.inf).triu_(1)
    largest = logits.amax(-1, keepdim=True)
    largest.masked_fill_(largest == -torch.inf, 0.0)  # of a row without keys
    weights = logits.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    return weights.div_(total.masked_fill_(total == 0, 1.0))


def slope_sums(q: Waves, k: Waves, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of sum_ij G_ij sum_c f(R_c (q_ic - k_jc)), f(x) = log(sinc^2 x + 1e-12), with respect to q, k and R.

    Args:
        q, k: of a tile.
        radius: R ``(d,)``.
        weight: G ``(b, rows, keys)``.

    Returns:
        ``(b, d, rows)``, ``(b, d, keys)`` and ``(d,)``.
    """
    if _compiled(weight):
        from tsla.kernels.cpu.sinc import slope_sums as native

        return native(q, k, radius, weight)
    return _slope_sums(q, k, radius, weight)


def _slope_sums(q: Waves, k: Waves, radius: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of R G f'(x), for keys of -R G f'(x), for R of G (q - k) f'(x).

    f'(x) = 2 S (x C - S) x / (x^2 (S^2 + 1e-12 x^2)), S = sin x, C = cos x, and 2 (cot x - 1 / x) by its series near 0,
    where x C and S cancel. With S and C by the addition theorem, a tile takes neither sine nor cosine: S is then off
    by what rounds off 1, not S, which the series allows. Between the two it goes over gradually.
    """
    near = 0.25 if weight.dtype == torch.float32 else 0.01  # of x^2: from here on what cancels is less than what rounds
    flat = [weight.new_full((), c) for c in COTANGENT[:2]]
    by_query, by_key, by_radius = [], [], []
    for c in range(len(radius)):
        gap = q.x[:, c] - k.x[:, c]
        x = gap * radius[c]
        minus_sin = (q.cos[:, c] * k.sin[:, c]).addcmul_(q.sin[:, c], k.cos[:, c], value=-1)
        cos = (q.cos[:, c] * k.cos[:, c]).addcmul_(q.sin[:, c], k.sin[:, c])
        top = torch.addcmul(minus_sin, x, cos, out=cos).mul_(minus_sin)
        square = x * x
        small = square.clamp(max=near)
        series = (small * COTANGENT[3]).add_(COTANGENT[2])
        torch.addcmul(flat[1], series, small, out=series)
        torch.addcmul(flat[0], series, small, out=series)
        share = small.mul_(-8 / near).add_(8).clamp_(max=1)  # of the series: all up to 7/8 of near, none from near on
        square.clamp_(min=near * 7 / 8)
        bottom = (square * FLOOR).addcmul_(minus_sin, minus_sin).mul_(square)
        pairs = top.div_(bottom).lerp_(series, share).mul_(x).mul_(weight)
        by_query.append(pairs.sum(-1))
        by_key.append(pairs.sum(-2))
        by_radius.append(pairs.mul_(gap).sum())
    scale = -2 * radius[:, None]
    return torch.stack(by_query, 1) * scale, torch.stack(by_key, 1) * -scale, torch.stack(by_radius) * -2
