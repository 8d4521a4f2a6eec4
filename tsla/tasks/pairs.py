"""Pairs of documents and whether they belong together: those of AAN as released, or halves of documents at hand.

AAN, the papers of the ACL Anthology Network, is Retrieval of Long Range Arena: label 1 where one paper cites the other.
"""

import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from tsla.tasks.dumps import Dump, check_count, dump_bytes, dump_rows
from tsla.tasks.packages import Unavailable
from tsla.tasks.sources import first_rows
from tsla.tasks.text_sources import read_tables

AAN_FILES = {"train": "new_aan_pairs.train.tsv", "val": "new_aan_pairs.eval.tsv", "test": "new_aan_pairs.test.tsv"}
AAN_ROWS = {"train": 147_086, "val": 18_090, "test": 17_437}
AAN_FOLDERS = ("", "tsv_data", "lra_release/lra_release/tsv_data", "lra_release/tsv_data", "aan", "AAN")
LEAST_BYTES = 1024  # of a document that is halved
VAL_FRACTION = 0.1  # of documents that train
TEST_FRACTION = 0.2  # of documents that come in one split
NO_MODULES = {"test", "tests", "idle_test", "site-packages", "dist-packages"}  # folders


class Pair(NamedTuple):
    """Two documents, and 1 if they belong together, else 0."""

    label: int
    first: bytes
    second: bytes


# --- AAN --------------------------------------------------------------------------------------------------------------


def aan_files(path: Path) -> dict[str, Path]:
    """The file of each split in `path` or a place below it; of two copies in the release the nested one.

    Raises:
        FileNotFoundError: some or all are missing.
    """
    for folder in (path / name for name in AAN_FOLDERS):
        files = {split: folder / name for split, name in AAN_FILES.items()}
        missing = [file.name for file in files.values() if not file.is_file()]
        if not missing:
            return files
        if len(missing) < len(files):
            raise FileNotFoundError(
                f"{folder} must hold {', '.join(AAN_FILES.values())}; it lacks {', '.join(missing)}"
            )
    raise FileNotFoundError(
        f"path ({path}) must hold {', '.join(AAN_FILES.values())}, itself or in {', '.join(AAN_FOLDERS[1:])}"
    )


def read_aan(file: Path, split: str, limit: int | None, *seed: int) -> Iterator[Pair]:
    """The rows of a file, line by line, in its order; of `limit` rows those that `first_rows` takes.

    A line has five cells between tabs, without quoting: label, two ids, two texts. It ends in LF or CRLF; a carriage
    return or anything else that others take for the end of a line belongs to the text.

    Raises:
        ValueError: a line of another form, with its place, or another number of lines than the release has.
    """
    wanted = np.zeros(AAN_ROWS[split], bool)
    wanted[first_rows(len(wanted), limit, *seed)] = True
    count = 0
    with file.open("rb") as lines:
        for count, line in enumerate(lines, 1):
            if count <= len(wanted) and wanted[count - 1]:
                yield _parse_aan(line, f"{file}, line {count}")
    if count != len(wanted):
        raise ValueError(f"{file} must have the {len(wanted)} lines of the release, got {count}")


def read_aan_dump(dump: Dump, split: str, limit: int | None, *seed: int) -> Iterator[Pair]:
    """As `read_aan`, of a dump.

    Raises:
        ValueError: what is no row of two texts, or another number of them than the release has.
    """
    wanted = {*first_rows(AAN_ROWS[split], limit, *seed).tolist()}
    count = 0
    for count, row in enumerate(dump_rows(dump, split), 1):
        if count - 1 in wanted:
            texts = dump_bytes(row)
            if len(texts) != 2 or row.label not in (0, 1):
                raise ValueError(f"{row.place}: must have input_ids_0, input_ids_1 and a label of 0 or 1")
            yield Pair(row.label, *texts)
    check_count(dump, split, count, AAN_ROWS[split])


def _parse_aan(line: bytes, place: str) -> Pair:
    cells = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t")
    if len(cells) != 5:
        told = ": these are the ids alone, without texts" if len(cells) == 3 else ""
        raise ValueError(f"{place}: must be label, two ids and two texts between tabs, got {len(cells)} cells{told}")
    try:
        label = float(cells[0])
    except ValueError:
        label = -1
    if label not in (0, 1):
        raise ValueError(f"{place}: label ({cells[0].decode(errors='replace')!r}) must be 0 or 1")
    return Pair(int(label), cells[3], cells[4])


# --- halves -----------------------------------------------------------------------------------------------------------


def documents(cache_dir: Path, seed: int) -> tuple[str, dict[str, list[bytes]]]:
    """Different documents of at least `LEAST_BYTES`, by split, and what they are.

    They are ``"newsgroups"``, posts of 20 Newsgroups with the test split as published, or, where that cannot be had,
    ``"stdlib"``: the modules of this Python's standard library.
    """
    try:
        corpus = read_tables("newsgroups", cache_dir)
        name, rest, test = "newsgroups", _distinct(corpus.train.texts), _distinct(corpus.test.texts)
        rest = sorted(set(rest) - set(test))
    except Unavailable:
        name, rest = "stdlib", _distinct(_modules(Path(sysconfig.get_path("stdlib"))))
        rest, test = train_test_split(rest, test_size=TEST_FRACTION, random_state=seed)
    train, val = train_test_split(rest, test_size=VAL_FRACTION, random_state=seed)
    return name, {"train": train, "val": val, "test": test}


def halves(found: list[bytes], seed: Iterable[int]) -> list[Pair]:
    """Two pairs of each document: its halves, label 1, and its first half with the second of another, label 0.

    Every half stands in one pair of each label, so that it tells nothing by itself. A document is cut at the first
    space or end of a line after its middle. The pairs are in random order.
    """
    random = np.random.default_rng([*seed])
    cut = [_halve(text) for text in found]
    ring = random.permutation(len(cut))  # in which each document takes its successor's second half
    pairs = [Pair(1, first, second) for first, second in cut]
    pairs += [Pair(0, cut[at][0], cut[after][1]) for at, after in zip(ring, np.roll(ring, -1), strict=True)]
    return [pairs[at] for at in random.permutation(len(pairs))]


def _halve(text: bytes) -> tuple[bytes, bytes]:
    space = re.compile(rb"\s").search(text, len(text) // 2)
    middle = space.start() if space else len(text) // 2
    return text[:middle], text[middle:].lstrip()


def _distinct(texts: Iterable[bytes]) -> list[bytes]:
    """Texts that are long enough, each once, in an order that does not depend on where they lay."""
    return sorted({text for text in texts if len(text) >= LEAST_BYTES})


def _modules(root: Path) -> list[bytes]:
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if name not in NO_MODULES]  # which are then not walked
        found += [(Path(folder) / name).read_bytes().strip() for name in files if name.endswith(".py")]
    return found
