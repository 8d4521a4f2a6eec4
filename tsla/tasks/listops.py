"""The ListOps task: generated to Long Range Arena's definition, or read from the files of its release.

The expressions themselves (token table, distribution, evaluator) are in `listops_grammar`.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tsla.tasks.base import IGNORE, SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.dumps import END as DUMP_END
from tsla.tasks.dumps import Dump, check_count, dictionary, dump_rows, find_dump
from tsla.tasks.expected import Statistic
from tsla.tasks.listops_grammar import (
    CLOSER,
    DIGIT,
    NAMES,
    OPENER,
    OPERATOR_PROBABILITY,
    TOKENS,
    TREES,
    Grammar,
    Row,
    closings,
    evaluate,
    shard,
    to_text,
)
from tsla.tasks.listops_references import reference_lines
from tsla.tasks.listops_statistics import ROWS, statistics
from tsla.tasks.packages import Unavailable
from tsla.tasks.sources import LRA_HUB, check_source, fetch_files, first_rows, split_limits, stamps
from tsla.tasks.store import Columns, describe, load_split, read_manifest, save_split, write_manifest

Ids = NDArray[np.uint8]

__all__ = ["ListOps", "evaluate", "to_text"]

VERSION = 4  # of rows, files and reference lines: raised with any change to them, so that no stale folder is read
PATIENCE, PROGRESS = 256, 16  # in so many shards (262144 trees) at least so many new rows must turn up
SYMBOLS = {token: index for index, token in enumerate(TOKENS) if index >= DIGIT}  # what a row is made of
END = TOKENS.index("<eos>")
FILES = {split: f"basic_{split}.tsv" for split in SPLITS}
ALL = {"train": 96_000, "val": 2_000, "test": 2_000}  # rows of the release
TEST_ROWS = {"listops_short": 10_000}  # of short rows, which cost little, more are generated
SUPERVISIONS = ("root", "dense")
LENGTHS = {"lra": 2_000, "s4": 2_048}  # tokens that a protocol's models are built for
WAYS = ("Three ways to ListOps: source=lra path=FOLDER, where the folder is an unpacked lra_release; source=hub, with "
        "a network; source=offline, which generates it")  # fmt: skip
LAYOUTS = ("", "lra_release/lra_release/listops-1000", "lra_release/listops-1000", "listops-1000")


class ListOps:
    """Ten-way classification of nested list expressions by their value; satisfies `Task`.

    Generated: distinct rows with `min_length < length < max_length`, `max_depth` levels of nodes (the deepest are
    digits), 2 to `max_args` arguments per operator. The same settings and `seed` give the same rows on every machine
    and for every number of `workers`. Read: those of `basic_{train,val,test}.tsv`, in their order; the generator's
    settings are not looked at. Either is done on first use, into a folder under `cache_dir`.

    Args:
        name: ``listops``, or of other lengths.
        min_length, max_length, max_depth, max_args: of the generator.
        train_rows, eval_rows: of the training split, and of each of the others. None: all of the files; of generated
            rows as many as the release has, and 10,000 to test ``listops_short``.
        seed: of the generator, or of which rows of the files are taken.
        source: ``"offline"``, generated; ``"lra"``, the files in `path`; ``"hub"``.
        path: the folder for ``lra``, or the one in which the unpacked release has it; or a dump of lines of numbers
            with its dictionary, see `tsla.tasks.dumps`.
        hub_id, hub_revision: a data set of the Hub that holds the files.
        supervision: ``"root"``, a class for each row, its value; or ``"dense"``, a class at every closing bracket, the
            value of what it closes, the last of which is the row's. The spec's name then ends in ``dense``: figures
            with such help do not stand beside others.
        easier: more training rows, generated within other bounds, for a model to begin with, whatever the source: each
            ``min_length/max_length/max_depth/rows``, such as ``20/100/5/24000``. None of them is in another split.
            Rows to train then have a column `stage`: 1 of the first entry, and so on to those of the task itself.
        protocol: of ``listops``. With ``"default"`` a model is built for the longest row there is. Others build it for
            a published length and refuse files that have not as many rows as the release: ``"lra"``, 2000 tokens;
            ``"s4"``, 2048, and every row ends in an end token.
        cache_dir: where rows are kept.
        workers: threads that generate; None: one per core.

    Raises:
        ValueError: options that do not go together, settings that cannot be met.
        FileNotFoundError: no such files at `path`.
    """

    def __init__(
        self, *, name: str = "listops", min_length: int = 500, max_length: int = 2000, max_depth: int = 10,
        max_args: int = 10, train_rows: int | None = None, eval_rows: int | None = None, seed: int = 0,
        source: str = "offline", path: Path | str | None = None, hub_id: str = LRA_HUB,
        hub_revision: str | None = None, supervision: str = "root", easier: Sequence[str] = (),
        protocol: str = "default",
        cache_dir: Path | str = Path("data"), workers: int | None = None,
    ) -> None:  # fmt: skip
        check_source(source, path, seed=seed, protocol=protocol, stands_in=False)
        if name != "listops" and (protocol != "default" or source != "offline"):
            raise ValueError(f"name ({name!r}) must be listops for source={source} and protocol={protocol}")
        if supervision not in SUPERVISIONS:
            raise ValueError(f"supervision ({supervision!r}) must be one of {', '.join(SUPERVISIONS)}")
        self.name, self.seed, self.source, self.protocol = name, seed, source, protocol
        self.dense = supervision == "dense"
        self.grammar = Grammar(min_length, max_length, max_depth, max_args)
        self.easier = [_easier(text, max_args) for text in easier]
        self.limits = split_limits(train_rows, eval_rows)
        self.dump = None if path is None else find_dump(Path(path).expanduser(), "", allow_pickle=False)
        self.files = None if path is None or self.dump else _files(Path(path).expanduser())
        self.hub_id, self.hub_revision = hub_id, hub_revision
        self.cache_dir = Path(cache_dir)
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        if source == "offline":
            self.grammar.check()
        bounds = [*[self.grammar] * (source == "offline"), *(one for one, _ in self.easier)]
        if len({*bounds}) < len(bounds):  # they would be the same rows, in the same order
            raise ValueError(
                f"easier ({', '.join(easier)}) must have bounds that differ from each other and the task's"
            )
        if self.workers < 1:
            raise ValueError(f"workers ({self.workers}) must be at least 1, or None for one per core")

    @property
    def rows(self) -> dict[str, int]:
        """How many to generate of each split."""
        usual = ALL | {"test": TEST_ROWS.get(self.name, ALL["test"])}
        return {split: usual[split] if limit is None else limit for split, limit in self.limits.items()}

    @property
    def spec(self) -> TaskSpec:
        longest = max(self.manifest["length"]["max"], LENGTHS.get(self.protocol, 0))
        return TaskSpec(
            name=f"{self.name}_dense" if self.dense else self.name, inputs="listops", outputs=10, max_length=longest,
            target="tokens" if self.dense else "class", vocab_size=len(TOKENS), final=self.dense,
            end=END if self.protocol == "s4" else 0,
        )  # fmt: skip

    def split(self, name: str) -> Dataset:
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        return dict(self.manifest["references"])

    def statistics(self) -> list[Statistic]:
        """What some thousand training rows are like, beside what they should be."""
        own = self.manifest["rows"]["train"] - sum(rows for _, rows in self.easier)  # which come first
        data = self.split("train")[: min(ROWS, own)]
        labels = data["label"]
        if self.dense:  # the row's own is that of its last bracket
            labels = [[label for label in row if label != IGNORE][-1] for row in labels]
        rows = [(bytes(ids), label) for ids, label in zip(data["input_ids"], labels, strict=True)]
        return statistics(rows, self.grammar, self.manifest.get("acceptance"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: row counts, label histograms, lengths, acceptance, references, build time."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        match self.source:
            case "offline":
                source: dict[str, object] = {**self.grammar._asdict(), "rows": self.rows, "seed": self.seed}
            case "lra":
                source = {"files": stamps(self.files.values())} if self.files else {}
                source |= {} if self.dump is None else self.dump.key
            case _:
                source = {"hub": [self.hub_id, self.hub_revision]}
        if self.source != "offline":
            source |= {"rows": self.limits, "seed": self.seed, "protocol": self.protocol}
        elif self.protocol == "s4":
            source["end"] = END
        if self.dense:
            source["supervision"] = "dense"
        if self.easier:
            source["stages"] = [[*grammar, rows] for grammar, rows in self.easier]
        return cached(self.cache_dir, self.name, {"version": VERSION, **source}, self._build)

    def _build(self, folder: Path) -> None:
        started = time.perf_counter()
        manifest: dict[str, object] = {"task": self.name}
        if self.source == "offline":
            total = sum(self.rows.values())
            asked = f"train_rows and twice eval_rows ({total})"
            rows, manifest["acceptance"] = _generate(self.grammar, self.seed, total, self.workers, asked)
            order = np.argsort(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(0,))).random_raw(len(rows)))
            shuffled = (rows[index] for index in order)
            splits = {split: list(itertools.islice(shuffled, count)) for split, count in self.rows.items()}
        else:
            splits = self._read(folder / "fetched")
            if self.dump is not None:
                manifest["layout"] = self.dump.layout
        manifest["references"] = reference_lines(splits["train"], splits["test"])
        own = len(splits["train"])
        splits["train"] = [*splits["train"], *self._easier_rows({*splits["val"], *splits["test"]})]
        end, lengths, labels = bytes([END] * (self.protocol == "s4")), {}, {}
        for split, rows in splits.items():
            tokens = [np.frombuffer(tokens + end, np.uint8) for tokens, _ in rows]
            roots = np.array([label for _, label in rows])
            targets = _dense(tokens) if self.dense else _roots(tokens, roots)
            if split == "train" and self.easier:
                targets = {**targets, "stage": self._stages(own, targets["depth"])}
            save_split(folder, split, [{"input_ids": tokens, **targets}])
            lengths[split] = np.array([len(row) for row in tokens])
            scored = np.concatenate(targets["label"]) if self.dense else roots
            labels[split] = scored[scored != IGNORE].astype(np.int64)
        manifest |= describe(lengths, labels, 10)
        manifest["seconds"] = round(time.perf_counter() - started, 2)
        write_manifest(folder, manifest)

    def _easier_rows(self, held: set[Row]) -> Iterator[Row]:
        """Those of `easier`, but for any that is among the rows held back."""
        for grammar, count in self.easier:
            met = {row for row in held if grammar.min_length < len(row[0]) < grammar.max_length}
            asked = f"rows of easier, and such of validation and test ({count} and {len(met)})"
            found, _ = _generate(grammar, self.seed, count + len(met), self.workers, asked)
            yield from itertools.islice((row for row in found if row not in met), count)

    def _stages(self, own: int, depths: list[NDArray[Any]] | NDArray[Any]) -> list[NDArray[Any]] | NDArray[Any]:
        """The stage of each training row, `own` of which are not of `easier`; or of each of its sub-trees."""
        counts = [own, *(count for _, count in self.easier)]
        stages = np.repeat([len(counts), *range(1, len(counts))], counts)
        if isinstance(depths, np.ndarray):
            return stages
        return [np.full_like(depth, stage) for depth, stage in zip(depths, stages, strict=True)]

    def _read(self, scratch: Path) -> dict[str, list[Row]]:
        """The rows of the files, or of each split those that `first_rows` takes, in their order."""
        files: Mapping[str, Path] = self.files or {}
        if self.source == "hub":
            try:
                files = fetch_files(self.hub_id, self.hub_revision, FILES, scratch)
            except Unavailable as error:
                raise Unavailable(f"{error}. {WAYS}") from None
        found = {}
        for place, split in enumerate(SPLITS):
            rows = _read(files[split]) if self.dump is None else _read_dump(self.dump, split)
            if self.protocol != "default" and len(rows) != ALL[split]:  # a dump has them always
                raise ValueError(f"{files[split]} must have the {ALL[split]} rows of the release for "
                                 f"protocol={self.protocol}, got {len(rows)}")  # fmt: skip
            found[split] = [rows[at] for at in sorted(first_rows(len(rows), self.limits[split], self.seed, place))]
        shutil.rmtree(scratch, ignore_errors=True)
        return found


def _easier(text: str, max_args: int) -> tuple[Grammar, int]:
    """The bounds and the number of rows that an entry of `easier` stands for."""
    parts = text.split("/")
    if len(parts) != 4 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"easier ({text!r}) must have the form min_length/max_length/max_depth/rows")
    low, high, depth, rows = map(int, parts)
    grammar = Grammar(low, high, depth, max_args)
    try:
        grammar.check()
    except ValueError as error:
        raise ValueError(f"easier ({text!r}): {error}") from None
    return grammar, rows


def _roots(rows: Sequence[Ids], labels: NDArray[np.int64]) -> Columns:
    """A label for each row; as slices its depth, operators on the longest way down, and the operator of its root."""
    steps = [(row >= OPENER).astype(np.int64) - 2 * (row == CLOSER) for row in rows]
    depths = np.array([step.cumsum().max() for step in steps])
    return {"label": labels, "depth": depths, "operator": NAMES[[row[0] for row in rows]]}


def _dense(rows: Sequence[Ids]) -> Columns:
    """A label for each token, `IGNORE` but at closing brackets; as slices depth and operator of what each closes."""
    targets, depths, operators = [], [], []
    for row in rows:
        found = closings(row[row != END].tolist())
        targets.append(np.full(len(row), IGNORE, np.int32))
        targets[-1][[one.position for one in found]] = [one.value for one in found]
        depths.append(np.array([one.depth for one in found], np.int32))
        operators.append(NAMES[[one.operator for one in found]])
    return {"label": targets, "depth": depths, "operator": operators}


def _generate(grammar: Grammar, seed: int, total: int, workers: int, asked: str) -> tuple[list[Row], float]:
    """The first `total` distinct rows in the order of the shards, and the share of trees that were accepted.

    That share counts the trees with a lone digit for a root, too, which are never drawn (see `shard`).
    """
    rows: dict[bytes, int] = {}
    accepted = seen = 0
    for count, found in enumerate(_shards(grammar, seed, workers), 1):
        rows.update(found)
        accepted += len(found)
        if len(rows) >= total:
            return list(itertools.islice(rows.items(), total)), OPERATOR_PROBABILITY * accepted / (count * TREES)
        if count % PATIENCE == 0:
            if len(rows) < seen + PROGRESS:
                break
            seen = len(rows)
    raise ValueError(
        f"{asked} must be at most what these bounds yield, {len(rows)} distinct"
        f" rows in {count * TREES} trees: {', '.join(f'{name} {value}' for name, value in grammar._asdict().items())}"
    )


def _shards(grammar: Grammar, seed: int, workers: int) -> Iterator[list[Row]]:
    """Shard after shard, `workers` at a time.

    Threads are enough, because the work is inside numpy; unlike processes they need nothing of the calling script.
    """
    with ThreadPoolExecutor(workers) as pool:
        for first in itertools.count(0, workers):
            yield from pool.map(partial(shard, grammar, seed), range(first, first + workers))


def _files(path: Path) -> dict[str, Path]:
    """The three files of a ListOps directory; of two copies in the release the nested one, which is the right one."""
    names = ", ".join(FILES.values())
    for folder in (path / layout for layout in LAYOUTS):
        missing = [name for name in FILES.values() if not (folder / name).is_file()]
        if not missing:
            return {split: folder / name for split, name in FILES.items()}
        if len(missing) < len(FILES):
            raise FileNotFoundError(f"{folder} must hold {names}; it lacks {', '.join(missing)}")
    told = ""
    if (path / "listops.train.pickle").is_file():
        told = "; it cannot be read from pickles, which do not hold what their numbers stand for"
    raise FileNotFoundError(f"path ({path}) must hold {names}, itself or in {', '.join(LAYOUTS[1:])}{told}")


def _read(file: Path) -> list[Row]:
    """The rows of a TSV file, whose lines end in CRLF or LF. Errors name the file and the line."""
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        header = next(lines, "").rstrip("\r\n")
        if header != "Source\tTarget":
            raise ValueError(f"{file}, line 1: the header ({header!r}) must be 'Source\\tTarget'")
        rows = [_parse(line.rstrip("\r\n"), f"{file}, line {number}") for number, line in enumerate(lines, 2)]
    if not rows:
        raise ValueError(f"{file}: 0 rows after the header; at least 1 is needed")
    return rows


def _parse(line: str, place: str) -> Row:
    """A row from `( ( ( [MAX 4 ) 7 ) ] )<TAB>7`; the round brackets only say how others made the tree binary."""
    source, _, target = line.partition("\t")
    pieces = source.replace("(", " ").replace(")", " ").split()
    try:
        tokens = bytes([SYMBOLS[piece] for piece in pieces])
    except KeyError as error:
        raise ValueError(f"{place}: token ({error.args[0]!r}) must be one of {' '.join(SYMBOLS)} ( )") from None
    if target not in TOKENS[DIGIT:OPENER]:
        raise ValueError(f"{place}: Target ({target!r}) must be a digit 0-9")
    if not _is_expression(tokens):
        raise ValueError(f"{place}: Source must be one operator with its arguments and every bracket closed")
    return tokens, int(target)


def _read_dump(dump: Dump, split: str) -> list[Row]:
    """The rows of a dump; round brackets and what ends a row are left out, and X is a closing bracket, too."""
    symbols = dictionary(dump)
    known = {number: SYMBOLS.get("]" if symbol == "X" else symbol) for number, symbol in symbols.items()}
    known |= {number: 0 for number, symbol in symbols.items() if symbol in ("(", ")")} | {DUMP_END: 0}
    rows = []
    for row in dump_rows(dump, split):
        tokens = [known.get(number) for number in row.inputs[0].tolist()]
        if None in tokens:
            number = int(row.inputs[0][tokens.index(None)])
            raise ValueError(f"{row.place}: {number} ({symbols.get(number, 'not in dict.txt')}) must stand for one of "
                             f"{' '.join(SYMBOLS)} ( )")  # fmt: skip
        made = bytes(token for token in tokens if token)
        if not 0 <= row.label <= 9 or not _is_expression(made):
            raise ValueError(f"{row.place}: must be one operator with its arguments and every bracket closed, and its "
                             f"class ({row.label}) a digit 0-9")  # fmt: skip
        rows.append((made, row.label))
    check_count(dump, split, len(rows), ALL[split])
    return rows


def _is_expression(tokens: bytes) -> bool:
    ids = np.frombuffer(tokens, np.uint8)
    step = (ids >= OPENER).astype(np.int64) - 2 * (ids == CLOSER)
    depth = np.cumsum(step)
    empty = (step[:-1] > 0) & (step[1:] < 0)
    return bool(ids.size > 1 and depth[-1] == 0 and (depth[:-1] > 0).all() and not empty.any())
