"""The forms that are compared, on the same inputs: Taylor attention direct and linear, and torch's own softmax (SDPA).

SDPA's fast kernel wants one width, so the narrower of q, k and of v are padded with zeros, before any clock runs.
"""

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tsla.bench.exact import exponential, of_scores, relative_error, second_order
from tsla.ops import native, taylor_attention

TOLERANCE = 1e-3  # largest error, over the largest value, of a form that may be timed

Form = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    """One kind of call: widths d (queries, keys) and e (values), heads, direction, backward pass or not."""

    d: int
    e: int
    heads: int
    causal: bool
    backward: bool

    @property
    def compiled(self) -> bool:
        """Whether `auto` takes the compiled kernels for it, else torch."""
        return native.fits(self.d, 2) and native.ready()


def forms(shape: Shape) -> dict[str, Form]:
    """Each form as a function of q, k, v ``(1, h, n, d or e)``; Taylor's two are those that `auto` chooses from."""

    def taylor(form: str) -> Form:
        choice: dict[str, Any] = {"impl": form}
        if shape.compiled:
            choice = {"impl": "native", "crossover": inf if form == "direct" else 0.0}
        return lambda q, k, v: taylor_attention(q, k, v, causal=shape.causal, return_state=False, **choice).output

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=shape.causal, scale=shape.d**-0.5)

    return {"direct": taylor("direct"), "linear": taylor("linear"), "sdpa": sdpa}


def random_inputs(shape: Shape, n: int) -> list[Tensor]:
    """q, k and v of `n` random tokens, the same at each call."""
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(1, shape.heads, n, width, generator=generator) for width in (shape.d, shape.d, shape.e)]


def calls(shape: Shape, n: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Each form on the same random inputs of `n` tokens, ready to be called: output, or gradients of q, k, v."""
    made = {}
    for name, form in forms(shape).items():
        wide = max(shape.d, shape.e) if name == "sdpa" else 0
        made[name] = run_of(
            form, [pad(x, (0, max(wide - x.shape[-1], 0))) for x in random_inputs(shape, n)], shape.backward
        )
    return made


def run_of(form: Form, inputs: list[Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """`form` on some inputs: the output, and with `backward` the gradients of its sum of squares over two."""
    leaves = [x.clone().requires_grad_(backward) for x in inputs]

    def run() -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            out = form(*leaves)
            return [out, *torch.autograd.grad(out, leaves, out.detach())] if backward else [out]

    return run


def errors(shape: Shape, n: int) -> dict[str, float]:
    """The error of each form against the same formula in float64: the largest of output and gradients.

    Raises:
        ValueError: an error above `TOLERANCE`: what is wrong is not worth a time.
    """
    found = {}
    for name, run in calls(shape, n).items():
        weigh = exponential if name == "sdpa" else second_order
        exact = _exact(shape, n, weigh)
        worst = 0.0
        for got, right in zip(run(), exact, strict=True):
            worst = max(worst, relative_error(got, right))
        if not worst <= TOLERANCE:
            raise ValueError(f"{name} is off by {worst:.2g} at {shape}, n={n}: nothing is timed")
        found[name] = worst
    return found


def _exact(shape: Shape, n: int, weigh: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Output and gradients by the formula, in float64."""
    exact, rows = of_scores(weigh, shape.d**-0.5, shape.causal), torch.arange(n)
    return run_of(lambda q, k, v: exact(q, k, v, rows), [x.double() for x in random_inputs(shape, n)], shape.backward)()
