"""What a student learns from: maps of any mixer, the two losses, and what is learnt and what is frozen."""

from functools import partial

import pytest
import torch
from torch import nn

from tsla.mixers import (
    HedgehogAttention,
    LightningAttention,
    LinearAttention,
    LinformerAttention,
    NoMixer,
    PerformerAttention,
    RFAAttention,
    ScatterbrainAttention,
    SoftmaxAttention,
    TaylorAttention,
    TaylorPolyAttention,
    TaylorShiftAttention,
    WindowAttention,
)
from tsla.mixers.base import HeadMixer
from tsla.models import Encoder, SequenceClassifier
from tsla.models.transfer import (
    Pair,
    adopt,
    attention_maps,
    head_mixers,
    learn_only,
    map_loss,
    output_loss,
    paired,
    pairs_of,
    visible_keys,
    why_no_maps,
)

DIM, HEADS, LENGTH = 16, 4, 9
KINDS = {
    "plain": {},
    "causal": {"causal": True},
    "grouped": {"kv_heads": 2},
    "rotary": {"rotary": True},
    "normed": {"qk_norm": True, "gate": True},
    "all": {"causal": True, "kv_heads": 1, "rotary": True, "qk_norm": True, "gate": True, "bias": True},
}
MASK = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4]])


def tokens() -> torch.Tensor:
    return torch.randn(2, LENGTH, DIM)


def model(mixer: type[HeadMixer], **options: object) -> SequenceClassifier:
    make = partial(mixer, DIM, heads=HEADS, head_dim=4, **options)
    encoder = Encoder(vocab_size=7, dim=DIM, depth=2, mixer=lambda layer: make(), causal=options.get("causal", False))
    return SequenceClassifier(encoder, num_classes=3)


