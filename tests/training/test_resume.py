"""A run that was stopped goes on as if it had not been: weights, metrics and result, bit for bit but for times."""

import os
import signal
from pathlib import Path

import pytest
import torch
import train_runs as runs

from tsla.training.module import Learner

LIMITS = (
    *runs.HEADS,
    "trainer.max_steps=24",
    "trainer.validate_every=7",
    "trainer.checkpoint_every=9",
    "optim.lr=0.01",
)
KINDS = {
    "listops": (*runs.LISTOPS, *LIMITS),
    "digits": (*runs.DIGITS, *LIMITS, "model.dropout=0.3", "trainer.precision=bf16"),
    "accumulated": (*runs.DIGITS, *LIMITS, "trainer.accumulate=3"),
    "worker": (*runs.LISTOPS, *LIMITS, "trainer.workers=1"),
    "epochs": (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=null", "trainer.max_epochs=2", "trainer.validate_every=5"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains each kind of run once, uninterrupted."""
    trained: dict[str, Path] = {}

    def get(kind: str) -> Path:
        torch.set_num_threads(1)
        if kind not in trained:
            folder = tmp_path_factory.mktemp(kind)
            data = f"data_dir={tmp_path_factory.getbasetemp() / 'data'}"
            assert runs.train(*KINDS[kind], data, f"run_dir={folder / 'run'}") == 0
            trained[kind] = folder / "run"
        return trained[kind]

    return get


def assert_same_run(a: Path, b: Path) -> None:
    assert runs.metrics(a) == runs.metrics(b)
    assert runs.same_weights(runs.weights(a), runs.weights(b))
    first, second = runs.result(a), runs.result(b)
    for name in ("metrics", "references", "best_step", "steps", "params", "state_bytes", "seed", "task", "mixer"):
        assert first[name] == second[name], name
    for name in ("last", "best"):
        assert runs.same_weights(*(runs.checkpoint(run, name)["state_dict"] for run in (a, b)))


# Digits have 13 batches an epoch here, ListOps 14 or so; 7 and 14 are followed by validation, 24 is the last.
STOPS = [
    ("listops", [1, 7, 13, 14, 24]),
    ("digits", [13]),
    ("accumulated", [7]),
    ("worker", [5]),
    ("epochs", [26]),
]


@pytest.mark.parametrize(("kind", "batch"), [(kind, batch) for kind, batches in STOPS for batch in batches])
def test_a_stopped_run_goes_on(tmp_path, whole, kind, batch, capsys):
    expected, run = whole(kind), tmp_path / "run"
    data = f"data_dir={expected.parent.parent / 'data'}"
    assert runs.stopped_at_batch(batch, *KINDS[kind], data, f"run_dir={run}") == 130
    assert "stopped by SIGINT after step" in capsys.readouterr().out
    assert not (run / "result.json").exists() and (run / "checkpoints" / "last.ckpt").exists()
    assert runs.train(f"resume={run}") == 0
    assert_same_run(expected, run)


def test_sigterm_twice_over(tmp_path, whole, capsys):
    expected, run = whole("listops"), tmp_path / "a run with spaces, ünd mehr"
    arguments = (*KINDS["listops"], f"data_dir={expected.parent.parent / 'data'}", f"run_dir='{run}'")
    assert runs.stopped_at_batch(4, *arguments, signum=signal.SIGTERM) == 143
    assert "stopped by SIGTERM after step 4" in capsys.readouterr().out
    assert runs.stopped_at_batch(5, f"resume={run}", signum=signal.SIGTERM) == 143
    assert "stopped by SIGTERM after step 9" in capsys.readouterr().out
    assert runs.train(f"resume={run}") == 0
    assert_same_run(expected, run)


class Crash(Exception):
    """As good as a kill: nothing is saved after it."""


@pytest.mark.parametrize("batch", [3, 12, 19])
def test_a_crashed_run_goes_on_from_its_last_checkpoint(tmp_path, whole, monkeypatch, batch):
    expected, run = whole("listops"), tmp_path / "run"
    step, seen = Learner.training_step, []

    def training_step(module, *arguments):
        seen.append(1)
        if len(seen) == batch:
            raise Crash
        return step(module, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Learner, "training_step", training_step)
        runs.train(*KINDS["listops"], f"data_dir={expected.parent.parent / 'data'}", f"run_dir={run}")
    with (run / "metrics.csv").open("a") as file:
        file.write("21,1,2.3,0.1")  # and half a line
    assert runs.train(f"resume={run}") == 0
    assert_same_run(expected, run)


def test_a_run_that_was_killed_before_its_test_is_tested(tmp_path, whole, monkeypatch):
    expected, run = whole("digits"), tmp_path / "run"

    def killed(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("tsla.run.evaluate", killed)
        runs.train(*KINDS["digits"], f"run_dir={run}")
    assert not (run / "result.json").exists()
    assert runs.train(f"resume={run}") == 0
    assert_same_run(expected, run)


def test_a_finished_run_is_left_alone(whole, capsys):
    run = whole("digits")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert runs.train(f"resume={run}") == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_checkpoint_is_told(tmp_path, whole, capsys, damage):
    run = tmp_path / "run"
    runs.stopped_at_batch(3, *KINDS["digits"], f"run_dir={run}")
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"")
    assert runs.train(f"resume={run}") == 1
    assert f"failed: {path} cannot be read" in capsys.readouterr().out


def test_a_checkpoint_that_does_not_fit_the_config_is_told(tmp_path, capsys):
    run = tmp_path / "run"
    runs.stopped_at_batch(3, *KINDS["digits"], f"run_dir={run}")
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
    assert runs.train(*KINDS["digits"], f"run_dir={tmp_path / 'run'}") == 130
    assert seen == [signal.SIG_DFL]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
