"""SRMSNorm as a function: its formula, its precision, its gradient."""

import pytest
import torch
from cases import agree
from torch.testing import assert_close

from tsla.ops import srms_norm
from tsla.ops.norm import unit


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_by_loops(eps):
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    x[0, 1] *= 1e-4  # where eps is felt
    expected = torch.empty_like(x)
    for row in range(2):
        for token in range(3):
            total = sum(number**2 for number in x[row, token].tolist())
            expected[row, token] = x[row, token] / (total / 5 + eps) ** 0.5
    assert_close(srms_norm(x, eps=eps), expected, rtol=1e-12, atol=1e-12)
    assert eps != 1e-6 or torch.equal(srms_norm(x), srms_norm(x, eps=eps))


def test_a_token_gets_a_root_mean_square_of_one_and_zeros_stay():
    x = torch.randn(4, 7) * torch.tensor([[1e-1], [1.0], [1e3], [0.0]])
    assert_close(srms_norm(x).square().mean(-1), torch.tensor([1.0, 1.0, 1.0, 0.0]), rtol=1e-3, atol=0)
    x = torch.zeros(2, 7, requires_grad=True)
    srms_norm(x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    """Half precision could not even hold the squares."""
    x = torch.randn(3, 64).to(dtype) * 300
    got = srms_norm(x)
    assert got.dtype == dtype
    assert torch.equal(got, srms_norm(x.double()).to(dtype))


def test_gradients_are_those_of_the_formula():
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    agree(srms_norm, lambda x: x / (x.square().sum(-1, keepdim=True) / 5 + 1e-6) ** 0.5, {"x": x}, 1e-10)
    assert torch.autograd.gradcheck(srms_norm, x.requires_grad_())


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_a_row_of_any_length_gets_length_one(size):
    """Whose square, or the cube of one over it, float32 may not hold."""
    x = (torch.randn(4, 7) * size).requires_grad_()
    wide = x.detach().double().requires_grad_()
    exact, weight = wide / wide.norm(dim=-1, keepdim=True), torch.randn(4, 7)
    (unit(x) * weight).sum().backward()
    (exact * weight).sum().backward()
    assert_close(unit(x), exact.float())
    assert_close(x.grad.double() * size, wide.grad * size, rtol=1e-4, atol=1e-5)


def test_a_row_of_zeros_has_no_direction():
    x = torch.zeros(2, 7, requires_grad=True)
    unit(x).sum().backward()
    assert (unit(x) == 0).all() and x.grad.isfinite().all()
