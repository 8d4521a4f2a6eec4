"""The folder of a run: what lies where, and the facts about machine and code that its result names.

Imports no torch until it is asked for: a suite looks at folders only.
"""

import json
import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

from tsla.machine import processor

# What a run has before it trains.
UNTRAINED = {"config.yaml", "distill.yaml", "log.txt", ".lock", "data.sha256", "pretrain"}


class RunDir(NamedTuple):
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The whole config, written before anything else."""
        return self.path / "config.yaml"

    @property
    def fingerprint(self) -> Path:
        """Of the data it was trained on, where they are not generated here."""
        return self.path / "data.sha256"

    @property
    def pretrain(self) -> "RunDir":
        """The same of its pretraining, if there is any: metrics, checkpoints, result, curve."""
        return RunDir(self.path / "pretrain")

    @property
    def metrics(self) -> Path:
        """One row every few steps."""
        return self.path / "metrics.csv"

    @property
    def result(self) -> Path:
        """Written last: a run that has it is finished."""
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        """last.ckpt, previous.ckpt and best.ckpt."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Weights of the last step, as a folder of config.json and model.safetensors."""
        return self.path / "model"

    @property
    def curves(self) -> Path:
        """The learning curve."""
        return self.path / "curves.png"

    @property
    def confusion(self) -> Path:
        """True against predicted classes, on the test split."""
        return self.path / "confusion.csv"

    @property
    def card(self) -> Path:
        """What a reader should know of the run."""
        return self.path / "README.md"

    @property
    def log(self) -> Path:
        """What was shown on the terminal, as plain text."""
        return self.path / "log.txt"


def new_run_dir(path: str | None, experiment: str) -> RunDir:
    """Create the folder of a new run: `path`, or runs/<experiment>/<date-time-id>.

    Raises:
        FileExistsError: if `path` holds something: a run is never overwritten, unless it failed before it trained.
    """
    if path is None:
        made = Path("runs") / experiment / f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"
    else:
        made = Path(path)
        if made.exists() and (not made.is_dir() or {f.name for f in made.iterdir()} - UNTRAINED or has_trained(made)):
            raise FileExistsError(f"run_dir ({made}) exists: give another, or go on with it by resume={made}")
    made.mkdir(parents=True, exist_ok=True)
    return RunDir(made)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` so that the file is whole or absent; numbers that are not finite, which JSON has not, as null."""
    write_text(path, json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is whole or absent, whatever happens."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def has_trained(run: Path) -> bool:
    """Whether anything was trained in a run directory, in whichever stage."""
    return any(run.glob("**/metrics.csv"))


def is_finished(run: Path) -> bool:
    """Whether a run directory has its result."""
    try:
        return isinstance(json.loads((run / "result.json").read_text()), dict)
    except (OSError, ValueError):  # absent, or cut short
        return False


def _finite(data: Any) -> Any:
    match data:
        case dict() | Mapping():
            return {key: _finite(value) for key, value in data.items()}
        case list() | tuple():
            return [_finite(value) for value in data]
        case float() if not math.isfinite(data):
            return None
        case _:
            return data


def provenance() -> dict[str, Any]:
    """Code, versions and host of this process, for result.json."""
    import torch

    names = ("tsla", "torch", "lightning", "datasets", "numpy")
    return {
        "git_sha": _git_sha(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def peak_memory_bytes() -> int:
    """Most memory this process has held: on the GPU if torch uses one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _git_sha() -> str | None:
    """Commit of the code that runs, `+` if files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        sha = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return sha + "+" * bool(changed)
