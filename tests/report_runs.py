"""Run directories as a training leaves them, written without one: what a report is made of."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsla.training.run_dir import write_json

NASTY = '<script>alert(1)</script>|`a``b`$\\frac$ \u202e\x1b[31m\x00\n# *x* [y](http://z) &amp; "q" \'=1 \ud800'
VERSIONS = {"python": "3.11.7", "tsla": "0.1.0", "torch": "2.13.0"}
HOST = {"system": "Linux", "processor": "a processor", "cores": 2, "threads": 1, "gpu": None}


def config(task: str, mixer: str, seed: int, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """A config as nested data, with `options` by their dotted keys."""
    data: dict[str, Any] = {
        "task": {"name": task, "seed": 0}, "mixer": {"name": mixer, "heads": 2, "impl": None}, "optim": {"lr": 0.001},
        "model": {"name": "encoder", "dim": 16, "depth": 2, "causal": False, "layers": []}, "logger": {"name": "csv"},
        "trainer": {"max_steps": 40}, "experiment": task, "seed": seed, "run_dir": str(path), "data_dir": "data",
    }  # fmt: skip
    for key, value in options.items():
        group, _, name = key.rpartition(".")
        (data.setdefault(group, {}) if group else data)[name] = value
    return data


def result(task: str, mixer: str, seed: int, score: float, monitor: str) -> dict[str, Any]:
    """What stands in result.json."""
    return {
        "task": task, "mixer": mixer, "experiment": task, "seed": seed, "params": 12345, "monitor": monitor,
        "metrics": {f"test/{monitor}": score, "test/loss": 0.5, f"val/{monitor}": score - 0.01},
        "slices": {
            "length": [{"value": value, "items": 5, "score": score - at / 10} for at, value in enumerate("ab")],
            "pairs": [{"value": "4", "items": 10, "score": score}],
        },
        "references": {"majority": 0.1, "linear": 0.95}, "best_step": 30, "steps": 40, "seconds": 60.0 + seed,
        "train_tokens_per_second": 1000.0 + seed, "flops_per_token": 5.0, "state_bytes": 2048,
        "peak_memory_bytes": 2**20 * (100 + seed), "command": f"tsla train experiment={task} seed={seed}",
        "git_sha": "8a9068e3c856d704+", "versions": VERSIONS, "host": HOST,
    }  # fmt: skip


def write(
    path: Path, task: str = "digits", mixer: str = "taylor", seed: int = 0, score: float = 0.9,
    monitor: str = "accuracy", options: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None,
    finished: bool = True, steps: int = 40,
) -> Path:  # fmt: skip
    """A run directory; `options` are those of its config, `changes` replace parts of its result."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(json.dumps(config(task, mixer, seed, path, options or {})))  # JSON is YAML
    with (path / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "epoch", "train/loss", "perf/tokens_per_second", "val/loss", f"val/{monitor}"])
        for step in range(10, steps + 1, 10):
            share = 1 - math.exp(-step / 15)
            rows.writerow([step, 0, 2.3 - share, 1000, "", ""])
            rows.writerow([step, 0, "", "", 2.4 - share, score * share])
    if finished:
        whole = {**result(task, mixer, seed, score, monitor), **(changes or {})}
        write_json(path / "result.json", whole)
    return path


def with_confusion(path: Path, names: str = "abc") -> Path:
    """The run at `path`, with a confusion matrix of 9 right and 1 wrong item of each class."""
    with (path / "confusion.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["true class \\ predicted class", *names])
        for at, name in enumerate(names):
            rows.writerow(
                [name, *(9 if at == other else (other == (at + 1) % len(names)) * 1 for other in range(len(names)))]
            )
    return path
