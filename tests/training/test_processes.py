"""Real processes: several that train together, signals, kills, and two that want the same data."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import train_runs as runs

from tsla import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
COMMAND = str(Path(sys.executable).parent / "tsla")
LISTOPS = (*runs.LISTOPS, *runs.HEADS, "trainer.validate_every=10")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`tsla train` in a process group of its own, one thread to a process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [COMMAND, "train", *arguments], cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str, str]:
    """Its status and what it said; it is killed with all of its group if it does not end."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def rows(path: Path) -> int:
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


@pytest.mark.parametrize(
    "change",
    [(), ("mixer=none",), ("pretrain=masked", "pretrain.max_steps=12"), ("trainer.accumulate=2", "model.dropout=0.1")],
)
def test_two_processes_train_together(tmp_path, change, capsys, monkeypatch):
    heads = () if change == ("mixer=none",) else runs.HEADS
    arguments = (*runs.LISTOPS, *heads, *change, "trainer.max_steps=20", "trainer.validate_every=10", "run_dir=run",
                 "trainer.batch_tokens=400")  # fmt: skip
    status, out, err = end(start(tmp_path, *arguments, "trainer.devices=2"))
    assert status == 0, err
    assert "warn" not in err.lower() and out.count("to beat: ") == 1  # the second process is silent
    result = runs.result(tmp_path / "run")
    assert result["steps"] == 20
    for name in ("test/accuracy", "val/accuracy"):
        assert result["metrics"][name] * 40 == pytest.approx(round(result["metrics"][name] * 40))
    monkeypatch.chdir(tmp_path)  # one process sees all rows and finds the same
    for split, name in (("test", "test/accuracy"), ("val", "val/accuracy")):
        assert cli.main(["eval", "run", f"split={split}"]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if result["mixer"] in line and "│" in line)
        assert f"{result['metrics'][name]:.3f}" in line


def test_both_processes_hold_the_same_weights_at_every_limit_in_minutes(tmp_path):
    """The clock of one process decides for both: rates that differ, or a step more in one, would end in a hang."""
    arguments = (
        *LISTOPS,
        "trainer.batch_tokens=400",
        "trainer.max_steps=null",
        "trainer.max_minutes=0.05",
        "run_dir=run",
    )
    status, _, err = end(start(tmp_path, *arguments, "trainer.devices=2"))
    assert status == 0, err
    assert runs.result(tmp_path / "run")["seconds"] >= 3


def test_too_little_data_for_two_processes_is_told(tmp_path):
    status, out, err = end(
        start(tmp_path, *LISTOPS, "trainer.max_steps=2", "trainer.devices=2", "trainer.batch_tokens=9999")
    )
    assert status == 1 and "too few for trainer.devices (2)" in out.replace("\n", " ")
    assert "Traceback" not in err


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_the_run_goes_on(tmp_path, signum, devices):
    run = tmp_path / "run"
    arguments = (
        *LISTOPS,
        "trainer.batch_tokens=400",
        "trainer.max_steps=4000",
        f"trainer.devices={devices}",
        "run_dir=run",
    )
    process = start(tmp_path, *arguments)
    wait_for(process, lambda: rows(run / "metrics.csv") >= 2)
    os.killpg(process.pid, signum)
    status, out, err = end(process)
    assert (status, "go on with: tsla train resume=run" in out) == (128 + signum, True), err
    step = runs.checkpoint(run)["global_step"]
    assert 10 <= step < 4000
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 4000", f"max_steps: {step + 5}"))
    status, out, err = end(start(tmp_path, "resume=run"))
    assert status == 0, err
    assert runs.result(run)["steps"] == step + 5


def test_two_processes_that_were_stopped_write_the_rows_they_would_have(tmp_path):
    arguments = (*LISTOPS, "trainer.batch_tokens=400", "trainer.max_steps=400", "trainer.devices=2")
    status, _, err = end(start(tmp_path, *arguments, "run_dir=whole"))
    assert status == 0, err
    run = tmp_path / "cut"
    process = start(tmp_path, *arguments, "run_dir=cut")
    wait_for(process, lambda: rows(run / "metrics.csv") >= 3)
    time.sleep(0.1)  # into the steps between two rows
    os.killpg(process.pid, signal.SIGTERM)
    assert end(process)[0] == 128 + signal.SIGTERM
    assert 0 < runs.checkpoint(run)["global_step"] < 400
    status, _, err = end(start(tmp_path, "resume=cut"))
    assert status == 0, err
    assert runs.metrics(run) == runs.metrics(tmp_path / "whole")
    assert runs.same_weights(runs.weights(run), runs.weights(tmp_path / "whole"))


def test_a_kill_during_generation_leaves_nothing_that_is_read(tmp_path):
    arguments = (*LISTOPS, "trainer.max_steps=2", "task.train_rows=200000")
    process = start(tmp_path, *arguments, "run_dir=a")
    wait_for(process, lambda: any(tmp_path.glob("data/*/*.partial")))
    os.killpg(process.pid, signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL
    assert not list(tmp_path.glob("data/*/*/key.json"))
    status, _, err = end(start(tmp_path, *arguments, "run_dir=b"))
    assert status == 0, err
    assert len(list(tmp_path.glob("data/*/*/key.json"))) == 1 and not list(tmp_path.glob("data/*/*.partial"))


def test_two_runs_make_the_data_once(tmp_path):
    processes = [start(tmp_path, *LISTOPS, "trainer.max_steps=2", f"run_dir={name}") for name in "ab"]
    for process in processes:
        status, _, err = end(process)
        assert status == 0, err
    assert len(list(tmp_path.glob("data/listops_short/*/key.json"))) == 1
    assert runs.metrics(tmp_path / "a") == runs.metrics(tmp_path / "b")


def test_a_compiled_model_trains_as_the_plain_one(tmp_path):
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        arguments = (*LISTOPS, "trainer.max_steps=2", f"run_dir={name}", f"trainer.compile={compiled}")
        status, _, err = end(start(tmp_path, *arguments), 350)
        assert status == 0, err
    plain, compiled = (runs.metrics(tmp_path / name) for name in ("plain", "compiled"))
    for a, b in zip(plain, compiled, strict=True):
        assert {k: float(v) for k, v in b.items()} == pytest.approx({k: float(v) for k, v in a.items()}, abs=1e-3)
    assert runs.weights(tmp_path / "plain").keys() == runs.weights(tmp_path / "compiled").keys()
