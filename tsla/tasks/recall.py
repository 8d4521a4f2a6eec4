"""Small tasks of recall, generated: induction heads and selective copying, tested on rows of any length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tsla.tasks.base import IGNORE, SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.store import Columns, describe, load_split, read_manifest, save_split, write_manifest

VERSION = 1  # of rows and reference lines: raised with any change to them
BLOCK = 4096  # rows drawn at a time
LARGEST = 2**16 - 1  # ids, with that of padding, are uint16 at most

Array = NDArray[np.int64]
Segments = Mapping[str, list[tuple[int, ...]]]


class Drawn(NamedTuple):
    """Rows of one kind: raw tokens and targets ``(rows, n)``, and slices, a column of them for the rows each."""

    tokens: Array
    targets: Array
    slices: dict[str, Array]


Draw = Callable[[tuple[int, ...], int, np.random.Generator], Drawn]  # of a segment and a number of rows


class Induction:
    """Induction heads: what followed the special token, asked for when it comes again. Satisfies `Task`.

    Of v = `vocab_size` raw tokens the last is special. A row is of the others, drawn evenly, but for two places: one
    drawn evenly, where the special token stands and x after it, and the last, where it stands again and x is the
    target, the only one. As ids raw tokens are one higher, since 0 is padding here. Columns beside `input_ids` and
    `label`: `length` of the row, and `gap`, the tokens between the two special ones.

    Args:
        name: of the task.
        vocab_size: v.
        train, val, test: segments as ``length/rows``.
        seed: of the rows.
        cache_dir: where they are kept.

    Raises:
        ValueError: segments that cannot be made, or a vocabulary without tokens to tell apart.
    """

    def __init__(
        self, *, name: str = "induction", vocab_size: int = 16, train: Sequence[str], val: Sequence[str],
        test: Sequence[str], seed: int = 0, cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        _check(vocab_size, seed)
        self.name, self.vocab_size, self.seed, self.cache_dir = name, vocab_size, seed, Path(cache_dir)
        self.segments = parse_segments({"train": train, "val": val, "test": test}, ("length", "rows"))
        for length, _ in (segment for segments in self.segments.values() for segment in segments):
            if length < 3:
                raise ValueError(f"length ({length}) must be at least 3: the special token, what follows, and it again")

    @property
    def spec(self) -> TaskSpec:
        return _spec(self.name, self.vocab_size, max(s[0] for segments in self.segments.values() for s in segments))

    def split(self, name: str) -> Dataset:
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Accuracy of a guess, and of the token that the row has most of."""
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: row counts, how often each token is the target, lengths, references."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        key = {"version": VERSION, "vocab_size": self.vocab_size, "seed": self.seed, "segments": self.segments}
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        right = total = 0

        def draw(segment: tuple[int, ...], rows: int, random: np.random.Generator) -> Drawn:
            return draw_induction(segment[0], rows, self.vocab_size, random)

        for drawn in _parts("test", self.segments["test"], self.seed, draw):
            commonest = np.stack([(drawn.tokens == t).sum(1) for t in range(self.vocab_size - 1)], axis=1).argmax(1)
            right, total = right + int((commonest == drawn.targets[:, -1]).sum()), total + len(commonest)
        lines = {"any token": 1 / (self.vocab_size - 1), "commonest token of the row": right / total}
        _write(folder, self.segments, self.seed, draw, self.vocab_size, lines)


