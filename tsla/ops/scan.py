"""The linear form: sums of phi(k) v^T, made and read chunk by chunk, forward and backward.

Bidirectional: S = sum_j phi(k_j) v_j^T, then o_i = phi(q_i) S. Causal: the direct form inside a chunk and the state S
between chunks. One step takes a span of chunks together: its products are batched, and only the sums of its chunks,
already made, are added up one after another into the states between them. Only the inputs are kept for the backward
pass; it makes each span's features and states again, so no n x f tensor ever exists.

Shapes: q (b, s, r, n, d), k (b, s, m, d), v (b, s, m, e), gates (b, s, n), S (b, s, f, e), shift (b, s, r, n): m_i,
taken from the scores of query i. In a span of t chunks of c tokens each n is t, c.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops.direct import pair_decay
from tsla.ops.kernel import Kernel, features, features_vjp, query_features, query_features_vjp, slope, weights
from tsla.ops.types import full_precision

DEFAULT_CHUNK = 64  # tokens, where features are made
GIVEN_CHUNK, DECAYED_CHUNK = 64, 32  # where they are given; and where each pair of a chunk takes an exponential too
SPAN = 2**18  # numbers in the largest tensor of a step where features are given: what a cache holds, and no n x f x e


def chunk_of(kernel: Kernel, decays: bool, chunk: int | None) -> int:
    """Tokens of a chunk: `chunk`, or what was measured to be fast for this kind of kernel (docs/kernels.md)."""
    if chunk is not None:
        return chunk
    return DEFAULT_CHUNK if kernel is not None else DECAYED_CHUNK if decays else GIVEN_CHUNK


def key_sum(k: Tensor, v: Tensor, kernel: Kernel, chunk: int) -> Tensor:
    """sum_j phi(k_j) v_j^T, ``(b, s, f, e)``."""
    out: Tensor = _KeySum.apply(k, v, kernel, _at_once(k, kernel, chunk))
    return out


def read_out(q: Tensor, state: Tensor, kernel: Kernel, shift: Tensor | None, chunk: int) -> Tensor:
    """phi(q_i) S for every query, ``(b, s, r, n, e)``."""
    queries, flat = q.flatten(2, 3), None if shift is None else shift.flatten(2, 3)
    out: Tensor = _ReadOut.apply(queries, state, flat, kernel, _at_once(queries, kernel, chunk))
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
        return _join(dk), _join(dv), None, None


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, state: Tensor, shift: Tensor | None, kernel: Kernel, chunk: int) -> Tensor:
        ctx.save_for_backward(q, state, shift)
        ctx.kernel, ctx.chunk = kernel, chunk
        return _join([
            query_features(q[:, :, part], kernel, _at(shift, part)) @ state for part in _chunks(q.shape[-2], chunk)
        ])  # fmt: skip

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
        return _join(dq), dstate, _join_shift(dshift), None, None


class _CausalScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, shift: Tensor | None, start: Tensor,
        kernel: Kernel, chunk: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, state = [], start
        for span in _spans(q, v, chunk, kernel):
            qc, kc, vc, gc, mc = _cut(span, q, k, v, gates, shift)
            decay = _decay(gc)
            states, state = _states(kc, vc, state, decay, kernel)
            read = _times(query_features(qc, kernel, mc) @ states[:, :, None], decay.read)
            pair = _seen(weights(_scores(qc, kc, mc), kernel), _within(gc, qc))
            out.append((read + pair @ vc[:, :, None]).flatten(-3, -2))
        output, gates_learn = _join(out), gates is not None and gates.requires_grad
        ctx.save_for_backward(q, k, v, gates, shift, start, *([output, state] if gates_learn else []))
        ctx.kernel, ctx.chunk = kernel, chunk
        return output, state

    @staticmethod
    @_by_hand
    def backward(ctx: Any, grad: Tensor, dend: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, gates, shift, start, *results = ctx.saved_tensors
        kernel: Kernel = ctx.kernel
        spans = list(_spans(q, v, ctx.chunk, kernel))
        dq: list[Tensor] = []
        dk: list[Tensor] = []
        dv: list[Tensor] = []
        dshift, state = [], start
        for span in spans:  # left to right: inside the chunks, and what their queries read
            inputs = _cut(span, q, k, v, gates, shift)
            out, state = _left_to_right(inputs, _tokens(grad, span), state, kernel)
            for found, part in zip((dq, dk, dv), out[:3], strict=True):
                found.append(part)
            dshift.append(None if out[3] is None else out[3].flatten(-2))
        dstate = dend
        for at, span in reversed(list(enumerate(spans))):  # right to left: what later queries read of a key
            inputs = _cut(span, q, k, v, gates, shift)
            dk[at], dv[at], dstate = _right_to_left(inputs, _tokens(grad, span), dk[at], dv[at], dstate, kernel)
        dqueries, dkeys, dvalues = (_join([part.flatten(-3, -2) for part in parts]) for parts in (dq, dk, dv))
        dgates = _gate_gradient(grad, dvalues, v, dend, *results) if results else None
        return dqueries, dkeys, dvalues, dgates, _join_shift(dshift), dstate, None, None


class _Cut(NamedTuple):
    """Inputs of a span: q (b, s, r, t, c, d), k (b, s, t, c, d), v (b, s, t, c, e), gates and shift likewise."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor | None
    shift: Tensor | None


