"""The attention kernel as a function of one number: T_order(q.k), or the plain product q.k of given features (None).

Everything below attention asks for a kernel in four ways: weights and slope (of a score), features and their gradient
(of a vector). Writing them down once lets one direct form and one scan serve Taylor and every other feature map.
"""

from math import factorial
from typing import Any

import torch
from torch import Tensor

from tsla.ops.feature_map import taylor_feature_map, taylor_feature_vjp

Kernel = int | None  # an even order, or None where queries and keys are features already


def weights(scores: Tensor, order: Kernel) -> Tensor:
    """Weight of a pair from its score: T_order(s) by Horner's rule, or s itself."""
    if order is None:
        return scores
    out: Tensor = _Polynomial.apply(scores, order)
    return out


def slope(scores: Tensor, order: Kernel) -> Tensor:
    """Derivative of `weights`: T_{order - 1}(s), or 1."""
    if order is None:
        return torch.ones_like(scores)
    return _horner(scores, order - 1)


def features(x: Tensor, order: Kernel) -> Tensor:
    """phi(x) ``(..., f)``."""
    return x if order is None else taylor_feature_map(x, order=order)


def features_vjp(x: Tensor, grad: Tensor, order: Kernel) -> Tensor:
    """Gradient with respect to x of <grad, phi(x)>."""
    return grad if order is None else taylor_feature_vjp(x, grad, order=order)


class _Polynomial(torch.autograd.Function):
    """T_order, its derivative written out: autograd would pass over the n x m scores twice as often."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, order: int) -> Tensor:
        ctx.save_for_backward(scores)
        ctx.order = order
        return torch.addcmul(scores + 1, scores, scores, value=0.5) if order == 2 else _horner(scores, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return torch.addcmul(grad, grad, scores) if ctx.order == 2 else grad * _horner(scores, ctx.order - 1), None


def _horner(scores: Tensor, order: int) -> Tensor:
    out = torch.full_like(scores, 1 / factorial(order)) if order >= 0 else torch.zeros_like(scores)
    for degree in range(order - 1, -1, -1):
        out = out * scores + 1 / factorial(degree)
    return out
