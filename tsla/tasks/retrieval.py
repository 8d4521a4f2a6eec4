"""Whether two documents belong together: Retrieval of Long Range Arena (AAN), or halves of documents in its place."""

import shutil
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tsla.tasks.base import PAIRS, SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.characters import END, FIRST, PRINTABLE, character_row, vocab_size
from tsla.tasks.dumps import find_dump
from tsla.tasks.packages import Unavailable
from tsla.tasks.pairs import AAN_FILES, Pair, aan_files, documents, halves, read_aan, read_aan_dump
from tsla.tasks.sources import LRA_HUB, check_source, fetch_files, split_limits, stamps
from tsla.tasks.store import Columns, describe, load_split, read_manifest, save_split, write_manifest
from tsla.tasks.text_references import pair_lines
from tsla.tasks.text_sources import byte_row

VERSION = 1  # of rows, files and reference lines: raised with any change to them
PART = 1_000  # rows that are in memory
WAYS = ("Three ways to pairs: source=lra path=FOLDER, where the folder is an unpacked lra_release; source=hub, with a "
        "network; source=offline, halves of documents instead")  # fmt: skip


class Retrieval:
    """Which pairs of documents belong together; satisfies `Task`. A token is a byte + 1, without an end token.

    A row has the first document in `input_ids`, the second in `input_ids_2`.

    Args:
        name: of the task.
        source: ``"lra"``, the pairs of AAN in a folder of the user's; ``"hub"``; or ``"offline"``, halves of posts of
            20 Newsgroups, or of the standard library's modules where those cannot be had. The spec then has the name
            ``retrieval_newsgroups`` or ``retrieval_stdlib``. Which of the two is settled when the rows are made.
        path: the folder for ``lra``, with ``new_aan_pairs.{train,eval,test}.tsv`` in it or somewhere below, or pickles
            (see `tsla.tasks.dumps`; these are in memory as a whole, 4.8 GB to train on).
        allow_pickle: whether these may be read.
        hub_id, hub_revision: a data set of the Hub that holds these files.
        pairs: how a model compares two, see `TaskSpec`.
        protocol: of the real pairs. With ``"default"`` a model is built for the longest row; with ``"lra"`` for
            `max_length` tokens, whatever there is; with ``"s4"`` for these too, and tokens are characters, the 95
            printable ones of ASCII and one for all others, with an end token that `max_length` counts.
        max_length: longer documents lose their end.
        train_rows, eval_rows: at most so many rows of the training split, and of each of the others; None takes all.
        seed: of the pairs and splits made of halves, and of which rows are taken.
        cache_dir: where rows are kept.

    Raises:
        ValueError: options that do not go together.
        FileNotFoundError: no such files at `path`.
    """

    def __init__(
        self, *, name: str = "retrieval", source: str = "offline", path: Path | str | None = None,
        hub_id: str = LRA_HUB, hub_revision: str | None = None, pairs: str = "nli", protocol: str = "default",
        max_length: int = 4000, train_rows: int | None = None, eval_rows: int | None = None, seed: int = 0,
        allow_pickle: bool = False,
        cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        check_source(source, path, seed=seed, protocol=protocol)
        if pairs not in PAIRS[1:]:
            raise ValueError(f"pairs ({pairs!r}) must be one of {', '.join(PAIRS[1:])}")
        if max_length < 1:
            raise ValueError(f"max_length ({max_length}) must be at least 1")
        self.name, self.source, self.max_length, self.seed = name, source, max_length, seed
        self.files, self.dump = None, None
        if path is not None:
            self.dump = find_dump(Path(path).expanduser(), "retrieval", allow_pickle=allow_pickle, lines=False)
            self.files = aan_files(Path(path).expanduser()) if self.dump is None else None
        self.hub_id, self.hub_revision, self.pairs, self.protocol = hub_id, hub_revision, pairs, protocol
        self._s4 = protocol == "s4"
        self.limits = split_limits(train_rows, eval_rows)
        self.cache_dir = Path(cache_dir)

    @property
    def spec(self) -> TaskSpec:
        names = tuple(self.manifest["names"])
        spec = TaskSpec(name=self.manifest["task"], inputs="bytes", target="class", outputs=2, vocab_size=257,
                        max_length=self.manifest["length"]["max"], names=names, pairs=self.pairs)  # fmt: skip
        if self.protocol == "default":
            return spec
        spec = spec._replace(max_length=self.max_length)
        if self.protocol == "lra":
            return spec
        return spec._replace(inputs="characters", vocab_size=vocab_size(PRINTABLE), end=END, alphabet=PRINTABLE)

    def split(self, name: str) -> Dataset:
        """The rows of ``train``, ``val`` or ``test``."""
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Test accuracy of the commoner answer, and of a threshold on the cosine of tf-idf vectors."""
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: row counts, label histograms, lengths of longer documents, references, build time."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        match self.source:
            case "lra":
                source: object = stamps(self.files.values()) if self.files else self.dump and self.dump.key
            case "hub":
                source = [self.hub_id, self.hub_revision]
            case _:
                source = "halves"
        key = {"version": VERSION, "source": source, "max_length": self.max_length, "rows": self.limits,
               "seed": self.seed}  # fmt: skip
        if self._s4:
            key["tokens"] = "characters"
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        started = time.perf_counter()
        scratch = folder / "fetched"
        suffix, names, splits = self._read(scratch)
        lengths, labels = {}, {}
        for split, pairs in splits.items():
            kept: list[tuple[int, int]] = []
            save_split(folder, split, self._columns(pairs, kept))
            lengths[split], labels[split] = np.array(kept).T
        shutil.rmtree(scratch, ignore_errors=True)
        write_manifest(folder, {
            "task": self.name + suffix, "names": names,
            **({} if self.dump is None else {"layout": self.dump.layout}),
            **describe(lengths, labels, 2),
            "references": pair_lines(folder, len(labels["train"]), ord(PRINTABLE[0]) - FIRST if self._s4 else -1),
            "seconds": round(time.perf_counter() - started, 2),
        })  # fmt: skip

    def _read(self, scratch: Path) -> tuple[str, tuple[str, str], dict[str, Iterable[Pair]]]:
        """What the task's name gets for an ending, the names of the labels, and the pairs of each split."""
        if self.source == "offline":
            corpus, found = documents(self.cache_dir, self.seed)
            pairs = {s: halves(found[s], (self.seed, place)) for place, s in enumerate(SPLITS)}
            return f"_{corpus}", ("different", "same"), {s: pairs[s][: self.limits[s]] for s in SPLITS}
        if (dump := self.dump) is not None:
            pickled = {s: read_aan_dump(dump, s, self.limits[s], self.seed, place) for place, s in enumerate(SPLITS)}
            return "", ("unrelated", "cited"), {**pickled}
        try:
            files = self.files or fetch_files(self.hub_id, self.hub_revision, AAN_FILES, scratch)
        except Unavailable as error:
            raise Unavailable(f"{error}. {WAYS}") from None
        given = {s: read_aan(files[s], s, self.limits[s], self.seed, place) for place, s in enumerate(SPLITS)}
        return "", ("unrelated", "cited"), {**given}

    def _columns(self, pairs: Iterable[Pair], kept: list[tuple[int, int]]) -> Iterator[Columns]:
        """Rows, `PART` at a time; length of the longer document and label of each go to `kept`."""
        part: list[tuple[NDArray[Any], NDArray[Any], int]] = []
        for pair in pairs:
            first, second = (self._row(text) for text in (pair.first, pair.second))
            kept.append((max(len(first), len(second)), pair.label))
            part.append((first, second, pair.label))
            if len(part) == PART:
                yield _part(part)
                part = []
        if part:
            yield _part(part)

    def _row(self, text: bytes) -> NDArray[Any]:
        return character_row(text, self.max_length, PRINTABLE) if self._s4 else byte_row(text, self.max_length)


def _part(rows: list[tuple[NDArray[Any], NDArray[Any], int]]) -> Columns:
    first, second, labels = zip(*rows, strict=True)
    return {"input_ids": list(first), "input_ids_2": list(second), "label": np.array(labels)}
