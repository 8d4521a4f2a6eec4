"""What this machine is called, what its CPU can do, and where the user's caches lie. Imports no torch."""

import os
import platform
from functools import lru_cache
from pathlib import Path


def processor() -> str:
    """The processor's own name where the system tells it, else its kind."""
    return _told("model name") or platform.processor() or platform.machine() or "unknown"


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets of an x86 CPU by their Linux names, such as ``avx2``; empty where the system tells none."""
    return frozenset(_told("flags").split())


def cache_folder() -> Path:
    """``$TSLA_CACHE``; without the variable ``$XDG_CACHE_HOME/tsla``, or ``~/.cache/tsla``."""
    own = os.environ.get("TSLA_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tsla")


def _told(key: str) -> str:
    """What Linux says of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
