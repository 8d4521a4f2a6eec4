"""The three scores of attention maps, against loops written from their formulas."""

import math

import pytest
import torch

from tsla.evaluation.attention import AttentionMeter, divergence, entropy, measure_attention, monotonicity, ranks
from tsla.mixers import HedgehogAttention, LightningAttention, SoftmaxAttention
from tsla.models import Encoder, SequenceClassifier
from tsla.models.transfer import adopt, visible_keys
from tsla.tasks.loading import Batch

MASK = torch.arange(8) < torch.tensor([[8], [5], [2]])


def cases(causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, their softmax, other maps with ties, and the visible keys, of 3 rows of 8 tokens and 2 heads."""
    scores = torch.randn(3, 2, 8, 8)
    visible = visible_keys(torch.zeros(3, 8, 1), MASK, causal=causal)
    teacher = torch.nan_to_num(scores.masked_fill(~visible, -torch.inf).softmax(-1))
    other = torch.randint(1, 4, scores.shape) * visible
    return scores, teacher, other / other.sum(-1, keepdim=True).clamp_min(1), visible


def rank(values: list[float]) -> list[float]:
    return [sum(y < x for y in values) + (sum(y == x for y in values) + 1) / 2 for x in values]


def spearman(x: list[float], y: list[float]) -> float:
    x, y = rank(x), rank(y)
    mean = sum(x) / len(x)
    cov = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    spread = math.sqrt(sum((a - mean) ** 2 for a in x) * sum((b - mean) ** 2 for b in y))
    return cov / spread if spread else 0.0


def loops(scores, teacher, maps, visible):
    """Mean over rows of each score, value by value."""
    found = ([], [], [])
    for b, h, i in ((b, h, i) for b in range(3) for h in range(2) for i in range(8)):
        seen = [j for j in range(8) if visible[b, 0, i, j]]
        a, t, s = ([float(m[b, h, i, j]) for j in seen] for m in (maps, teacher, scores))
        if len(seen) >= 2:
            found[0].append(-sum(x * math.log(x) for x in a if x) / math.log(len(seen)))
        if len(seen) >= 3:
            found[1].append(spearman(s, a))
        if seen:
            found[2].append(sum(x * math.log(x / y) for x, y in zip(t, a, strict=True) if x))
    return [sum(values) / len(values) for values in found]


@pytest.mark.parametrize("causal", [False, True])
def test_against_loops(causal):
    scores, teacher, other, visible = cases(causal)
    for maps in (teacher, other):
        meter = AttentionMeter()
        for at in range(3):  # batch by batch is all at once
            meter.update(*(x[at : at + 1] for x in (maps, scores, teacher, visible)))
        assert list(meter.compute()) == pytest.approx(loops(scores, teacher, maps, visible), abs=1e-5)


def test_softmax_itself():
    scores, teacher, _, visible = cases(False)
    meter = AttentionMeter()
    meter.update(teacher, scores, teacher, visible)
    found = meter.compute()
    assert found.monotonicity == pytest.approx(1, abs=1e-6) and found.kl == pytest.approx(0, abs=1e-6)
    assert 0 < found.entropy < 1


def test_the_ends_of_the_scales():
    visible = torch.ones(1, 4, dtype=torch.bool)
    scores, even, one = torch.arange(4.0)[None], torch.full((1, 4), 0.25), torch.tensor([[0.0, 0, 0, 1]])
    assert float(entropy(even, visible)) == pytest.approx(1) and float(entropy(one, visible)) == 0
    assert float(monotonicity(scores, scores**3, visible)) == pytest.approx(1)
    assert float(monotonicity(scores, -scores, visible)) == pytest.approx(-1)
    assert float(monotonicity(scores, even, visible)) == 0  # no order at all
    assert float(divergence(one, even, visible)) == pytest.approx(math.log(4))
    assert math.isfinite(float(divergence(even, one, visible)))
    assert math.isnan(AttentionMeter().compute().kl)


def test_ranks_share_the_mean_of_ties():
    values = torch.tensor([[3.0, 1, 3, -5, 100]])
    visible = torch.tensor([[True, True, True, True, False]])
    assert ranks(values, visible).tolist() == [[3.5, 2, 3.5, 1, 0]]


def test_monotonicity_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    x, y = torch.randn(20, 11), torch.randint(4, (20, 11)).float()
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    got = monotonicity(x, y, torch.ones(20, 11, dtype=torch.bool))
    assert got.tolist() == pytest.approx(expected, abs=1e-6)


def test_measuring_models():
    """Of the teacher itself, of a student that is less sharp, and of one without maps; no weight is touched."""

    def model(mixer):
        made = Encoder(vocab_size=7, dim=16, depth=2, mixer=lambda layer: mixer(16, heads=4, kv_heads=2))
        return SequenceClassifier(made, num_classes=3)

    teacher, student, bare = model(SoftmaxAttention), model(HedgehogAttention), model(LightningAttention)
    adopt(student, teacher)
    before = {name: x.clone() for name, x in student.state_dict().items()}
    batch = Batch(torch.randint(7, (3, 8)), MASK, torch.zeros(3, dtype=torch.long), torch.arange(3))
    own, other, none = (measure_attention(teacher, m, [batch], torch.device("cpu")) for m in (teacher, student, bare))
    assert own.monotonicity == pytest.approx(1, abs=1e-3) and abs(own.kl) < 1e-6
    assert other.entropy > own.entropy and other.monotonicity < 1 and other.kl > 0 and none is None
    assert all(torch.equal(x, before[name]) for name, x in student.state_dict().items())
