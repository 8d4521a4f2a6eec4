"""Rotary positions: distances only, the field's own package, precision, types."""

import pytest
import torch
from torch.testing import assert_close

from tsla.ops import rotary

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_by_hand():
    """Pair i turns by position / base^(2 i / d), anticlockwise."""
    x = torch.tensor([1.0, 0, 0, 1]).expand(1, 1, 3, 4).double()
    got = rotary(x, torch.tensor([0, 1, 100]), base=100.0)[0, 0]
    for row, position in zip(got, (0.0, 1.0, 100.0), strict=True):
        fast, slow = torch.tensor([position, position / 10], dtype=torch.float64)
        assert_close(row, torch.stack([fast.cos(), fast.sin(), -slow.sin(), slow.cos()]), **EXACT)


def test_dot_products_depend_on_distance_only():
    q, k, places = *torch.randn(2, 1, 2, 9, 6, dtype=torch.float64), torch.randint(0, 1000, (9,))
    for shift in (1, 5000):
        here = rotary(q, places) @ rotary(k, places).transpose(-1, -2)
        there = rotary(q, places + shift) @ rotary(k, places + shift).transpose(-1, -2)
        assert_close(here, there, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(here, rotary(q, places) @ rotary(k, places + 1).transpose(-1, -2))


def test_lengths_stay_and_position_zero_changes_nothing():
    x = torch.randn(1, 2, 9, 6, dtype=torch.float64)
    assert_close(rotary(x, torch.randint(0, 1000, (9,))).norm(dim=-1), x.norm(dim=-1), **EXACT)
    assert torch.equal(rotary(x, torch.zeros(9, dtype=torch.long)), x)


def test_positions_per_row():
    x, places = torch.randn(3, 2, 9, 6, dtype=torch.float64), torch.randint(0, 50, (3, 9))
    rows = [rotary(x[i : i + 1], places[i]) for i in range(3)]
    assert_close(rotary(x, places), torch.cat(rows), **EXACT)


def test_a_package_of_the_field():
    package = pytest.importorskip("rotary_embedding_torch")
    x = torch.randn(2, 3, 20, 8, dtype=torch.float64)
    theirs = package.RotaryEmbedding(8).double().rotate_queries_or_keys
    assert_close(rotary(x, torch.arange(20)), theirs(x), rtol=1e-6, atol=1e-6)  # its frequencies are float32
    assert_close(rotary(x, torch.arange(7, 27)), theirs(x, offset=7), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_angles_are_float32_at_least(dtype):
    """Positions 4096 and 4097 are one number in bf16."""
    x = torch.ones(1, 1, 2, 4, dtype=dtype)
    got = rotary(x, torch.tensor([4096, 4097]))
    exact = rotary(x.double(), torch.tensor([4096, 4097]))
    assert got.dtype == dtype
    assert_close(got.double(), exact, rtol=0, atol=max(2e-4, 2 * torch.finfo(dtype).eps))
    assert not torch.equal(got[:, :, 0], got[:, :, 1])


def test_gradient_and_input_left_alone():
    x, places = torch.randn(1, 1, 3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 9])
    before = x.detach().clone()
    assert torch.autograd.gradcheck(lambda x: rotary(x, places), x)
    assert torch.equal(x, before) and x._version == 0


def test_empty_and_meta():
    assert rotary(torch.ones(2, 3, 0, 4), torch.arange(0)).shape == (2, 3, 0, 4)
    assert rotary(torch.ones(2, 3, 5, 4, device="meta"), torch.arange(5, device="meta")).shape == (2, 3, 5, 4)
