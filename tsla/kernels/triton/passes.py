"""The forward and the backward pass on the GPU: which kernels run, on what, and into which tensors.

Keys and values are summed up chunk by chunk (`sums`), the sums are added up over chunks, and all tokens read what their
chunk finds (`read`). The backward pass is the same the other way round: queries are summed up into gradients of states,
added up from the end, and keys read those; `pull` makes the gradients of queries and keys. Every program writes what
no other writes, so that there are no races and no atomics, and a result is the same in every run.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from tsla.kernels.taylor import Found, Given, Inputs, Passes, Results
from tsla.kernels.triton import decode, pull, read, sums
from tsla.kernels.triton.layout import from_packed, pairs_of, to_packed
from tsla.kernels.triton.plan import COMPILER, Plan, factors_of, plan_of, strides

BLOCK = 512  # numbers of a state that a program adds up over chunks
FEATURES = 32  # of a state that decoding takes at a time


class States(NamedTuple):
    """What each chunk finds ``(b s, chunks, rows, e)`` in the type of products, or all find; and all in the end."""

    kv: Tensor
    z: Tensor
    end_kv: Tensor
    end_z: Tensor


def forward(x: Inputs, results: Results) -> None:
    """Fill `results`."""
    plan, out, den = plan_of(x), results.out, results.den
    if x.kv is not None and x.z is not None and x.causal and plan.n == 1 and x.keep_state:
        _decode(x, plan, results)
        return
    decay = _decay(x, plan)
    states = _key_states(x, plan, decay)
    _read(x, plan, decay, states, out, den)
    if x.keep_state:
        to_packed(states.end_kv, results.kv, plan.d)
        to_packed(states.end_z, results.z, plan.d)


def backward(x: Inputs, results: Results, given: Given, found: Found) -> None:
    """Fill `found`."""
    plan, dout = plan_of(x), given.dout
    decay = _decay(x, plan)
    if x.causal:
        states = _key_states(x, plan, decay)
    else:  # the state of all keys is there
        kv, z = from_packed(results.kv, plan.d), from_packed(results.z, plan.d)
        states = States(kv.to(plan.products.dtype), z, kv, z)
    inverse, slopes = torch.empty_like(results.den), torch.empty_like(results.den)
    grads = _query_states(x, plan, decay, results, given, inverse, slopes)
    own, pulling = plan.reading(), plan.pulling()
    options = {"CAUSAL": x.causal, "DECAYED": decay is not None, "SHIFTED": x.shift is not None}
    blocks = plan.blocks(plan.m)
    sizes = (plan.h, plan.s, plan.g, blocks, plan.m, plan.e, *_chunks(x, plan))
    mask, (_, slope, curve) = _mask(x), x.coefficients
    queries, keys, values, rows = strides(x.q), strides(x.k), strides(x.v), strides(dout)
    read.read_keys[plan.units * blocks, plan.columns](
        x.q, x.k, dout, mask, decay, x.shift, inverse, slopes, grads.kv, grads.z, found.dv, found.dones,
        *queries, *keys, *rows, *sizes, x.scale, *x.coefficients, MASKED=mask is not None, **options, **own,
    )  # fmt: skip
    pull.pull_keys[plan.units * blocks, own["TILES"]](
        x.q, x.k, x.v, dout, mask, decay, x.shift, inverse, slopes, grads.kv, grads.z, found.dk,
        *queries, *keys, *values, *rows, *sizes, x.scale, slope, curve, MASKED=mask is not None, **options, **pulling,
    )  # fmt: skip
    blocks = plan.blocks(plan.n)
    sizes = (plan.h, plan.s, plan.g, blocks, plan.n, plan.e, *_chunks(x, plan))
    pull.pull_queries[plan.b * plan.h * blocks, own["TILES"]](
        x.q, x.k, x.v, dout, mask, decay, x.shift, inverse, slopes, states.kv, states.z, found.dq,
        *queries, *keys, *values, *rows, *sizes, x.scale, slope, curve, MASKED=mask is not None, **options, **pulling,
    )  # fmt: skip
    if x.gates is not None:  # a common factor of a query's sums and denominator
        found.dsums.zero_()
        if not x.normalize:
            found.dsums.add_((dout.float() * results.out).sum(-1))
        if given.dden is not None:
            found.dsums.addcmul_(given.dden, results.den)
    if x.shift is not None:
        _shift_gradient(x, plan, decay, states, given, inverse, slopes, found.dshift)
    if x.kv is not None:
        to_packed(grads.end_kv, found.dkv, plan.d)
        to_packed(grads.end_z, found.dz, plan.d)


PASSES = Passes(forward, backward, float_gradients=False, exact=False)


def _read(x: Inputs, plan: Plan, decay: Tensor | None, states: States, out: Tensor, den: Tensor) -> None:
    mask, blocks = _mask(x), plan.blocks(plan.n)
    read.read_queries[plan.b * plan.h * blocks, plan.columns](
        x.q, x.k, x.v, mask, decay, x.shift, states.kv, states.z, out, den,
        *strides(x.q), *strides(x.k), *strides(x.v), plan.h, plan.s, plan.g, blocks, plan.n, plan.e,
        *_chunks(x, plan), x.scale, *x.coefficients, CAUSAL=x.causal, MASKED=mask is not None,
        DECAYED=decay is not None, SHIFTED=x.shift is not None, NORMALIZE=x.normalize, **plan.reading(),
    )  # fmt: skip


def _chunks(x: Inputs, plan: Plan) -> tuple[int, int]:
    """Length and number of the chunks that have states of their own, for those who read them."""
    return (plan.chunk, plan.chunks) if x.causal else (max(plan.n, plan.m), 1)


def _mask(x: Inputs) -> Tensor | None:
    return None if x.mask is None else x.mask.view(torch.uint8)


def _decay(x: Inputs, plan: Plan) -> Tensor | None:
    """Running sums of log gates within chunks ``(b, h, n)``."""
    if x.gates is None:
        return None
    decay = torch.empty(x.gates.shape, dtype=torch.float32, device=x.gates.device)
    sums.decays[plan.units, plan.chunks](
        x.gates, decay, plan.n, plan.chunk, CHUNK=triton.next_power_of_2(plan.chunk), **COMPILER
    )  # fmt: skip
    return decay


def _key_states(x: Inputs, plan: Plan, decay: Tensor | None) -> States:
    """The sums of keys and values that come before each chunk of causal attention, or all of them."""
    kv, z = _own(x, plan, plan.chunks)
    mask = _mask(x)
    sums.key_sums[plan.units * plan.chunks, pairs_of(plan.d), plan.columns](
        x.k, x.v, mask, decay, kv, z, *strides(x.k), *strides(x.v), plan.s, plan.g, plan.m, plan.e, plan.chunk,
        plan.chunks, MASKED=mask is not None, DECAYED=decay is not None, **plan.summing(),
    )  # fmt: skip
    start = (None, None) if x.kv is None or x.z is None else (x.kv, x.z)
    return _running(x, plan, decay, kv, z, plan.chunk, plan.chunks, *start, backward=False)


def _query_states(
    x: Inputs, plan: Plan, decay: Tensor | None, results: Results, given: Given, inverse: Tensor, slopes: Tensor
) -> States:
    """The gradients of the states that come after each chunk of causal attention, or of the one that all read."""
    dout, out = given.dout, results.out
    of_queries = plan if x.causal else plan_of(x._replace(k=x.q, v=results.out))
    kv, z = _own(x, plan, of_queries.chunks)
    sums.query_sums[plan.units * of_queries.chunks, pairs_of(plan.d), plan.columns](
        x.q, dout, out, results.den, given.dden, x.shift, decay, inverse, slopes, kv, z,
        *strides(x.q), *strides(dout), *strides(out), plan.s, plan.h, plan.n, plan.e, of_queries.chunk,
        of_queries.chunks, x.scale, *x.coefficients, NORMALIZE=x.normalize, DECAYED=decay is not None,
        SHIFTED=x.shift is not None, WEIGHED=given.dden is not None, COLUMNS=plan.columns, **plan.summing(),
    )  # fmt: skip
    return _running(x, plan, decay, kv, z, of_queries.chunk, of_queries.chunks, given.dkv, given.dz, backward=True)


def _own(x: Inputs, plan: Plan, chunks: int) -> tuple[Tensor, Tensor]:
    kv = torch.empty(plan.units, chunks, plan.rows, plan.e, dtype=torch.float32, device=x.q.device)
    return kv, torch.empty(plan.units, chunks, plan.rows, dtype=torch.float32, device=x.q.device)


def _running(
    x: Inputs, plan: Plan, decay: Tensor | None, kv: Tensor, z: Tensor, chunk: int, chunks: int,
    start_kv: Tensor | None, start_z: Tensor | None, *, backward: bool,
) -> States:  # fmt: skip
    made: list[Tensor] = []
    for own, start, dtype in ((kv, start_kv, plan.products.dtype), (z, start_z, torch.float32)):
        first = None if start is None else from_packed(start, plan.d).contiguous()
        before = torch.empty(own.shape if x.causal else own[:, 0].shape, dtype=dtype, device=own.device)
        end = torch.empty(own[:, 0].shape, dtype=torch.float32, device=own.device)
        size = end[0].numel()
        sums.running[plan.units, triton.cdiv(size, BLOCK)](
            own, first, decay, before, end, size, plan.n, chunk, chunks, BLOCK=BLOCK, STARTED=first is not None,
            DECAYED=decay is not None, EACH=x.causal, BACKWARD=backward, **COMPILER,
        )  # fmt: skip
        made += [before, end]
    return States(made[0], made[2], made[1], made[3])


def _shift_gradient(
    x: Inputs, plan: Plan, decay: Tensor | None, states: States, given: Given, inverse: Tensor, slopes: Tensor,
    dshift: Tensor,
) -> None:  # fmt: skip
    """A query's shift is taken from each of its scores, so that it reads its keys with the polynomial's derivative."""
    _, slope, curve = x.coefficients
    derived = x._replace(coefficients=[slope, curve, 0.0], normalize=False)
    read_out = torch.empty(*x.q.shape[:3], plan.e, dtype=torch.float32, device=x.q.device)
    below = torch.empty(x.q.shape[:3], dtype=torch.float32, device=x.q.device)
    _read(derived, plan, decay, states, read_out, below)
    torch.add(inverse * (given.dout * read_out).sum(-1), slopes * below, out=dshift).neg_()


def _decode(x: Inputs, plan: Plan, results: Results) -> None:
    """One token: the packed state as it is, read once and written once."""
    left, right, factors = factors_of(plan.d, x.q.device)
    share = triton.next_power_of_2(plan.h // plan.s)
    mask = _mask(x)
    options: dict[str, Any] = {"MASKED": mask is not None, "DECAYED": x.gates is not None}
    assert x.kv is not None and x.z is not None
    decode.step[plan.units, plan.columns](
        x.q, x.k, x.v, mask, x.gates, x.shift, x.kv, x.z, results.kv, results.z, results.out, results.den, left, right,
        factors,
        *strides(x.q)[:2], *strides(x.k)[:2], *strides(x.v)[:2], plan.h, plan.s, plan.g, len(left), plan.e,
        x.scale, *x.coefficients, WIDTH=plan.width, FEATURES=max(16, FEATURES // share), SHARE=share,
        SHIFTED=x.shift is not None, NORMALIZE=x.normalize, num_warps=4, **COMPILER, **options,
    )  # fmt: skip
