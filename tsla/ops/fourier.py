"""FourierFormer's attention (arXiv 2206.00206): weights by products of sinc of q - k, in quadratic time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from tsla.ops.checks import check_qkv
from tsla.ops.packing import attend_packed
from tsla.ops.sinc import Tile, Waves, log_sinc, slope_sums, softmax, tiles, waves
from tsla.ops.types import Attended, accumulation_dtype, full_precision

CPU_TILE, TILE = 2**17, 2**22  # pairs: the few tensors of a tile stay in a core's cache; a GPU wants work


def fourier_attention(
    q: Tensor, k: Tensor, v: Tensor, *, radius: Tensor, power: int = 4, causal: bool = False,
    key_mask: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """sum_j w_ij v_j / sum_j w_ij, w_ij = prod_c |sin(R_c (q_ic - k_jc)) / (R_c (q_ic - k_jc))|^power.

    It is quadratic: every pair takes a sine for each channel. For the logarithms,

        log w_ij = power / 2 * sum_c log(sinc^2(R_c (q_ic - k_jc)) + 1e-12),

    and a softmax of these, no head is so wide that all weights of a query come to 0, as products do in float32 at
    d = 64, R = 2 and q and k of size 1; and both sinc = 0 and q = k have finite gradients. Pairs go by in tiles. The
    backward pass makes them again: for it q, k, v and the output are kept.

    Args:
        q: ``(b, h, n, d)``.
        k: ``(b, g, m, d)``; g divides h, query head i reads head i * g // h.
        v: ``(b, g, m, e)``.
        radius: R, one number ``()`` or ``(1,)``, or ``(d,)``, one per channel; its sign does not matter.
        power: an even number from 2 on.
        causal: query i sees the keys up to its own, if the queries are the last n of m >= n keys.
        key_mask: ``(b, m)`` bool, True = real.
        cu_seqlens: ``(sequences + 1,)`` int, the bounds of the sequences packed into a single row.

    Returns:
        ``(b, h, n, e)`` in the type of q, computed in float32 at least; a row that sees no key is 0.

    Raises:
        ValueError: shapes, a radius or a power that do not fit.
        RuntimeError: in a second derivative, which it does not have.
    """
    check_qkv(q, k, v, False, key_mask)
    (b, h, n, d), m = q.shape, k.shape[2]
    if causal and n > m:
        raise ValueError(f"causal attention needs as many keys ({m}) as queries ({n}), or more")
    if radius.shape not in ((), (1,), (d,)) or not radius.is_floating_point():
        raise ValueError(
            f"radius must be floating-point of shape (), (1,) or {(d,)}, got {radius.dtype} of shape "
            f"{tuple(radius.shape)}"
        )
    check_power(power)
    if cu_seqlens is not None:

        def each(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> Attended:
            out = fourier_attention(q, k, v, radius=radius, power=power, causal=causal, key_mask=key_mask)
            return Attended(out, None)

        return attend_packed(each, q, k, v, cu_seqlens, key_mask=key_mask).output
    if key_mask is not None:  # masked rows may hold anything, NaN too, and 0 * NaN is NaN
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    dtype = accumulation_dtype(q.dtype)
    k, v = (x[:, :, None].expand(-1, -1, h // max(x.shape[1], 1), -1, -1).flatten(1, 2) for x in (k, v))
    heads = (x.to(dtype).flatten(0, 1) for x in (q, k, v))
    out = torch.ops.tsla.fourier(*heads, radius.to(dtype).expand(d), key_mask, power, causal)
    return out.unflatten(0, (b, h)).to(q.dtype)


def check_power(power: int) -> int:
    """`power`, if sinc to it is no weight below 0."""
    if type(power) is not int or power < 2 or power % 2:
        raise ValueError(f"power ({power}) must be an even number of at least 2: odd ones give negative weights")
    return power


def run(q: Tensor, k: Tensor, v: Tensor, radius: Tensor, key_mask: Tensor | None, power: int, causal: bool) -> Tensor:
    """The operator."""
    out = q.new_zeros(*q.shape[:2], v.shape[-1])
    with full_precision(q.device):
        for tile, _, weights in _weights(q, k, radius, key_mask, power, causal):
            out[tile.heads, tile.rows] = weights @ v[tile.heads, : tile.keys]
    return out


def run_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, radius: Tensor, key_mask: Tensor | None, out: Tensor, power: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Its gradients, of q, k, v and the radius."""
    dq, dk = (torch.zeros_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (q, k))
    dv, dradius = torch.zeros_like(v), torch.zeros_like(radius)
    mean = (grad * out).sum(-1, keepdim=True)  # of the changes of a row, by its weights
    with full_precision(q.device):
        for tile, pairs, weights in _weights(q, k, radius, key_mask, power, causal):
            own, seen = (tile.heads, tile.rows), (tile.heads, slice(tile.keys))
            dv[seen] += weights.transpose(-1, -2) @ grad[own]
            change = grad[own] @ v[seen].transpose(-1, -2)
            change.sub_(mean[own]).mul_(weights)
            parts = slope_sums(*pairs, radius, change)
            dq[tile.heads, :, tile.rows] = parts[0]
            dk[tile.heads, :, : tile.keys] += parts[1]
            dradius += parts[2]
    half = power / 2
    return dq.transpose(1, 2) * half, dk.transpose(1, 2) * half, dv, dradius * half


