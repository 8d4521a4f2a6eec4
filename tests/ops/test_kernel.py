"""The faces of a kernel agree."""

import pytest
import torch

from tsla.ops import taylor_attention
from tsla.ops.kernel import (
    Polynomial,
    features,
    features_vjp,
    query_features,
    query_features_vjp,
    slope,
    taylor_polynomial,
    weights,
)

KERNELS = {
    "features": None,
    **{f"order {order}": taylor_polynomial(order) for order in (0, 2, 4, 6)},
    "quadratic": Polynomial((2.0, -1.0, 1.4)),
    "quartic": Polynomial((1.0, 0.5, 0.5, 0.6, 12.0)),
}
every = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
polynomials = pytest.mark.parametrize("kernel", [k for k in KERNELS.values() if k and k.order >= 2], ids=str)


@every
def test_slope_is_the_derivative_of_weights(kernel):
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(weights(scores, kernel).sum() + 0 * scores.sum(), scores)
    torch.testing.assert_close(slope(scores.detach(), kernel), expected)


@every
def test_weights_are_dot_products_of_features(kernel):
    q, k = torch.randn(2, 7, 3, dtype=torch.float64)
    dot = (query_features(q, kernel, None) * features(k, kernel)).sum(-1)
    torch.testing.assert_close(weights((q * k).sum(-1), kernel), dot)


@polynomials
def test_a_shift_of_scores_is_a_factor_of_each_degree(kernel):
    q, k = torch.randn(2, 7, 3, dtype=torch.float64)
    shift = torch.randn(7, dtype=torch.float64)
    dot = (query_features(q, kernel, shift) * features(k, kernel)).sum(-1)
    torch.testing.assert_close(weights((q * k).sum(-1) - shift, kernel), dot)


@every
def test_vjp_of_features(kernel):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    phi = features(x, kernel)
    grad = torch.randn_like(phi)
    (expected,) = torch.autograd.grad((phi * grad).sum() + 0 * x.sum(), x)
    torch.testing.assert_close(features_vjp(x.detach(), grad, kernel), expected)


@polynomials
@pytest.mark.parametrize("shifted", [False, True])
def test_vjp_of_query_features(kernel, shifted):
    q = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    shift = torch.randn(4, dtype=torch.float64, requires_grad=True) if shifted else None
    psi = query_features(q, kernel, shift)
    grad = torch.randn_like(psi)
    expected = torch.autograd.grad((psi * grad).sum(), [q] if shift is None else [q, shift])
    plain = None if shift is None else shift.detach()
    dq, dshift = query_features_vjp(q.detach(), grad, kernel, plain)
    torch.testing.assert_close(dq, expected[0])
    if shifted:
        torch.testing.assert_close(dshift, expected[1])
    else:
        assert dshift is None


@pytest.mark.parametrize("order", [2, 4, 6])
def test_weights_of_even_order_are_positive(order):
    """Smallest values: 1/2 at -1, 0.270 at -1.596, 0.149 at -2.18."""
    scores = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
    lowest = weights(scores, taylor_polynomial(order)).min().item()
    assert lowest == pytest.approx({2: 0.5, 4: 0.270, 6: 0.149}[order], abs=5e-4)


def test_second_derivative():
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for order in (2, 4):
        assert torch.autograd.gradgradcheck(lambda s, p=order: weights(s, taylor_polynomial(p)), scores)


FINE = [((1.0,), 0), ((1, 1, 0.5), 2), ((0.25, 1.0, 1.0), 2), ((0.0, 0.0, 3.0), 2), ((3.0, 0.0, -2.0, 0.0, 1.0), 4)]
WRONG = [
    ((1, 1), 2, "coefficients (2) must be order + 1 (3) numbers"),
    ((1, 1, 0.5), 4, "coefficients (3) must be order + 1 (5) numbers"),
    ((1.0, 0.0, -0.5), 2, "the last is not above 0"),
    ((-1.0,), 0, "the last is not above 0"),
    ((0.2, 1.0, 1.0), 2, "their polynomial falls to -0.05"),
    ((0.9, 0.0, -2.0, 0.0, 1.0), 4, "their polynomial falls to -0.1"),
    ((1.0, float("nan"), 1.0), 2, "must be finite"),
]


@pytest.mark.parametrize(("coefficients", "order"), FINE)
def test_polynomials_without_negative_values(coefficients, order):
    x = torch.randn(1, 1, 4, 3)
    assert taylor_attention(x, x, x, order=order, coefficients=coefficients).output.isfinite().all()


@pytest.mark.parametrize(("coefficients", "order", "message"), WRONG)
def test_polynomials_that_are_refused(coefficients, order, message):
    x = torch.randn(1, 1, 4, 3)
    with pytest.raises(ValueError) as caught:
        taylor_attention(x, x, x, order=order, coefficients=coefficients)
    assert message in str(caught.value)
