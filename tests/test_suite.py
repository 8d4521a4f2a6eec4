"""`tsla suite`: cells in folders of their own, finished ones skipped, killed ones gone on with, one results file."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import train_runs as runs

from tsla import cli

started: list[dict[str, Any]] = []  # options of the processes
TINY = [*runs.DIGITS, "trainer.max_steps=4", "trainer.validate_every=2"]


def suite(*arguments: str) -> int:
    return cli.main(["suite", *arguments])


@pytest.fixture
def in_process(monkeypatch):
    """Cells trained by this process, which is quicker; the list says which, or holds statuses to return instead."""
    trained: list[str] = []
    statuses: dict[str, int] = {}
    started.clear()

    class Process:
        def __init__(self, command: list[str], **options: Any) -> None:
            started.append(options)
            self.arguments = command[command.index("train") + 1 :]

            self.returncode: int | None = None

        def poll(self) -> int:
            (name,) = (Path(a.removeprefix("run_dir=")).name for a in self.arguments if a.startswith("run_dir="))
            trained.append(name)
            self.returncode = statuses[name] if name in statuses else runs.train(*self.arguments)
            return self.returncode

        def send_signal(self, signum: int) -> None:
            trained.append(f"signal {signum}")

    monkeypatch.setattr("tsla.suite.subprocess", SimpleNamespace(Popen=Process, DEVNULL=subprocess.DEVNULL))
    return trained, statuses


def test_cells_are_trained_and_the_finished_ones_left_alone(tmp_path, monkeypatch, capsys, in_process):
    monkeypatch.chdir(tmp_path)
    trained, _ = in_process
    arguments = [*TINY, "mixer=none,window", "seed=0,1", "out=s", "estimate=false"]
    assert suite(*arguments) == 0
    assert trained == ["none_seed0", "none_seed1", "window_seed0", "window_seed1"]
    assert "4 of 4 cells to train" in capsys.readouterr().out
    first = (tmp_path / "s" / "results.csv").read_bytes()
    rows = list(csv.DictReader(first.decode().splitlines()))
    assert [row["seeds"] for row in rows] == ["2", "2"] and {row["group"] for row in rows} == {"none", "window"}
    for row in rows:
        scores = [runs.result(f"s/{row['group']}_seed{seed}")["metrics"]["test/accuracy"] for seed in (0, 1)]
        assert float(row["mean"]) == pytest.approx(sum(scores) / 2)
        assert float(row["std"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5, abs=1e-12)
    shutil.rmtree("s/none_seed1")
    (tmp_path / "s" / "results.csv").unlink()
    trained.clear()
    assert suite("s", "estimate=false") == 0
    assert trained == ["none_seed1"] and (tmp_path / "s" / "results.csv").read_bytes() == first
    out = capsys.readouterr().out
    assert "1 of 4 cells to train" in out and "tsla report s" in out


def test_a_failed_cell_does_not_stop_the_others_and_a_signal_does(tmp_path, monkeypatch, capsys, in_process):
    monkeypatch.chdir(tmp_path)
    trained, statuses = in_process
    statuses.update({"seed0": 1, "seed2": 128 + signal.SIGTERM})
    assert suite(*TINY, "mixer=none", "seed=0,1,2,3", "out=s", "estimate=false") == 128 + signal.SIGTERM
    assert trained == ["seed0", "seed1", "seed2"]
    assert "go on with: tsla suite s" in capsys.readouterr().out
    statuses.pop("seed2")
    assert suite("s", "estimate=false") == 1
    assert trained[3:] == ["seed0", "seed2", "seed3"]
    out = capsys.readouterr().out
    assert "failed: s/seed0" in out and "seed1" in out


def test_several_cells_at_a_time(tmp_path, monkeypatch, capsys, in_process):
    """Two are begun before one has ended, in silence and with half of the cores; a signal to one is passed to both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(9)}, raising=False)
    trained, statuses = in_process
    statuses["seed2"] = 128 + signal.SIGTERM
    arguments = [*TINY, "mixer=none", "seed=0,1,2,3,4", "out=s", "estimate=false", "jobs=2"]
    assert suite(*arguments) == 128 + signal.SIGTERM
    assert trained == ["seed0", "seed1", "seed2", f"signal {signal.SIGTERM}", "seed3"]
    assert [options["env"]["OMP_NUM_THREADS"] for options in started] == ["4"] * 4
    assert all(options["stdout"] == subprocess.DEVNULL for options in started)
    out = capsys.readouterr().out
    assert "go on with: tsla suite s jobs=2" in out and "seed3  (4 of 5)" in out and "seed4  (5 of 5)" not in out
    statuses.clear(), trained.clear(), started.clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert suite("s", "estimate=false", "jobs=2") == 0
    assert trained == ["seed2", "seed4"] and [options["env"]["OMP_NUM_THREADS"] for options in started] == ["3"] * 2
    assert len((tmp_path / "s" / "results.csv").read_text().splitlines()) == 2


