"""A run that was stopped goes on as if it had not been: weights, metrics and result, bit for bit but for times."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import train_runs as runs

from tsla.build import build_model, build_optim
from tsla.config import compose
from tsla.training.module import Learner
from tsla.training.objective import Objective

# Digits have 13 batches an epoch here, ListOps 14 or so; 7 and 14 are followed by validation, 24 is the last.
STOPS = [
    ("listops", [1, 7, 13, 14, 24]),
    ("digits", [13]),
    ("accumulated", [7]),
    ("worker", [5]),
    ("averaged", [9, 14, 27]),
    ("epochs", [26]),
]


@pytest.mark.parametrize(("kind", "batch"), [(kind, batch) for kind, batches in STOPS for batch in batches])
def test_a_stopped_run_goes_on(tmp_path, whole, kind, batch, capsys):
    expected, run = whole(kind), tmp_path / "run"
    data = f"data_dir={expected.parent.parent / 'data'}"
    assert runs.stopped_at_batch(batch, *runs.KINDS[kind], data, f"run_dir={run}") == 130
    assert "stopped by SIGINT after step" in capsys.readouterr().out
    assert not (run / "result.json").exists() and (run / "checkpoints" / "last.ckpt").exists()
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


def test_sigterm_twice_over(tmp_path, whole, capsys):
    expected, run = whole("listops"), tmp_path / "a run with spaces, ünd mehr"
    arguments = (*runs.KINDS["listops"], f"data_dir={expected.parent.parent / 'data'}", f"run_dir='{run}'")
    assert runs.stopped_at_batch(4, *arguments, signum=signal.SIGTERM) == 143
    assert "stopped by SIGTERM after step 4" in capsys.readouterr().out
    assert runs.stopped_at_batch(5, f"resume={run}", signum=signal.SIGTERM) == 143
    assert "stopped by SIGTERM after step 9" in capsys.readouterr().out
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


@pytest.mark.parametrize("batch", [3, 12, 19])
def test_a_crashed_run_goes_on_from_its_last_checkpoint(tmp_path, whole, batch):
    expected, run = whole("listops"), tmp_path / "run"
    data = f"data_dir={expected.parent.parent / 'data'}"
    runs.crash_at_batch(batch, *runs.KINDS["listops"], data, f"run_dir={run}")
    with (run / "metrics.csv").open("a") as file:
        file.write("21,1,2.3,0.1")  # and half a line
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


def test_a_run_that_was_killed_before_its_test_is_tested(tmp_path, whole, monkeypatch):
    expected, run = whole("digits"), tmp_path / "run"

    def killed(*_: object) -> None:
        raise runs.Crash

    with monkeypatch.context() as patch, pytest.raises(runs.Crash):
        patch.setattr("tsla.run.evaluate", killed)
        runs.train(*runs.KINDS["digits"], f"run_dir={run}")
    assert not (run / "result.json").exists()
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


def test_a_finished_run_is_left_alone(whole, capsys):
    run = whole("digits")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert runs.train(f"resume={run}") == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


DAMAGES = ["empty", "cut at 1 %", "cut at 50 %", "cut at 99 %", "one bit"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_told(tmp_path, capsys, how):
    run = tmp_path / "run"
    runs.stopped_at_batch(3, *runs.KINDS["digits"], f"run_dir={run}")
    path = run / "checkpoints" / "last.ckpt"
    runs.damage(path, how)
    assert runs.train(f"resume={run}") == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(told) == 1 and told[0].startswith(f"failed: {path} cannot be read")


@pytest.mark.parametrize("how", [*DAMAGES, "gone"])
def test_resume_auto_falls_back_to_the_checkpoint_before(tmp_path, whole, capsys, how):
    """The run was saved at step 9 and then stopped at step 13; after step 9 it goes on as it did before."""
    expected, run = whole("digits"), tmp_path / "run"
    data = f"data_dir={expected.parent.parent / 'data'}"
    assert runs.stopped_at_batch(13, *runs.KINDS["digits"], data, f"run_dir={run}") == 130
    runs.damage(run / "checkpoints" / "last.ckpt", how)
    if how != "gone":
        assert runs.train(f"resume={run}") == 1
        assert "resume=auto falls back to previous.ckpt" in capsys.readouterr().out
    assert runs.train(*runs.KINDS["digits"], data, f"run_dir={run}", "resume=auto") == 0
    runs.assert_same_run(expected, run)


def test_resume_auto_does_not_start_anew_when_both_are_damaged(tmp_path, capsys):
    run = tmp_path / "run"
    assert runs.stopped_at_batch(13, *runs.KINDS["digits"], f"run_dir={run}") == 130
    for name in ("last", "previous"):
        runs.damage(run / "checkpoints" / f"{name}.ckpt", "empty")
    assert runs.train(*runs.KINDS["digits"], f"run_dir={run}", "resume=auto") == 1
    assert "previous.ckpt cannot be read" in capsys.readouterr().out


def test_resume_auto_takes_the_newest_unfinished_run_of_the_same_options(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=4")
    made = []
    for arguments, batch in ((short, 2), (short, 3), ((*short, "seed=1"), 2)):
        known = set(Path("runs/digits").glob("*"))
        assert runs.stopped_at_batch(batch, *arguments) == 130
        made += [path for path in Path("runs/digits").iterdir() if path not in known]
    older, newer, other = made
    os.utime(older / "config.yaml", (1, 1))
    assert runs.train(*short, "resume=auto") == 0
    assert (newer / "result.json").exists() and not (older / "result.json").exists()
    assert runs.train(*short, "resume=auto") == 0  # the older one is left, then none
    assert (older / "result.json").exists() and not (other / "result.json").exists()
    assert runs.train(*short, "resume=auto") == 0
    assert len(list(Path("runs/digits").iterdir())) == 4
    assert runs.train(*short, "run_dir=own", "resume=auto") == 0
    capsys.readouterr()
    assert runs.train(*short, "run_dir=own", "resume=auto") == 0 and "is finished" in capsys.readouterr().out
    assert runs.train(*short, "model.dropout=0.5", "seed=2", "run_dir=own", "resume=auto") == 2
    told = capsys.readouterr().err
    assert "own holds a run with other options" in told
    assert "model.dropout: 0.5 here, 0.2 there" in told and "seed: 2 here, 0 there" in told


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, whole, monkeypatch):
    expected, run = whole("digits"), tmp_path / "run"
    data = f"data_dir={expected.parent.parent / 'data'}"

    def killed(*_: object, **__: object) -> None:
        assert (run / "config.yaml").exists()  # it was written before anything else
        raise runs.Crash

    with monkeypatch.context() as patch, pytest.raises(runs.Crash):
        patch.setattr("tsla.run.fit", killed)
        runs.train(*runs.KINDS["digits"], data, f"run_dir={run}")
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    arguments = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=4", f"run_dir={run}")
    step, seen = Learner.training_step, []

    def training_step(module: Learner, *given: Any) -> torch.Tensor:
        if not seen:
            seen.append(runs.train(f"resume={run}"))
        return step(module, *given)

    monkeypatch.setattr(Learner, "training_step", training_step)
    assert runs.train(*arguments) == 0 and seen == [1]
    assert "is being trained by another process" in capsys.readouterr().err


def test_a_run_that_ended_early_stays_ended(tmp_path, capsys):
    """Patience is over at the third validation; what is resumed after it has nothing left to train."""
    arguments = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=40", "trainer.validate_every=2", "trainer.patience=2",
                 "optim.lr=1e-9")  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert runs.train(*arguments, f"run_dir={whole}") == 0
    assert runs.result(whole)["steps"] == 6 and runs.result(whole)["best_step"] == 2
    with pytest.MonkeyPatch.context() as patch, pytest.raises(runs.Crash):
        patch.setattr("tsla.run.evaluate", crash)
        runs.train(*arguments, f"run_dir={cut}")
    assert runs.train(f"resume={cut}") == 0
    runs.assert_same_run(whole, cut)


def crash(*_: object) -> None:
    raise runs.Crash


def test_a_checkpoint_that_does_not_fit_the_config_is_told(tmp_path, capsys):
    run = tmp_path / "run"
    runs.stopped_at_batch(3, *runs.KINDS["digits"], f"run_dir={run}")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("dim: 16\n  depth", "dim: 32\n  depth"))
    assert runs.train(f"resume={run}") == 1
    assert "last.ckpt holds another model" in capsys.readouterr().out


def test_a_second_signal_is_immediate(tmp_path, monkeypatch):
    """The first handler gives way to the system's own, which ends the process at once."""
    seen = []

    def training_step(module, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        seen.append(signal.getsignal(signal.SIGINT))
        return module.model.head.bias.sum()

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Learner, "training_step", training_step)
    assert runs.train(*runs.KINDS["digits"], f"run_dir={tmp_path / 'run'}") == 130
    assert seen and seen[0] is not signal.SIG_DFL
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_gets_back_what_it_has_counted(rank, monkeypatch):
    """Sums over processes would be added up in another order than in the run that was not stopped."""
    config = compose(["model.dim=8"])
    parts = {"objective": Objective(runs.spec()), "optim": build_optim(config)}
    learner = Learner(build_model(config.model, config.mixer, runs.spec()), **parts, progress=lambda: 0.0, seed=0)
    monkeypatch.setattr(Learner, "trainer", SimpleNamespace(global_rank=rank))
    counted = [
        {name: torch.stack([getattr(metric, name) + at for at in (1, 5)]) for name in metric._defaults}
        for metric in (learner.train_loss, *learner.train_scores.values(), learner.train_aux)
    ]
    learner.on_load_checkpoint({"since_row": counted})
    assert float(learner.train_loss.total) == float(learner.train_loss.weight) == (1, 5)[rank]
    assert int(learner.train_scores["accuracy"].tp) == (1, 5)[rank]
    with pytest.raises(ValueError, match=r"^the checkpoint has 2 running sums and this version keeps 3: it is of anot"):
        learner.on_load_checkpoint({"since_row": counted[:-1]})
