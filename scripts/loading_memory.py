"""Memory that reading Path-X at its full size takes: rows of random pixels, written anew, and batches in random order.

python scripts/loading_memory.py [rows [batches]]

The rows, 5 GB of them, are in a temporary folder (TMPDIR says where) and are read by a process of their own. Pages of
the file that are mapped into memory are counted apart: the system takes them back when memory is wanted.
"""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tsla.tasks.base import TaskSpec
from tsla.tasks.loading import LengthBatches, Loader, Rows
from tsla.tasks.store import load_split, save_split

PIXELS, PART, BATCH_ROWS = 128 * 128, 64, 16
SPEC = TaskSpec("pathx", "tokens", "class", outputs=2, max_length=PIXELS, vocab_size=257)


def write(folder: Path, rows: int) -> None:
    """A training split as the task writes it, a few rows at a time."""
    random = np.random.default_rng(0)
    save_split(folder, "train", (
        {"input_ids": list(random.integers(1, 257, (count, PIXELS), dtype=np.uint16)), "label": np.arange(count) % 2}
        for count in (min(PART, rows - first) for first in range(0, rows, PART))
    ))  # fmt: skip


def read(folder: Path, batches: int) -> None:
    """One pass of the training loader, or as many batches of it, and what this process then holds."""
    rows = Rows(load_split(folder, "train"), SPEC)
    loader = Loader(rows, LengthBatches(rows.padded, BATCH_ROWS * PIXELS, seed=0))
    tokens = sum(int(batch.mask.sum()) for batch in islice(loader, batches))
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    held = {name: int(status[name].split()[0]) >> 10 for name in ("RssAnon", "RssFile", "VmHWM")}
    print(f"{tokens // PIXELS:,} of {len(rows):,} rows in batches of {BATCH_ROWS}: {held['RssAnon']:,} MiB of its own, "
          f"{held['RssFile']:,} MiB of mapped files, {held['VmHWM']:,} MiB of both at the peak")  # fmt: skip


def main() -> None:
    rows, batches = (int(given) for given in (*sys.argv[1:], *("160000", "3000")[len(sys.argv) - 1 :]))
    with TemporaryDirectory(prefix="tsla-pathx-") as folder:
        write(Path(folder), rows)
        print(f"{Path(folder, 'train.arrow').stat().st_size / 1e9:.1f} GB on disk", flush=True)
        subprocess.run([sys.executable, __file__, "read", folder, str(batches)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:
        read(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
