"""Taylor attention of order 2 as torch operators, for the kernels of the CPU and of the GPU alike.

A weight is flat + slope x + curve x^2 / 2 of x = scale q.k - shift, these three the coefficients. Sums run in float32.
What is done around the operator `tsla.ops.compiled` tells; how, each folder of kernels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import Parameter


class Inputs(NamedTuple):
    """The operator's arguments, see `taylor`, laid out as kernels take them."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    gates: Tensor | None
    shift: Tensor | None
    kv: Tensor | None
    z: Tensor | None
    scale: float
    coefficients: list[float]
    causal: bool
    direct: bool
    normalize: bool
    keep_state: bool
    exact: bool

    @property
    def states(self) -> int:
        """Heads of the state: each query head has its own where it decays at its own rate."""
        return self.k.shape[1] if self.gates is None else self.q.shape[1]


class Results(NamedTuple):
    """Output, denominators, and the state's kv and z, empty where it is not kept."""

    out: Tensor
    den: Tensor
    kv: Tensor
    z: Tensor


class Given(NamedTuple):
    """Gradients that come in: of the output, of the denominators, of the state after the last key."""

    dout: Tensor
    dden: Tensor | None
    dkv: Tensor | None
    dz: Tensor | None


class Found(NamedTuple):
    """Gradients to be filled, empty where there is nothing they are of; those of k and v are for each state.

    dones ``(b, s, m)`` of each key's part in all denominators and dsums ``(b, h, n)`` of a common factor of a query's
    sums and denominator make up that of the gates.
    """

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dones: Tensor
    dsums: Tensor
    dshift: Tensor
    dkv: Tensor
    dz: Tensor


class Passes(NamedTuple):
    """Kernels: both passes, which fill the tensors of results and gradients that are there.

    float_gradients: whether dq, dk and dv are float32 whatever the inputs are.  exact: whether the backward pass needs
    a float32 output.
    """

    forward: Callable[[Inputs, Results], None]
    backward: Callable[[Inputs, Results, Given, Found], None]
    float_gradients: bool
    exact: bool


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
    normalize: bool, keep_state: bool, learns: bool = False, passes: Passes | None = None,
) -> Results:  # fmt: skip
    """Output ``(b, h, n, e)``, denominators ``(b, h, n)``, and the state after the last key if it is kept.

    Args:
        q, k, v: ``(b, h, n, d)``, ``(b, g, m, d)``, ``(b, g, m, e)``, all float32 or all bfloat16 (on a GPU float16).
        mask: ``(b, m)`` bool.
        gates: ``(b, h, n)`` float32, log decays <= 0; causal only.
        shift: ``(b, h, n)`` float32.
        kv, z: ``(b, s, f, e)`` and ``(b, s, f)`` float32, the state before; s is h with gates, else g.
        direct: all pairs, else sums of features; the GPU's kernels always take the latter.
        normalize: divide by the denominators.
        keep_state: return the state; the backward pass of bidirectional attention in sums needs it.
        learns: whether there may be a backward pass; then the output is float32 where the kernels ask for that.
        passes: the kernels; None: those of the device.
    """
    passes = passes_of(q) if passes is None else passes
    exact = learns and passes.exact
    arguments = (q, k, v, mask, gates, shift, kv, z, scale, list(coefficients), causal, direct, normalize, keep_state,
                 exact)  # fmt: skip
    if torch.compiler.is_compiling() or _watched(arguments[:8]):
        return Results(*torch.ops.tsla.taylor.default(*arguments))
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, gates, shift, kv, z)):
        # an operator of torch.library would take some 100 microseconds more
        return Results(*_Taylor.apply(passes, *arguments))
    return _forward(passes, *arguments)


def passes_of(q: Tensor) -> Passes:
    """The kernels of a tensor's device."""
    if q.is_cuda:
        from tsla.kernels.triton.passes import PASSES as GPU

        return GPU
    from tsla.kernels.cpu.passes import PASSES as CPU

    return CPU


def _watched(tensors: Sequence[Any]) -> bool:
    """Whether something counts, fakes or traces operators, and so must see one."""
    return torch._C._len_torch_dispatch_stack() > 0 or any(type(x) not in PLAIN for x in tensors)


def _forward(passes: Passes, *arguments: Any) -> Results:
    x = _laid_out(arguments)
    results = _empty(x)
    passes.forward(x, results)
    return results


def _backward(
    passes: Passes, dout: Tensor | None, dden: Tensor | None, dkv: Tensor | None, dz: Tensor | None, out: Tensor,
    den: Tensor, end_kv: Tensor, end_z: Tensor, *arguments: Any,
) -> Gradients:  # fmt: skip
    """Gradients of q, k, v, gates, shift, kv and z; empty for those that are None."""
    x, results = _laid_out(arguments), Results(out, den, end_kv, end_z)
    if x.direct:  # there is no state
        dkv = dz = None
    elif dkv is not None or dz is not None:  # of one alone, that of the other is 0
        dkv, dz = (torch.zeros_like(end) if dx is None else dx for end, dx in ((end_kv, dkv), (end_z, dz)))
    others = (x if x is None else x.contiguous() for x in (dden, dkv, dz))
    given = Given(rows(torch.zeros_like(out) if dout is None else dout.to(out.dtype)), *others)
    found = _empty_gradients(x, passes.float_gradients)
    passes.backward(x, results, given, found)
    dk, dv, dgates = found.dk, found.dv, found.dones
    if x.gates is not None:
        from_end = None
        if dkv is not None and dz is not None:
            from_end = (end_kv.double() * dkv).sum((-1, -2)) + (end_z.double() * dz).sum(-1)
        dgates = _gate_gradient(x.v, found, from_end)
        dk, dv = (dx.unflatten(1, (x.k.shape[1], -1)).sum(2) for dx in (dk, dv))
    return (found.dq.to(x.q.dtype), dk.to(x.k.dtype), dv.to(x.v.dtype), dgates, found.dshift, found.dkv, found.dz)


