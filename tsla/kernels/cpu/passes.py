"""The forward and the backward pass on the CPU, in C++: the two forms are in features.h and direct.h."""

from tsla.kernels.cpu.call import fill, make_call, run
from tsla.kernels.taylor import Found, Given, Inputs, Passes, Results


def forward(x: Inputs, results: Results) -> None:
    """Fill `results`."""
    call = make_call(x)
    fill(call, out=results.out, den=results.den)
    if x.keep_state:
        fill(call, kv1=results.kv, z1=results.z)
    run("tsla_forward", call)


def backward(x: Inputs, results: Results, given: Given, found: Found) -> None:
    """Fill `found`."""
    call = make_call(x)
    fill(call, out=results.out, den=results.den, dout=given.dout, dden=given.dden, dkv1=given.dkv, dz1=given.dz,
         dq=found.dq, dk=found.dk, dv=found.dv)  # fmt: skip
    if x.keep_state:
        fill(call, kv1=results.kv, z1=results.z)
    if x.gates is not None:
        fill(call, dones=found.dones, dsums=found.dsums)
    if x.shift is not None:
        fill(call, dshift=found.dshift)
    if x.kv is not None:
        fill(call, dkv0=found.dkv, dz0=found.dz)
    run("tsla_backward", call)


PASSES = Passes(forward, backward, float_gradients=True, exact=True)
