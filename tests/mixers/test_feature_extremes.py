"""Inputs at the ends of what float32 holds: finite outputs and gradients, near float64's; and what is refused there."""

import copy
import re

import pytest
import torch
from mechanisms import CAUSAL, DIM, NAMES, build
from torch.testing import assert_close

from tsla.mixers import HedgehogAttention, LinearAttention, PerformerAttention, RFAAttention, RFAGateAttention

LARGE = {
    **{f"performer, {kind}, {d}": PerformerAttention(2 * d, heads=2, kind=kind, causal=True)
       for kind in ("positive", "hyperbolic") for d in (16, 64)},
    **{f"hedgehog, {kind}": HedgehogAttention(32, heads=4, kind=kind, causal=True)
       for kind in ("exp", "max", "joint", "softmax")},
}  # fmt: skip


@pytest.mark.parametrize("size", [4, 6, 10, 100])
@pytest.mark.parametrize("name", LARGE)
def test_large_queries_and_keys(name, size):
    torch.manual_seed(0)
    mixer = copy.deepcopy(LARGE[name])
    for layer in (mixer.to_q, mixer.to_k):
        torch.nn.init.eye_(layer.weight)
    x = (torch.randn(1, 128, mixer.dim) * size).requires_grad_()
    out = mixer(x)
    out.square().sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())
    if name.startswith("performer"):
        exact = copy.deepcopy(mixer).double()(x.detach().double())
        assert not (out == 0).all(-1).any()
        assert (out - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_gate_that_hardly_writes_still_averages():
    mixer = RFAGateAttention(DIM, heads=4, causal=True, output_projection=False)
    mixer.forgetting.bias.data.fill_(8.0)  # it keeps 0.9997
    x = torch.randn(2, 5, DIM)
    assert_close(mixer(x)[:, 0], mixer.to_v(x)[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [PerformerAttention, RFAAttention])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_default_type(cls, dtype):
    torch.set_default_dtype(dtype)
    try:
        mixer = cls(DIM, heads=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert mixer.feature_map.projection.dtype == dtype
    assert mixer(torch.randn(1, 5, DIM, dtype=dtype)).isfinite().all()


def test_features_are_made_in_float32_of_weights_in_bfloat16():
    mixer = build("rfa", dtype=torch.bfloat16)
    mixer.feature_map.sigma.data.uniform_(0.5, 1.5)
    exact, x = copy.deepcopy(mixer.feature_map).double(), torch.randn(1, 4, 9, 4)
    error = mixer.feature_map(x, is_query=True) - exact(x.double(), is_query=True)
    assert error.abs().max() < 1e-6


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_redraw_every_is_a_number_of_steps(steps):
    message = f"redraw_every ({steps}) must be a whole number of at least 1, or None for never"
    for cls in (PerformerAttention, RFAAttention):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            cls(DIM, heads=2, redraw_every=steps)


@pytest.mark.parametrize("name", ["linear, cosine", "transnormer", "taylor"])
def test_a_masked_token_stands_where_the_last_real_one_does(name):
    """In a piece as in a full pass: it takes no place, not even for what the horizon allows."""
    options = {"horizon": 8} if "cosine" in name else {}
    mixer = build(name, causal=True, rotary=name == "taylor")
    if options:
        mixer = LinearAttention(DIM, heads=4, map="cosine", causal=True, **options).double().eval()
    x, mask = torch.randn(2, 10, DIM, dtype=torch.float64), torch.ones(2, 10, dtype=torch.bool)
    mask[:, 8:] = False
    _, state = mixer.extend(x[:, :8])
    out, _ = mixer.extend(x[:, 8:], state, mask=mask[:, 8:])
    assert_close(out, mixer(x, mask=mask)[:, 8:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in NAMES if name in CAUSAL])
def test_a_state_of_another_kind(name):
    mixer, x = build(name, causal=True), torch.zeros(1, 3, DIM, dtype=torch.float64)
    _, own = mixer.extend(x)
    for other in ("taylor", "none", "softmax", "split"):
        _, state = build(other, causal=True).extend(x)
        if type(state) is not type(own):
            with pytest.raises(ValueError, match=rf"^state must be a {type(own).__name__}, as extend returns it, got "):
                mixer.extend(x, state)