def rows(x: Tensor) -> Tensor:
    """`x` itself if its rows are contiguous, else a copy for which they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _laid_out(arguments: Sequence[Any]) -> Inputs:
    """As kernels take them: q, k and v with contiguous rows, the other tensors contiguous."""
    tensors: list[Any] = [
        x if x is None else rows(x) if place < 3 else x.contiguous() for place, x in enumerate(arguments[:8])
    ]
    return Inputs(*tensors, *arguments[8:])


def _gate_gradient(v: Tensor, found: Found, from_end: Tensor | None) -> Tensor:
    """A gate's running sum c_i scales what query i receives and, inversely, what key i gives.

    The two nearly balance, so that their difference is taken in float64.
    """
    values = v.double().repeat_interleave(found.dv.shape[1] // v.shape[1], dim=1)
    change = found.dsums.double() - (values * found.dv).sum(-1) - found.dones
    if from_end is not None:
        change[..., -1] += from_end
    return change.flip(-1).cumsum(-1).flip(-1).float()


def _empty(x: Inputs) -> Results:
    (b, h, n, d), e = x.q.shape, x.v.shape[-1]
    f = (d + 1) * (d + 2) // 2 if x.keep_state else 0
    state = torch.empty(b, x.states, f, e, dtype=torch.float32, device=x.q.device)
    z = torch.empty(b, x.states, f, dtype=torch.float32, device=x.q.device)
    den = torch.empty(b, h, n, dtype=torch.float32, device=x.q.device)
    dtype = torch.float32 if x.exact else x.q.dtype
    return Results(torch.empty(b, h, n, e, dtype=dtype, device=x.q.device), den, state, z)


def _empty_gradients(x: Inputs, in_float: bool) -> Found:
    (b, h, n, d), (m, e), s = x.q.shape, x.v.shape[-2:], x.states

    def like(tensor: Tensor | None, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((0,) if tensor is None else shape, dtype=dtype, device=x.q.device)

    own = torch.float32 if in_float else x.q.dtype
    shared = own if x.gates is None else torch.float32  # still to be summed up over query heads
    dkv, dz = (like(state, *(() if state is None else state.shape)) for state in (x.kv, x.z))
    return Found(
        like(x.q, b, h, n, d, dtype=own), like(x.k, b, s, m, d, dtype=shared), like(x.v, b, s, m, e, dtype=shared),
        like(x.gates, b, s, m), like(x.gates, b, h, n), like(x.shift, b, h, n), dkv, dz,
    )  # fmt: skip


def _gradients(ctx: Any, op: Any, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    q, k, v, mask, gates, shift, kv, z, *results = ctx.saved_tensors
    found = op(*grads, *results, q, k, v, mask, gates, shift, kv, z, *ctx.options)
    dq, dk, dv, dgates, dshift, dkv, dz = found
    given = [None if x is None else dx for x, dx in ((gates, dgates), (shift, dshift), (kv, dkv), (z, dz))]
    return dq, dk, dv, None, *given, *(None,) * len(ctx.options)


class _Taylor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, *arguments: Any) -> tuple[Tensor, ...]:
        results = _forward(passes, *arguments)
        ctx.save_for_backward(*arguments[:8], *results)
        ctx.options = arguments[8:]
        ctx.passes = passes
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # for a second derivative, which would come out as 0
            raise RuntimeError("the compiled kernels have no second derivative: use impl='direct'")
        return (None, *_gradients(ctx, partial(_backward, ctx.passes), grads))


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.options = inputs[8:]
    ctx.set_materialize_grads(False)


def _traced_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, torch.ops.tsla.taylor_backward.default, grads)


def _run_forward(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(_forward(passes_of(arguments[0]), *arguments))


def _run_backward(*arguments: Any) -> Gradients:
    return _backward(passes_of(arguments[8]), *arguments)


def _fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(_empty(Inputs(*arguments)))


def _fake_backward(*arguments: Any) -> Gradients:
    x = Inputs(*arguments[8:])
    found = _empty_gradients(x, in_float=True)
    dgates = found.dq.new_empty((0,) if x.gates is None else x.gates.shape)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (x.k, x.v))  # contiguous, as the real ones
    return found.dq.to(x.q.dtype), dk, dv, dgates, found.dshift, found.dkv, found.dz


for _device in ("CPU", "CUDA"):
    _library.impl("taylor", _run_forward, _device)
    _library.impl("taylor_backward", _run_backward, _device)
torch.library.register_fake("tsla::taylor", _fake_forward, lib=_library)
torch.library.register_fake("tsla::taylor_backward", _fake_backward, lib=_library)
torch.library.register_autograd("tsla::taylor", _traced_backward, setup_context=_set_up, lib=_library)
