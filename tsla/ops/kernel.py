"""The attention kernel as a function of one number: a polynomial of q.k, or the plain product q.k of given features.

P(s) = sum_p c_p s^p / p!, all c_p = 1 for the Taylor polynomial of exp. Everything below attention asks for a kernel in
four ways: weights and slope (of a score), features and their gradient (of a vector). Writing them down once lets one
direct form and one scan serve Taylor and every other feature map.

A query may shift its scores by m_i: P(s - m) = sum_p P^(p)(-m) s^p / p!, so that each degree of the query's features
takes a factor and those of the keys stay what they are, as does any sum of them.
"""

from math import factorial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tsla.ops.feature_map import degree_sizes, taylor_feature_map, taylor_feature_vjp


class Polynomial(NamedTuple):
    """P(s) = sum_p c_p s^p / p!, by its c_p; of even order and without negative values."""

    coefficients: tuple[float, ...]

    @property
    def order(self) -> int:
        """Degree."""
        return len(self.coefficients) - 1

    @property
    def is_taylor(self) -> bool:
        """Whether it is the Taylor polynomial of exp."""
        return all(c == 1 for c in self.coefficients)

    def derivative(self) -> "Polynomial":
        """P': one coefficient fewer, so perhaps none, which is 0."""
        return Polynomial(self.coefficients[1:])


Kernel = Polynomial | None  # None where queries and keys are features already


def taylor_polynomial(order: int) -> Polynomial:
    """T_order, the Taylor polynomial of exp."""
    return Polynomial((1.0,) * (order + 1))


def weights(scores: Tensor, kernel: Kernel) -> Tensor:
    """Weight of a pair from its score: P(s) by Horner's rule, or s itself."""
    if kernel is None:
        return scores
    out: Tensor = _Value.apply(scores, kernel)
    return out


def slope(scores: Tensor, kernel: Kernel) -> Tensor:
    """Derivative of `weights`: P'(s), or 1."""
    return torch.ones_like(scores) if kernel is None else _horner(scores, kernel.derivative())


def features(x: Tensor, kernel: Kernel) -> Tensor:
    """phi(k) of keys, ``(..., f)``."""
    return x if kernel is None else taylor_feature_map(x, order=kernel.order)


def features_vjp(x: Tensor, grad: Tensor, kernel: Kernel) -> Tensor:
    """Gradient with respect to x of <grad, phi(x)>."""
    return grad if kernel is None else taylor_feature_vjp(x, grad, order=kernel.order)


def query_features(q: Tensor, kernel: Kernel, shift: Tensor | None) -> Tensor:
    """psi(q) ``(..., n, f)`` with psi(q).phi(k) = P(q.k - m), m the shift ``(..., n)`` (None: 0)."""
    phi = features(q, kernel)
    factors = _degree_factors(kernel, shift, q)
    return phi if factors is None else phi * factors


def query_features_vjp(
    q: Tensor, grad: Tensor, kernel: Kernel, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Gradients with respect to q and the shift of <grad, psi(q)>."""
    factors = _degree_factors(kernel, shift, q)
    dq = features_vjp(q, grad if factors is None else grad * factors, kernel)
    if shift is None or kernel is None:
        return dq, None
    products = (grad * features(q, kernel)).split(degree_sizes(q.shape[-1], kernel.order), dim=-1)
    per_degree = torch.stack([part.sum(-1) for part in products], dim=-1)
    return dq, -(per_degree * _derivatives(kernel.derivative(), -shift, kernel.order)).sum(-1)


def _degree_factors(kernel: Kernel, shift: Tensor | None, like: Tensor) -> Tensor | None:
    """P^(p)(-m) for every feature of degree p, ``(f,)`` or ``(..., n, f)``; None where all are 1."""
    if kernel is None or (shift is None and kernel.is_taylor):
        return None
    sizes = degree_sizes(like.shape[-1], kernel.order)  # as numbers: a tensor of them would be copied to the device
    if shift is None:
        return torch.cat([like.new_full((size,), c) for size, c in zip(sizes, kernel.coefficients, strict=True)])
    factors = _derivatives(kernel, -shift, kernel.order).split(1, dim=-1)
    return torch.cat([x.expand(*shift.shape, size) for x, size in zip(factors, sizes, strict=True)], dim=-1)


def _derivatives(polynomial: Polynomial, at: Tensor, order: int) -> Tensor:
    """P, P', ..., P^(order) at some numbers, ``(..., order + 1)``."""
    values = []
    for _ in range(order + 1):
        values.append(_horner(at, polynomial))
        polynomial = polynomial.derivative()
    return torch.stack(values, dim=-1)


class _Value(torch.autograd.Function):
    """P, its derivative written out: autograd would pass over the n x m scores twice as often."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, kernel: Polynomial) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.kernel = kernel
        if kernel.order == 2 and kernel.is_taylor:
            return torch.addcmul(scores + 1, scores, scores, value=0.5)
        return _horner(scores, kernel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        if ctx.kernel.order == 2 and ctx.kernel.is_taylor:
            return torch.addcmul(grad, grad, scores), None
        return grad * _horner(scores, ctx.kernel.derivative()), None


def _horner(scores: Tensor, polynomial: Polynomial) -> Tensor:
    plain = [c / factorial(p) for p, c in enumerate(polynomial.coefficients)]
    out = torch.full_like(scores, plain[-1]) if plain else torch.zeros_like(scores)
    for c in reversed(plain[:-1]):
        out = out * scores + c
    return out
