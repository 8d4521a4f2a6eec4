"""What a task's target asks of a model: its loss, its scores, and which of them decides."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, l1_loss, mse_loss
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanAbsoluteError, R2Score

from tsla.tasks.base import TaskSpec
from tsla.tasks.loading import Batch


class Answers(NamedTuple):
    """What a model gave to the scored items of a batch, and what was right.

    An item is a row, or a token that has a target. outputs ``(items, outputs)`` fp32;  targets ``(items,)``, or
    ``(items, outputs)`` for labels and numbers;  rows ``(items,)``, the row of the batch each item stands in;
    aux: the loss that mixers add, or None.
    """

    outputs: Tensor
    targets: Tensor
    rows: Tensor
    aux: Tensor | None


class Objective:
    """The loss and the scores of a task, by the target of its spec.

    ========  ==========================  =======================================  ========
    target    loss, a mean over items     scores                                   monitor
    ========  ==========================  =======================================  ========
    class     cross-entropy               accuracy, f1 (macro)                     accuracy
    labels    binary cross-entropy        accuracy of single labels, f1 (macro)    f1
    numbers   squared error, target       r2, mae (in the unit of the target)      r2
              standardised
    tokens    cross-entropy               accuracy: mean over rows of the share    accuracy
                                          of their tokens that are right, or of
                                          their last one's if that is the answer
    values    absolute error, values      r2, mae (in the unit of the values)      r2
              standardised
    ========  ==========================  =======================================  ========

    All monitored scores grow as a model gets better.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.monitor = {"labels": "f1", "numbers": "r2", "values": "r2"}.get(spec.target, "accuracy")
        self._stds: dict[torch.device, Tensor] = {}

    def ask(self, run: Callable[..., Any], batch: Batch) -> Answers:
        """Run a model, `run(inputs, mask) -> (logits, aux)`, and keep what is scored.

        A model of tokens is told which ones, `run(inputs, mask, batch.scored)`, and gives logits of those alone. Of
        packed rows, which have no padding, it is told the bounds instead: `run(inputs, None, ..., cu_seqlens=...)`.
        """
        bounds = batch.cu_seqlens
        packed = {} if bounds is None else {"cu_seqlens": bounds}
        mask = batch.mask if bounds is None else None
        if batch.scored is None:
            logits, aux = run(batch.inputs, mask, **packed)
            rows = torch.arange(len(logits), device=logits.device)
            return Answers(logits.float(), batch.targets, rows, aux)
        logits, aux = run(batch.inputs, mask, batch.scored, **packed)
        if bounds is None:
            rows = batch.scored // batch.targets.shape[1]
        else:
            rows = torch.searchsorted(bounds, batch.scored, right=True) - 1
        return Answers(logits.float(), batch.targets.flatten(0, 1).index_select(0, batch.scored), rows, aux)

    def loss(self, answers: Answers) -> Tensor:
        """Mean over the items: nats, or standard deviations of the target, squared but for values."""
        match self.spec.target:
            case "labels":
                return binary_cross_entropy_with_logits(answers.outputs, answers.targets)
            case "numbers":
                return mse_loss(answers.outputs, answers.targets)
            case _:  # the mean of nothing is NaN, and a batch may have no scored token
                values = self.spec.target == "values"
                total = (l1_loss if values else cross_entropy)(answers.outputs, answers.targets, reduction="sum")
                return total / max(answers.targets.numel(), 1)

    def scores(self, *, training: bool = False, alone: bool = False) -> MetricCollection:
        """Fresh metrics.

        training: only those that make sense of a few rows.  alone: counted by this process for itself, though others
        may train with it.
        """
        count = self.spec.outputs
        shared: dict[str, Any] = {"sync_on_compute": not alone}
        unchecked = shared | {"validate_args": False}  # a look at their values would wait for the device in every batch
        found: dict[str, Metric | MetricCollection]
        match self.spec.target:
            case "class":
                found = {"accuracy": MulticlassAccuracy(count, average="micro", **unchecked),
                         "f1": MulticlassF1Score(count, average="macro", **unchecked)}  # fmt: skip
            case "labels":
                found = {"accuracy": MultilabelAccuracy(count, average="micro", **unchecked),
                         "f1": MultilabelF1Score(count, average="macro", **unchecked)}  # fmt: skip
            case "numbers" | "values":
                found = {"mae": MeanAbsoluteError(**shared), "r2": R2Score(**shared)}
            case _:
                found = {"accuracy": WeightedMean(**shared)}
        kept = list(found)[:1] if training else list(found)
        return MetricCollection({name: found[name] for name in kept}, compute_groups=False)

    def update(self, metrics: MetricCollection, answers: Answers) -> None:
        """Count a batch."""
        outputs, targets = answers.outputs.detach(), answers.targets
        match self.spec.target:
            case "class":
                metrics.update(outputs, targets)
            case "labels":
                metrics.update(self.predicted(outputs), targets.long())  # of probabilities it would look at the range
            case "numbers" | "values":  # r2 is the same in any unit, and sums of squares are exact only about 0
                for name, metric in metrics.items():
                    scale = self._std(outputs) if name == "mae" else 1.0
                    metric.update((outputs * scale).float(), (targets * scale).float())
            case _:
                weights = _last if self.spec.final else _shares
                metrics.update((outputs.argmax(-1) == targets).float(), weights(answers.rows))

    def predicted(self, outputs: Tensor) -> Tensor:
        """What outputs say: a class ``(items,)``, labels 0/1 or numbers in their unit ``(items, outputs)``."""
        match self.spec.target:
            case "labels":
                return (outputs > 0).long()
            case "numbers":
                return self.in_units(outputs)
            case _:
                return outputs.argmax(-1)

    def item_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What slices are told by, for each item: right or not, the share of right labels, or the absolute error."""
        match self.spec.target:
            case "labels":
                return ((outputs > 0) == targets.bool()).float().mean(1)
            case "numbers":
                return ((outputs - targets) * self._std(outputs)).abs().mean(1)
            case _:
                return (outputs.argmax(-1) == targets).float()

    @property
    def slice_score(self) -> str:
        """What the mean of `item_scores` is called."""
        return {"labels": "label accuracy", "numbers": "mean absolute error"}.get(self.spec.target, "accuracy")

    def in_units(self, standardised: Tensor) -> Tensor:
        """Numbers in the unit of the target, in float64: a mean far from 0 would leave float32 no digits."""
        mean = torch.tensor(self.spec.target_mean, dtype=torch.float64, device=standardised.device)
        return standardised.double() * self._std(standardised) + mean

    def _std(self, like: Tensor) -> Tensor:
        """Of the targets, float64; on each device once, since a copy to it waits."""
        if like.device not in self._stds:
            self._stds[like.device] = torch.tensor(self.spec.target_std, dtype=torch.float64, device=like.device)
        return self._stds[like.device]


class WeightedMean(Metric):
    """Mean of numbers by their weights, NaN if one is: torchmetrics' own drops them, or with them all weights."""

    total: Tensor
    weight: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor | int) -> None:
        """Count `value` as `weight` numbers; or several values, each by its weight."""
        self.total = self.total + (value * weight).sum()
        self.weight = self.weight + (weight.sum() if isinstance(weight, Tensor) else weight)

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.weight


def plain(value: Tensor) -> float:
    """The shortest decimal number that is this fp32 score: 0.1, not 0.10000000149."""
    return float(str(value.to("cpu", torch.float32).numpy()))


def _shares(rows: Tensor) -> Tensor:
    """What each item counts for if all rows count alike, ``(items,)``: one over the items of its row; `rows` rise."""
    return 1 / (torch.searchsorted(rows, rows, right=True) - torch.searchsorted(rows, rows))


def _last(rows: Tensor) -> Tensor:
    """1 for the last item of each row, 0 for the others, ``(items,)``; `rows` rise."""
    return (rows != torch.cat([rows[1:], rows.new_full((1,), -1)])).float()


def row_means(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of the items of each row that has any, ``(rows,)``."""
    _, place, counts = rows.unique(return_inverse=True, return_counts=True)
    return values.new_zeros(len(counts)).index_add_(0, place, values) / counts
