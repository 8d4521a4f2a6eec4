"""The Taylor feature map: dot products, order of the features, sizes, gradient."""

from math import comb, factorial

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from tsla.ops import taylor_feature_dim, taylor_feature_map
from tsla.ops.feature_map import taylor_feature_vjp

ORDERS = (0, 2, 4, 6)


@settings(deadline=None, max_examples=60)
@given(d=st.integers(1, 6), order=st.sampled_from(ORDERS), packed=st.booleans(), seed=st.integers(0, 99))
def test_dot_product_is_the_polynomial(d, order, packed, seed):
    torch.manual_seed(seed)
    q, k = torch.randn(2, 5, d, dtype=torch.float64)
    phi_q, phi_k = (taylor_feature_map(x, order=order, packed=packed) for x in (q, k))
    s = (q * k).sum(-1)
    expected = sum(s**i / factorial(i) for i in range(order + 1))
    scale = sum(s.abs() ** i / factorial(i) for i in range(order + 1))  # of the terms, which may cancel
    assert ((phi_q * phi_k).sum(-1) - expected).abs().le(1e-12 * scale).all()


def test_order_of_features():
    x = torch.tensor([2.0, 3.0, 5.0])
    root = 2**-0.5
    packed = [1, 2, 3, 5, 4 * root, 6, 10, 9 * root, 15, 25 * root]
    assert taylor_feature_map(x).tolist() == pytest.approx(packed)
    products = [4, 6, 10, 6, 9, 15, 10, 15, 25]
    assert taylor_feature_map(x, packed=False).tolist() == pytest.approx([1, 2, 3, 5, *(root * p for p in products)])
    assert taylor_feature_map(x, order=0).tolist() == [1]


@pytest.mark.parametrize("order", ORDERS)
def test_packed_features_are_the_monomials(order):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(taylor_feature_map(x, order=order), oracle.features(x, order), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_dim(d, order, packed):
    dim = taylor_feature_dim(d, order=order, packed=packed)
    assert dim == taylor_feature_map(torch.ones(d), order=order, packed=packed).shape[-1]
    assert dim == (comb(d + order, order) if packed else sum(d**i for i in range(order + 1)))


def test_dims_that_papers_name():
    assert taylor_feature_dim(16) == 153
    assert taylor_feature_dim(16, packed=False) == 273


@pytest.mark.parametrize("order", [1, 3, -1, -2])
def test_odd_and_negative_orders_are_refused(order):
    message = rf"order \({order}\) must be even and not negative: an odd one gives negative attention weights"
    with pytest.raises(ValueError, match=message):
        taylor_feature_map(torch.ones(2), order=order)
    with pytest.raises(ValueError, match=message):
        taylor_feature_dim(2, order=order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_vjp_equals_autograd(d, order):
    x = torch.randn(2, 3, d, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, taylor_feature_dim(d, order=order), dtype=torch.float64)
    before = grad.clone()
    features = taylor_feature_map(x, order=order) + 0 * x.sum()  # the features of order 0 do not depend on x
    (expected,) = torch.autograd.grad(features, x, grad)
    torch.testing.assert_close(taylor_feature_vjp(x.detach(), grad, order=order), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", [2, 4])
def test_gradcheck(order, packed):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: taylor_feature_map(x, order=order, packed=packed), x)
    assert torch.autograd.gradgradcheck(lambda x: taylor_feature_map(x, order=order, packed=packed), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_keeps_the_type(dtype):
    assert taylor_feature_map(torch.ones(2, 3, dtype=dtype)).dtype == dtype
    assert taylor_feature_map(torch.ones(2, 3, dtype=dtype), packed=False).dtype == dtype


@pytest.mark.parametrize("packed", [False, True])
def test_leading_shape_and_device(packed):
    x = torch.randn(4, 2, 3)
    whole = taylor_feature_map(x, packed=packed)
    assert torch.equal(taylor_feature_map(x[1, 0], packed=packed), whole[1, 0])
    assert torch.equal(taylor_feature_map(x.transpose(0, 1), packed=packed), whole.transpose(0, 1))
    assert torch.equal(vmap(lambda row: taylor_feature_map(row, packed=packed))(x), whole)
    assert taylor_feature_map(x[:0], packed=packed).shape == whole[:0].shape
    assert taylor_feature_map(x.to("meta"), packed=packed).shape == whole.shape
