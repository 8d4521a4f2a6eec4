"""Optimiser groups and the learning-rate schedule."""

import math

import pytest
import torch
from torch import nn

from tsla.mixers import (
    HeadSplit,
    LinearAttention,
    RFAAttention,
    TaylorAttention,
    TransNormerAttention,
    WindowAttention,
)
from tsla.models import Encoder, SequenceClassifier
from tsla.training.optim import OptimSettings, make_optimizer, schedule

SETTINGS = OptimSettings(
    lr=0.5, final_lr=0.1, warmup_steps=4, weight_decay=0.3, beta1=0.8, beta2=0.9, clip_norm=1.0
)  # fmt: skip


def split(_: int) -> HeadSplit:
    part = {"heads": 1, "head_dim": 4, "value_dim": 4, "output_projection": False, "gate": True, "qk_norm": True}
    return HeadSplit(TaylorAttention(8, **part), WindowAttention(8, window=2, **part))


def model() -> SequenceClassifier:
    encoder = Encoder(
        vocab_size=11,
        dim=8,
        depth=2,
        mixer=split,
        positions="learned",
        max_length=20,
        short_conv=3,
        feed_forward="swiglu",
    )
    return SequenceClassifier(encoder, num_classes=3, pool="cls")


def groups(made: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters with and without weight decay."""
    names = {id(p): name for name, p in made.named_parameters()}
    decayed, kept = make_optimizer(made, SETTINGS).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    found = [[names[id(p)] for p in group["params"]] for group in (decayed, kept)]
    assert sorted(found[0] + found[1]) == sorted(name for name, p in made.named_parameters() if p.requires_grad)
    return set(found[0]), set(found[1])


def test_decay_is_for_matrices_and_kernels():
    made = model()
    decayed, kept = groups(made)
    parameters = dict(made.named_parameters())
    assert all(parameters[name].dim() >= 2 for name in decayed)
    assert {name for name in parameters if "embedding" in name or "table" in name} <= kept
    assert all("bias" in n or "norm" in n or "embedding" in n or "table" in n or n == "cls" for n in kept)
    for part in ("to_q.weight", "to_out.weight", "to_gate.weight", "conv.conv.weight", "into.weight", "head.weight"):
        assert any(name.endswith(part) for name in decayed), part


@pytest.mark.parametrize(
    ("mixer", "spared", "shrunk"),
    [
        (LinearAttention(16, heads=2, map="rebased"), {"feature_map.gamma", "feature_map.beta"}, set()),
        (LinearAttention(16, heads=2, map="t2r"), {"feature_map.query.bias", "feature_map.key.bias"},
         {"feature_map.query.weight", "feature_map.key.weight"}),
        (RFAAttention(16, heads=2), {"feature_map.sigma"}, set()),
        (TransNormerAttention(16, heads=2), {"feature_map.theta"}, {"to_u.weight"}),
        (TaylorAttention(16, heads=2, decay="selective"), {"decay.bias"}, {"decay.weight"}),
    ],
)  # fmt: skip
def test_vectors_of_each_head_are_no_matrix(mixer, spared, shrunk):
    """Zero is no place for scales, frequencies and biases, be there one for each head or one in all."""
    decayed, kept = groups(mixer)
    assert (kept, decayed - {f"to_{name}.weight" for name in ("q", "k", "v", "out")}) == (spared, shrunk)


def test_values_go_through_a_matrix_that_decays():
    decayed, _ = groups(SequenceClassifier(Encoder(input_dim=5, dim=8, depth=1, heads=2), num_classes=3))
    assert "encoder.embedding.weight" in decayed


def test_frozen_parameters_are_left_out():
    made = model()
    made.encoder.embedding.weight.requires_grad_(False)
    made.head.weight.requires_grad_(False)
    decayed, kept = groups(made)
    assert not {"head.weight", "encoder.embedding.weight"} & (decayed | kept)


def test_a_shared_parameter_is_in_one_group_once():
    made = SequenceClassifier(Encoder(vocab_size=8, dim=8, depth=1, heads=2), num_classes=8)
    made.head.weight = made.encoder.embedding.weight
    decayed, kept = groups(made)
    assert "encoder.embedding.weight" in kept and "head.weight" not in decayed


def test_the_root_of_the_steps_by_its_formula():
    """As published: a constant times min(1, t / w) / sqrt(max(t, w)), counting steps from 1 and warm-up to step w."""
    settings = SETTINGS._replace(decay="rsqrt", warmup_steps=7, final_lr=0.0)
    for step in range(100):
        factor = schedule(settings, lambda: 0.5)(step)
        t, w = step + 1, 8
        assert factor == pytest.approx(math.sqrt(w) * min(1, t / w) / math.sqrt(max(t, w)))


def test_the_optimiser_is_adamw_by_its_formula():
    p = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = nn.Module()
    module.register_parameter("p", p)
    optimizer = make_optimizer(module, SETTINGS)
    gradient, m, v, expected = torch.tensor([[0.3, 0.4]]), 0.0, 0.0, p.detach().clone()
    for step in (1, 2, 3):
        p.grad = gradient.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        update = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-8)
        expected = expected * (1 - 0.5 * 0.3) - 0.5 * update
        torch.testing.assert_close(p.detach(), expected)


def test_schedule_by_its_formula():
    total = 100
    for step in range(total + 20):
        factor = schedule(SETTINGS, lambda at=step: at / total)(step)
        warm = min(1, (step + 1) / 5)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, step / total)))
        assert factor == pytest.approx(warm * (0.1 + 0.9 * cosine))


@pytest.mark.parametrize(
    ("warmup", "final", "step", "done", "expected"),
    [
        (0, 0.0, 0, 0.0, 1.0),
        (4, 0.0, 0, 0.0, 0.2),
        (4, 0.0, 3, 0.0, 0.8),
        (4, 0.0, 4, 0.0, 1.0),
        (0, 0.0, 50, 0.5, 0.5),
        (0, 0.2, 50, 0.5, 0.6),
        (0, 0.0, 100, 1.0, 0.0),
        (0, 0.2, 100, 1.0, 0.2),
        (0, 0.2, 150, 1.5, 0.2),
    ],
)
def test_schedule_at_its_corners(warmup, final, step, done, expected):
    settings = SETTINGS._replace(warmup_steps=warmup, final_lr=final)
    assert schedule(settings, lambda: done)(step) == pytest.approx(expected)
