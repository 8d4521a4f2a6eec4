"""The linear form: sums of phi(k) v^T, made and read chunk by chunk, forward and backward.

Bidirectional: S = sum_j phi(k_j) v_j^T, then o_i = phi(q_i) S. Causal: the direct form inside a chunk and the state S
between chunks. Only the inputs are kept for the backward pass; it makes each chunk's features and state again, so no
n x f tensor ever exists. Shapes: q (b, s, r, n, d), k (b, s, m, d), v (b, s, m, e), gates (b, s, n), S (b, s, f, e),
shift (b, s, r, n): m_i, taken from the scores of query i.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops.direct import pair_decay
from tsla.ops.kernel import Kernel, features, features_vjp, query_features, query_features_vjp, slope, weights
from tsla.ops.types import full_precision

DEFAULT_CHUNK = 64  # tokens per step


def key_sum(k: Tensor, v: Tensor, kernel: Kernel, chunk: int) -> Tensor:
    """sum_j phi(k_j) v_j^T, ``(b, s, f, e)``."""
    out: Tensor = _KeySum.apply(k, v, kernel, chunk)
    return out


def read_out(q: Tensor, state: Tensor, kernel: Kernel, shift: Tensor | None, chunk: int) -> Tensor:
    """phi(q_i) S for every query, ``(b, s, r, n, e)``."""
    flat = None if shift is None else shift.flatten(2, 3)
    out: Tensor = _ReadOut.apply(q.flatten(2, 3), state, flat, kernel, chunk)
    return out.unflatten(2, (q.shape[2], q.shape[3]))


def causal_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, shift: Tensor | None, start: Tensor, kernel: Kernel,
    chunk: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Unnormalised causal output ``(b, s, r, n, e)`` and the state after the last token ``(b, s, f, e)``."""
    output, state = _CausalScan.apply(q, k, v, gates, shift, start, kernel, chunk)
    return output, state


def two_way_scan(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, shift: Tensor | None, start: Tensor, kernel: Kernel, chunk: int
) -> Tensor:
    """Bidirectional output with decay exp(-|c_i - c_j|): a scan from each end, less the diagonal both have counted."""
    ahead, _ = causal_scan(q, k, v, gates, shift, start, kernel, chunk)
    # From the right, the pair (i, j) must pass the gates i+1 ... j: the flipped gates, one step late.
    late = pad(gates.flip(-1)[..., :-1], (1, 0))
    back = None if shift is None else shift.flip(-1)
    behind, _ = causal_scan(q.flip(-2), k.flip(-2), v.flip(-2), late, back, start, kernel, chunk)
    own = (q * k[:, :, None]).sum(-1)
    diagonal = weights(own if shift is None else own - shift, kernel)[..., None] * v[:, :, None]
    return ahead + behind.flip(-2) - diagonal


