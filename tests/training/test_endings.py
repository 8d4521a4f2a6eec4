"""The ends of runs: kills and signals after the last step, checkpoints that are lost, data that have changed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import train_runs as runs

from tsla.training.checkpoints import CrashSafeIO
from tsla.training.module import Learner
from tsla.training.objective import Objective


def at_the_end(kind: str, moment: str, tmp_path: Path, whole: Any) -> None:
    """A run as good as killed at a moment after its last step, and then gone on with, is the run it would have been."""
    expected, run = whole(kind), tmp_path / "run"
    data = f"data_dir={expected.parent.parent / 'data'}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(runs.Crash):
        if moment == "in the last validation":
            step = Learner.validation_step

            def validation_step(module: Learner, *arguments: Any) -> None:
                if module.trainer.global_step == 24:
                    raise runs.Crash
                step(module, *arguments)

            patch.setattr(Learner, "validation_step", validation_step)
        else:
            save, written = CrashSafeIO.save_checkpoint, []

            def save_checkpoint(io: CrashSafeIO, checkpoint: dict[str, Any], path: Any, **_: Any) -> None:
                written.append((Path(path).stem, checkpoint["global_step"]))
                if written.count(("next", 24)) == 2:  # the one after the last validation
                    raise runs.Crash
                save(io, checkpoint, path)

            patch.setattr(CrashSafeIO, "save_checkpoint", save_checkpoint)
        runs.train(*runs.KINDS[kind], data, f"run_dir={run}")
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


@pytest.mark.parametrize("kind", ["digits", "averaged", "worker"])
@pytest.mark.parametrize("moment", ["in the last validation", "before the last save"])
def test_a_run_killed_after_its_last_step(kind, moment, tmp_path, whole):
    at_the_end(kind, moment, tmp_path, whole)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_validation_is_told_and_loses_nothing(tmp_path, whole, monkeypatch, capsys, signum):
    expected, run = whole("digits"), tmp_path / "run"
    step, sent = Learner.validation_step, []

    def validation_step(module: Learner, *arguments: Any) -> None:
        if module.trainer.global_step == 24 and not sent:
            sent.append(os.kill(os.getpid(), signum))
        step(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "validation_step", validation_step)
        assert runs.train(*runs.KINDS["digits"], f"run_dir={run}") == 128 + signum
    assert "after step 24; go on with: tsla train resume=" in capsys.readouterr().out
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step(tmp_path, whole, monkeypatch, signum):
    from tsla.training.clock import Clock

    expected, run = whole("digits"), tmp_path / "run"
    begin = Clock.on_train_start

    def on_train_start(clock: Clock, *arguments: Any) -> None:
        os.kill(os.getpid(), signum)
        begin(clock, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Clock, "on_train_start", on_train_start)
        assert runs.train(*runs.KINDS["digits"], f"run_dir={run}") == 128 + signum
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


@pytest.mark.parametrize("how", ["gone", "cut at 50 %", "of a later step"])
def test_a_best_checkpoint_that_is_not_it_is_written_again(tmp_path, capsys, how):
    run = tmp_path / "run"
    arguments = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=20", "trainer.validate_every=5", "optim.lr=0.01")
    assert runs.stopped_at_batch(12, *arguments, f"run_dir={run}") == 130
    best = run / "checkpoints" / "best.ckpt"
    if how == "of a later step":
        state = runs.checkpoint(run, "best")
        torch.save(state | {"global_step": 17}, best)
    else:
        runs.damage(best, how)
    assert runs.train(f"resume={run}") == 0
    result = runs.result(run)
    assert runs.checkpoint(run, "best")["global_step"] == result["best_step"] in (15, 20)
    scores = {int(row["step"]): float(row["val/accuracy"]) for row in runs.metrics(run) if "val/accuracy" in row}
    assert result["metrics"]["val/accuracy"] == pytest.approx(scores[result["best_step"]])


def test_a_validation_of_no_numbers_is_no_best(tmp_path, monkeypatch):
    ask = Objective.ask

    def nothing(objective: Objective, run: Any, batch: Any) -> Any:
        answers = ask(objective, run, batch)
        return answers if answers.outputs.requires_grad else answers._replace(outputs=answers.outputs * float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "ask", nothing)
        assert runs.train(*runs.DIGITS, *runs.HEADS, "trainer.max_steps=4", "trainer.validate_every=2",
                          f"run_dir={tmp_path / 'run'}") == 0  # fmt: skip
    result = runs.result(tmp_path / "run")
    assert result["best_step"] == 2 and result["metrics"]["val/accuracy"] is None
    assert all(row["val/loss"] == "nan" for row in runs.metrics(tmp_path / "run") if "val/loss" in row)


def test_resume_does_not_need_the_weights_it_started_from(tmp_path):
    first, run = tmp_path / "first", tmp_path / "run"
    short = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=6")
    assert runs.train(*short, f"run_dir={first}") == 0
    assert runs.stopped_at_batch(3, *short, f"init_from={first}", f"run_dir={run}") == 130
    first.rename(tmp_path / "moved")
    assert runs.train(f"resume={run}") == 0


def test_data_that_changed_are_told(tmp_path, capsys):
    from tsla import cli

    text = "text,label\n" + "".join(f"row number {n},{'ab'[n % 2]}\n" for n in range(60))
    (tmp_path / "a.csv").write_text(text)
    run = tmp_path / "run"
    arguments = ("experiment=files", f"task.path={tmp_path / 'a.csv'}", *runs.TINY, *runs.HEADS, "trainer.max_steps=6",
                 "trainer.batch_tokens=200", f"data_dir={tmp_path / 'data'}", f"run_dir={run}")  # fmt: skip
    assert runs.stopped_at_batch(3, *arguments) == 130
    (tmp_path / "a.csv").write_text(text + "one more,a\n")
    assert runs.train(f"resume={run}") == 1
    assert "the data have changed since this run began" in capsys.readouterr().out
    (tmp_path / "a.csv").write_text(text)  # the same again, at another time
    assert runs.train(f"resume={run}") == 0
    (tmp_path / "a.csv").write_text(text + "one more,a\n")
    assert cli.main(["eval", str(run)]) == 0
    assert "the data have changed since this run was trained" in capsys.readouterr().out
