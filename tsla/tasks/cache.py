"""A folder on disk per key: built once, by one process, and either complete or absent."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from filelock import FileLock

_BUILDS: ContextVar[bool] = ContextVar("builds", default=True)
KEY_FILE = "key.json"  # written last, so that a folder that has it is complete


class NotBuilt(Exception):
    """A folder that is not there, where none is to be built."""


@contextmanager
def only_built() -> Iterator[None]:
    """In which `cached` takes what there is, and raises `NotBuilt` for what there is not."""
    token = _BUILDS.set(False)
    try:
        yield
    finally:
        _BUILDS.reset(token)


def cached(root: Path, task: str, key: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """The finished folder `root/task/<first 12 hex digits of the key's sha256>`, built if it is not there yet.

    `key` is plain JSON data and says everything that the content depends on, with a version of the code that
    makes it. `build(folder)` fills an empty folder; whatever it raises is passed on, and what it wrote is removed.
    Processes and threads that ask for the same key at the same time wait for the first one and share its folder.
    """
    if task in ("", "..") or task != Path(task).name:
        raise ValueError(f"task ({task!r}) must be a plain folder name")
    canonical = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    folder = Path(root) / task / hashlib.sha256(canonical.encode()).hexdigest()[:12]
    if not _complete(folder):  # a finished folder may lie on a read-only disk: no lock is taken for it
        if not _BUILDS.get():
            raise NotBuilt(str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _complete(folder):
                _build(folder, key, build)
    return folder


def _complete(folder: Path) -> bool:
    return (folder / KEY_FILE).is_file()


def _build(folder: Path, key: Mapping[str, object], build: Callable[[Path], None]) -> None:
    """Builds beside `folder` and renames into place. The caller holds the lock, so what lies here is abandoned."""
    partial = folder.with_suffix(".partial")
    for abandoned in (partial, folder):
        if abandoned.exists():
            shutil.rmtree(abandoned)
    partial.mkdir()
    try:
        with no_progress_bars():
            build(partial)
        (partial / KEY_FILE).write_text(json.dumps(key, sort_keys=True, indent=2) + "\n")
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        os.replace(partial, folder)
    except BaseException:  # a KeyboardInterrupt leaves as little behind as an error
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush(folder.parent)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars of `datasets`, which would tear up a run's own."""
    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _flush(path: Path) -> None:
    """Asks the disk for it: a rename may otherwise survive a power cut that the content does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
