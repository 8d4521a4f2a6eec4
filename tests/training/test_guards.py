"""What ends a training that cannot go on: before the update, by name, and with nothing lost."""

import pytest
import torch
import train_runs as runs
from torch import Tensor

from tsla.training.guards import is_out_of_memory
from tsla.training.module import Learner

ARGUMENTS = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=9", "trainer.checkpoint_every=2")


def poison(monkeypatch: pytest.MonkeyPatch, batch: int, how: str) -> dict[str, Tensor]:
    """Spoil the loss of a batch, counted from 1; returns the weights as they were then."""
    step, seen, before = Learner.training_step, [], {}

    def training_step(module: Learner, *arguments) -> Tensor:
        loss = step(module, *arguments)
        seen.append(loss)
        if len(seen) != batch:
            return loss
        before.update({name: p.detach().clone() for name, p in module.model.named_parameters()})
        match how:
            case "nan":
                spoiled = loss * float("nan")
            case "inf":
                spoiled = loss + float("inf")
            case "gradient":  # the loss is finite, the gradient of the root of 0 is not
                spoiled = loss + module.model.head.bias.mul(0).sum().sqrt()
            case "overflow":  # every gradient is finite, their norm is not
                spoiled = loss + 1e30 * sum(p.sum() for p in module.model.parameters())
        module.loss_sum = spoiled.detach()
        return spoiled

    monkeypatch.setattr(Learner, "training_step", training_step)
    return before


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("nan", "step 5: the loss is nan, the gradient of encoder"),
        ("inf", "step 5: the loss is inf; stopped"),
        ("gradient", "the gradient of head.bias is not finite"),
        ("overflow", "step 5: the norm of the gradient overflows"),
    ],
)
@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_what_is_not_finite_stops_before_the_update(tmp_path, monkeypatch, capsys, how, told, clip):
    run, kept = tmp_path / "run", []
    before = poison(monkeypatch, 5, how)
    init = Learner.__init__
    monkeypatch.setattr(Learner, "__init__", lambda module, *a, **o: (kept.append(module), init(module, *a, **o))[1])
    assert runs.train(*ARGUMENTS, f"optim.clip_norm={clip}", f"run_dir={run}") == 1
    out = " ".join(capsys.readouterr().out.split())
    assert told in out and "stopped before the update" in out and "Try a smaller optim.lr" in out
    after = dict(kept[-1].model.named_parameters())
    assert before and runs.same_weights(before, {name: p.detach() for name, p in after.items()})
    assert runs.checkpoint(run)["global_step"] == 4 and not (run / "result.json").exists()


def test_the_run_goes_on_once_the_cause_is_gone(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        poison(patch, 5, "nan")
        assert runs.train(*ARGUMENTS, f"run_dir={tmp_path / 'a'}") == 1
    assert runs.train(f"resume={tmp_path / 'a'}") == 0
    assert runs.train(*ARGUMENTS, f"run_dir={tmp_path / 'b'}") == 0
    assert runs.same_weights(runs.weights(tmp_path / "a"), runs.weights(tmp_path / "b"))


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_bad_loss_anywhere_in_an_accumulated_step_is_seen(tmp_path, monkeypatch, accumulate, capsys):
    step, seen = Learner.training_step, []

    def training_step(module: Learner, *arguments) -> Tensor:
        loss = step(module, *arguments)
        seen.append(loss)
        if len(seen) == accumulate + 1:  # the first batch of the second step
            module.loss_sum = module.loss_sum + float("inf")
        return loss

    monkeypatch.setattr(Learner, "training_step", training_step)
    assert runs.train(*ARGUMENTS, f"trainer.accumulate={accumulate}", f"run_dir={tmp_path / 'run'}") == 1
    assert "step 2: the loss is inf" in capsys.readouterr().out and len(seen) == 2 * accumulate


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError("Unable to allocate 3.2 GiB"),
    ],
    ids=["gpu", "cpu", "numpy"],
)
def test_memory_that_ran_out_names_the_batch_and_what_to_try(tmp_path, monkeypatch, capsys, error):
    step, seen = Learner.training_step, []

    def training_step(module: Learner, batch, index) -> Tensor:
        seen.append(batch.mask.shape)
        if len(seen) == 3:
            raise error
        return step(module, batch, index)

    monkeypatch.setattr(Learner, "training_step", training_step)
    assert is_out_of_memory(error)
    assert runs.train(*ARGUMENTS, f"run_dir={tmp_path / 'run'}") == 1
    out = " ".join(capsys.readouterr().out.split())
    rows, length = seen[-1]
    assert f"step 3: out of memory on a batch of {rows} rows of up to {length} tokens" in out
    assert "trainer.batch_tokens=3200 trainer.accumulate=2, or model.gradient_checkpointing=true" in out
    assert "Traceback" not in out


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("size mismatch")) and not is_out_of_memory(ValueError("out of memory"))


def test_an_error_of_ours_shows_its_traceback(tmp_path, monkeypatch):
    def training_step(*_: object) -> Tensor:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Learner, "training_step", training_step)
    with pytest.raises(RuntimeError, match="size mismatch"):
        runs.train(*ARGUMENTS, f"run_dir={tmp_path / 'run'}")
