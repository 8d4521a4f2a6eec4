"""performer-pytorch's layers, read: equal without its eps; what its eps, its key maximum and its mask do beside."""

import re

import pytest
import torch
from cases import agree
from mechanisms import padding
from peers import performer_layer, performer_without_eps

from tsla.mixers import PerformerAttention
from tsla.mixers.readers import read_performer

DIM, HEADS, FEATURES = 32, 4, 19
BIASES = {"output": {}, "all": {"qkv_bias": True}, "none": {"attn_out_bias": False},
          "inputs": {"qkv_bias": True, "attn_out_bias": False}}  # fmt: skip


def refused(message):
    """The beginning of the message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")


def theirs(name="SelfAttention", **options):
    return performer_layer(name, DIM, **{"heads": HEADS, "dim_head": 6, "nb_features": FEATURES} | options).eval()


def tokens(n=40, b=3):
    return torch.randn(b, n, DIM, dtype=torch.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("biases", BIASES)
def test_softmax_features_without_eps(biases, causal):
    layer = theirs(causal=causal, **BIASES[biases])
    ours = read_performer(layer.state_dict(), causal=causal, heads=HEADS)
    assert (ours.heads, ours.head_dim, ours.causal) == (HEADS, 6, causal)
    assert (ours.to_q.bias is None) == (ours.to_out.bias is None) == (biases == "none")
    assert torch.equal(ours.feature_map.projection, layer.fast_attention.projection_matrix)
    with performer_without_eps():
        for n in (1, 40, 131):
            agree(ours, layer, {"x": tokens(n)}, 1e-12)


@pytest.mark.parametrize("kind", ["positive", "relu"])
def test_context(kind):
    layer = theirs("CrossAttention", generalized_attention=kind == "relu")
    ours = read_performer(layer.state_dict(), kind=kind)
    with performer_without_eps():
        agree(ours, lambda x, context: layer(x, context=context), {"x": tokens(), "context": tokens(17)}, 1e-12)


def test_relu_features_as_shipped():
    layer = theirs(generalized_attention=True)
    for n in (1, 40, 131):
        agree(read_performer(layer.state_dict(), kind="relu"), layer, {"x": tokens(n)}, 1e-12)


def test_causal_relu_features_but_for_what_its_sums_have_added():
    layer = theirs(generalized_attention=True, causal=True)
    ours = read_performer(layer.state_dict(), kind="relu", causal=True)
    with performer_without_eps():
        agree(ours, layer, {"x": tokens()}, 1e-12)
    x = tokens()
    assert 1e-6 < (ours(x) - layer(x)).abs().max() < 1e-2


def test_its_eps_makes_a_difference_that_shrinks_with_it():
    layer, x = theirs(), tokens()
    ours, shipped = read_performer(layer.state_dict())(x), layer(x)
    assert 1e-5 < (ours - shipped).abs().max() < 0.1
    with performer_without_eps():
        assert (ours - layer(x)).abs().max() < 1e-12


def test_a_later_key_changes_its_earlier_outputs_and_not_ours():
    """The largest of all keys, and eps beside what is divided by it: a large last key leaves only eps of the others."""
    layer, x = theirs(causal=True), tokens()
    ours, changed = read_performer(layer.state_dict(), causal=True), x.clone()
    changed[:, -1] *= 30
    assert torch.equal(ours(x)[:, :-1], ours(changed)[:, :-1])
    assert (layer(x)[:, :-1] - layer(changed)[:, :-1]).abs().max() > 1e-2
    with performer_without_eps():  # which is what lets the future through
        torch.testing.assert_close(layer(x)[:, :-1], layer(changed)[:, :-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["positive", "relu"])
def test_a_mask_is_truncation_for_ours_and_not_for_theirs(kind):
    layer, x, mask = theirs(generalized_attention=kind == "relu"), tokens(32), padding(20, 20, 20, total=32)
    ours, noise = read_performer(layer.state_dict(), kind=kind), torch.where(mask[..., None], x, 3 * tokens(32))
    with performer_without_eps():
        torch.testing.assert_close(ours(x, mask=mask)[:, :20], layer(x[:, :20]), rtol=0, atol=1e-12)
        assert torch.equal(ours(x, mask=mask)[:, :20], ours(noise, mask=mask)[:, :20])
        assert (layer(x, mask=mask)[:, :20] - layer(x[:, :20])).abs().max() > 1e-2
        assert (layer(x, mask=mask)[:, :20] - layer(noise, mask=mask)[:, :20]).abs().max() > 1e-2


def test_what_leaves_no_trace():
    weights = theirs().state_dict()
    assert isinstance(read_performer(weights), PerformerAttention)
    assert read_performer(weights).feature_map.redraw_every == 1000
    assert read_performer(weights, redraw_every=None).feature_map.redraw_every is None
    assert read_performer({key: w.bfloat16() for key, w in weights.items()}).to_q.weight.dtype == torch.bfloat16
    with refused("kind ('no_projection') must be one of positive, relu"):
        read_performer(weights, kind="no_projection")
    with refused("kind ('hyperbolic') must be one of positive, relu"):
        read_performer(weights, kind="hyperbolic")


def test_refusals():
    matrix = "fast_attention.projection_matrix"
    weights = theirs(qkv_bias=True).state_dict()
    with refused("local_attn.rel_pos.inv_freq must not be there: local heads look at whole blocks of tokens"):
        read_performer(theirs(local_heads=2).state_dict())
    with refused(f"heads tells 8 heads, {matrix} 4"):
        read_performer(weights, heads=8)
    with refused(f"heads (0, from {matrix}) must divide the width of to_q.weight (24)"):
        read_performer(weights | {matrix: torch.zeros(19, 25).double()})
    with refused(f"{matrix} must have shape (19, 6), got (19, 5)"):
        read_performer(weights | {matrix: torch.zeros(19, 5).double()})
    with refused(f"{matrix} is missing: the weights of a SelfAttention are to_q.weight, to_k.weight, "):
        read_performer({key: weight for key, weight in weights.items() if key != matrix})
    with refused("g is not a weight of a SelfAttention: those are to_q.weight, to_k.weight, "):
        read_performer(weights | {"g": torch.ones(1).double()})
    with refused("to_out.weight must hold finite numbers only"):
        read_performer(weights | {"to_out.weight": weights["to_out.weight"] * torch.inf})
    with refused(f"{matrix} (torch.float32, cpu) must be of the type and device of to_q.weight (torch.float64, cpu)"):
        read_performer(weights | {matrix: weights[matrix].float()})
    for key, shape, expected in (
        ("to_q.weight", (24,), "(any, any)"), ("to_k.weight", (12, DIM), "(24, 32)"),
        ("to_v.weight", (24, 31), "(24, 32)"), ("to_out.weight", (DIM, 8), "(32, 24)"), ("to_q.bias", (DIM,), "(24)"),
        ("to_out.bias", (24,), "(32)"), (matrix, (19, 0), "(any, any)"),
    ):  # fmt: skip
        with refused(f"{key} must have shape {expected}, got {shape}"):
            read_performer(weights | {key: torch.zeros(shape).double()})
