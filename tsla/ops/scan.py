"""The linear form: sums of phi(k) v^T, made and read chunk by chunk, forward and backward.

Bidirectional: S = sum_j phi(k_j) v_j^T, then o_i = phi(q_i) S. Causal: the direct form inside a chunk and the state S
between chunks. Only the inputs are kept for the backward pass; it makes each chunk's features and state again, so no
n x f tensor ever exists. Shapes: q (b, s, r, n, d), k (b, s, m, d), v (b, s, m, e), gates (b, s, n), S (b, s, f, e).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsla.ops.direct import pair_decay
from tsla.ops.kernel import Kernel, features, features_vjp, slope, weights


def key_sum(k: Tensor, v: Tensor, kernel: Kernel, chunk: int) -> Tensor:
    """sum_j phi(k_j) v_j^T, ``(b, s, f, e)``."""
    out: Tensor = _KeySum.apply(k, v, kernel, chunk)
    return out


def read_out(q: Tensor, state: Tensor, kernel: Kernel, chunk: int) -> Tensor:
    """phi(q_i) S for every query, ``(b, s, r, n, e)``."""
    out: Tensor = _ReadOut.apply(q.flatten(2, 3), state, kernel, chunk)
    return out.unflatten(2, (q.shape[2], q.shape[3]))


def causal_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, start: Tensor, kernel: Kernel, chunk: int
) -> tuple[Tensor, Tensor]:
    """Unnormalised causal output ``(b, s, r, n, e)`` and the state after the last token ``(b, s, f, e)``."""
    output, state = _CausalScan.apply(q, k, v, gates, start, kernel, chunk)
    return output, state


def two_way_scan(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, start: Tensor, kernel: Kernel, chunk: int) -> Tensor:
    """Bidirectional output with decay exp(-|c_i - c_j|): a scan from each end, less the diagonal both have counted."""
    ahead, _ = causal_scan(q, k, v, gates, start, kernel, chunk)
    # From the right, the pair (i, j) must pass the gates i+1 ... j: the flipped gates, one step late.
    late = torch.nn.functional.pad(gates.flip(-1)[..., :-1], (1, 0))
    behind, _ = causal_scan(q.flip(-2), k.flip(-2), v.flip(-2), late, start, kernel, chunk)
    diagonal = weights((q * k[:, :, None]).sum(-1, keepdim=True), kernel) * v[:, :, None]
    return ahead + behind.flip(-2) - diagonal


class _KeySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, kernel: Kernel, chunk: int) -> Tensor:
        ctx.save_for_backward(k, v)
        ctx.kernel, ctx.chunk = kernel, chunk
        state = features(k[:, :, :0], kernel).transpose(-1, -2) @ v[:, :, :0]  # zeros, and right with no keys at all
        for part in _chunks(k.shape[-2], chunk):
            state = state + features(k[:, :, part], kernel).transpose(-1, -2) @ v[:, :, part]
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        k, v = ctx.saved_tensors
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        for part in _chunks(k.shape[-2], ctx.chunk):
            kc, vc = k[:, :, part], v[:, :, part]
            dv[:, :, part] = features(kc, ctx.kernel) @ grad
            dk[:, :, part] = features_vjp(kc, vc @ grad.transpose(-1, -2), ctx.kernel)
        return dk, dv, None, None


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, state: Tensor, kernel: Kernel, chunk: int) -> Tensor:
        ctx.save_for_backward(q, state)
        ctx.kernel, ctx.chunk = kernel, chunk
        out = q.new_empty((*q.shape[:-1], state.shape[-1]))
        for part in _chunks(q.shape[-2], chunk):
            out[:, :, part] = features(q[:, :, part], kernel) @ state
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, state = ctx.saved_tensors
        dq, dstate = torch.empty_like(q), torch.zeros_like(state)
        for part in _chunks(q.shape[-2], ctx.chunk):
            qc, gc = q[:, :, part], grad[:, :, part]
            dstate += features(qc, ctx.kernel).transpose(-1, -2) @ gc
            dq[:, :, part] = features_vjp(qc, gc @ state.transpose(-1, -2), ctx.kernel)
        return dq, dstate, None, None


class _Decay(NamedTuple):
    """Factors of one chunk: of each pair, of the state read by each query, of each key written, of the state kept."""

    pair: Tensor
    read: Tensor | None
    write: Tensor | None
    keep: Tensor | None


class _CausalScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, start: Tensor, kernel: Kernel, chunk: int
    ) -> tuple[Tensor, Tensor]:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        state = start
        for part in _chunks(q.shape[-2], chunk):
            qc, kc, vc, decay = q[..., part, :], k[:, :, part], v[:, :, part], _decay(gates, part, q)
            scores = qc @ kc[:, :, None].transpose(-1, -2)
            inside = (weights(scores, kernel) * decay.pair) @ vc[:, :, None]
            out[..., part, :] = inside + _times(features(qc, kernel) @ state[:, :, None], decay.read)
            state = _times(state, decay.keep) + features(kc, kernel).transpose(-1, -2) @ _times(vc, decay.write)
        gates_learn = gates is not None and gates.requires_grad
        ctx.save_for_backward(q, k, v, gates, start, *([out, state] if gates_learn else []))
        ctx.kernel, ctx.chunk = kernel, chunk
        return out, state.clone() if state is start else state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, dend: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gates, start, *results = ctx.saved_tensors
        kernel: Kernel = ctx.kernel
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        state = start
        for part in _chunks(q.shape[-2], ctx.chunk):  # left to right: inside the chunk, and what its queries read
            qc, kc, vc, gc = q[..., part, :], k[:, :, part], v[:, :, part], grad[..., part, :]
            decay = _decay(gates, part, q)
            scores = qc @ kc[:, :, None].transpose(-1, -2)
            dv[:, :, part] = ((weights(scores, kernel) * decay.pair).transpose(-1, -2) @ gc).sum(2)
            dscores = (gc @ vc[:, :, None].transpose(-1, -2)) * decay.pair * slope(scores, kernel)
            dk[:, :, part] = (dscores.transpose(-1, -2) @ qc).sum(2)
            read = _times(gc, decay.read) @ state[:, :, None].transpose(-1, -2)
            dq[..., part, :] = dscores @ kc[:, :, None] + features_vjp(qc, read, kernel)
            state = _times(state, decay.keep) + features(kc, kernel).transpose(-1, -2) @ _times(vc, decay.write)
        dstate = dend
        for part in reversed(list(_chunks(q.shape[-2], ctx.chunk))):  # right to left: what later queries read of a key
            qc, kc, vc, gc = q[..., part, :], k[:, :, part], v[:, :, part], grad[..., part, :]
            decay = _decay(gates, part, q)
            dv[:, :, part] += _times(features(kc, kernel) @ dstate, decay.write)
            written = _times(vc, decay.write) @ dstate.transpose(-1, -2)
            dk[:, :, part] += features_vjp(kc, written, kernel)
            read = (features(qc, kernel).transpose(-1, -2) @ _times(gc, decay.read)).sum(2)
            dstate = _times(dstate, decay.keep) + read
        dgates = _gate_gradient(grad, dv, v, dend, *results) if results else None
        return dq, dk, dv, dgates, dstate, None, None


def _gate_gradient(grad: Tensor, dv: Tensor, v: Tensor, dend: Tensor, out: Tensor, end: Tensor) -> Tensor:
    """A gate's running sum c_i scales what query i receives and, inversely, what key i gives: o.do - v.dv."""
    dsum = (out * grad).sum((2, -1)) - (v * dv).sum(-1)
    dsum[..., -1:] += (end * dend).sum((-1, -2))[..., None]
    return dsum.flip(-1).cumsum(-1).flip(-1)


def _decay(gates: Tensor | None, part: slice, like: Tensor) -> _Decay:
    """`_Decay` of the chunk `part`. All exponents are sums of gates <= 0, so nothing overflows."""
    n = part.stop - part.start
    if gates is None:
        return _Decay(pair_decay(None, n, True, like), None, None, None)
    inside = gates[..., part]
    total = inside.cumsum(-1)
    write = (total[..., -1:] - total).exp()[..., None]
    return _Decay(
        pair_decay(inside, n, True, like), total.exp()[:, :, None, :, None], write, total[..., -1:, None].exp()
    )


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
