"""Scores of a model over a split, every row counted once: as a whole, by slices, and class against class."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tsla.tasks.loading import Batch, Loader
from tsla.training.objective import Answers, Objective, plain, row_means

CLASSES_SHOWN = 100  # a confusion matrix of more classes tells nobody anything
SLICES_SHOWN = 12  # values of a numeric slice; more are told as ranges


class Slice(NamedTuple):
    """Score of the items that share a value: `items` of them."""

    value: str
    items: int
    score: float


class Scores(NamedTuple):
    """What a split says of a model.

    metrics: loss and scores, as `Objective` lists them.
    slices: by name of the slice, the objective's `slice_score` at each of its values.
    confusion: rows of each true class (first axis) by predicted class; None where the target is not a class.
    """

    metrics: dict[str, float]
    slices: dict[str, list[Slice]]
    confusion: list[list[int]] | None


def answers_of(
    model: nn.Module, loader: Loader, objective: Objective, device: torch.device
) -> Iterator[tuple[Batch, Answers]]:
    """Each batch with what `model.run` makes of it, on the CPU.

    Raises:
        ValueError: if there are no rows.
    """
    run: Any = model.to(device).eval().run
    empty = True
    for batch in loader:
        empty = False
        with torch.inference_mode():
            answers = objective.ask(run, batch.to(device))
        outputs, targets, rows = (x.cpu() for x in answers[:3] if x is not None)
        yield batch, Answers(outputs, targets, rows, None)
    if empty:
        raise ValueError("there are no rows to evaluate")


def evaluate(model: nn.Module, loader: Loader, objective: Objective, device: torch.device) -> Scores:
    """Scores of `model` over the rows of `loader`.

    Raises:
        ValueError: if there are no rows.
    """
    metrics = objective.scores(alone=True)
    loss = items = 0.0
    right: list[Tensor] = []
    index: list[Tensor] = []  # of the row of each item
    classes: list[Tensor] = []
    for batch, answers in answers_of(model, loader, objective, device):
        objective.update(metrics, answers)
        loss += float(objective.loss(answers)) * len(answers.targets)
        items += len(answers.targets)
        right.append(objective.item_scores(answers.outputs, answers.targets))
        index.append(batch.rows[answers.rows])
        if objective.spec.target == "class":
            classes.append(torch.stack([objective.predicted(answers.outputs), answers.targets]))
    scores = {name: plain(value) for name, value in metrics.compute().items()}
    order = torch.cat(index).argsort(stable=True)
    rows = loader.rows
    slices = rows.slices | _by_length(rows.lengths.tolist(), objective)
    count = objective.spec.outputs
    confusion = None
    if classes and count <= CLASSES_SHOWN:
        predicted, true = torch.cat(classes, dim=1)
        confusion = multiclass_confusion_matrix(predicted, true, num_classes=count).tolist()
    return Scores(
        metrics={**scores, "loss": loss / max(items, 1)},
        slices={
            name: _sliced(values, torch.cat(right)[order], torch.cat(index)[order]) for name, values in slices.items()
        },
        confusion=confusion,
    )


def _by_length(lengths: list[int], objective: Objective) -> dict[str, list[Any]]:
    """Rows by length, where they differ in it; tokens are told apart by the task itself."""
    return {} if objective.spec.target == "tokens" or len(set(lengths)) < 2 else {"length": lengths}


def _sliced(values: Sequence[Any], right: Tensor, rows: Tensor) -> list[Slice]:
    """Mean over rows at each value; `values` are those of the items, or of the rows, in order."""
    if len(values) != len(right):
        values = [values[row] for row in rows.tolist()]
    names, order = _names(values)
    places: dict[str, list[int]] = {name: [] for name in order}
    for place, name in enumerate(names):
        places[name].append(place)
    return [
        Slice(name, len(chosen), plain(row_means(right[chosen], rows[chosen]).mean()))
        for name, chosen in places.items()
    ]


def _names(values: Sequence[Any]) -> tuple[list[str], list[str]]:
    """A name for each value, and the names in order; many different numbers go into ranges of doubling width."""
    if all(isinstance(value, int) for value in values) and len(set(values)) > SLICES_SHOWN and min(values) >= 0:
        floors = [1 << (value.bit_length() - 1) if value else 0 for value in values]
        return [_range(floor) for floor in floors], [_range(floor) for floor in sorted(set(floors))]
    return [str(value) for value in values], [str(value) for value in sorted(set(values), key=_by_kind)]


def _range(floor: int) -> str:
    return str(floor) if floor < 2 else f"{floor}-{2 * floor - 1}"


def _by_kind(value: Any) -> tuple[bool, Any]:
    """Numbers before texts: they cannot be compared."""
    return (False, value) if isinstance(value, int | float) else (True, str(value))