def _weights(
    q: Tensor, k: Tensor, radius: Tensor, key_mask: Tensor | None, power: int, causal: bool
) -> Iterator[tuple[Tile, tuple[Waves, Waves], Tensor]]:
    """Each tile, its queries and keys, and its weights, which add up to 1 for a query that sees a key."""
    (b, n, _), m = q.shape, k.shape[1]
    hidden = None
    if key_mask is not None:
        hidden = q.new_zeros(key_mask.shape).masked_fill_(~key_mask, -torch.inf)
        hidden = hidden.repeat_interleave(b // max(len(hidden), 1), dim=0)[:, None]
    for tile in tiles(b, n, m, causal=causal, numel=CPU_TILE if q.device.type == "cpu" else TILE):
        if tile.rows.start == 0:  # of other heads than before
            queries, keys = (waves(x[tile.heads].transpose(1, 2), radius) for x in (q, k))
        pairs = queries.queries(tile.rows), keys.keys(tile.keys)
        own = None if hidden is None else hidden[tile.heads, :, : tile.keys]
        yield tile, pairs, softmax(log_sinc(*pairs, radius), scale=power / 2, hidden=own, causal=causal)


# An operator of torch's, which then counts its operations, compiles and exports it. It takes heads as rows of a batch,
# q ``(b, n, d)``, k ``(b, m, d)`` and v ``(b, m, e)``; radius ``(d,)`` and mask ``(rows, m)`` are for all heads.
_forward = torch.library.custom_op("tsla::fourier", run, mutates_args=())
_backward = torch.library.custom_op("tsla::fourier_backward", run_backward, mutates_args=())


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, radius: Tensor, key_mask: Tensor | None, power: int, causal: bool) -> Tensor:
    return q.new_empty(*q.shape[:2], v.shape[-1])


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, radius: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk = (x.new_empty(x.transpose(1, 2).shape).transpose(1, 2) for x in (q, k))  # channels lie apart in them
    return dq, dk, torch.empty_like(v), torch.empty_like(radius)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.power, ctx.causal = inputs
    ctx.save_for_backward(*tensors, output)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # for a second derivative, which there is no formula for
        raise RuntimeError("fourier_attention has no second derivative")
    found = torch.ops.tsla.fourier_backward(grad, *ctx.saved_tensors, ctx.power, ctx.causal)
    return *found, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)

# Of a pair and channel: a difference, its scaling, a sine, two squares with what is added to them, a quotient and an
# addition, and the product. One logarithm for three channels, and the softmax, are left out, as torch leaves out
# softmax's own. The backward pass makes the weights again and then takes slopes, in 37 operations (`slope_sums`).
AHEAD, SLOPE = 10, 37


@register_flop_formula(torch.ops.tsla.fourier)
def _forward_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """Of all pairs, causal or not, as torch counts those of softmax: d channels, and a multiply and add per value."""
    return q[0] * q[1] * k[1] * (AHEAD * q[2] + 2 * v[2])


@register_flop_formula(torch.ops.tsla.fourier_backward)
def _backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return q[0] * q[1] * k[1] * ((AHEAD + SLOPE) * q[2] + 4 * v[2])