class SelectiveCopy:
    """Selective copying (arXiv 2312.00752): the tokens that are not noise, in their order. Satisfies `Task`.

    Of v = `vocab_size` raw tokens, 0 is noise, the last asks, and the others are data. A row is `length` tokens, noise
    but for `data` of them at places drawn evenly without replacement, and then `data` asking ones, of which the j-th
    has the j-th data token for a target. As ids raw tokens are one higher, since 0 is padding here. Columns beside
    `input_ids` and `label`: `length` and `data` of the row, and for each scored token `place`, its j, from 1.

    Args:
        name: of the task.
        vocab_size: v.
        train, val, test: segments as ``length/data/rows``.
        seed: of the rows.
        cache_dir: where they are kept.

    Raises:
        ValueError: segments that cannot be made, or a vocabulary without tokens to tell apart.
    """

    def __init__(
        self, *, name: str = "selective_copy", vocab_size: int = 16, train: Sequence[str], val: Sequence[str],
        test: Sequence[str], seed: int = 0, cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        _check(vocab_size, seed)
        self.name, self.vocab_size, self.seed, self.cache_dir = name, vocab_size, seed, Path(cache_dir)
        self.segments = parse_segments({"train": train, "val": val, "test": test}, ("length", "data", "rows"))
        for length, data, _ in (segment for segments in self.segments.values() for segment in segments):
            if data > length:
                raise ValueError(f"data ({data}) must be at most length ({length})")

    @property
    def spec(self) -> TaskSpec:
        longest = max(s[0] + s[1] for segments in self.segments.values() for s in segments)
        return _spec(self.name, self.vocab_size, longest)

    def split(self, name: str) -> Dataset:
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Accuracy of a guess among all data tokens, and of one among those of the row."""
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: row counts, how often each token is the target, lengths, references."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        key = {"version": VERSION, "vocab_size": self.vocab_size, "seed": self.seed, "segments": self.segments}
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        def draw(segment: tuple[int, ...], rows: int, random: np.random.Generator) -> Drawn:
            return draw_selective_copy(segment[0], segment[1], rows, self.vocab_size, random)

        any_token, test = 1 / (self.vocab_size - 2), self.segments["test"]
        own = sum(rows * (1 / data + (1 - 1 / data) * any_token) for _, data, rows in test)
        lines = {"any data token": any_token, "any data token of the row": own / sum(rows for _, _, rows in test)}
        _write(folder, self.segments, self.seed, draw, self.vocab_size, lines)


def draw_induction(length: int, rows: int, vocab_size: int, random: np.random.Generator) -> Drawn:
    """Rows of `Induction`."""
    special, every = vocab_size - 1, np.arange(rows)
    tokens = random.integers(0, special, (rows, length))
    places = random.integers(0, length - 2, rows)
    targets = np.full((rows, length), IGNORE)
    targets[:, -1] = tokens[every, places + 1]
    tokens[every, places] = tokens[:, -1] = special
    return Drawn(tokens, targets, {"length": np.full(rows, length), "gap": length - 2 - places})


def draw_selective_copy(length: int, data: int, rows: int, vocab_size: int, random: np.random.Generator) -> Drawn:
    """Rows of `SelectiveCopy`."""
    places = np.sort(np.argpartition(random.random((rows, length)), data - 1, axis=1)[:, :data], axis=1)
    given = random.integers(1, vocab_size - 1, (rows, data))
    tokens = np.zeros((rows, length + data), dtype=np.int64)
    targets = np.full((rows, length + data), IGNORE)
    np.put_along_axis(tokens, places, given, axis=1)
    tokens[:, length:], targets[:, length:] = vocab_size - 1, given
    order = np.tile(np.arange(1, data + 1), (rows, 1))
    return Drawn(tokens, targets, {"length": np.full(rows, length), "data": np.full(rows, data), "place": order})


def parse_segments(splits: Mapping[str, Sequence[str]], names: tuple[str, ...]) -> dict[str, list[tuple[int, ...]]]:
    """Segments of each split as numbers, from texts such as ``256/8/1000``.

    Raises:
        ValueError: a split without segments, or one of another form than `names` between slashes, or with a 0.
    """
    form = "/".join(names)
    found: dict[str, list[tuple[int, ...]]] = {}
    for split, segments in splits.items():
        if not segments:
            raise ValueError(f"{split} ({list(segments)}) must name at least one segment")
        for text in segments:
            parts = text.split("/")
            if len(parts) != len(names) or not all(part.isdecimal() and int(part) for part in parts):
                raise ValueError(f"segment ({text!r}) must have the form {form}, of numbers above 0")
            found.setdefault(split, []).append(tuple(map(int, parts)))
    return found


def _check(vocab_size: int, seed: int) -> None:
    if not 4 <= vocab_size <= LARGEST:
        raise ValueError(f"vocab_size ({vocab_size}) must be from 4 to {LARGEST}")
    if seed < 0:
        raise ValueError(f"seed ({seed}) must be at least 0")


def _spec(name: str, vocab_size: int, longest: int) -> TaskSpec:
    return TaskSpec(
        name=name, inputs="tokens", target="tokens", outputs=vocab_size, max_length=longest, vocab_size=vocab_size + 1
    )


def _parts(split: str, segments: Sequence[tuple[int, ...]], seed: int, draw: Draw) -> Iterator[Drawn]:
    """The rows of a split, block after block; those of a segment do not depend on the other segments."""
    for number, segment in enumerate(segments):
        random = np.random.default_rng((seed, SPLITS.index(split), number))
        for start in range(0, segment[-1], BLOCK):
            yield draw(segment, min(BLOCK, segment[-1] - start), random)


def _write(
    folder: Path, segments: Segments, seed: int, draw: Draw, vocab_size: int, references: Mapping[str, float]
) -> None:
    """All splits and the manifest."""
    lengths: dict[str, list[Array]] = {split: [] for split in SPLITS}
    labels: dict[str, list[Array]] = {split: [] for split in SPLITS}

    def columns(split: str) -> Iterator[Columns]:
        for tokens, targets, slices in _parts(split, segments[split], seed, draw):
            lengths[split].append(np.full(len(tokens), tokens.shape[1]))
            labels[split].append(targets[targets != IGNORE])
            ids = (tokens + 1).astype(np.uint8 if vocab_size < 2**8 else np.uint16)
            told = {name: values.astype(np.int32) for name, values in slices.items()}
            yield {"input_ids": list(ids), "label": list(targets.astype(np.int32)),
                   **{name: list(values) if values.ndim == 2 else values for name, values in told.items()}}  # fmt: skip

    for split in SPLITS:
        save_split(folder, split, columns(split))
    manifest = describe(
        {split: np.concatenate(found) for split, found in lengths.items()},
        {split: np.concatenate(found) for split, found in labels.items()}, vocab_size,
    )  # fmt: skip
    write_manifest(folder, {**manifest, "references": dict(sorted(references.items(), key=lambda line: line[1]))})
