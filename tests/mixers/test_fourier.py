"""FourierFormer's layer: its radius, what it is as an average, and what it costs; the formula is with all others'."""

import re

import pytest
import torch
from mechanisms import DIM
from torch.testing import assert_close

from tsla.mixers import FourierAttention, SoftmaxAttention
from tsla.mixers.cache import KeyValueCache
from tsla.models import Encoder, SequenceClassifier, account
from tsla.training.optim import OptimSettings, make_optimizer


@pytest.mark.parametrize("radius", [1e-3, 0.5, 1.0, 2.0, 50.0])
def test_the_radius_starts_where_it_is_asked_to(radius):
    for per_channel, shape in ((False, (1,)), (True, (4,))):
        layer = FourierAttention(DIM, heads=4, radius=radius, per_channel=per_channel)
        assert_close(layer.radius, torch.full(shape, radius), rtol=1e-5, atol=0)
    assert (FourierAttention(DIM, heads=4).radius == 1).all()


def test_the_radius_stays_above_0_and_is_not_decayed():
    layer = FourierAttention(DIM, heads=4)
    with torch.no_grad():
        layer.raw_radius.fill_(-50.0)
    assert 0 < layer.radius.item() < 1e-20
    settings = OptimSettings(lr=0.1, final_lr=0.1, warmup_steps=0, weight_decay=0.1, beta1=0.9, beta2=0.9, clip_norm=0)
    decayed, kept = make_optimizer(layer, settings).param_groups
    assert any(p is layer.raw_radius for p in kept["params"]) and kept["weight_decay"] == 0
    assert not any(p is layer.raw_radius for p in decayed["params"])


def test_radii_learn_by_themselves():
    """Of one channel that tells keys apart, and others that do not: only its radius has a gradient."""
    layer = FourierAttention(DIM, heads=4, per_channel=True).double()
    with torch.no_grad():
        for projection in (layer.to_q, layer.to_k):
            projection.weight.unflatten(0, (4, 4))[:, 1:] = 0
    layer(torch.randn(2, 9, DIM, dtype=torch.float64)).square().sum().backward()
    assert layer.raw_radius.grad[0] != 0 and (layer.raw_radius.grad[1:] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_equal_values_stay_what_they_are(causal):
    layer = FourierAttention(DIM, heads=4, causal=causal, output_projection=False).double()
    q, k, _ = layer.heads_of(x := torch.randn(2, 9, DIM, dtype=torch.float64))
    v = torch.randn(2, 4, 1, 3, dtype=torch.float64).expand(2, 4, 9, 3)
    assert_close(layer.attend(q, k, v, x, None), v, rtol=1e-10, atol=1e-10)


def test_a_small_radius_is_an_average_and_a_large_one_the_token_itself():
    x = torch.randn(1, 9, DIM)
    for radius, close in ((1e-4, "all"), (1e4, "own")):
        layer = FourierAttention(DIM, heads=4, radius=radius, output_projection=False)
        with torch.no_grad():
            layer.to_k.weight.copy_(layer.to_q.weight)
        values = layer.to_v(x)
        assert_close(layer(x), values if close == "own" else values.mean(1, keepdim=True).expand_as(values))


def test_keys_in_another_order_are_the_same_keys():
    layer, x, context = FourierAttention(DIM, heads=4).double(), torch.randn(2, 5, DIM).double(), torch.randn(2, 7, DIM)
    order = torch.randperm(7)
    assert_close(layer(x, context.double()), layer(x, context.double()[:, order]), rtol=1e-10, atol=1e-10)


def test_its_state_is_the_cache_of_softmax():
    x = torch.randn(2, 5, DIM)
    for cls in (FourierAttention, SoftmaxAttention):
        layer = cls(DIM, heads=4, kv_heads=2, causal=True)
        _, state = layer.extend(x)
        assert type(state) is KeyValueCache and state.keys.shape == (2, 2, 5, 4)


@pytest.mark.parametrize("length", [16, 32, 64])
def test_its_operations_are_on_the_account(length):
    """Those of every pair and channel: what they cost a token grows with the length."""
    encoder = Encoder(vocab_size=9, dim=8, depth=2, mixer=lambda _: FourierAttention(8, heads=2, value_dim=3))
    costs = account(SequenceClassifier(encoder, num_classes=3), length)
    projections = 2 * 8 * (8 + 8 + 6 + 6)
    feed_forward = 2 * 2 * 8 * 32
    attention = 2 * length * (10 * 4 + 2 * 3)
    assert costs.flops_per_token == pytest.approx(2 * (projections + feed_forward + attention) + 2 * 8 * 3 / length)
    assert costs.state_bytes == 2 * 4 * 2 * length * (4 + 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": 3}, "power (3) must be an even number of at least 2: odd ones give negative weights"),
        ({"radius": 0.0}, "radius (0.0) must be 1e-06 to 1e+06"),
        ({"radius": -1.0}, "radius (-1.0) must be 1e-06 to 1e+06"),
        ({"radius": float("nan")}, "radius (nan) must be 1e-06 to 1e+06"),
        ({"radius": float("inf")}, "radius (inf) must be 1e-06 to 1e+06"),
        ({"radius": 1e300}, "radius (1e+300) must be 1e-06 to 1e+06"),
        ({"radius": 1e-300}, "radius (1e-300) must be 1e-06 to 1e+06"),
        ({"heads": 3}, "heads (3) must divide dim (16), or give head_dim and value_dim"),
    ],
    ids=str,
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FourierAttention(DIM, **options)
