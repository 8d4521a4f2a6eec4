"""Losses and scores by hand: classes, labels, numbers and tokens."""

import pytest
import torch
import train_runs as runs
from sklearn.metrics import f1_score, r2_score

from tsla.tasks.base import IGNORE
from tsla.tasks.loading import Batch
from tsla.training.objective import Answers, Objective, WeightedMean, plain, row_means


def answers(outputs: torch.Tensor, targets: torch.Tensor, rows: torch.Tensor | None = None) -> Answers:
    return Answers(outputs, targets, torch.arange(len(outputs)) if rows is None else rows, None)


def scores(objective: Objective, *batches: Answers) -> dict[str, float]:
    metrics = objective.scores()
    for batch in batches:
        objective.update(metrics, batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_classes():
    objective = Objective(runs.spec(outputs=3))
    outputs, targets = torch.randn(20, 3), torch.randint(3, (20,))
    found = answers(outputs, targets)
    assert objective.monitor == "accuracy"
    expected = -outputs.log_softmax(-1)[torch.arange(20), targets].mean()
    torch.testing.assert_close(objective.loss(found), expected)
    predicted = outputs.argmax(-1)
    got = scores(objective, answers(outputs[:7], targets[:7]), answers(outputs[7:], targets[7:]))
    assert got["accuracy"] == pytest.approx(float((predicted == targets).float().mean()))
    assert got["f1"] == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-6)
    assert torch.equal(objective.predicted(outputs), predicted)


def test_labels():
    objective = Objective(runs.spec(outputs=4, target="labels"))
    outputs, targets = torch.randn(20, 4), torch.randint(2, (20, 4)).float()
    p = outputs.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(objective.loss(answers(outputs, targets)), expected)
    assert objective.monitor == "f1" and torch.equal(objective.predicted(outputs), (outputs > 0).long())
    got = scores(objective, answers(outputs, targets))
    assert got["accuracy"] == pytest.approx(float(((outputs > 0) == targets.bool()).float().mean()))
    assert got["f1"] == pytest.approx(f1_score(targets, outputs > 0, average="macro"), abs=1e-6)


def test_values_of_steps_are_standardised_in_the_loss_and_told_in_their_unit():
    objective = Objective(runs.spec(outputs=2, target="values", target_mean=(10.0, -1.0), target_std=(4.0, 0.5)))
    inputs, scored = torch.randn(3, 5, 2), torch.tensor([0, 4, 7])
    batch = Batch(inputs, torch.ones(3, 5, dtype=torch.bool), inputs, torch.arange(3), scored=scored)
    outputs = torch.randn(3, 2)
    found = objective.ask(lambda x, mask, wanted: (outputs, None), batch)
    assert torch.equal(found.targets, inputs.reshape(15, 2)[[0, 4, 7]]) and found.rows.tolist() == [0, 0, 1]
    error = (outputs - found.targets).abs()
    torch.testing.assert_close(objective.loss(found), error.mean())
    assert objective.monitor == "r2"
    assert scores(objective, found)["mae"] == pytest.approx(float((error * torch.tensor([4.0, 0.5])).mean()), rel=1e-5)
    none = found._replace(outputs=outputs[:0], targets=outputs[:0])
    assert float(objective.loss(none)) == 0


def test_numbers_are_standardised_in_the_loss_and_told_in_their_unit():
    objective = Objective(runs.spec(outputs=2, target="numbers", target_mean=(10.0, -1.0), target_std=(4.0, 0.5)))
    outputs, targets = torch.randn(20, 2), torch.randn(20, 2)
    torch.testing.assert_close(objective.loss(answers(outputs, targets)), (outputs - targets).square().mean())
    scale, shift = torch.tensor([4.0, 0.5]), torch.tensor([10.0, -1.0])
    told, true = outputs.double() * scale + shift, targets.double() * scale + shift
    torch.testing.assert_close(objective.predicted(outputs), told)
    got = scores(objective, answers(outputs, targets))
    assert objective.monitor == "r2"
    assert got["mae"] == pytest.approx(float((told - true).abs().mean()), rel=1e-5)
    assert got["r2"] == pytest.approx(r2_score(true, told), rel=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(1e4, 1.0), (1e6, 10.0), (2000.0, 5.0)])
def test_r2_holds_where_the_mean_is_large_beside_the_spread(mean, std):
    objective = Objective(runs.spec(outputs=1, target="numbers", target_mean=(mean,), target_std=(std,)))
    targets = torch.randn(200, 1)
    outputs = targets + 0.3 * torch.randn(200, 1)
    got = scores(objective, answers(outputs, targets))
    assert got["r2"] == pytest.approx(r2_score(targets, outputs), abs=1e-5)
    assert got["mae"] == pytest.approx(float((outputs - targets).abs().mean()) * std, rel=1e-5)
    assert torch.allclose(objective.predicted(outputs), outputs.double() * std + mean, rtol=1e-12)


