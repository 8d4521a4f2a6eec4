"""Costs of a model, against numbers worked out by hand."""

import mechanisms
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tsla.mixers import (
    GatedConv,
    HeadSplit,
    LinformerAttention,
    LunaAttention,
    Mixer,
    NoMixer,
    PrimalAttention,
    SoftmaxAttention,
    TaylorAttention,
    TaylorPolyAttention,
    WindowAttention,
)
from tsla.models import Encoder, SequenceClassifier, account
from tsla.models.account import account_step

DIM, DEPTH, HIDDEN, CLASSES = 8, 2, 32, 3
HEADS = {"heads": 2, "head_dim": 4, "value_dim": 4}
FEED_FORWARD = DEPTH * 2 * (2 * DIM * HIDDEN)  # two products per layer, a multiply and an add each
PROJECTIONS = DEPTH * 4 * (2 * DIM * DIM)  # q, k, v and out
HEAD = 2 * DIM * CLASSES  # once per sequence


def model(mixer, **options) -> nn.Module:
    encoder = Encoder(vocab_size=11, dim=DIM, depth=DEPTH, mixer=mixer, **options)
    return SequenceClassifier(encoder, num_classes=CLASSES)


def split(_: int) -> HeadSplit:
    part = {"heads": 1, "head_dim": 4, "value_dim": 4, "output_projection": False}
    return HeadSplit(TaylorAttention(DIM, **part), WindowAttention(DIM, window=3, **part))


@pytest.mark.parametrize("length", [1, 16, 100])
def test_operations_without_a_mixer(length):
    costs = account(model(lambda _: NoMixer(DIM)), length)
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + HEAD / length)
    assert costs.state_bytes == 0


def test_a_step_costs_three_forward_passes_and_what_it_keeps():
    plain = model(lambda _: NoMixer(DIM))
    step = account_step(plain, 16, 5)
    assert step.flops == 3 * 5 * (16 * FEED_FORWARD + HEAD)
    assert step.held_bytes == 16 * sum(p.numel() for p in plain.parameters())
    assert all(not p.is_meta and p.grad is None for p in plain.parameters())


@pytest.mark.parametrize("pairs", ["", "nli"])
def test_what_a_step_keeps_is_what_the_backward_pass_is_given(pairs):
    """The same tensors, real ones, by the places they lie at."""
    encoder = Encoder(vocab_size=11, dim=DIM, depth=DEPTH, mixer=lambda _: SoftmaxAttention(DIM, heads=2))
    made = SequenceClassifier(encoder, num_classes=CLASSES, pairs=pairs)
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in made.parameters()}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        held.append(x)
        return x

    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), sdpa_kernel(SDPBackend.MATH):
        made(torch.randint(11, (6, 16)))
    real = sum(size for place, size in kept.items() if place not in weights)
    assert account_step(made, 16, 6 // (1 + bool(pairs))).kept_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 16, 100])
def test_operations_of_a_convolution_do_not_depend_on_the_length(length, causal):
    costs = account(model(lambda _: GatedConv(DIM, kernel=5, expand=3, causal=causal), causal=causal), length)
    inner = 3 * DIM
    convolution = DEPTH * 2 * (DIM * 2 * inner + 5 * inner + inner * DIM)
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + convolution + HEAD / length)
    assert costs.state_bytes == DEPTH * 4 * 4 * inner
    block = 2 * 2 * DIM + (3 * DIM * inner + 6 * inner) + 2 * DIM * HIDDEN + HIDDEN + DIM
    assert costs.parameters == 11 * DIM + DEPTH * block + 2 * DIM + CLASSES * DIM + CLASSES


@pytest.mark.parametrize("length", [1, 16, 100])
def test_operations_of_softmax_grow_with_the_length(length):
    costs = account(model(lambda _: SoftmaxAttention(DIM, **HEADS)), length)
    attention = DEPTH * 2 * (2 * DIM * length)  # weights and values
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + PROJECTIONS + HEAD / length + attention)
    assert costs.state_bytes == DEPTH * 4 * 2 * DIM * length


@pytest.mark.parametrize("length", [16, 100, 3000])
def test_operations_of_taylor_do_not(length):
    costs = account(model(lambda _: TaylorAttention(DIM, **HEADS, impl="linear")), length)
    features = 1 + 4 + 10
    attention = DEPTH * 2 * (2 * 2 * features * (4 + 1))  # into the state and out of it; the 1 is the denominator
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + PROJECTIONS + HEAD / length + attention)
    assert costs.state_bytes == DEPTH * 4 * 2 * features * 5


@pytest.mark.parametrize("length", [16, 3000])
def test_operations_of_two_taylor_attentions_in_a_row(length):
    costs = account(model(lambda _: TaylorPolyAttention(DIM, **HEADS, impl="linear")), length)
    features = 1 + 4 + 10
    attention = DEPTH * 2 * 2 * (2 * 2 * features * (4 + 2))  # twice; the mass goes through like a value
    projections = PROJECTIONS + DEPTH * 2 * DIM * DIM  # and the middle one
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + projections + HEAD / length + attention)
    assert costs.state_bytes == DEPTH * 4 * 2 * features * 5


