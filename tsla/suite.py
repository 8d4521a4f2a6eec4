"""Running a suite: every cell in a process and a folder of its own, finished ones skipped, killed ones gone on with."""

import csv
import io
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from tsla.config import Config, ConfigError, read
from tsla.config.compose import differing
from tsla.config.grid import Cell
from tsla.config.options import as_argument
from tsla.evaluation.runs import find_runs
from tsla.training.run_dir import has_trained, is_finished, write_text
from tsla.training.terminal import PLAIN, clock_time


def run_suite(
    suite: dict[str, Any], cells: Sequence[Cell], out: Path, *, jobs: int, estimate: bool, console: Console
) -> int:
    """Train all cells that have no result yet, `jobs` at a time, and write the results; returns the exit status.

    Of several cells at a time none shows its progress, and each has its share of the cores. A cell that fails does not
    keep the others from running; a signal ends the suite, and the same command goes on.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError([f"out ({out}) must be a folder"])
    _check_folders(cells, out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "suite.yaml", OmegaConf.to_yaml(OmegaConf.create({**suite, "out": str(out)})))
    left = [cell for cell in cells if not _finished(out, cell)]
    seconds = _estimate(left, console) if estimate and left else {}
    console.print(_plan(cells, left, seconds))
    in_all = f", about {clock_time(sum(seconds.values()))} in all" if seconds and jobs == 1 else ""
    console.print(f"{len(left)} of {len(cells)} cells to train{in_all}", highlight=False)
    for cell, status, stopped in _trained(left, out, jobs, console):
        if stopped:
            console.print(f"stopped; go on with: tsla suite {out}{f' jobs={jobs}' * (jobs > 1)}", **PLAIN)
            return 128 + stopped
        if status == 128 + signal.SIGKILL:
            console.print(f"{cell.name} was killed: by something that runs short of memory?", style="red", **PLAIN)
    table = results(cells, out)
    write_text(out / "results.csv", _as_csv(table))
    console.print(_as_table(table))
    console.print(f"results {out / 'results.csv'}   figures and pages: tsla report {out}", **PLAIN)
    failed = [cell.name for cell in left if not _finished(out, cell)]  # by now: another suite may have trained some
    for name in failed:
        console.print(f"failed: {out / name}, see its log.txt", style="red", **PLAIN)
    return 1 if failed else 0


def results(cells: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """A row for each group with mean and spread over its seeds, in falling order of score within a task.

    What depends on the hour (seconds, speed) is left to the report, so that the same cells give the same rows.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if _finished(out, cell) and (result := find_runs([out / cell.name])[0].result):
            groups.setdefault(cell.group, []).append(result)
    rows = []
    for name, found in groups.items():
        first = found[0]
        scores = [result["metrics"][f"test/{first['monitor']}"] for result in found]
        rows.append({
            "group": name, "task": first["task"], "mixer": first["mixer"], "score": f"test/{first['monitor']}",
            "seeds": len(scores), "mean": statistics.mean(scores),
            "std": statistics.stdev(scores) if len(scores) > 1 else None, "min": min(scores), "max": max(scores),
            "params": first["params"], "state_bytes": first["state_bytes"],
            "steps": statistics.mean(result["steps"] for result in found),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["task"], -row["mean"], row["group"]))


def _finished(out: Path, cell: Cell) -> bool:
    return is_finished(out / cell.name)


def _check_folders(cells: Sequence[Cell], out: Path) -> None:
    """Raise ConfigError if a cell's folder holds a run of other options, whose result would be taken for the cell's."""
    problems = []
    for cell in cells:
        if has_trained(out / cell.name):
            found = read(out / cell.name / "config.yaml")
            problems += [
                f"{out / cell.name} holds a run of other options: {told}" for told in differing(cell.config, found)
            ]
    if problems:
        raise ConfigError([*problems[:5], f"give another out ({out}) for these options"])