def test_a_cell_that_another_suite_trains_meanwhile_has_not_failed(tmp_path, monkeypatch, capsys, in_process):
    monkeypatch.chdir(tmp_path)
    _, statuses = in_process
    statuses["seed0"] = 1  # another process has its folder
    train = runs.train

    def both(*arguments: str) -> int:
        train(*(argument.replace("seed=1", "seed=0").replace("seed1", "seed0") for argument in arguments))
        return train(*arguments)

    monkeypatch.setattr(runs, "train", both)
    assert suite(*TINY, "mixer=none", "seed=0,1", "out=s", "estimate=false") == 0
    assert "failed" not in capsys.readouterr().out


def test_a_suite_goes_into_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("s").write_text("")
    assert suite(*TINY, "mixer=none", "out=s", "estimate=false") == 2
    assert "out (s) must be a folder" in capsys.readouterr().err


@pytest.mark.parametrize("status", [-signal.SIGKILL, -signal.SIGSEGV, 0])
def test_a_cell_that_is_killed_or_leaves_no_result_has_failed(tmp_path, monkeypatch, capsys, in_process, status):
    monkeypatch.chdir(tmp_path)
    trained, statuses = in_process
    statuses["seed0"] = status
    assert suite(*TINY, "mixer=none", "seed=0,1", "out=s", "estimate=false") == 1
    assert trained == ["seed0", "seed1"]
    out = capsys.readouterr().out
    assert "failed: s/seed0" in out and ("was killed" in out) == (status == -signal.SIGKILL)


def test_results_of_other_options_are_not_taken_for_its_own(tmp_path, monkeypatch, capsys, in_process):
    monkeypatch.chdir(tmp_path)
    trained, _ = in_process
    assert suite(*TINY, "mixer=none", "seed=0,1", "out=s", "estimate=false") == 0
    before = (tmp_path / "s" / "suite.yaml").read_bytes()
    assert suite(*TINY, "mixer=none", "seed=0,1", "out=s", "estimate=false", "trainer.max_steps=5") == 2
    told = capsys.readouterr().err
    assert "trainer.max_steps: 5 here, 4 there" in told and "give another out (s)" in told
    assert trained == ["seed0", "seed1"] and (tmp_path / "s" / "suite.yaml").read_bytes() == before


def test_a_suite_is_where_its_folder_is(tmp_path, monkeypatch, in_process):
    monkeypatch.chdir(tmp_path)
    trained, _ = in_process
    assert suite(*TINY, "mixer=none", "seed=0,1", "out=s", "estimate=false") == 0
    (tmp_path / "s" / "seed1" / "result.json").write_text('{"task": "dig')  # cut short: not finished
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trained.clear()
    suite("../s", "estimate=false")
    assert trained == ["seed1"] and not list((tmp_path / "elsewhere").glob("s*"))


def test_train_m_is_the_same(tmp_path, monkeypatch, in_process):
    monkeypatch.chdir(tmp_path)
    trained, _ = in_process
    assert runs.train("-m", *TINY, "mixer=none", "seed=0,1", "out=s", "estimate=false") == 0
    assert trained == ["seed0", "seed1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "suite takes one file, or options with several values"),
        (["a.yaml", "b.yaml"], "suite takes one file"),
        (["suite.yaml", "seed=0,1"], "suite takes a file or options, not both"),
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (["mixer=tayler,none"], "(did you mean 'taylor'?)"),
        (["seed=0,1", "estimate=maybe"], "estimate ('maybe') must be true or false"),
        (["seed=0,1", "jobs=0"], "jobs ('0') must be how many cells to train at a time, at least 1"),
        (["seed=0,1", "jobs=two"], "jobs ('two') must be"),
        (["lra_mni"], "lra_mni does not exist (did you mean 'lra_mini'?)"),
        (["seed=0,1", "resume=auto"], "a suite decides resume itself"),
    ],
)
def test_usage_errors(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").write_text("grid: {seed: [0, 1]}\n")
    assert suite(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 28 processes that each import everything
def test_a_suite_of_12_cells_killed_three_times_ends_as_one_that_was_not(tmp_path):
    """SIGKILL to all of its processes at three moments; then the same file as that of a suite left alone.

    The one that is killed trains two cells at a time, the other one after another.
    """
    command = [str(Path(sys.executable).parent / "tsla"), "suite", *runs.DIGITS, "trainer.max_steps=40",
               "trainer.validate_every=20", "trainer.checkpoint_every=15", "mixer=none,window,softmax",
               "seed=0,1,2,3", "estimate=false"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.DEVNULL, "start_new_session": True}
    subprocess.run([*command, "out=whole"], check=True, **options)
    for finished in (2, 5, 9):
        with subprocess.Popen([*command, "out=cut", "jobs=2"], **options) as process:
            while len(list(tmp_path.glob("cut/*/result.json"))) < finished:
                assert process.poll() is None
                time.sleep(0.01)
            begun = len(list(tmp_path.glob("cut/*/metrics.csv")))
            while len(list(tmp_path.glob("cut/*/metrics.csv"))) == begun:  # into the training of the next
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
    subprocess.run([*command, "out=cut", "jobs=2"], check=True, **options)
    whole, cut = (tmp_path / name / "results.csv" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes() and len(whole.read_text().splitlines()) == 4
    for folder in (tmp_path / "whole").glob("*_seed*"):
        assert runs.metrics(folder) == runs.metrics(tmp_path / "cut" / folder.name)