@pytest.mark.parametrize("length", [16, 100, 3000])
def test_operations_of_linformer_do_not_either(length):
    costs = account(model(lambda _: LinformerAttention(DIM, **HEADS, max_length=3000, rank=5)), length)
    attention = DEPTH * 2 * (2 * DIM * 5 + 2 * DIM * 5)  # into the slots, weights and values
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + PROJECTIONS + HEAD / length + attention)
    assert costs.state_bytes == DEPTH * 4 * 5 * 2 * DIM


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [16, 100, 3000])
def test_operations_of_primal_attention_nor(length, causal):
    costs = account(model(lambda _: PrimalAttention(DIM, heads=2, rank=5, causal=causal), causal=causal), length)
    scores = DEPTH * 2 * (2 * DIM * 5 + 2 * 5 * DIM)  # two of them, and from both to the head
    weights = 0 if causal else DEPTH * 2 * (2 * DIM * 50 * 5)  # of 50 tokens, once
    projections = PROJECTIONS * 3 / 4  # there are no values
    assert costs.flops_per_token == pytest.approx(FEED_FORWARD + projections + scores + (HEAD + weights) / length)
    assert costs.state_bytes == DEPTH * 4 * 2 * DIM * (1 if causal else 5)


def test_state_of_a_split_is_that_of_its_parts_once():
    one_taylor, one_window = 4 * 15 * 5, 4 * 3 * 8
    assert account(model(split), 50).state_bytes == DEPTH * (one_taylor + one_window)


def test_state_of_fewer_key_heads():
    def grouped(_: int) -> TaylorAttention:
        return TaylorAttention(DIM, heads=2, head_dim=4, value_dim=4, kv_heads=1)

    assert account(model(grouped), 50).state_bytes == DEPTH * 4 * 15 * 5


def test_parameters_by_hand():
    built = model(lambda _: TaylorAttention(DIM, **HEADS), positions="learned", max_length=20, short_conv=3)
    feed_forward = 2 * DIM * HIDDEN + HIDDEN + DIM
    block = 2 * 2 * DIM + (3 * DIM + DIM) + 4 * DIM * DIM + feed_forward
    assert account(built, 4).parameters == (11 + 20) * DIM + DEPTH * block + 2 * DIM + CLASSES * DIM + CLASSES


@pytest.mark.parametrize(
    ("name", "causal"), [(name, causal) for name in mechanisms.NAMES for causal in mechanisms.directions(name)]
)
def test_every_mechanism_is_accounted_for(name, causal):
    """Its operations are seen, and its state is what it says, also in layers that know a second stream."""

    def mixer(_: int) -> Mixer:
        return mechanisms.build(name, causal=causal, dtype=torch.float32)

    built = SequenceClassifier(Encoder(vocab_size=11, dim=mechanisms.DIM, depth=DEPTH, mixer=mixer, causal=causal),
                               num_classes=CLASSES)  # fmt: skip
    costs, one = account(built, 40), mixer(0)
    others = DEPTH * 2 * (2 * mechanisms.DIM * 4 * mechanisms.DIM) + 2 * mechanisms.DIM * CLASSES / 40
    assert costs.state_bytes == DEPTH * one.state_bytes(40)
    assert costs.flops_per_token == pytest.approx(others) if name == "none" else costs.flops_per_token > others
    assert costs.parameters == sum(p.numel() for p in built.parameters())


def test_operations_of_luna():
    """Three projections of tokens, two of the slots, and two attentions by way of them."""
    length, slots = 100, 5
    built = model(lambda _: LunaAttention(DIM, heads=2, slots=slots))
    per_token = 3 * (2 * DIM * DIM) + 2 * (4 * slots * DIM)  # pk, q and out; a score and a sum for each slot, twice
    of_slots = 2 * slots * (2 * DIM * DIM) / length  # pq and k
    own = FEED_FORWARD + HEAD / length + DEPTH * (per_token + of_slots)
    assert account(built, length).flops_per_token == pytest.approx(own)


def test_frozen_parameters_do_not_count():
    built = model(lambda _: NoMixer(DIM))
    before = account(built, 4).parameters
    built.head.bias.requires_grad_(False)
    assert account(built, 4).parameters == before - CLASSES


def test_the_model_is_left_alone():
    built = model(split, dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    random = torch.get_rng_state()
    account(built, 30)
    assert built.training and built.head.weight.device.type == "cpu"
    assert all(torch.equal(before[name], tensor) for name, tensor in built.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_length_is_needed():
    with pytest.raises(ValueError, match=r"length \(0\) must be at least 1"):
        account(model(lambda _: NoMixer(DIM)), 0)