def explicit(mixer: SoftmaxAttention, x: torch.Tensor, mask: torch.Tensor | None, *, causal: bool) -> torch.Tensor:
    """softmax_j(q_i.k_j / sqrt(d)) over the visible keys, pair by pair; other rows are zero."""
    q, k, _ = mixer.heads_of(x, mask)
    maps = torch.zeros(*q.shape[:3], k.shape[2])
    for b, h, i in ((b, h, i) for b in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])):
        seen = [j for j in range(k.shape[2]) if (mask is None or mask[b, j]) and (j <= i or not causal)]
        own = k[b, h * k.shape[1] // q.shape[1]]
        scores = torch.stack([q[b, h, i] @ own[j] for j in seen]) * q.shape[-1] ** -0.5
        maps[b, h, i, seen] = scores.exp() / scores.exp().sum()
    return maps


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_the_identity_for_values_gives_softmax(options, masked):
    mixer, x, mask = SoftmaxAttention(DIM, heads=HEADS, **options), tokens(), MASK if masked else None
    causal = options.get("causal", False)
    rows = visible_keys(x, mask, causal=causal).any(-1).expand(2, HEADS, LENGTH)
    got, expected = attention_maps(mixer, x, mask), explicit(mixer, x, mask, causal=causal)
    torch.testing.assert_close(got[rows], expected[rows], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "mixer",
    [
        HedgehogAttention, PerformerAttention, LinearAttention, TaylorAttention,
        partial(ScatterbrainAttention, window=2, map="hedgehog"),
    ],
)  # fmt: skip
def test_maps_are_what_a_mixer_averages_by(mixer, options):
    """maps @ v is what `attend` gives; each row is a distribution over its visible keys."""
    made, x = mixer(DIM, heads=HEADS, head_dim=4, **options), tokens()
    maps = attention_maps(made, x, MASK).detach()
    q, k, v = made.heads_of(x, MASK)
    rows = visible_keys(x, MASK, causal=made.causal)
    some = rows.any(-1).expand(2, HEADS, LENGTH)
    per_head = v.repeat_interleave(HEADS // v.shape[1], dim=1)
    torch.testing.assert_close((maps @ per_head)[some], made.attend(q, k, v, x, MASK)[some], atol=1e-5, rtol=1e-4)
    assert float(maps[some].min()) >= 0 and float(maps[some][~rows.expand(maps.shape)[some]].abs().max()) == 0
    torch.testing.assert_close(maps[some].sum(-1), torch.ones(int(some.sum())), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mixer", "options", "why"),
    [
        (LightningAttention, {}, "its output is no average: its weights are not divided by their sum"),
        (TaylorShiftAttention, {}, "its output is no average: mixer.scale_output multiplies it"),
        (TaylorShiftAttention, {"scale_output": False}, None),
        (TaylorPolyAttention, {}, "it weighs pairs of tokens"),
        (RFAAttention, {}, "its weights may be below 0"),
        (RFAAttention, {"kind": "arccos"}, None),
        (LinformerAttention, {"max_length": 9}, "its output is no average: it reads sums of values"),
        (WindowAttention, {"window": 3}, "its weights outside the window are 0"),
        (HedgehogAttention, {}, None),
        (ScatterbrainAttention, {"map": "hedgehog"}, None),
        (TaylorAttention, {}, None),
    ],
)
def test_which_mechanisms_have_maps(mixer, options, why):
    found = why_no_maps(mixer(DIM, heads=HEADS, **options))
    assert found is None if why is None else found is not None and found.startswith(why)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_cross_entropy_is_least_where_the_student_is_the_teacher(options):
    teacher, x = SoftmaxAttention(DIM, heads=HEADS, **options), 3 * tokens()
    maps = attention_maps(teacher, x, MASK)
    rows = visible_keys(x, MASK, causal=teacher.causal).any(-1).expand(2, HEADS, LENGTH)
    entropy = -torch.xlogy(maps, maps).sum(-1)[rows].mean()
    torch.testing.assert_close(map_loss(teacher, teacher, x, MASK), entropy)
    student = HedgehogAttention(DIM, heads=HEADS, **options)
    adopt(student, teacher)
    assert map_loss(teacher, student, x, MASK) > entropy + 1e-3
    assert output_loss(teacher, teacher, x, MASK) == 0 < output_loss(teacher, student, x, MASK)


@pytest.mark.parametrize("loss", [map_loss, output_loss])
def test_padding_changes_no_loss(loss):
    teacher, student = (kind(DIM, heads=HEADS) for kind in (SoftmaxAttention, HedgehogAttention))
    x, mask = tokens(), torch.arange(LENGTH) < 5
    alone = loss(teacher, student, x[:, :5], None)
    padded = loss(teacher, student, torch.where(mask[:, None], x, 100.0), mask.expand(2, -1))
    torch.testing.assert_close(padded, alone)


def test_output_loss_by_hand():
    teacher, student, x = SoftmaxAttention(DIM, heads=HEADS), TaylorAttention(DIM, heads=HEADS, head_dim=4), tokens()
    one, other = (mixer.attend(*mixer.heads_of(x), x, None) for mixer in (teacher, student))
    torch.testing.assert_close(output_loss(teacher, student, x, None), ((one - other) ** 2).mean())


@pytest.mark.parametrize("loss", [map_loss, output_loss])
def test_fifty_steps_lower_the_loss(loss):
    """Of feature maps alone, in all layers at once, towards a teacher sharper than they are at first."""
    teacher = model(SoftmaxAttention)
    with torch.no_grad():
        for mixer in head_mixers(teacher):
            mixer.to_q.weight *= 4
    student = model(HedgehogAttention)
    new = adopt(student, teacher)
    both = paired(teacher, student, loss)
    before = {name: x.clone() for name, x in both.state_dict().items()}
    assert learn_only(both, lambda name: name.startswith("feature_map.")) == 2 * (2 * HEADS * (16 + 4))
    optimizer = torch.optim.Adam([p for p in both.parameters() if p.requires_grad], lr=1e-2)
    losses, inputs = [], torch.randint(7, (8, 20))
    for _ in range(50):
        _, aux = both.run(inputs)
        optimizer.zero_grad()
        aux.backward()
        optimizer.step()
        losses.append(aux.item())
    assert losses[-1] < losses[0] - 0.1 * (1 if loss is map_loss else losses[0])
    changed = {name for name, x in both.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {name for name in before if ".student.feature_map." in name}
    assert {name.partition(".mixer.")[2] for name in new} == {name.partition(".student.")[2] for name in changed}


def test_a_pair_gives_the_teacher_in_training_and_the_student_in_evaluation():
    teacher, student = model(SoftmaxAttention), model(TaylorAttention)
    assert adopt(student, teacher) == frozenset()
    both, ids, mask = paired(teacher, student, map_loss), torch.randint(7, (2, LENGTH)), MASK
    logits, aux = both.train().run(ids, mask)
    torch.testing.assert_close(logits, teacher(ids, mask))
    layers = [map_loss(p.teacher, p.student, *p.heard) for p in pairs_of(both)]
    torch.testing.assert_close(aux, torch.stack(layers).mean())
    logits, aux = both.eval().run(ids, mask)
    assert aux is None
    torch.testing.assert_close(logits, student(ids, mask))
    assert not torch.allclose(logits, teacher(ids, mask), atol=1e-4)
    assert all(not isinstance(module, Pair) for module in teacher.modules())


def test_no_gradient_reaches_the_teacher():
    teacher, student = model(SoftmaxAttention), model(HedgehogAttention)
    both = paired(teacher, student, map_loss)
    learn_only(both, lambda name: True)
    both.run(torch.randint(7, (2, LENGTH))).aux.backward()
    assert [name for name, p in both.named_parameters() if p.grad is not None and ".student." not in name] == []
    assert all(p.student.to_q.weight.grad is not None for p in pairs_of(both))


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"no place for encoder.blocks.0.mixer.to_gate.weight, .* and 1 more"):
        adopt(model(HedgehogAttention), model(SoftmaxAttention, gate=True))
    encoder = Encoder(vocab_size=7, dim=DIM, depth=2, mixer=lambda layer: NoMixer(DIM))
    with pytest.raises(ValueError, match="the NoMixer of layer 0 has no queries and keys of its own"):
        head_mixers(encoder)


def test_weights_go_over_by_name():
    teacher, student = model(SoftmaxAttention, kv_heads=2, bias=True), model(PerformerAttention, kv_heads=2, bias=True)
    assert adopt(student, teacher) == frozenset()  # random features are no parameters
    own = student.state_dict()
    assert all(torch.equal(own[name], x) for name, x in teacher.state_dict().items())
    assert isinstance(student.encoder.blocks[0].mixer.to_q, nn.Linear)
