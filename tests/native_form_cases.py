"""Calls of impl="native" in float32 and lower, and how their errors are held against those of torch's forms."""

import torch
from cases import qkv, results, some_decay, some_mask

FORMS = {"direct": torch.inf, "linear": 0}  # by the crossover
KINDS = {
    "plain": {},
    "mask": {"mask": True},
    "scale, sums": {"scale": 0.4, "normalize": False},
    "decay per head": {"rates": "head"},
    "decay per token, mask": {"rates": "token", "mask": True},
    "coefficients": {"coefficients": (2.0, -1.0, 0.7)},
    "centre": {"center": "mean"},
    "centre, coefficients, mask": {"center": "mean", "coefficients": (2.0, -1.0, 0.7), "mask": True},
    "centre, decay per token, mask, sums": {"center": "mean", "rates": "token", "mask": True, "normalize": False},
}

FLOOR = 2e-6  # below it errors are those of single roundings, which differ by luck


def call(shape, kind, causal, dtype=torch.float32, b=2):
    """Inputs in `dtype`, and the options of a kind of call."""
    h, g, n, m, d, e = shape
    rates = {"head": (h,), "token": (b, h, n)}.get(kind.get("rates"))
    inputs = qkv(b=b, h=h, g=g, n=n, m=m, d=d, e=e, dtype=dtype)
    inputs |= {"log_decay": some_decay(*rates, dtype=dtype)} if rates else {}
    options = {name: value for name, value in kind.items() if name in ("scale", "coefficients", "center", "normalize")}
    return inputs, options | {"causal": causal, "key_mask": some_mask(b, m) if kind.get("mask") else None}


def worst(found, exact):
    """Of each output and gradient, the largest error over its largest value (or over 1: a gradient may be all zero)."""
    return {
        (place, name): (
            (x.double() - exact[place][name]).abs().max() / exact[place][name].abs().max().clamp(min=1)
        ).item()
        for place in (0, 1)
        for name, x in found[place].items()
    }


def no_worse(fast, plain, slow, inputs):
    """`fast` has at most twice the error of `plain`, both held against `slow` on the same numbers in fp64."""
    exact = results(slow, {name: x.double() for name, x in inputs.items()})
    own, other = worst(results(fast, inputs), exact), worst(results(plain, inputs), exact)
    for key, value in own.items():
        times = 6 if key[1] == "log_decay" else 2  # the difference of two sums, in all forms but torch's direct one
        assert value <= times * max(other[key], max(other.values()) / 4, FLOOR), (key, value, other[key])
