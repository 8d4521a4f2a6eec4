"""How like softmax an attention is: sharpness, order and distance of its maps (arXiv 2402.04347)."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tsla.models.transfer import attention_maps, head_mixers, paired, pairs_of, visible_keys, why_no_maps
from tsla.tasks.loading import Batch

SMALLEST = 1e-12  # a weight below it counts as this much in a logarithm


class AttentionScores(NamedTuple):
    """Means over rows of attention maps, which are the queries of all heads and layers.

    entropy: - sum_j a_j log a_j / log(visible keys), 0 (one key has it all) to 1 (all have the same).
    monotonicity: Spearman's rank correlation of q.k and a over the visible keys, -1 to 1; softmax has 1.
    kl: sum_j t_j log(t_j / a_j) in nats, of the teacher's map t.
    """

    entropy: float
    monotonicity: float
    kl: float


class AttentionMeter:
    """Collects `AttentionScores` of any number of maps, each row with what it is defined for.

    Entropy needs 2 visible keys, monotonicity 3, and divergence 1.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)
        self.counts = torch.zeros(3, dtype=torch.float64)

    def update(self, maps: Tensor, scores: Tensor, target: Tensor, visible: Tensor) -> None:
        """Count maps, the scores q.k they come from, and the teacher's maps, all ``(b, h, n, m)``.

        visible: which keys a query sees, bool, of a shape that broadcasts to that; an empty row does not count.
        """
        visible = visible.expand(maps.shape)
        keys = visible.sum(-1)
        found = (entropy(maps, visible), monotonicity(scores, maps, visible), divergence(target, maps, visible))
        for place, (values, least) in enumerate(zip(found, (2, 3, 1), strict=True)):
            kept = values[keys >= least]
            self.sums[place] += kept.double().sum().cpu()
            self.counts[place] += kept.numel()

    def compute(self) -> AttentionScores:
        """The means so far; NaN where no row counted."""
        return AttentionScores(*(self.sums / self.counts).tolist())


def entropy(maps: Tensor, visible: Tensor) -> Tensor:
    """Of each row ``(..., m)`` of maps, over the logarithm of the visible keys; meaningless with fewer than 2."""
    a = maps.masked_fill(~visible, 0.0)
    return -torch.xlogy(a, a.clamp_min(SMALLEST)).sum(-1) / visible.sum(-1).clamp_min(2).log()


def divergence(target: Tensor, maps: Tensor, visible: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(target || maps) of each row, nats."""
    t = target.masked_fill(~visible, 0.0)
    return (torch.xlogy(t, t.clamp_min(SMALLEST)) - t * maps.clamp_min(SMALLEST).log()).sum(-1)


def monotonicity(scores: Tensor, maps: Tensor, visible: Tensor) -> Tensor:
    """Spearman's rho of scores and maps over the visible keys of each row; 0 where one of them is constant.

    rho is Pearson's correlation of the ranks, ties having their mean rank.
    """
    keys = visible.sum(-1, keepdim=True).clamp_min(1)
    centred = []
    for values in (scores, maps):
        ranked = ranks(values, visible)
        centred.append((ranked - ranked.sum(-1, keepdim=True) / keys) * visible)
    x, y = centred
    spread = (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return torch.where(spread > 0, (x * y).sum(-1) / spread.clamp_min(SMALLEST), 0.0)


def ranks(values: Tensor, visible: Tensor) -> Tensor:
    """Rank from 1 of each visible value among those of its row, ties sharing the mean of theirs; 0 elsewhere."""
    kept = values.double().masked_fill(~visible, torch.inf)  # behind all others, so they change no rank
    ordered = kept.sort(-1).values
    below = torch.searchsorted(ordered, kept)
    upto = torch.searchsorted(ordered, kept, right=True)
    return ((below + upto + 1) / 2).double() * visible


@torch.no_grad()
def measure_attention(
    teacher: nn.Module, student: nn.Module, batches: Iterable[Batch], device: torch.device
) -> AttentionScores | None:
    """Scores of a student's attention in all layers, on the hidden states of its teacher, which may be the student.

    Args:
        teacher, student: models that differ in their mixers, which have queries and keys.
        batches: padded rows.
        device: to measure on; both models are there after it.

    Returns:
        None where a layer's weights are no attention map.
    """
    if any(why_no_maps(mixer) for mixer in head_mixers(student)):
        return None
    teacher, student = teacher.to(device), student.to(device)
    both, meter = paired(teacher, student).train(), AttentionMeter()
    run: Any = both.run
    for batch in batches:
        here = batch.to(device)
        run(here.inputs, here.mask)
        for pair in pairs_of(both):
            assert pair.heard is not None
            x, mask = pair.heard
            q, k, _ = pair.student.heads_of(x, mask)
            scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)
            visible = visible_keys(x, mask, causal=pair.causal)
            meter.update(attention_maps(pair.student, x, mask), scores, attention_maps(pair.teacher, x, mask), visible)
    student.eval()
    return meter.compute()
