"""Attention with a linear-cost form: `taylor_attention` and, for features already made, `linear_attention`.

Both weigh a pair by a kernel of q.k and differ in nothing else, so one routine serves them: it masks, groups heads,
picks the form, and divides. o_i = sum_j w_ij v_j / sum_j w_ij (arXiv 2006.16236, 2402.18668, 2403.02920).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops import compiled, gpu, native
from tsla.ops.center import mean_scores
from tsla.ops.checks import (
    check_center,
    check_choice,
    check_crossover,
    check_floor,
    check_kernel_options,
    check_polynomial,
    check_qkv,
)
from tsla.ops.direct import direct
from tsla.ops.feature_map import check_order, taylor_feature_dim
from tsla.ops.kernel import Kernel, taylor_polynomial
from tsla.ops.measured import auto_crossover
from tsla.ops.packing import attend_packed
from tsla.ops.scan import DEFAULT_CHUNK, causal_scan, chunk_of, key_sum, read_out, two_way_scan
from tsla.ops.types import Attended, KernelState, accumulation_dtype, full_precision

FORMS = ("auto", "direct", "linear", "native", "triton")
TORCH_FORMS = ("auto", "direct", "linear")  # of features that are given
CHOOSE = ("auto", "native")  # by length between all pairs and sums
# Tokens that the linear form of given features takes longer than its operations say (scripts/bench_features.py)
MEASURED_SUMS, MEASURED_SCAN = 32, 128
STRONGEST = -200.0  # exp of it is nothing beside any weight, and sums of it are still exact, as those of -inf are not


def taylor_attention(
    q: Tensor, k: Tensor, v: Tensor, *, order: int = 2, coefficients: Sequence[float] | None = None,
    center: str = "zero", scale: float | None = None, causal: bool = False, key_mask: Tensor | None = None,
    log_decay: Tensor | None = None, cu_seqlens: Tensor | None = None, normalize: bool = True,
    state: KernelState | None = None, return_state: bool | None = None, impl: str = "auto",
    crossover: float | None = None, chunk_size: int | None = None,
) -> Attended:  # fmt: skip
    """Attention whose weight of a pair is the Taylor polynomial of exp: w_ij = sum_{p <= order} (scale q_i.k_j)^p / p!.

    With order 2, w >= 1/2, so rows are true averages and the denominator needs no epsilon.

    Softmax does not change when a number m_i is taken from all scores of a query; its Taylor polynomial does, being
    exact near 0 only. ``center="mean"`` takes the query's mean score, m_i = scale q_i.mean(k) over the keys it sees,
    with their decay: it helps where scores have a mean far from 0, most of all a negative one, beside a small spread
    (docs/softmax_error.md), and costs one more factor for each feature of a query. The state is the same for both.

    Args:
        q: ``(b, h, n, d)``.
        k: ``(b, g, m, d)``; g divides h, query head i reads key head i * g // h.
        v: ``(b, g, m, e)``.
        order: even degree of the polynomial.
        coefficients: of 1, s, s^2, ... s^order for another polynomial, without negative values (TaylorShift's c, b, a).
        center: ``"zero"`` or ``"mean"``, the score the polynomial is expanded around.
        scale: factor of q.k, default ``d ** -0.5``.
        causal: query i sees keys 0..i, and all that `state` holds. Needs n == m.
        key_mask: ``(b, m)`` bool, True = real. A masked key adds nothing, not even its decay.
        log_decay: ``(h,)`` or ``(b, h, n)``, <= 0; weights get the factor exp(-|c_i - c_j|), c the running sum.
        cu_seqlens: ``(sequences + 1,)`` int: the row, one alone, holds sequences that see only themselves; where each
            begins, and the end of the last. States are then of the sequences. A sequence may be empty.
        normalize: divide by sum_j w_ij; else return the plain sum, which grows with m: give float32 where float16 or
            bfloat16 could not hold it.
        state: what earlier calls have seen (their returned state).
        return_state: return the state after the last key; None means True when causal, else False.
        impl: ``"direct"`` (n x m weights) or ``"linear"`` (feature sums) in torch; ``"native"``: the faster of both by
            `crossover`, by the compiled kernels (order 2, d <= 64, on the CPU, no float64); ``"triton"``: the linear
            form by Triton's kernels (the same, on a GPU); ``"auto"``: native on the CPU and triton on a GPU where that
            can be, else the faster one in torch.
        crossover: the length from which auto and native take the linear form; for n != m, n m is held against it times
            the mean of n and m. None: as `tsla bench crossover` has measured it on this machine, else
            `taylor_crossover`.
        chunk_size: tokens per step of torch's linear form; changes speed and memory, not the result. The kernels' own
            are fixed, so that auto leaves them out where it is given.

    Returns:
        `Attended`: output ``(b, h, n, e)`` in the type of q, computed in float32 at least; a row that sees no key is 0.

    Raises:
        ValueError: shapes, types or options that do not fit together, naming the value and what is allowed.
        NativeError: ``impl="native"`` without a compiler.
        ModuleNotFoundError: ``impl="triton"`` without Triton.
    """
    check_order(order)
    check_qkv(q, k, v, causal, key_mask)
    check_center(center, order)
    check_crossover(crossover, impl)
    kernel = taylor_polynomial(order) if coefficients is None else check_polynomial(coefficients, order)
    if cu_seqlens is not None:
        each = partial(
            taylor_attention, order=order, coefficients=coefficients, center=center, scale=scale, causal=causal,
            normalize=normalize, return_state=return_state, impl=impl, crossover=crossover, chunk_size=chunk_size,
        )  # fmt: skip
        return attend_packed(each, q, k, v, cu_seqlens, key_mask=key_mask, log_decay=log_decay, state=state)
    (n, d), (m, e) = q.shape[-2:], v.shape[-2:]
    scale = d**-0.5 if scale is None else scale
    check_choice("impl", impl, FORMS)
    form = _compiled_form(impl, q, k, v, order, scale, (key_mask, log_decay, *(state or ())), chunk_size)
    if crossover is None and impl in CHOOSE and form != "triton":
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        crossover = auto_crossover(
            d, e, order=order, causal=causal, backward=learns, device=q.device.type, native=form == "native"
        )  # fmt: skip
    short = crossover is not None and 2 * n * m <= (n + m) * crossover
    if form:
        keep = causal if return_state is None else return_state
        check_kernel_options(q, k, v, causal, log_decay, state, keep, taylor_feature_dim(d, order=order), DEFAULT_CHUNK)
        out = compiled.attend(
            q, k, v, kernel, scale=scale, causal=causal, key_mask=key_mask, gates=_gates(log_decay, q, key_mask),
            centered=center == "mean", state=state, keep_state=keep, normalize=normalize, short=short,
            form=form,
        )  # fmt: skip
    else:
        out = _attend(
            q.to(accumulation_dtype(q.dtype)) * scale, k, v, kernel, causal=causal, key_mask=key_mask,
            log_decay=log_decay, state=state, return_state=return_state, impl=impl, short=short, chunk=chunk_size,
            features=taylor_feature_dim(d, order=order), eps=0.0, floor=0.0, normalize=normalize,
            centered=center == "mean",
        )  # fmt: skip
    return Attended(out.output.to(q.dtype), out.state)


def linear_attention(
    fq: Tensor, fk: Tensor, v: Tensor, *, causal: bool = False, log_decay: Tensor | None = None,
    key_mask: Tensor | None = None, cu_seqlens: Tensor | None = None, normalize: bool = True, eps: float = 1e-6,
    floor: float = 0.0, state: KernelState | None = None, return_state: bool | None = None, impl: str = "auto",
    chunk_size: int | None = None,
) -> Attended:  # fmt: skip
    """Kernel attention from features: w_ij = fq_i . fk_j (Katharopoulos et al., arXiv 2006.16236).

    Args:
        fq: ``(b, h, n, f)``, features of the queries.
        fk: ``(b, g, m, f)``, features of the keys.
        v: ``(b, g, m, e)``.
        normalize: divide by sum_j w_ij + eps; else return the plain sum.
        eps: added to the denominator.
        floor: least magnitude of a denominator D_i = sum_j w_ij + eps, which becomes sign(D_i) max(|D_i|, floor),
            sign(0) = 1, for features that may be negative (arXiv 2103.02143); it is a constant to the gradient where
            the floor is taken. 0: none.
        causal, log_decay, key_mask, cu_seqlens, state, return_state: as in `taylor_attention`.
        impl: ``"direct"`` (n x m weights), ``"linear"`` (sums), or ``"auto"``: the one that was faster at that length
            on the CPU, linear wherever there is a state (docs/kernels.md).
        chunk_size: tokens summed by pairs where it is causal or decays; changes speed and memory, not the result.

    Returns:
        `Attended`: output ``(b, h, n, e)`` in the type of fq, made in float32 at least; a row that sees no key is 0.

    Raises:
        ValueError: as in `taylor_attention`.
    """
    check_qkv(fq, fk, v, causal, key_mask)
    check_choice("impl", impl, TORCH_FORMS)
    check_floor(floor, normalize)
    if cu_seqlens is not None:
        each = partial(
            linear_attention, causal=causal, normalize=normalize, eps=eps, floor=floor, return_state=return_state,
            impl=impl, chunk_size=chunk_size,
        )  # fmt: skip
        return attend_packed(each, fq, fk, v, cu_seqlens, key_mask=key_mask, log_decay=log_decay, state=state)
    (n, f), (m, e) = fq.shape[-2:], v.shape[-2:]
    crossover = 2 * f * e / (f + e) + (MEASURED_SCAN if causal or log_decay is not None else MEASURED_SUMS)
    out = _attend(
        fq.to(accumulation_dtype(fq.dtype)), fk, v, None, causal=causal, key_mask=key_mask, log_decay=log_decay,
        state=state, return_state=return_state, impl=impl, short=2 * n * m <= (n + m) * crossover, chunk=chunk_size,
        features=f, eps=eps, floor=floor, normalize=normalize, centered=False,
    )  # fmt: skip
    return Attended(out.output.to(fq.dtype), out.state)


def _compiled_form(
    impl: str, q: Tensor, k: Tensor, v: Tensor, order: int, scale: float | None, others: Sequence[Tensor | None],
    chunk_size: int | None,
) -> str:  # fmt: skip
    """``"native"`` or ``"triton"`` if those kernels do it, where they can if it is left to us, or are asked for; or "".

    Raises:
        ValueError: they are asked for and cannot do it.
        NativeError, ModuleNotFoundError: they are asked for and are not there.
    """
    name = impl if impl in ("native", "triton") else "triton" if q.is_cuda else "native"
    kernels = gpu if name == "triton" else native
    if impl not in ("auto", name):
        return ""
    reason = kernels.why_not(q, k, v, order, scale, others)
    if not reason and chunk_size is not None:
        reason = f"chunk_size ({chunk_size}) must be None: the blocks are fixed"
    if impl == name:
        if reason:
            raise ValueError(f"impl={impl!r} cannot do this: {reason}")
        kernels.require()
        return name
    return name if not reason and not torch.compiler.is_exporting() and kernels.ready() else ""


def _attend(
    q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, *, causal: bool, key_mask: Tensor | None, log_decay: Tensor | None,
    state: KernelState | None, return_state: bool | None, impl: str, short: bool, chunk: int | None, features: int,
    eps: float, floor: float, normalize: bool, centered: bool,
) -> Attended:  # fmt: skip
    """Both public ops after their own arguments are settled; `q` is already scaled and in the accumulation type."""
    keep_state = causal if return_state is None else return_state
    form = impl
    if form == "auto":
        form = "direct" if short and state is None and not keep_state else "linear"
    chunk = chunk_of(kernel, log_decay is not None, chunk)
    check_kernel_options(q, k, v, causal, log_decay, state, keep_state, features, chunk)
    with full_precision(q.device):
        k, v = k.to(q.dtype), v.to(q.dtype)
        v = pad(v, (0, 1), value=1.0)  # the last column of every sum is the denominator
        if key_mask is not None:  # a zero value row, ones column included, is a zero feature; the fill also stops NaN
            k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
        gates = _gates(log_decay, q, key_mask)
        if gates is not None:  # every query head decays at its own rate, so each needs its own state
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        q = q.unflatten(1, (k.shape[1], -1))
        start = None if state is None else torch.cat([state.kv, state.z[..., None]], dim=-1).to(q.dtype)
        z = None if start is None else start[..., -1]
        shift = mean_scores(q, k, v[..., -1:], causal, gates, z, chunk) if centered else None
        sums, end = _sums(q, k, v, kernel, causal, gates, shift, start, keep_state, form, chunk)
        numerator, denominator = sums[..., :-1], sums[..., -1:]
        if normalize:
            numerator = numerator / _divisor(denominator, eps, floor)
        new_state = None
        if end is not None:
            seen = key_mask.sum(-1) if key_mask is not None else q.new_full((q.shape[0],), k.shape[2], dtype=torch.long)
            length = seen if state is None else state.length + seen
            new_state = KernelState(end[..., :-1], end[..., -1], length)
        return Attended(numerator.flatten(1, 2), new_state)


def _divisor(sums: Tensor, eps: float, floor: float) -> Tensor:
    """sums + eps, away from 0 by the floor. A row that sees no key has sums of 0, its numerator too: it stays 0."""
    sums = sums + eps if eps else sums
    if floor:
        return torch.where(sums < 0, sums.clamp(max=-floor), sums.clamp(min=floor))
    return sums if eps else torch.where(sums == 0, 1.0, sums)


def _sums(
    q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, causal: bool, gates: Tensor | None, shift: Tensor | None,
    start: Tensor | None, keep_state: bool, form: str, chunk: int,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Unnormalised outputs, and the sum of phi(k) v^T after the last key if it was made or is asked for."""
    if form == "direct":
        end = _end_state(k, v, kernel, gates, start, chunk) if keep_state else None
        return direct(q, k, v, kernel, causal=causal, gates=gates, shift=shift, start=start), end
    if causal:
        start = key_sum(k[:, :, :0], v[:, :, :0], kernel, chunk) if start is None else start
        sums, end = causal_scan(q, k, v, gates, shift, start, kernel, chunk)
        return sums, end if keep_state else None
    if gates is not None:
        start = key_sum(k[:, :, :0], v[:, :, :0], kernel, chunk)
        return two_way_scan(q, k, v, gates, shift, start, kernel, chunk), None
    end = _end_state(k, v, kernel, None, start, chunk)
    return read_out(q, end, kernel, shift, chunk), end if keep_state else None


def _end_state(k: Tensor, v: Tensor, kernel: Kernel, gates: Tensor | None, start: Tensor | None, chunk: int) -> Tensor:
    """The state after the last key, decayed to it."""
    if gates is None:
        end = key_sum(k, v, kernel, chunk)
        return end if start is None else start + end
    total = pad(gates, (1, 0)).cumsum(-1)  # from 0, which is all there is without a key
    last = total[..., -1:]
    end = key_sum(k, v * (last - total[..., 1:]).exp()[..., None], kernel, chunk)
    return end if start is None else start * last[..., None].exp() + end


def _gates(log_decay: Tensor | None, q: Tensor, key_mask: Tensor | None) -> Tensor | None:
    """Log decay per token ``(b, h, n)``; a masked token does not decay, so that padding changes nothing."""
    if log_decay is None:
        return None
    b, h, n, _ = q.shape
    gates = (log_decay[:, None] if log_decay.dim() == 1 else log_decay).to(accumulation_dtype(q.dtype)).expand(b, h, n)
    gates = gates.clamp(min=STRONGEST)
    return gates if key_mask is None else gates.masked_fill(~key_mask[:, None], 0.0)
