"""Accuracy and loss over a split: every row once, padding or not, and the model put into its evaluation mode."""

import pytest
import torch
import train_runs as runs
from datasets import Dataset, Features, List, Value
from torch.nn.functional import cross_entropy

from tsla.evaluation.evaluate import evaluate
from tsla.models import Encoder, SequenceClassifier
from tsla.tasks.loading import LengthBatches, Loader, Rows
from tsla.training.objective import Objective

SPEC = runs.spec(11, 3, 9)
CPU = torch.device("cpu")
OBJECTIVE = Objective(SPEC)
LENGTHS = [3, 9, 1, 7, 7, 2, 9, 4, 5, 6, 8]


def rows() -> Rows:
    features = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
    ids = [[(row + at) % 10 + 1 for at in range(n)] for row, n in enumerate(LENGTHS)]
    columns = {"input_ids": ids, "label": [row % 3 for row in range(11)]}
    return Rows(Dataset.from_dict(columns, features=features), SPEC)


def model() -> SequenceClassifier:
    return SequenceClassifier(Encoder(vocab_size=11, dim=8, depth=1, heads=2, dropout=0.5), num_classes=3)


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_every_row_counts_once(budget):
    data, made = rows(), model()
    scores = evaluate(made, Loader(data, LengthBatches(data.lengths, budget, seed=None)), OBJECTIVE, CPU)
    right, loss = 0, 0.0
    for row in range(11):
        tokens, mask, label, *_ = data[row]
        logits = made.eval()(tokens, mask)
        right += int(logits.argmax() == label)
        loss += cross_entropy(logits, label).item()
    assert scores.metrics["accuracy"] == pytest.approx(right / 11)
    assert scores.metrics["loss"] == pytest.approx(loss / 11, rel=1e-5)


def test_the_model_is_evaluated_without_dropout_and_without_gradients():
    data, made = rows(), model().train()
    loader = Loader(data, LengthBatches(data.lengths, 20, seed=None))
    assert evaluate(made, loader, OBJECTIVE, CPU) == evaluate(made, loader, OBJECTIVE, CPU)
    assert not made.training and all(p.grad is None for p in made.parameters())


def test_half_precision_logits_are_summed_in_full():
    data, made = rows(), model()
    loader = Loader(data, LengthBatches(data.lengths, 20, seed=None))
    half = evaluate(made.bfloat16(), loader, OBJECTIVE, CPU)
    assert half.metrics["loss"] == pytest.approx(
        evaluate(made.float(), loader, OBJECTIVE, CPU).metrics["loss"], rel=0.05
    )


def test_no_rows():
    data = rows()
    empty = Loader(data, LengthBatches(data.lengths[:0], 20, seed=None))
    with pytest.raises(ValueError, match="there are no rows to evaluate"):
        evaluate(model(), empty, OBJECTIVE, CPU)
