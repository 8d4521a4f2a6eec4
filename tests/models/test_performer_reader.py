"""A whole `Performer` of performer-pytorch, read: its outputs and gradients, and every refusal."""

import re

import pytest
import torch
from cases import agree
from mechanisms import padding
from peers import performer_layer, performer_without_eps

from tsla.models.performer_reader import read_performer_stack

DIM, HEADS, DEPTH = 16, 4, 3


def refused(message):
    """The beginning of the message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}")


def theirs(**options):
    """In evaluation mode, in which it draws nothing; norms are moved off their neutral start."""
    stack = performer_layer("Performer", DIM, DEPTH, HEADS, **{"dim_head": 6, "nb_features": 11} | options).eval()
    for name, parameter in stack.named_parameters():
        if ".norm." in name:
            torch.nn.init.normal_(parameter, mean=1.0)
    return stack


def tokens(n=23):
    return {"x": torch.randn(2, n, DIM, dtype=torch.float64)}


@pytest.mark.parametrize("options", [{}, {"ff_mult": 2, "ff_chunks": 3}, {"qkv_bias": False, "attn_out_bias": False}])
@pytest.mark.parametrize("causal", [False, True])
def test_the_outputs_of_the_stack(options, causal):
    stack = theirs(causal=causal, **options)
    ours = read_performer_stack(stack.state_dict(), heads=HEADS, causal=causal)
    assert len(ours.blocks) == DEPTH and all(block.mixer.causal is causal for block in ours.blocks)
    with performer_without_eps():
        agree(ours, stack, tokens(), 1e-11)


def test_relu_features_as_shipped():
    stack = theirs(generalized_attention=True)
    agree(read_performer_stack(stack.state_dict(), kind="relu"), stack, tokens(), 1e-11)


def test_gradients_of_its_weights():
    stack, x = theirs(), tokens()["x"]
    ours = read_performer_stack(stack.state_dict())
    with performer_without_eps():
        stack(x).square().sum().backward()
    ours(x).square().sum().backward()
    for number, (block, (attention, feed_forward)) in enumerate(zip(ours.blocks, stack.net.layers, strict=True)):
        for got, expected in (
            (block.mixer.to_v.weight, attention.fn.to_v.weight), (block.mixer_norm.bias, attention.norm.bias),
            (block.feed_forward.into.weight, feed_forward.fn.fn.w1.weight),
            (block.feed_forward_norm.weight, feed_forward.norm.weight),
        ):  # fmt: skip
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-9, atol=1e-9, msg=f"block {number}")


def test_a_mask_is_truncation():
    stack, x = theirs(), tokens()["x"]
    ours = read_performer_stack(stack.state_dict())
    with performer_without_eps():
        expected = stack(x[:, :15])
        torch.testing.assert_close(ours(x, padding(15, 15, total=23))[:, :15], expected, rtol=0, atol=1e-11)
        masked = stack(x, mask=padding(15, 15, total=23))[:, :15]
    assert (masked - expected).abs().max() > 1e-2


def test_the_copy_of_its_weights_may_be_left_out_and_must_be_one():
    stack = theirs()
    weights = stack.state_dict()
    alone = {key: weight for key, weight in weights.items() if key.startswith("net.")}
    assert 2 * len(alone) + 1 == len(weights)
    x = tokens()["x"]
    assert torch.equal(read_performer_stack(alone)(x), read_performer_stack(weights)(x))
    key = "proj_updater.instance.layers.1.0.norm.bias"
    with refused(f"{key} must equal net.layers.1.0.norm.bias, of which it is the copy"):
        read_performer_stack(weights | {key: weights[key] + 1})
    with refused(f"{key} must be the copy of a tensor net.layers.1.0.norm.bias, which is not there"):
        read_performer_stack({name: weight for name, weight in weights.items() if name != "net.layers.1.0.norm.bias"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_scalenorm": True}, "net.layers.0: 0.norm.weight is missing: the weights of a Performer are "),
        ({"use_rezero": True}, "net.layers.0: 0.norm.weight is missing: the weights of a Performer are "),
        ({"ff_glu": True}, "net.layers.0: 1.fn.fn.w2.weight must have shape (16, 128), got (16, 64)"),
        ({"shift_tokens": True}, "net.layers.0: to_q.weight is missing: the weights of a SelfAttention are "),
        ({"reversible": True}, "net.blocks.0.f.net.norm.weight is not a weight of a Performer"),
        ({"local_attn_heads": (0, 0, 2)}, "net.layers.2: local_attn.rel_pos.inv_freq must not be there"),
    ],
    ids=lambda case: str(case)[:20],
)
def test_what_it_can_have_and_ours_cannot(options, message):
    with refused(message):
        read_performer_stack(theirs(**options).state_dict())


def test_refusals():
    weights = {key: weight for key, weight in theirs().state_dict().items() if key.startswith("net.")}
    w1 = "net.layers.0.1.fn.fn.w1.weight"
    with refused("token_emb.weight is not a weight of a Performer: those begin with net.layers."):
        read_performer_stack(weights | {"token_emb.weight": torch.zeros(3, DIM).double()})
    with refused("net.norm.weight is not a weight of a Performer: those are net.layers.0.0.norm.weight, "):
        read_performer_stack(weights | {"net.norm.weight": torch.zeros(DIM).double()})
    with refused("net.layers.0 is missing: blocks are counted from 0"):
        read_performer_stack({})
    with refused("net.layers.1 is missing: blocks are counted from 0"):
        read_performer_stack({key: weight for key, weight in weights.items() if "layers.1." not in key})
    with refused("net.layers.0: 1.fn.fn.w1.weight must have shape (any, 16), got (64, 15)"):
        read_performer_stack(weights | {w1: torch.zeros(64, 15).double()})
    with refused("net.layers.0: 1.fn.fn.w1.weight must have a multiple of 16 rows, got 63"):
        read_performer_stack(weights | {w1: torch.zeros(63, DIM).double()})
    with refused("net.layers.0: 0.norm.bias must have shape (16), got (15,)"):
        read_performer_stack(weights | {"net.layers.0.0.norm.bias": torch.zeros(15).double()})
    with refused("net.layers.0: 0.norm.extra is not a weight of a Performer: those are 0.norm.weight, "):
        read_performer_stack(weights | {"net.layers.0.0.norm.extra": torch.zeros(15).double()})
    with refused("net.layers.0: heads tells 2 heads, fast_attention.projection_matrix 4"):
        read_performer_stack(weights, heads=2)
    single = {key: w.float() if key.startswith("net.layers.0.0.fn") else w for key, w in weights.items()}
    with refused("net.layers.0: 0.norm.weight (torch.float64, cpu) must be of the type and device of 0.fn.to_q.weight"):
        read_performer_stack(single)
    narrow = performer_layer("Performer", 8, 1, 2, dim_head=4).state_dict()
    other = {key: w for key, w in weights.items() if "layers.0." not in key}
    with refused("net.layers.1 has width 16, net.layers.0 8"):
        read_performer_stack(other | {key: w for key, w in narrow.items() if key.startswith("net.")})
