"""TaylorShift on rows that have no direction: zeros, and numbers whose squares a type cannot hold."""

import pytest
import torch
from cases import error

from tsla import TaylorShiftAttention

LOW = (torch.float16, torch.bfloat16)
FORM = pytest.mark.parametrize("impl", ["direct", "linear"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.mark.parametrize("dtype", [*LOW, torch.float32, torch.float64])
@FORM
@CAUSAL
def test_a_row_of_zeros_averages_and_has_a_finite_gradient(causal, impl, dtype):
    """Its query is zero, its scores too: all weights are c, and the output is the mean value times sqrt(N / d)."""
    layer = TaylorShiftAttention(32, heads=4, head_dim=8, causal=causal, impl=impl, output_projection=False).to(dtype)
    x = torch.randn(2, 40, 32).to(dtype)
    x[0, 3:9], x[1] = 0, 0
    out = layer(x.requires_grad_())
    values = layer.to_v(x[0]).double()
    for i in range(3, 9):
        seen = values[: i + 1 if causal else 40]
        expected = seen.mean(0) * (len(seen) / 8) ** 0.5
        assert error(out[0, i], expected) <= 4 * torch.finfo(dtype).eps
    assert (out[1] == 0).all() and out.isfinite().all()
    out.double().square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad[0] != 0).any()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("size", [1e-4, 300.0])
@FORM
@CAUSAL
def test_lengths_whose_squares_float16_cannot_hold(causal, impl, size, dtype):
    """Only the direction of queries and keys counts, whatever their length."""
    layer = TaylorShiftAttention(32, heads=4, causal=causal, impl=impl, output_projection=False).to(dtype)
    x = torch.randn(2, 40, 32).to(dtype)
    q, k, v = (torch.randn(2, 4, 40, width).to(dtype) for width in (16, 16, 8))
    exact = layer.double().attend(*(y.double() for y in (q * size, k * size, v)), x, None)
    out = layer.to(dtype).attend(q * size, k * size, v, x, None)
    assert out.dtype == dtype
    assert (out - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("dtype", [*LOW, torch.float32, torch.float64])
@FORM
@CAUSAL
def test_a_single_token_and_a_row_without_any(causal, impl, dtype):
    layer = TaylorShiftAttention(32, heads=4, causal=causal, impl=impl, output_projection=False).to(dtype)
    x = torch.randn(2, 1, 32).to(dtype)
    out = layer(x, mask=torch.tensor([[True], [False]]))
    assert error(out[0], layer.to_v(x[0]).double() / 4) <= 16 * torch.finfo(dtype).eps  # sqrt(1 / head_dim)
    assert (out[1] == 0).all()
