"""Where rows of a task may come from, by whose rules they are made, and which of them are taken."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download
from numpy.typing import NDArray

from tsla.tasks.packages import Unavailable

SOURCES = ("offline", "lra", "hub")
PROTOCOLS = ("default", "lra", "s4")
LRA_HUB = "OpenNLPLab/lra"  # on the Hub, files of Long Range Arena


def split_limits(train_rows: int | None, eval_rows: int | None) -> dict[str, int | None]:
    """How many rows each split has at most; None takes all.

    Raises:
        ValueError: a number below 1.
    """
    for name, rows in (("train_rows", train_rows), ("eval_rows", eval_rows)):
        if rows is not None and rows < 1:
            raise ValueError(f"{name} ({rows}) must be at least 1, or None for all")
    return {"train": train_rows, "val": eval_rows, "test": eval_rows}


def stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change of each of a user's files, for the key of what is made of them."""
    found = {str(file.resolve()): file.stat() for file in files}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in found.items()}


def check_source(source: str, path: object, *, seed: int, protocol: str = "default", stands_in: bool = True) -> None:
    """Raise ValueError unless the options that such tasks share go together.

    stands_in: what is made offline are other data, which have no protocol.
    """
    if source not in SOURCES:
        raise ValueError(f"source ({source!r}) must be one of {', '.join(SOURCES)}")
    if (path is None) == (source == "lra"):
        raise ValueError(f"path ({path}) must be given for source=lra, and for no other: source is {source}")
    if seed < 0:
        raise ValueError(f"seed ({seed}) must be at least 0")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol ({protocol!r}) must be one of {', '.join(PROTOCOLS)}")
    if protocol != "default" and source == "offline" and stands_in:
        raise ValueError(f"protocol ({protocol!r}) must be 'default' for source=offline, whose data are others")


def first_rows(count: int, limit: int | None, *seed: int) -> NDArray[np.int64]:
    """The first `limit` of `count` rows in an order that `seed` fixes, so that fewer are always among more."""
    return np.random.default_rng(seed).permutation(count)[:limit]


def fetch_files(hub_id: str, revision: str | None, names: Mapping[str, str], scratch: Path) -> dict[str, Path]:
    """Files of a data set of the Hub by the names they have there in any of its folders, fetched into `scratch`.

    Raises:
        Unavailable: the Hub does not give them.
    """
    # The files themselves and not load_dataset, whose CSV reader takes quotes and carriage returns for its own.
    try:
        root = snapshot_download(
            hub_id, repo_type="dataset", revision=revision, allow_patterns=[f"*{name}" for name in names.values()],
            local_dir=scratch,
        )  # fmt: skip
    except Exception as error:  # of the Hub, the network or the data set: to the reader, it cannot be had
        raise refused(hub_id, error) from None
    found = {split: sorted(Path(root).rglob(name)) for split, name in names.items()}
    for split, files in found.items():
        if len(files) != 1:
            raise Unavailable(f"{hub_id} must hold {names[split]} once, in any folder, got {len(files)}")
    return {split: files[0] for split, files in found.items()}


def refused(hub_id: str, error: Exception) -> Unavailable:
    """The error to raise where the Hub does not give a data set, with the first line of why."""
    told = (str(error).splitlines() or [""])[0] or type(error).__name__
    return Unavailable(f"the Hub does not give {hub_id} ({told})")
