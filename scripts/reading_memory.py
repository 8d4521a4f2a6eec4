"""Memory that `tsla data prepare` takes where a task of Long Range Arena is read from its files, at their full size.

python scripts/reading_memory.py TASK [option=value ...]

The files, of random content, are written anew into a temporary folder (TMPDIR says where) and read by a process of its
own; with source=offline it generates its rows. What is told is memory that it shares with no file (RssAnon).
"""

import re
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tsla.tasks.base import SPLITS
from tsla.tasks.cifar import BATCH_ROWS, PARTS
from tsla.tasks.listops import ALL, FILES, ListOps, to_text
from tsla.tasks.pairs import AAN_FILES, AAN_ROWS
from tsla.tasks.pathfinder import SIZES
from tsla.tasks.text_sources import IMDB_NAMES, IMDB_ROWS

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", np.uint8)  # words, of four on average
BYTES = {"retrieval": (4_000, 8_000), "text": (600, 2_000)}  # of a document
IMAGES, BATCH, PICTURES = 200_000, 10_000, 20  # of Pathfinder: all, in a folder, different ones
LISTOPS_COPIES = 100  # of each row
ALL_OF_IT = {  # what experiments of these names leave out
    "retrieval": ["max_length=4000"],
    "text": ["max_length=4096"],
    "pathfinder": ["contour=14", "train_rows=null", "eval_rows=null"],
    "pathx": ["train_rows=null", "eval_rows=null"],
}


def texts(task: str, seed: int, count: int) -> list[bytes]:
    random = np.random.default_rng(seed)
    lengths = random.integers(*BYTES[task], count)
    letters = LETTERS[random.integers(0, len(LETTERS), lengths.sum(), dtype=np.uint8)]
    return [part.tobytes() for part in np.split(letters, np.cumsum(lengths)[:-1])]


def write(task: str, folder: Path) -> None:
    """The files of a task as its release has them."""
    match task:
        case "listops":
            _write_listops(folder)
        case "text":
            for place, split in enumerate(("train", "test")):
                for at, text in enumerate(texts(task, place, IMDB_ROWS)):
                    file = folder / split / IMDB_NAMES[at % 2] / f"{at}.txt"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(text)
        case "retrieval":
            for place, split in enumerate(SPLITS):
                with (folder / AAN_FILES[split]).open("wb") as file:
                    for at in range(AAN_ROWS[split]):
                        first, second = texts(task, at * len(SPLITS) + place, 2)
                        file.write(b"%d.0\tP\tQ\t%b\t%b\n" % (at % 2, first, second))
        case "image":
            random = np.random.default_rng(0)
            for name in (*PARTS["train"], *PARTS["test"]):
                records = random.integers(0, 256, (BATCH_ROWS, 3073), dtype=np.uint8)
                records[:, 0] = np.arange(BATCH_ROWS) % 10
                records.tofile(folder / f"{name}.bin")
        case _:
            _write_pathfinder(folder, SIZES[task])


def _write_listops(folder: Path) -> None:
    rows = {"train_rows": ALL["train"] // LISTOPS_COPIES, "eval_rows": ALL["val"] // LISTOPS_COPIES}
    task = ListOps(**rows, cache_dir=folder)
    for split, name in FILES.items():
        lines = [f"{to_text(row['input_ids'])}\t{row['label']}\n" for row in task.split(split)]
        (folder / name).write_text("Source\tTarget\n" + "".join(lines) * LISTOPS_COPIES)


def _write_pathfinder(folder: Path, side: int) -> None:
    random = np.random.default_rng(0)
    pictures = [_png(random.integers(0, 2, (side, side), dtype=np.uint8) * np.uint8(255)) for _ in range(PICTURES)]
    (folder / "metadata").mkdir()
    for batch in range(IMAGES // BATCH):
        (folder / "imgs" / str(batch)).mkdir(parents=True)
        for at in range(BATCH):
            (folder / "imgs" / str(batch) / f"sample_{at}.png").write_bytes(pictures[at % PICTURES])
        lines = (f"imgs/{batch} sample_{at}.png {at} {at % 2} 1.0 14 4 2 0.5 1 1\n" for at in range(BATCH))
        (folder / "metadata" / f"{batch}.npy").write_text("".join(lines))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def measure(command: list[str]) -> tuple[int, float]:
    """The most memory of its own, in MiB, that a process had, and its seconds."""
    started, most = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            if found := re.search(r"RssAnon:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text()):
                most = max(most, int(found[1]) >> 10)
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    return most, time.perf_counter() - started


def main() -> None:
    task, options = sys.argv[1], sys.argv[2:]
    with TemporaryDirectory(prefix="tsla-reading-") as name:
        folder = Path(name, "given")
        folder.mkdir()
        if "source=offline" not in options:
            write(task, folder)
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            print(f"{size / 1e6:,.0f} MB of files", flush=True)
            options = ["source=lra", f"path={folder}", *options]
        options = [*ALL_OF_IT.get(task, ()), *options, f"data_dir={name}/rows"]
        command = [sys.executable, "-m", "tsla.cli", "data", "prepare", task, *options]
        most, seconds = measure(command)
        print(f"{task}: {most:,} MiB at the peak, {seconds:.0f} s")


if __name__ == "__main__":
    main()
