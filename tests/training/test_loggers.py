"""Loggers beside metrics.csv: the same numbers, without a network and without a question."""

import pytest
import train_runs as runs

from tsla.training.loggers import tensorboard_logger, wandb_logger

ARGUMENTS = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=12", "trainer.validate_every=6")


def test_tensorboard_has_the_numbers_of_the_csv(tmp_path):
    assert runs.train(*ARGUMENTS, "logger=tensorboard", f"run_dir={tmp_path / 'run'}") == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = runs.metrics(tmp_path / "run")
    for name in ("train/loss", "val/accuracy", "optim/lr"):
        expected = [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-5)) for row in rows if name in row]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected


def test_tensorboard_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("tsla.training.loggers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger=tensorboard needs the package: pip install 'tsla\[tensorboard\]'"):
        tensorboard_logger(tmp_path)


def test_wandb_is_offline_and_silent(tmp_path, monkeypatch, capsys):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    with pytest.raises(ValueError, match="online"):  # wandb reads its settings here; offline must still be heeded
        wandb_logger(tmp_path, project="x", mode="online")
    run = tmp_path / "ein Lauf: lr=0.1, #1?"
    assert runs.train(*ARGUMENTS, "logger=wandb", f"run_dir='{run}'") == 0
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    assert runs.result(run)["steps"] == 12
    assert runs.metrics(run)


def test_each_stage_of_a_run_is_one_of_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = tmp_path / "run"
    assert runs.train(*ARGUMENTS, "pretrain=masked", "logger=wandb", f"run_dir={run}") == 0
    for folder in (run, run / "pretrain"):
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


def test_wandb_knows_a_run_by_its_folder(tmp_path):
    def number(name: str) -> str:
        return wandb_logger(tmp_path / name, project="x", mode="offline").version

    assert number("a/seed0") == number("a/seed0") != number("b/seed0")


def test_wandb_online_needs_a_key(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"logger.mode=online needs a key that works"):
        wandb_logger(tmp_path, project="x", mode="online")
