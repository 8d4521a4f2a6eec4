"""SIGKILL at any moment loses nothing: what is resumed ends bit for bit as a run that was left alone."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import train_runs as runs

from tsla import cli
from tsla.training.checkpoints import latest_checkpoint, read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# Saved every 4th step and validated every 7th, so that kills fall before, between and during saves.
ARGUMENTS = (*runs.LISTOPS, *runs.HEADS, "model.dim=64", "trainer.max_steps=80", "trainer.validate_every=7",
             "trainer.checkpoint_every=4", "model.dropout=0.1", "trainer.ema=0.9", "trainer.accumulate=2")  # fmt: skip
OTHER = Path("/dev/shm")  # another filesystem than the temporary folder's


def _train(folder: str, arguments: tuple[str, ...]) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    os._exit(cli.main(["train", *arguments]))


def start(folder: Path, *arguments: str) -> BaseProcess:
    """`tsla train` in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tsla.run"])
    process = context.Process(target=_train, args=(str(folder), arguments))
    process.start()
    return process


def kill_when(process: BaseProcess, happened: Callable[[], bool]) -> bool:
    """SIGKILL as soon as something has happened; False if the process ended before."""
    while not happened():
        if process.exitcode is not None:
            return False
        time.sleep(0.0005)
    process.kill()
    process.join()
    return True


def once(happened: Callable[[], bool], then: float) -> Callable[[], bool]:
    """True from `then` seconds after the thing has happened."""
    since: list[float] = []

    def later() -> bool:
        if not since and happened():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= then

    return later


def finish(folder: Path, *arguments: str) -> None:
    process = start(folder, *arguments)
    process.join()
    assert process.exitcode == 0


def step_of(run: Path) -> int:
    try:
        return int((run / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
    except (OSError, IndexError, ValueError):
        return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, *ARGUMENTS, "run_dir=run")
    return folder / "run"


def test_kills_at_eight_chosen_steps(tmp_path, whole):
    run = tmp_path / "run"
    for step in (7, 10, 21, 30, 42, 50, 63, 70):
        process = start(tmp_path, *ARGUMENTS, "run_dir=run", "resume=auto")
        assert kill_when(process, lambda step=step: step_of(run) >= step)
    finish(tmp_path, "resume=run")
    runs.assert_same_run(whole, run)


def test_kills_in_both_stages_of_a_pretrained_run(tmp_path):
    arguments = (*ARGUMENTS, "pretrain=masked", "pretrain.max_steps=30")
    finish(tmp_path, *arguments, "run_dir=whole")
    run = tmp_path / "run"
    for stage, step in (("pretrain", 0), ("pretrain", 10), ("pretrain", 28), ("pretrain", 30), ("", 7), ("", 42)):
        process = start(tmp_path, *arguments, "run_dir=run", "resume=auto")
        assert kill_when(process, lambda at=run / stage, step=step: at.is_dir() and step_of(at) >= step)
    finish(tmp_path, "resume=run")
    runs.assert_same_run(tmp_path / "whole", run)


def test_kills_during_saves(tmp_path, whole):
    run = tmp_path / "run"
    for kills in range(8):
        seen = {path.name for path in (run / "checkpoints").glob("*")}
        process = start(tmp_path, *ARGUMENTS, "run_dir=run", "resume=auto")
        parts = lambda seen=seen: {p.name for p in (run / "checkpoints").glob("*.part")} - seen  # noqa: E731
        if not kill_when(process, lambda parts=parts: bool(parts())):
            assert kills >= 5  # it got to its end between the looks
            break
    finish(tmp_path, *ARGUMENTS, "run_dir=run", "resume=auto")
    runs.assert_same_run(whole, run)
    assert not list(run.rglob("*.part"))


def test_twenty_kills_at_random(tmp_path, whole):
    """Random steps, and a random while after each: some fall into the start, some into steps, some into saves.

    The steps are waited for, not guessed from the clock: a busy machine takes longer and is killed at the same places.
    """
    run, chance, steps = tmp_path / "run", random.Random(0), []
    for step in sorted(chance.sample(range(60), 20)):
        process = start(tmp_path, *ARGUMENTS, "run_dir=run", "resume=auto")
        happened = once(lambda step=step: step_of(run) >= step, then=chance.uniform(0.0, 0.2))
        if not kill_when(process, happened):
            break  # a machine so fast that it got to its end within the while
        steps.append(step_of(run))
    assert len(steps) >= 10 and len(set(steps)) >= 5, steps  # they fell all over the run
    finish(tmp_path, *ARGUMENTS, "run_dir=run", "resume=auto")
    runs.assert_same_run(whole, run)


@pytest.mark.skipif(not OTHER.is_dir(), reason="needs a second filesystem")
def test_kills_during_saves_on_another_filesystem(tmp_path):
    """Checkpoints of 15 MB or so, killed at different moments of their writing; each one that is there can be read."""
    if os.stat(OTHER).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second filesystem")
    run = OTHER / f"tsla-test-{os.getpid()}"
    arguments = (*runs.DIGITS, "model.dim=512", "trainer.max_steps=1000", "trainer.checkpoint_every=1",
                 "trainer.batch_tokens=64", f"run_dir={run}")  # fmt: skip
    killed = 0
    try:
        for moment in range(12):
            process = start(tmp_path, *arguments, "resume=auto")
            known = {path.name for path in (run / "checkpoints").glob("*.part")}
            new = lambda known=known: {p.name for p in (run / "checkpoints").glob("*.part")} - known  # noqa: E731
            first = moment < 3  # kills of the very first save; then one has to be through
            while not new() or not (first or (run / "checkpoints" / "last.ckpt").exists()):
                assert process.exitcode is None
                time.sleep(0.0005)
            time.sleep(0.003 * moment)
            process.kill()
            process.join()
            killed += 1
            for path in (run / "checkpoints").glob("*.ckpt"):
                read_checkpoint(path)
        assert killed == 12 and latest_checkpoint(run / "checkpoints", fall_back=False) is not None
    finally:
        for path in sorted(run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.rmdir()