class _Decay(NamedTuple):
    """Factors of chunks: of the state that each query reads, of each key written, of the state kept."""

    read: Tensor | None
    write: Tensor | None
    keep: Tensor | None


def _left_to_right(
    x: _Cut, grad: Tensor, state: Tensor, kernel: Kernel
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], Tensor]:
    """Gradients of q, k, v and shift from pairs inside chunks, that of q from the states too; the state at the end."""
    decay, within, scores = _decay(x.gates), _within(x.gates, x.q), _scores(x.q, x.k, x.shift)
    states, end = _states(x.k, x.v, state, decay, kernel)
    read = _times(grad, decay.read) @ states[:, :, None].transpose(-1, -2)
    dq, dshift = query_features_vjp(x.q, read, kernel, x.shift)
    dscores = _seen(grad @ x.v[:, :, None].transpose(-1, -2), within)
    dscores = dscores if kernel is None else dscores * slope(scores, kernel)
    dq = dq + dscores @ x.k[:, :, None]
    dshift = None if dshift is None else dshift - dscores.sum(-1)
    dv = _seen(weights(scores, kernel), within).transpose(-1, -2) @ grad
    return (dq, _over_group(dscores.transpose(-1, -2) @ x.q), _over_group(dv), dshift), end


def _right_to_left(
    x: _Cut, grad: Tensor, dk: Tensor, dv: Tensor, dstate: Tensor, kernel: Kernel
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of k and v, those given and what comes from the states their chunks write; that of the first state."""
    decay = _decay(x.gates)
    read = query_features(x.q, kernel, x.shift).transpose(-1, -2) @ _times(grad, decay.read)
    dstates, first = _run(dstate, _over_group(read), decay.keep, backwards=True)
    written = _times(x.v, decay.write) @ dstates.transpose(-1, -2)
    dk = dk + features_vjp(x.k, written, kernel)
    return dk, dv + _times(features(x.k, kernel) @ dstates, decay.write), first


def _gate_gradient(grad: Tensor, dv: Tensor, v: Tensor, dend: Tensor, out: Tensor, end: Tensor) -> Tensor:
    """A gate's running sum c_i scales what query i receives and, inversely, what key i gives: o.do - v.dv."""
    dsum = (out * grad).sum((2, -1)) - (v * dv).sum(-1)
    dsum[..., -1:] += (end * dend).sum((-1, -2))[..., None]
    return dsum.flip(-1).cumsum(-1).flip(-1)


def _states(k: Tensor, v: Tensor, state: Tensor, decay: _Decay, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """The state at the start of each chunk ``(b, s, t, f, e)``, and that after the last."""
    added = features(k, kernel).transpose(-1, -2) @ _times(v, decay.write)
    return _run(state, added, decay.keep)


def _run(first: Tensor, added: Tensor, keep: Tensor | None, backwards: bool = False) -> tuple[Tensor, Tensor]:
    """x_0 = first, x_(i+1) = keep_i x_i + added_i: all but the last ``(b, s, t, f, e)``, and the last.

    One after another: a sum of all at once would divide by decays. `backwards`: i falls.
    """
    order = range(added.shape[2])
    found, last = [], first
    for i in reversed(order) if backwards else order:
        found.append(last)
        last = added[:, :, i] + last if keep is None else torch.addcmul(added[:, :, i], last, keep[:, :, i])
    if len(found) == 1:
        return first[:, :, None], last
    return torch.stack(found[::-1] if backwards else found, dim=2), last


def _decay(gates: Tensor | None) -> _Decay:
    """`_Decay` of the chunks of gates ``(b, s, t, c)``. All exponents are sums of gates <= 0: nothing overflows."""
    if gates is None:
        return _Decay(None, None, None)
    total = pad(gates, (1, 0)).cumsum(-1)  # from 0, which is all there is of an empty chunk
    last, total = total[..., -1:], total[..., 1:]
    return _Decay(total.exp()[:, :, None, ..., None], (last - total).exp()[..., None], last[..., None].exp())


def _seen(pair: Tensor, decay: Tensor | None) -> Tensor:
    """Values of the pairs in each chunk by their decay, 0 where the key is later. May change `pair`."""
    return pair.tril_() if decay is None else pair * decay


def _within(gates: Tensor | None, like: Tensor) -> Tensor | None:
    """Decay of the pairs in each chunk, ``(b, s, 1, t, c, c)``."""
    return None if gates is None else pair_decay(gates, gates.shape[-1], True, like)


def _scores(q: Tensor, k: Tensor, shift: Tensor | None) -> Tensor:
    scores = q @ k[:, :, None].transpose(-1, -2)
    return scores if shift is None else scores - shift[..., None]


def _over_group(x: Tensor) -> Tensor:
    """Sum over the query heads of a key head."""
    return x[:, :, 0] if x.shape[2] == 1 else x.sum(2)


# Parts of a sequence --------------------------------------------------------------------------------------------------


class _Span(NamedTuple):
    """Tokens of one step, and their chunks: how many, of how many tokens."""

    part: slice
    shape: tuple[int, int]


def _spans(q: Tensor, v: Tensor, chunk: int, kernel: Kernel) -> Iterator[_Span]:
    """At least one, though it be empty. What is left behind the last whole chunk is a span of its own."""
    n, most = q.shape[-2], 1  # made features are wide: a chunk of them is enough for one step
    if kernel is None:
        rows = 1 if torch.compiler.is_compiling() else q.shape[0]  # a graph is for any batch
        widest = max(chunk * chunk, q.shape[-1] * v.shape[-1])  # pairs of a chunk, or its state
        most = max(SPAN // max(rows * q.shape[1] * q.shape[2] * widest, 1), 1)
    whole = n - n % chunk
    for start in range(0, whole, most * chunk):
        stop = min(start + most * chunk, whole)
        yield _Span(slice(start, stop), ((stop - start) // chunk, chunk))
    if whole < n or n == 0:
        yield _Span(slice(whole, n), (1, n - whole))


def _cut(span: _Span, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, shift: Tensor | None) -> _Cut:
    gates, shift = (None if x is None else x[..., span.part].unflatten(-1, span.shape) for x in (gates, shift))
    return _Cut(_tokens(q, span), _tokens(k, span), _tokens(v, span), gates, shift)


def _tokens(x: Tensor, span: _Span) -> Tensor:
    cut = x[..., span.part, :].unflatten(-2, span.shape)
    return cut.contiguous() if span.shape[0] > 1 else cut  # once here, or each product would copy it


def _chunks(n: int, size: int) -> Iterator[slice]:
    """At least one, though it be empty: results are put together from their chunks."""
    return (slice(start, min(start + size, n)) for start in range(0, max(n, 1), size))


def _at_once(x: Tensor, kernel: Kernel, chunk: int) -> int:
    """Tokens per product where tokens do not wait for each other: all, if their features are there already."""
    return max(x.shape[-2], 1) if kernel is None else chunk


def _at(shift: Tensor | None, part: slice) -> Tensor | None:
    return None if shift is None else shift[..., part]


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-2)


def _join_shift(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found, dim=-1) if found else None


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
