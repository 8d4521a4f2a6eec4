"""What is measured of attention: the kind of call, its inputs, and how its rates are counted."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tsla.bench.exact import Exact
from tsla.bench.forms import Form
from tsla.ops import taylor_feature_dim

CUDA = "cuda"  # the device of a case that is no CPU
TAYLOR = "Taylor"  # what implementations of 1 + s + s^2 / 2 compute, whose rates can be compared


class Case(NamedTuple):
    """One kind of call: head dims d and e, query and key/value heads, sequences, tokens, direction, passes.

    dtype: of the inputs.  device: ``"cpu"`` or ``"cuda"``.
    """

    d: int
    e: int
    heads: int
    kv_heads: int
    batch: int
    length: int
    causal: bool
    backward: bool
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def shape(self) -> str:
        """In words: widths and heads."""
        heads = f"h={self.heads}" + f" (kv {self.kv_heads})" * (self.kv_heads != self.heads)
        return f"d={self.d} e={self.e} {heads}" + f" b={self.batch}" * (self.batch > 1)

    @property
    def passes(self) -> str:
        """In words: direction and passes."""
        direction = "causal" if self.causal else "bidirectional"
        return f"{direction}, {'forward + backward' if self.backward else 'forward'}"

    @property
    def named(self) -> str:
        """As a title."""
        return f"{self.shape} N={self.length}, {self.passes}" + f", {self.dtype}" * (self.dtype != "float32")


class Unavailable(ValueError):
    """Why an implementation cannot do a case: told in its place, not an error of the run."""


def _same(inputs: list[Tensor]) -> list[Tensor]:
    return inputs


class Made(NamedTuple):
    """An implementation for one case: what is timed, what it should give, and what is done to q, k, v untimed."""

    form: Form
    exact: Exact
    prepare: Callable[[list[Tensor]], list[Tensor]] = _same


class Implementation(NamedTuple):
    """Somebody's attention.

    name: for `only=`.  computes: the formula it is checked against.  make: for a case; may raise `Unavailable`, and
    whatever importing its package raises.  needs: bytes without which it cannot run, about.
    compiled: under `torch.compile`, for the one length it runs at.
    """

    name: str
    computes: str
    make: Callable[[Case], Made]
    needs: Callable[[Case], int] = lambda case: 0
    compiled: bool = False


def inputs_of(case: Case) -> list[Tensor]:
    """q, k and v of random numbers, the same at each call, in the type and on the device of the case."""
    generator = torch.Generator(case.device).manual_seed(case.length)
    shapes = ((case.heads, case.d), (case.kv_heads, case.d), (case.kv_heads, case.e))
    made = (
        torch.randn(case.batch, heads, case.length, width, generator=generator, device=case.device)
        for heads, width in shapes
    )
    return [x.to(getattr(torch, case.dtype)) for x in made]


def repeated(form: Form, case: Case) -> Form:
    """For what knows no groups: keys and values once for every query head."""
    times = case.heads // case.kv_heads
    if times == 1:
        return form
    return lambda q, k, v: form(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1))


def operations(case: Case) -> int:
    """Of Taylor attention by packed features: 2 * 2 f (e + 1) per token and head, f = C(d + 2, 2).

    Threefold with the backward pass. The same number for every implementation, whatever it does instead.
    """
    forward = 4 * taylor_feature_dim(case.d) * (case.e + 1)
    return case.batch * case.heads * case.length * forward * (3 if case.backward else 1)