def _by_hand(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass written out: without autocast, should it be called under one, and without a graph of its own."""

    def run(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():  # for a second derivative, which would come out as 0
            raise RuntimeError("the linear form has no second derivative: use impl='direct'")
        with full_precision(grads[0].device):
            return backward(ctx, *grads)

    return run


class _KeySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, kernel: Kernel, chunk: int) -> Tensor:
        ctx.save_for_backward(k, v)
        ctx.kernel, ctx.chunk = kernel, chunk
        state = k.new_zeros(())
        for part in _chunks(k.shape[-2], chunk):
            state = state + features(k[:, :, part], kernel).transpose(-1, -2) @ v[:, :, part]
        return state

    @staticmethod
    @_by_hand
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        k, v = ctx.saved_tensors
        dk, dv = [], []
        for part in _chunks(k.shape[-2], ctx.chunk):
            kc, vc = k[:, :, part], v[:, :, part]
            dv.append(features(kc, ctx.kernel) @ grad)
            dk.append(features_vjp(kc, vc @ grad.transpose(-1, -2), ctx.kernel))
        return torch.cat(dk, dim=-2), torch.cat(dv, dim=-2), None, None


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, state: Tensor, shift: Tensor | None, kernel: Kernel, chunk: int) -> Tensor:
        ctx.save_for_backward(q, state, shift)
        ctx.kernel, ctx.chunk = kernel, chunk
        out = [
            query_features(q[:, :, part], kernel, _at(shift, part)) @ state for part in _chunks(q.shape[-2], chunk)
        ]  # fmt: skip
        return torch.cat(out, dim=-2)

    @staticmethod
    @_by_hand
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, state, shift = ctx.saved_tensors
        dq, dshift, dstate = [], [], torch.zeros_like(state)
        for part in _chunks(q.shape[-2], ctx.chunk):
            qc, gc, mc = q[:, :, part], grad[:, :, part], _at(shift, part)
            dstate = dstate + query_features(qc, ctx.kernel, mc).transpose(-1, -2) @ gc
            from_state, dm = query_features_vjp(qc, gc @ state.transpose(-1, -2), ctx.kernel, mc)
            dq.append(from_state)
            dshift.append(dm)
        return torch.cat(dq, dim=-2), dstate, _join_shift(dshift), None, None


class _Decay(NamedTuple):
    """Factors of one chunk: of each pair, of the state read by each query, of each key written, of the state kept."""

    pair: Tensor
    read: Tensor | None
    write: Tensor | None
    keep: Tensor | None


class _CausalScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, shift: Tensor | None, start: Tensor,
        kernel: Kernel, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, state = [], start
        for part in _chunks(q.shape[-2], chunk):
            qc, kc, vc, decay = q[..., part, :], k[:, :, part], v[:, :, part], _decay(gates, part, q)
            mc = _at(shift, part)
            inside = (weights(_scores(qc, kc, mc), kernel) * decay.pair) @ vc[:, :, None]
            out.append(inside + _times(query_features(qc, kernel, mc) @ state[:, :, None], decay.read))
            state = _times(state, decay.keep) + features(kc, kernel).transpose(-1, -2) @ _times(vc, decay.write)
        output, gates_learn = torch.cat(out, dim=-2), gates is not None and gates.requires_grad
        ctx.save_for_backward(q, k, v, gates, shift, start, *([output, state] if gates_learn else []))
        ctx.kernel, ctx.chunk = kernel, chunk
        return output, state

    @staticmethod
    @_by_hand
    def backward(ctx: Any, grad: Tensor, dend: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gates, shift, start, *results = ctx.saved_tensors
        kernel: Kernel = ctx.kernel
        dq, dk, dv, dshift, state = [], [], [], [], start
        for part in _chunks(q.shape[-2], ctx.chunk):  # left to right: inside the chunk, and what its queries read
            qc, kc, vc, gc = q[..., part, :], k[:, :, part], v[:, :, part], grad[..., part, :]
            decay, mc = _decay(gates, part, q), _at(shift, part)
            scores = _scores(qc, kc, mc)
            dv.append(((weights(scores, kernel) * decay.pair).transpose(-1, -2) @ gc).sum(2))
            dscores = (gc @ vc[:, :, None].transpose(-1, -2)) * decay.pair * slope(scores, kernel)
            dk.append((dscores.transpose(-1, -2) @ qc).sum(2))
            read = _times(gc, decay.read) @ state[:, :, None].transpose(-1, -2)
            from_state, dm = query_features_vjp(qc, read, kernel, mc)
            dq.append(dscores @ kc[:, :, None] + from_state)
            dshift.append(None if dm is None else dm - dscores.sum(-1))
            state = _times(state, decay.keep) + features(kc, kernel).transpose(-1, -2) @ _times(vc, decay.write)
        dstate = dend
        parts = list(enumerate(_chunks(q.shape[-2], ctx.chunk)))
        for at, part in reversed(parts):  # right to left: what later queries read of a key
            qc, kc, vc, gc = q[..., part, :], k[:, :, part], v[:, :, part], grad[..., part, :]
            decay, psi = _decay(gates, part, q), query_features(qc, kernel, _at(shift, part))
            dv[at] = dv[at] + _times(features(kc, kernel) @ dstate, decay.write)
            written = _times(vc, decay.write) @ dstate.transpose(-1, -2)
            dk[at] = dk[at] + features_vjp(kc, written, kernel)
            read = (psi.transpose(-1, -2) @ _times(gc, decay.read)).sum(2)
            dstate = _times(dstate, decay.keep) + read
        dvalues = torch.cat(dv, dim=-2)
        dgates = _gate_gradient(grad, dvalues, v, dend, *results) if results else None
        return (torch.cat(dq, dim=-2), torch.cat(dk, dim=-2), dvalues, dgates, _join_shift(dshift), dstate, None,
                None)  # fmt: skip


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
    total = pad(inside, (1, 0)).cumsum(-1)  # from 0, which is all there is of an empty chunk
    last, total = total[..., -1:], total[..., 1:]
    write, keep = (last - total).exp()[..., None], last[..., None].exp()
    return _Decay(pair_decay(inside, n, True, like), total.exp()[:, :, None, :, None], write, keep)


def _scores(q: Tensor, k: Tensor, shift: Tensor | None) -> Tensor:
    scores = q @ k[:, :, None].transpose(-1, -2)
    return scores if shift is None else scores - shift[..., None]


def _at(shift: Tensor | None, part: slice) -> Tensor | None:
    return None if shift is None else shift[..., part]


def _join_shift(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found, dim=-1) if found else None


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _chunks(n: int, size: int) -> Iterator[slice]:
    """At least one, though it be empty: results are put together from their chunks."""
    return (slice(start, min(start + size, n)) for start in range(0, max(n, 1), size))
