"""Every task that keeps rows on disk, tiny: how it is asked for, a change of an option, and a file of the user's.

As a program, it makes the rows of the task that each line of its input names, says what it does, and waits to be told
to go on before it builds; see tests/tasks/test_every_task_on_disk.py.
"""

import hashlib
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import task_options
import text_cases
from dump_cases import COUNTS, images_of, write_lines
from task_options import (
    CIFAR,
    COPY,
    DNA,
    FILES,
    GREY,
    IMAGE,
    INDUCTION,
    LISTS,
    MQAR,
    PAPERS,
    PATHFINDER,
    REVIEWS,
    ROWS,
    SERIES,
)

from tsla import build
from tsla.config import compose
from tsla.tasks import cache
from tsla.tasks.base import SPLITS, Task


class Case(NamedTuple):
    """How to ask for a task.

    arguments: of the command line.
    change: of an option of the task.
    file, other: one of the user's files, and what is put in its place; empty where the task reads none.
    """

    arguments: tuple[str, ...]
    change: str
    file: str = ""
    other: str = ""


CASES = {
    **{name: Case((f"task={name}", *ROWS[1:], *bounds), "task.seed=1") for name, bounds in {
        "listops": (), "listops_medium": (), "listops_short": (),
    }.items()},
    "listops, own": Case((*LISTS, "task.path=listops"), "task.path=listops_other", "listops/basic_val.tsv",
                         "listops_other/basic_val.tsv"),
    "mqar": Case(MQAR, "task.power=1"),
    "mqar_mix": Case(("task=mqar_mix", *MQAR[1:]), "task.seed=1"),
    "image": Case((*IMAGE, "task.eval_rows=2"), "task.order=snake"),
    "image, own": Case((*CIFAR, "task.eval_rows=2"), "task.protocol=s4", "cifar/test_batch.bin",
                       "cifar_other/test_batch.bin"),
    "image, dump": Case((*IMAGE, "task.source=lra", "task.path=dump", "task.eval_rows=2", "task.train_rows=20"),
                        "task.kind=series", "dump/label/test.label", "dump_other/label/test.label"),
    "fashion": Case(GREY, "task.kind=series"),
    "smnist": Case(("task=smnist", "task.path=idx"), "task.seed=1", "idx/train-images-idx3-ubyte.gz",
                   "idx_other/train-images-idx3-ubyte.gz"),
    "pathfinder": Case(PATHFINDER, "task.contour=6"),
    "pathfinder_64": Case(("task=pathfinder_64", *PATHFINDER[1:]), "task.kind=series"),
    "pathx": Case(("task=pathx", "task.train_rows=1", "task.eval_rows=1"), "task.seed=1"),
    "pathfinder, own": Case((*PATHFINDER, "task.source=lra", "task.path=dump"), "task.train_rows=5",
                            "dump/input/train.src", "dump_other/input/train.src"),
    "induction": Case(INDUCTION, "task.vocab_size=20"),
    "selective_copy": Case(COPY, "task.seed=1"),
    "series": Case(SERIES, "task.val_fraction=0.4", "tiny_TRAIN.ts", "other_TRAIN.ts"),
    "dna_strand": Case(DNA, "task.length=24", "genome.gbk", "other.gbk"),
    "text": Case(("task=text",), "task.max_length=50"),
    "text, own": Case(
        ("task=text", *REVIEWS), "task.protocol=lra", "aclImdb/test/pos/0_0.txt", "other/test/pos/0_0.txt"),
    "r8": Case(("task=r8",), "task.train_rows=20"),
    "retrieval": Case(("task=retrieval",), "task.seed=1"),
    "retrieval, own": Case(("task=retrieval", *PAPERS), "task.max_length=50", "aan/new_aan_pairs.test.tsv",
                           "other_aan/new_aan_pairs.test.tsv"),
    "files": Case(FILES, "task.max_length=5", "own.jsonl", "other.jsonl"),
}  # fmt: skip


def write(patch: pytest.MonkeyPatch) -> None:
    """All files, in the folder of the moment, and what stands in for packages and for counts of what is published."""
    task_options.write_own_files()
    task_options.write_images(patch)
    task_options.write_texts()
    stand_in(patch)
    for folder, values in (("listops", "4 9"), ("listops_other", "4 8")):
        Path(folder).mkdir()
        row = f"( ( ( [MAX {values.split()[0]} ) {values.split()[1]} ) ] )\t{values.split()[1]}\r\n"
        for split in SPLITS:
            Path(folder, f"basic_{split}.tsv").write_text(f"Source\tTarget\r\n{row * 3}", newline="")
    for seed, folder in enumerate(("dump", "dump_other")):
        write_lines(images_of(seed=seed), Path(folder))
    shutil.copytree("idx", "idx_other")
    task_options.image_cases.write_idx(Path("idx_other"), seed=2)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """As if packages and published files were those that `write` has written."""
    text_cases.small(patch)
    patch.setattr("tsla.tasks.image_sources.ROOT", Path.cwd())
    patch.setattr("tsla.tasks.cifar.BATCH_ROWS", task_options.image_cases.BATCH)
    patch.setattr("tsla.tasks.image_sources.DUMP_ROWS", COUNTS)


def made(*arguments: str) -> Task:
    """The task, with its rows in the folder `data` of the moment."""
    return build.build_task(compose([*arguments, "model.pool=mean", "data_dir=data"]))


def digest(task: Task) -> str:
    """Of all rows and the spec."""
    rows = [task.split(split).to_list() for split in SPLITS]
    return hashlib.sha256(repr((task.spec, rows)).encode()).hexdigest()


def main() -> None:
    """Speak with the test, a line at a time: a name of `CASES` comes in, `asking`, `building` and a digest go out."""

    def say(text: str) -> None:
        print(text, flush=True)

    make, lock = cache._build, cache.FileLock

    def locked(path: Path) -> object:
        say("asking")  # and not before it was looked whether the rows are there
        return lock(path)

    def waiting(*arguments: object) -> None:
        say("building")
        assert sys.stdin.readline() == "go\n"
        make(*arguments)  # type: ignore[arg-type]

    stand_in(pytest.MonkeyPatch())
    cache.FileLock, cache._build = locked, waiting  # type: ignore[assignment,misc]
    say("ready")
    for line in sys.stdin:
        say(digest(made(*CASES[line.strip()].arguments)))


if __name__ == "__main__":
    main()