def _estimate(cells: Sequence[Cell], console: Console) -> dict[str, float]:
    """Seconds of each cell, from a few steps of each group's first in a process that then gives back its memory.

    Raises:
        ConfigError: cells that do not even take those steps, with why: better told now than after hours.
    """
    seconds: dict[str, float] = {}
    problems = []
    began, set_up = time.perf_counter(), 0.0  # a cell's process has to start and read its data as the first here has
    by_group: dict[str, float] = {}  # cells of a group differ in their seeds only
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for cell in cells:
            if cell.group not in by_group:
                by_group[cell.group] = 0.0
                try:
                    with console.status(f"estimating {cell.group}"):
                        by_group[cell.group] = pool.submit(_seconds_of, cell.config).result()
                except (ValueError, OSError, RuntimeError) as error:
                    problems.append(f"{cell.group}: {error}")
                set_up = set_up or time.perf_counter() - began
            seconds[cell.name] = by_group[cell.group] + set_up
    if problems:
        raise ConfigError(problems)
    return seconds


def _seconds_of(config: Config) -> float:
    """Runs in another process: this one has no use for torch."""
    from tsla.dry_run import measure

    return measure(config).seconds


def _trained(cells: Sequence[Cell], out: Path, jobs: int, console: Console) -> Iterator[tuple[Cell, int, int | None]]:
    """Each cell as its `tsla train` ends, with the exit status, and the signal that ended it if one was meant to.

    A signal that comes here, or ends one of several, goes to all that run; then the last of them is told.
    """
    waiting = list(enumerate(cells, 1))
    with _passed_on() as (running, received, pass_on):
        while running or (waiting and not received):
            while waiting and len(running) < jobs and not received:
                number, cell = waiting.pop(0)
                told = f"{cell.name}  ({number} of {len(cells)})"
                if jobs == 1:
                    console.rule(told)
                else:
                    console.print(f"{datetime.now():%H:%M:%S}  {told}", **PLAIN)
                process = _start(cell, out / cell.name, jobs)
                running[process] = cell
                for signum in received:  # while it was being started
                    process.send_signal(signum)
            ended = next((process for process in running if process.poll() is not None), None)
            if ended is None:
                time.sleep(0.05)
                continue
            cell, status = running.pop(ended), ended.returncode
            status = status if status >= 0 else 128 - status
            if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) and not received:
                pass_on(status - 128, None)
            if not received:
                yield cell, status, None
            elif not running:
                yield cell, status, received[0]


def _start(cell: Cell, folder: Path, jobs: int) -> "subprocess.Popen[bytes]":
    """`tsla train` of a cell, in a process of its own; of several at a time in silence, and on a share of the cores."""
    command = [sys.executable, "-m", "tsla.cli", "train", *cell.arguments, as_argument("run_dir", str(folder)),
               "resume=auto"]  # fmt: skip
    if jobs == 1:
        return subprocess.Popen(command)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
    return subprocess.Popen(command, env=share | os.environ, stdout=subprocess.DEVNULL)


@contextmanager
def _passed_on() -> Iterator[tuple[dict["subprocess.Popen[bytes]", Cell], list[int], Callable[[int, Any], None]]]:
    """What runs; the signals that came; and what is done with one: it goes on to all that run, and is kept.

    From a terminal they come to a process twice, which takes them for one.
    """
    running: dict[subprocess.Popen[bytes], Cell] = {}
    received: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        for process in running:
            process.send_signal(signum)

    earlier = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield running, received, pass_on
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def _plan(cells: Sequence[Cell], left: Sequence[Cell], seconds: dict[str, float]) -> Table:
    table = Table("cell", "state")
    if seconds:
        table.add_column("estimate", justify="right")
    waiting = {cell.name for cell in left}
    for cell in cells:
        state = "to train" if cell.name in waiting else "finished"
        estimated = [clock_time(seconds[cell.name]) if cell.name in seconds else ""] if seconds else []
        table.add_row(cell.name, state, *estimated, style=None if cell.name in waiting else "dim")
    return table


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["group"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _as_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("task", "group")
    for heading in ("score", "mean", "± std", "seeds"):
        table.add_column(heading, justify="left" if heading == "score" else "right")
    for row in rows:
        std = "" if row["std"] is None else f"{row['std']:.3f}"
        table.add_row(row["task"], row["group"], row["score"], f"{row['mean']:.3f}", std, str(row["seeds"]))
    return table
