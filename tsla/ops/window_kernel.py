"""Attention by exact weights near the query and by features elsewhere, under one denominator (arXiv 2110.15343).

The weight of a pair is exp(scale q.k) on a sparse support and phi(q).phi(k) off it. Here the support is a window;
`tsla.ops.cluster_kernel` has another, and both divide by `one_denominator`.
"""

from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops.checks import check_kernel_options, check_qkv
from tsla.ops.types import KernelState, accumulation_dtype, full_precision

BLOCK = 64  # queries of a block at least: shorter ones would make a state of f x e for every few queries
LEAST = 1e-30  # a sum of kernel weights below it counts as none: float32 could not divide by it


@torch.compiler.disable  # type: ignore[untyped-decorator]
def window_kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, fq: Tensor, fk: Tensor, *, window: int, causal: bool = False,
    scale: float | None = None, log_scale: Tensor | None = None, relative: bool = False,
    key_mask: Tensor | None = None, state: KernelState | None = None,
) -> Tensor:  # fmt: skip
    """Softmax weights within a window and kernel weights beyond it, o_i = sum_j w_ij v_j / sum_j w_ij.

        w_ij = exp(scale q_i.k_j)               for i - window <= j <= i if causal, |i - j| <= window if not
        w_ij = fq_i.fk_j exp(log_scale_i)       for the other keys, earlier ones if causal

    A window over everything is softmax attention, one of -1 `linear_attention`. No weight is ever taken away again:
    queries go in blocks against the stretch of keys their windows reach, where pairs are of the one kind or the other,
    and beside it are running sums of fk_j v_j^T, one for each block. Memory is O(n (window + f)) and f e for a block.
    `torch.compile` leaves it as it is: torch's inductor cannot handle how blocks follow from a length that may change.

    Args:
        q: ``(b, h, n, d)``.
        k: ``(b, g, m, d)``; g divides h. m is n or, if causal, up to `window` more: the queries are then the last n.
        v: ``(b, g, m, e)``.
        fq: ``(b, h, n, f)``, features of the queries, which give no negative weight with those of keys.
        fk: ``(b, g, m, f)``.
        window: how far the exact weights reach, in positions; 0 is the token itself, -1 nothing.
        scale: factor of q.k, default ``d ** -0.5``.
        log_scale: ``(b, h, n)``; None = 0. It may have any size: weights are compared by their logarithms.
        relative: `log_scale` counts from the largest exact score of the query: from 0 where it has none.
        key_mask: ``(b, m)`` bool, True = real.
        state: sums over keys before those of k, if causal, which count by their features alone.

    Returns:
        ``(b, h, n, e)`` in the type of q, made in float32 at least; a row that sees no key is 0.

    Raises:
        ValueError: shapes or a window that do not fit; a state of a bidirectional call.
    """
    check_hybrid(q, k, v, fq, fk, log_scale, key_mask)
    (b, h, n, d), m = q.shape, k.shape[2]
    if window < -1:
        raise ValueError(f"window ({window}) must be at least -1")
    if not 0 <= m - n <= (max(window, 0) if causal else 0):
        more = f", or up to the window ({window}) more" if causal else ""
        raise ValueError(f"window attention needs as many keys ({m}) as queries ({n}){more}")
    if state is not None and not causal:
        raise ValueError("state needs causal=True: bidirectional windows have no keys that all come before")
    check_kernel_options(q, k, v, False, None, state, False, fk.shape[-1], BLOCK)
    if n == 0:
        return v.new_zeros(b, h, 0, v.shape[-1], dtype=q.dtype)
    if key_mask is not None and key_mask.device.type == "cpu" and bool(key_mask.all()):  # a GPU would have to be asked
        key_mask = None
    dtype, blocks = accumulation_dtype(q.dtype), _cut(n, m, window, causal)
    with full_precision(q.device):
        scaled = q.to(dtype) * (d**-0.5 if scale is None else scale)
        k, v, fq, fk = (x.to(dtype) for x in (k, v, fq, fk))
        v = pad(v, (0, 1), value=1.0)  # the last column of every sum is the denominator
        if key_mask is not None:  # masked rows may hold anything, NaN too, and 0 * NaN is NaN
            k, v, fk = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v, fk))
        real = q.new_ones(b, m, dtype=torch.bool) if key_mask is None else key_mask
        real = blocks.stretches(real[:, None, :, None]).unsqueeze(3)  # (b, 1, t, 1, 1, s)
        near, seen = blocks.pairs(window, causal, q.device)
        queries, features = (blocks.queries(x, k.shape[1]) for x in (scaled, fq))
        values = blocks.stretches(v).transpose(-1, -2)
        shape = (h // k.shape[1], blocks.size)  # of the queries of a block, head by head
        hidden, others = (_rows(~(pairs & real), shape[0]) for pairs in (near, seen & ~near))
        scores = _Filled.apply(queries @ blocks.stretches(k), hidden, -inf)
        weights = _Filled.apply(features @ blocks.stretches(fk), others, 0.0)
        most = scores.amax(-1, keepdim=True)
        exact = (scores - finite(most).detach()).exp() @ values
        kernel = weights @ values
        if blocks.many > 1 or state is not None:
            kernel = kernel + features @ _beside(fk, v, blocks, causal, state)
        own = queries.new_zeros(()) if log_scale is None else blocks.queries(log_scale.to(dtype)[..., None], k.shape[1])
        out = one_denominator(exact, most, kernel, own, relative)
        return blocks.joined(out.unflatten(3, shape))[:, :, :n].to(q.dtype)


class _Filled(torch.autograd.Function):
    """A product with `value` where `mask`, in place, which autograd's own operation is only at the price of copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, value: float) -> Tensor:
        ctx.mark_dirty(x)
        ctx.save_for_backward(mask)
        return x.masked_fill_(mask, value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return grad.masked_fill(mask, 0.0), None, None


def _rows(mask: Tensor, heads: int) -> Tensor:
    """``(..., 1, size, s)`` for the queries of so many heads, one after another: ``(..., heads size, s)``."""
    return mask.expand(*mask.shape[:-3], heads, *mask.shape[-2:]).flatten(-3, -2)


def one_denominator(exact: Tensor, most: Tensor, kernel: Tensor, log_scale: Tensor, relative: bool) -> Tensor:
    """Both kinds of weights, divided by the sum of them all: ``(..., e)``, 0 where there is no key.

    Args:
        exact: ``(..., e + 1)``, the sum of exp(s_j - most) [v_j, 1] over the support.
        most: ``(..., 1)``, the largest s_j; -inf where the support is empty.
        kernel: ``(..., e + 1)``, the sum of phi(q).phi(k_j) [v_j, 1] off the support.
        log_scale: ``(..., 1)`` or one number: the kernel's weights are so much larger.
        relative: from `most` on.
    """
    log_scale = log_scale + finite(most) if relative else log_scale
    most, mass = most.detach(), kernel[..., -1:]
    some = mass > LEAST
    mass = torch.where(some, mass, 1.0)
    log_mass = torch.where(some, mass.log() + log_scale, -inf)
    top = finite(torch.maximum(most, log_mass.detach()))  # of both: no exponent is above 0
    sums = (most - top).exp() * exact + (log_mass - top).exp() * (kernel / mass)
    total = sums[..., -1:]
    return sums[..., :-1] / torch.where(total == 0, 1.0, total)


def finite(x: Tensor) -> Tensor:
    """x, and 0 for the largest of nothing."""
    return torch.where(x == -inf, 0.0, x)


def check_hybrid(
    q: Tensor, k: Tensor, v: Tensor, fq: Tensor, fk: Tensor, log_scale: Tensor | None, key_mask: Tensor | None
) -> None:
    """Raise ValueError unless these are queries, keys and values, their features, and a scale for each query."""
    check_qkv(q, k, v, False, key_mask)
    check_qkv(fq, fk, v, False, None)
    for name, x, of in (("fq", fq, q), ("fk", fk, k)):
        if x.shape[:3] != of.shape[:3]:
            raise ValueError(f"{name} must have the batch, heads and length of {name[1]} {tuple(of.shape[:3])}, "
                             f"got {tuple(x.shape[:3])}")  # fmt: skip
    if log_scale is not None and log_scale.shape != q.shape[:3]:
        raise ValueError(f"log_scale must have shape {tuple(q.shape[:3])}, got {tuple(log_scale.shape)}")


class _Blocks(NamedTuple):
    """`many` blocks of `size` queries, padded at the end by `tail`; keys are padded by `before` and `after`.

    The stretch of a block has `behind` keys before its first query and `ahead` after its last.
    """

    many: int
    size: int
    tail: int
    before: int
    after: int
    behind: int
    ahead: int

    def queries(self, x: Tensor, groups: int) -> Tensor:
        """``(b, h, n, .)`` to ``(b, g, t, r size, .)``: block t has r query heads, one after another."""
        x = _padded(x, 0, self.tail).unflatten(2, (self.many, self.size)).unflatten(1, (groups, -1))
        return x.transpose(2, 3).flatten(3, 4)

    def joined(self, x: Tensor) -> Tensor:
        """``(b, g, t, r, size, .)`` to ``(b, h, n + tail, .)``."""
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def padded(self, x: Tensor) -> Tensor:
        return _padded(x, self.before, self.after)

    def stretches(self, x: Tensor) -> Tensor:
        """``(b, g, m, .)`` to ``(b, g, t, ., s)``: the keys that block t is held against."""
        return self.padded(x).unfold(2, self.size + self.behind + self.ahead, self.size)

    def pairs(self, window: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which keys of its stretch a query sees by exact weights, and which by any, ``(size, s)``."""
        key = torch.arange(self.size + self.behind + self.ahead, device=device)
        gap = key - self.behind - torch.arange(self.size, device=device)[:, None]
        seen = gap <= 0 if causal else torch.ones_like(gap, dtype=torch.bool)
        return seen & (gap.abs() <= window), seen


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """Tokens ``(b, g, m, .)`` with zeros around; torch would copy x where there are none."""
    return pad(x, (0, 0, before, after)) if before or after else x


def _cut(n: int, m: int, window: int, causal: bool) -> _Blocks:
    reach = max(min(window, m - 1), 0)
    ahead, size = 0 if causal else reach, min(n, max(reach + 1, BLOCK))
    many, tail = -(-n // size), -n % size
    if many * size * (size + reach + ahead) >= n * m:  # one block, which sees all keys there are, has no more pairs
        return _Blocks(1, n, 0, 0, 0, m - n, 0)
    return _Blocks(many, size, tail, reach - (m - n), ahead + tail, reach, ahead)


def _beside(fk: Tensor, v: Tensor, blocks: _Blocks, causal: bool, state: KernelState | None) -> Tensor:
    """Sums of fk_j v_j^T over the keys before each block's stretch and after it, ``(b, g, t, f, e + 1)``."""
    (b, g, _, f), width = fk.shape, v.shape[-1]
    fk, v = blocks.padded(fk), blocks.padded(v)
    others = blocks.many - 1

    def sums(start: int) -> Tensor:
        """Of blocks of keys from there on, one less than there are."""
        whole = slice(start, start + others * blocks.size)
        keys, values = (x[:, :, whole].unflatten(2, (others, blocks.size)) for x in (fk, v))
        return keys.transpose(-1, -2) @ values

    start = fk.new_zeros(b, g, 1, f, width)
    if state is not None:
        start = torch.cat([state.kv, state.z[..., None]], dim=-1).to(fk.dtype)[:, :, None]
    before = torch.cat([start, sums(0)], dim=2).cumsum(2)
    if causal:
        return before
    after = torch.cat([sums(blocks.behind + blocks.ahead + blocks.size), torch.zeros_like(start)], dim=2)
    return before + after.flip(2).cumsum(2).flip(2)
