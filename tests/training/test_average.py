"""The moving average of the weights: its formula, and where it is used instead of them."""

import pytest
import torch
import train_runs as runs
from torch import nn

from tsla.training.average import WeightAverage
from tsla.training.module import Learner


class Trainer:
    """As much of a trainer as the average looks at."""

    global_step = 0


def test_the_formula():
    model = nn.Linear(3, 2).double()
    average, trainer, module = WeightAverage(model, 0.9), Trainer(), nn.Module()
    module.device = torch.device("cpu")
    average.on_fit_start(trainer, module)
    expected = model.weight.detach().clone()
    for step in range(1, 200):
        trainer.global_step = step
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        for _ in range(2):  # the second is a batch within an accumulated step
            average.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        torch.testing.assert_close(average.average["weight"], expected)
    weights = model.weight.detach().clone()
    average.on_validation_start(trainer, module)
    torch.testing.assert_close(model.weight.detach(), expected)
    average.on_validation_end(trainer, module)
    assert torch.equal(model.weight, weights)


def test_no_decay_keeps_nothing():
    model = nn.Linear(3, 2)
    average, weights = WeightAverage(model, None), model.weight.detach().clone()
    module = nn.Module()
    module.device = torch.device("cpu")
    average.on_fit_start(Trainer(), module)
    average.on_train_batch_end(Trainer(), module, None, None, 0)
    average.swap()
    assert torch.equal(model.weight, weights) and average.state_dict()["average"] == {}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder, seen = tmp_path_factory.mktemp("average") / "run", []
    step = Learner.validation_step

    def validation_step(module: Learner, *arguments) -> None:
        seen.append({name: p.detach().clone() for name, p in module.model.named_parameters()})
        step(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "validation_step", validation_step)
        assert runs.train(*runs.DIGITS, *runs.HEADS, "trainer.max_steps=12", "trainer.validate_every=6",
                          "trainer.ema=0.8", "optim.lr=0.01", f"run_dir={folder}") == 0  # fmt: skip
    return folder, seen


def test_the_average_is_validated_saved_and_tested(run, capsys):
    folder, seen = run
    last = runs.checkpoint(folder)
    average = last["callbacks"]["WeightAverage"]["average"]
    trained = {name.removeprefix("model."): x for name, x in last["state_dict"].items() if name.startswith("model.")}
    assert not any(torch.equal(average[name], trained[name]) for name in average)
    assert runs.same_weights(runs.weights(folder), average) and runs.same_weights(seen[-1], average)
    from tsla import cli

    assert cli.main(["eval", str(folder)]) == 0
    assert f"accuracy {runs.result(folder)['metrics']['test/accuracy']:.4f}" in capsys.readouterr().out
