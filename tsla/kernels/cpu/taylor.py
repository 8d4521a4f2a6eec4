"""Taylor attention of order 2 in C++: the forward and backward pass as torch operators.

A weight is flat + slope x + curve x^2 / 2 of x = scale q.k - shift, these three the coefficients. Sums run in float32.
The two forms are in features.h and direct.h; `tsla.ops.native` tells what is done around them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from tsla.kernels.cpu.call import fill, make_call, rows, run

Results = tuple[Tensor, Tensor, Tensor, Tensor]  # output, denominators, and the state's kv and z or nothing
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? gates, Tensor? shift, Tensor? kv, Tensor? z, "
    "float scale, float[] coefficients, bool causal, bool direct, bool normalize, bool keep_state, "
    "bool exact"
)
_library = torch.library.Library("tsla", "DEF")
_library.define(f"taylor({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)")
_library.define(
    f"taylor_backward(Tensor? dout, Tensor? dden, Tensor? dkv, Tensor? dz, Tensor out, Tensor den, Tensor end_kv, "
    f"Tensor end_z, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
PLAIN = (Tensor, Parameter, type(None))


def taylor(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, gates: Tensor | None, shift: Tensor | None,
    kv: Tensor | None, z: Tensor | None, scale: float, coefficients: Sequence[float], causal: bool, direct: bool,
    normalize: bool, keep_state: bool, exact: bool = False,
) -> Results:  # fmt: skip
    """Output ``(b, h, n, e)``, denominators ``(b, h, n)``, and the state after the last key if it is kept.

    Args:
        q, k, v: ``(b, h, n, d)``, ``(b, g, m, d)``, ``(b, g, m, e)``, all float32 or all bfloat16.
        mask: ``(b, m)`` bool.
        gates: ``(b, h, n)`` float32, log decays <= 0; causal only.
        shift: ``(b, h, n)`` float32.
        kv, z: ``(b, s, f, e)`` and ``(b, s, f)`` float32, the state before; s is h with gates, else g.
        direct: all pairs, else sums of features.
        normalize: divide by the denominators.
        keep_state: return the state; the backward pass of bidirectional attention in sums needs it.
        exact: the output in float32, whatever the inputs are; gradients are made of it.
    """
    arguments = (q, k, v, mask, gates, shift, kv, z, scale, list(coefficients), causal, direct, normalize, keep_state,
                 exact)  # fmt: skip
    if torch.compiler.is_compiling() or _watched(arguments[:8]):
        out: Results = torch.ops.tsla.taylor.default(*arguments)
        return out
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, gates, shift, kv, z)):
        out = _Taylor.apply(*arguments)  # an operator of torch.library would take some 100 microseconds more
        return out
    return _forward(*arguments)


def _watched(tensors: Sequence[Any]) -> bool:
    """Whether something counts, fakes or traces operators, and so must see one."""
    return torch._C._len_torch_dispatch_stack() > 0 or any(type(x) not in PLAIN for x in tensors)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, gates: Tensor | None, shift: Tensor | None,
    kv: Tensor | None, z: Tensor | None, scale: float, coefficients: list[float], causal: bool, direct: bool,
    normalize: bool, keep_state: bool, exact: bool,
) -> Results:  # fmt: skip
    q, k, v = rows(q), rows(k), rows(v)
    out, den, end_kv, end_z = _empty(q, k, v, gates, keep_state, exact)
    call = make_call(q, k, v, _states(q, k, gates), mask, gates, shift, kv, z, scale, coefficients)
    fill(call, causal=causal, direct=direct, normalize=normalize, out=out, den=den)
    if keep_state:
        fill(call, kv1=end_kv, z1=end_z)
    run("tsla_forward", call)
    return out, den, end_kv, end_z


def _backward(
    dout: Tensor | None, dden: Tensor | None, dkv: Tensor | None, dz: Tensor | None, out: Tensor, den: Tensor,
    end_kv: Tensor, end_z: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, gates: Tensor | None,
    shift: Tensor | None, kv: Tensor | None, z: Tensor | None, scale: float, coefficients: list[float], causal: bool,
    direct: bool, normalize: bool, keep_state: bool, exact: bool,
) -> Gradients:  # fmt: skip
    """Gradients of q, k, v, gates, shift, kv and z; empty for those that are None."""
    q, k, v, dout = rows(q), rows(k), rows(v), rows(torch.zeros_like(out) if dout is None else dout.to(out.dtype))
    if direct:  # there is no state
        dkv = dz = None
    elif dkv is not None or dz is not None:  # of one alone, that of the other is 0
        dkv, dz = (torch.zeros_like(x) if dx is None else dx for x, dx in ((end_kv, dkv), (end_z, dz)))
    dq, dk, dv, dones, dshift, dkv0, dz0 = _empty_gradients(q, k, v, gates, shift, kv, z)
    call = make_call(q, k, v, _states(q, k, gates), mask, gates, shift, kv, z, scale, coefficients)
    fill(call, causal=causal, direct=direct, normalize=normalize, out=out, den=den, dout=dout, dden=dden, dkv1=dkv,
         dz1=dz, dq=dq, dk=dk, dv=dv)  # fmt: skip
    if keep_state:
        fill(call, kv1=end_kv, z1=end_z)
    if gates is not None:
        dsums = torch.empty_like(den)
        fill(call, dones=dones, dsums=dsums)
    if shift is not None:
        fill(call, dshift=dshift)
    if kv is not None:
        fill(call, dkv0=dkv0, dz0=dz0)
    run("tsla_backward", call)
    dgates = den.new_empty(0)
    if gates is not None:
        from_end = None
        if dkv is not None and dz is not None:
            from_end = (end_kv.double() * dkv).sum((-1, -2)) + (end_z.double() * dz).sum(-1)
        dgates = _gate_gradient(v, dv, dones, dsums, from_end)
        dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dgates, dshift, dkv0, dz0


def _gate_gradient(v: Tensor, dv: Tensor, dones: Tensor, dsums: Tensor, from_end: Tensor | None) -> Tensor:
    """A gate's running sum c_i scales what query i receives and, inversely, what key i gives.

    The two nearly balance, so that their difference is taken in float64.
    """
    values = v.double().repeat_interleave(dv.shape[1] // v.shape[1], dim=1)
    change = dsums.double() - (values * dv).sum(-1) - dones
    if from_end is not None:
        change[..., -1] += from_end
    return change.flip(-1).cumsum(-1).flip(-1).float()


def _states(q: Tensor, k: Tensor, gates: Tensor | None) -> int:
    return k.shape[1] if gates is None else q.shape[1]


def _empty(q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, keep_state: bool, exact: bool) -> Results:
    (b, h, n, d), e = q.shape, v.shape[-1]
    f = (d + 1) * (d + 2) // 2 if keep_state else 0
    s = _states(q, k, gates)
    state = torch.empty(b, s, f, e, dtype=torch.float32, device=q.device)
    z = torch.empty(b, s, f, dtype=torch.float32, device=q.device)
    den = torch.empty(b, h, n, dtype=torch.float32, device=q.device)
    dtype = torch.float32 if exact else q.dtype
    return torch.empty(b, h, n, e, dtype=dtype, device=q.device), den, state, z


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, shift: Tensor | None, kv: Tensor | None, z: Tensor | None
) -> Gradients:
    (b, h, n, d), (m, e) = q.shape, v.shape[-2:]
    s = _states(q, k, gates)

    def like(x: Tensor | None, *shape: int) -> Tensor:
        return torch.empty((0,) if x is None else shape, dtype=torch.float32, device=q.device)

    dkv, dz = (like(x, *(() if x is None else x.shape)) for x in (kv, z))
    return (like(q, b, h, n, d), like(k, b, s, m, d), like(v, b, s, m, e), like(gates, b, s, m), like(shift, b, h, n),
            dkv, dz)  # fmt: skip


def _gradients(ctx: Any, op: Any, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    q, k, v, mask, gates, shift, kv, z, *results = ctx.saved_tensors
    found = op(*grads, *results, q, k, v, mask, gates, shift, kv, z, *ctx.options)
    dq, dk, dv, dgates, dshift, dkv, dz = found
    given = [None if x is None else dx for x, dx in ((gates, dgates), (shift, dshift), (kv, dkv), (z, dz))]
    return dq, dk, dv, None, *given, *(None,) * len(ctx.options)


class _Taylor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Results:
        results = _forward(*arguments)
        ctx.save_for_backward(*arguments[:8], *results)
        ctx.options = arguments[8:]
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # for a second derivative, which would come out as 0
            raise RuntimeError("the native form has no second derivative: use impl='direct'")
        return _gradients(ctx, _backward, grads)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.options = inputs[8:]
    ctx.set_materialize_grads(False)


def _traced_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, torch.ops.tsla.taylor_backward.default, grads)


def _fake_forward(*arguments: Any) -> Results:
    q, k, v, _, gates = arguments[:5]
    return _empty(q, k, v, gates, *arguments[-2:])


def _fake_backward(*arguments: Any) -> Gradients:
    q, k, v, _, gates, shift, kv, z = arguments[8:16]
    dq, _, _, _, dshift, dkv, dz = _empty_gradients(q, k, v, gates, shift, kv, z)
    dgates = dq.new_empty((0,) if gates is None else gates.shape)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))  # contiguous, as the real ones
    return dq.to(q.dtype), dk, dv, dgates, dshift, dkv, dz


_library.impl("taylor", _forward, "CPU")
_library.impl("taylor_backward", _backward, "CPU")
torch.library.register_fake("tsla::taylor", _fake_forward, lib=_library)
torch.library.register_fake("tsla::taylor_backward", _fake_backward, lib=_library)
torch.library.register_autograd("tsla::taylor", _traced_backward, setup_context=_set_up, lib=_library)
