"""The folder of a run: what lies where, and the facts about machine and code that its result names."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import torch


class RunDir(NamedTuple):
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        """The whole config, written before anything else."""
        return self.path / "config.yaml"

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
        FileExistsError: if `path` holds something: a run is never overwritten.
    """
    if path is None:
        made = Path("runs") / experiment / f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"
    else:
        made = Path(path)
        if made.exists() and (not made.is_dir() or any(made.iterdir())):
            raise FileExistsError(f"run_dir ({made}) exists: give another, or go on with it by resume={made}")
    made.mkdir(parents=True, exist_ok=True)
    return RunDir(made)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write `data` so that the file is whole or absent."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=2) + "\n")
    os.replace(part, path)


def provenance() -> dict[str, Any]:
    """Command, code, versions and host of this process, for result.json."""
    names = ("tsla", "torch", "lightning", "datasets", "numpy")
    return {
        "command": shlex.join(["tsla", *sys.argv[1:]]),
        "git_sha": _git_sha(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def peak_memory_bytes() -> int:
    """Most memory this process has held: on the GPU if torch uses one, else resident."""
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
