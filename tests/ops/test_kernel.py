"""The four faces of a kernel agree."""

import pytest
import torch

from tsla.ops.kernel import features, features_vjp, slope, weights

ORDERS = (None, 0, 2, 4, 6)


@pytest.mark.parametrize("order", ORDERS)
def test_slope_is_the_derivative_of_weights(order):
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(weights(scores, order).sum() + 0 * scores.sum(), scores)
    torch.testing.assert_close(slope(scores.detach(), order), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_weights_are_dot_products_of_features(order):
    q, k = torch.randn(2, 7, 3, dtype=torch.float64)
    dot = (features(q, order) * features(k, order)).sum(-1)
    torch.testing.assert_close(weights((q * k).sum(-1), order), dot)


@pytest.mark.parametrize("order", ORDERS)
def test_vjp_of_features(order):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    phi = features(x, order)
    grad = torch.randn_like(phi)
    (expected,) = torch.autograd.grad((phi * grad).sum() + 0 * x.sum(), x)
    torch.testing.assert_close(features_vjp(x.detach(), grad, order), expected)


@pytest.mark.parametrize("order", [2, 4, 6])
def test_weights_of_even_order_are_positive(order):
    """Smallest values: 1/2 at -1, 0.270 at -1.596, 0.149 at -2.18."""
    scores = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
    lowest = weights(scores, order).min().item()
    assert lowest == pytest.approx({2: 0.5, 4: 0.270, 6: 0.149}[order], abs=5e-4)


def test_second_derivative():
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    for order in (2, 4):
        assert torch.autograd.gradgradcheck(lambda s, p=order: weights(s, p), scores)