@pytest.mark.parametrize("target", ["class", "labels", "numbers", "tokens"])
def test_slices_are_told_by_a_score_of_each_item(target):
    objective = Objective(runs.spec(outputs=3, target=target, target_mean=(5.0,) * 3, target_std=(2.0,) * 3))
    outputs = torch.tensor([[3.0, -1.0, -1.0], [-1.0, -1.0, 3.0]])
    targets = {
        "labels": torch.tensor([[1.0, 0, 0], [1, 1, 0]]),
        "numbers": torch.tensor([[3.0, -1, -1], [0, 0, 3]]),
    }.get(target, torch.tensor([0, 1]))
    expected = {"labels": [1.0, 0.0], "numbers": [0.0, 4 / 3]}.get(target, [1.0, 0.0])
    assert objective.item_scores(outputs, targets).tolist() == pytest.approx(expected)
    names = {"labels": "label accuracy", "numbers": "mean absolute error"}
    assert objective.slice_score == names.get(target, "accuracy")


def test_means_have_weights_and_show_what_is_no_number():
    mean = WeightedMean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert float(mean.compute()) == 2.0
    mean.update(torch.tensor(float("nan")), 1)
    assert mean.compute().isnan()


def test_tokens_are_scored_where_there_is_a_target_and_rows_count_alike():
    objective = Objective(runs.spec(outputs=5, target="tokens"))
    logits = torch.randn(2, 4, 5)
    targets = torch.tensor([[IGNORE, 1, 2, 3], [0, IGNORE, IGNORE, IGNORE]])
    batch = Batch(
        torch.ones(2, 4).long(), torch.ones(2, 4).bool(), targets, torch.arange(2), scored=torch.tensor([1, 2, 3, 4])
    )
    asked = []

    def run(inputs, mask, wanted):
        asked.append(wanted)
        return logits.flatten(0, 1)[wanted], torch.tensor(3.0)

    found = objective.ask(run, batch)
    assert asked == [batch.scored] and float(found.aux) == 3.0
    assert found.targets.tolist() == [1, 2, 3, 0] and found.rows.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(
        objective.loss(found), torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    )
    right = (logits.argmax(-1) == targets).float()
    assert scores(objective, found)["accuracy"] == pytest.approx(float(right[0].sum() / 3 + right[1, 0]) / 2)


def test_of_final_tokens_the_last_of_each_row_is_its_answer():
    """The loss is that of all of them."""
    spec = runs.spec(outputs=5, target="tokens")
    every, last = Objective(spec), Objective(spec._replace(final=True))
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    outputs = 9 * torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 0, 4, 0]), 5).float()  # wrong at places 2 and 3
    found = answers(outputs, targets, torch.tensor([0, 0, 0, 2, 2, 5]))
    assert scores(last, found)["accuracy"] == pytest.approx(2 / 3)
    assert scores(every, found)["accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    torch.testing.assert_close(last.loss(found), every.loss(found))


def test_packed_tokens_belong_to_their_rows():
    objective = Objective(runs.spec(outputs=5, target="tokens"))
    targets = torch.tensor([[IGNORE, 1, 2, IGNORE, 0, 4]])
    bounds, everything = torch.tensor([0, 3, 4, 6]), torch.ones(1, 6).bool()
    batch = Batch(torch.ones(1, 6).long(), everything, targets, torch.arange(3), bounds, torch.tensor([1, 2, 4, 5]))

    def run(inputs, mask, wanted, cu_seqlens):
        assert mask is None and cu_seqlens is bounds
        return torch.randn(len(wanted), 5), None

    found = objective.ask(run, batch)
    assert found.targets.tolist() == [1, 2, 0, 4] and found.rows.tolist() == [0, 0, 2, 2]


def test_a_batch_without_any_target_has_no_loss():
    objective = Objective(runs.spec(outputs=5, target="tokens"))
    nothing = answers(torch.zeros(0, 5, requires_grad=True), torch.zeros(0).long())
    loss = objective.loss(nothing)
    loss.backward()
    assert float(loss.detach()) == 0.0


@pytest.mark.parametrize("target", ["class", "labels", "numbers", "tokens"])
def test_what_is_shown_while_training_needs_one_row(target):
    spec = runs.spec(outputs=3, target=target, target_mean=(0.0,) * 3, target_std=(1.0,) * 3)
    objective = Objective(spec)
    one = torch.randn(1, 3) if target in ("labels", "numbers") else torch.ones(1).long()
    metrics = objective.scores(training=True)
    objective.update(metrics, answers(torch.randn(1, 3), one if target != "labels" else (one > 0).float()))
    assert all(torch.isfinite(value) for value in metrics.compute().values())
    assert set(metrics) < set(objective.scores()) or target == "tokens"


def test_row_means():
    values, rows = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([5, 2, 5, 5])
    assert row_means(values, rows).tolist() == [2.0, pytest.approx(13 / 3)]


def test_plain_numbers():
    assert plain(torch.tensor(0.1)) == 0.1 and plain(torch.tensor(1.0)) == 1.0
    assert plain(torch.tensor(0.1, dtype=torch.float64)) == 0.1
