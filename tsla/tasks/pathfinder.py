"""Pathfinder and Path-X: do two markers stand on one snake? Images pixel by pixel, generated or read from a user's own.

How images are made is in `pathfinder_generator`, how a folder of Long Range Arena is read in `pathfinder_files`.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from tsla.compiler import NativeError
from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.dumps import Dump, DumpRow, count_rows, dump_pixels, dump_rows, find_dump
from tsla.tasks.expected import Statistic
from tsla.tasks.packages import Unavailable
from tsla.tasks.pathfinder_files import FOLDERS, find, from_hub, listing, read_hub, read_images, split_rows, state
from tsla.tasks.pathfinder_generator import Generator, check_scene
from tsla.tasks.pathfinder_statistics import ROWS, distances, statistics
from tsla.tasks.sources import check_source
from tsla.tasks.store import Columns, describe, load_split, read_manifest, save_split, write_manifest

VERSION = 2  # of rows, files and reference lines: raised with any change to them
SIZES = {"pathfinder": 32, "pathfinder_64": 64, "pathx": 128}  # pixels a side
ALL = {"train": 160_000, "val": 20_000, "test": 20_000}  # rows, generated or in the release
KINDS = ("tokens", "series")
GREYS = 256
PART = 2**20  # pixels in memory at a time
LINEAR_ROWS, LINEAR_PIXELS = 5000, 2**23  # of the linear classifier, at most
S4_GREY = (0.0, 255.0)  # mean and deviation by which S4 standardises: grey values from 0 to 1
WAYS = ("Three ways to the images: source=lra path=FOLDER, where the folder is an unpacked lra_release; source=hub "
        "hub_id=NAME, with a network; source=offline, which generates them")  # fmt: skip
PENALTY = 50.0  # of its squared weights, for pixels from 0 to 1


class Pathfinder:
    """Two classes of images, 1 where the markers are on the ends of one snake; satisfies `Task`.

    ``source="offline"`` generates them, with the numbers of Long Range Arena: the same options and `seed` give the same
    rows for every number of `workers`. ``source="lra"`` reads `path`, a folder of the release, and ``source="hub"`` the
    columns image and label of a data set. All is done on first use, into a folder under `cache_dir`.

    Args:
        name: one of `SIZES`, which says how large images are. The spec's name adds what is not as in the release:
            the contour if it is not 14, and ``generated``, or ``own`` where there is another number of images.
        contour: paddles of a snake: 6, 9 or 14, in larger images than 32 x 32 always 14. Of a data set of the Hub,
            which does not say it, it is believed.
        kind: ``"tokens"``, grey value + 1, or ``"series"``, grey values as numbers.
        seed: of generated rows.
        train_rows, eval_rows: of the training split, and of each of the others: the first ones; None is all.
        easier: more training rows for a model to begin with, generated whatever the source is: each
            ``contour/clutter/rows``, such as ``3/0/20000``, where clutter is the paddles of all distractors together
            (20 in 32 x 32 pixels). Rows to train then have a column `stage`: 1 of the first entry, and so on to those
            of the task itself.
        source, path, hub_id, hub_revision: see above. The folder may also be a dump (`tsla.tasks.dumps`), whose split
            is given.
        allow_pickle: whether the dump may be one of pickles.
        protocol: of images that are read. ``"default"`` splits them as S4 does, which most published figures have;
            ``"lra"`` takes the first 80, the next 10 and the last 10 percent. ``"s4"`` is for ``kind="series"``: the
            split of the default, and grey values from 0 to 1, where others are standardised by the training rows.
        cache_dir: where rows are kept.
        workers: threads that generate; None: one per core.

    Raises:
        ValueError: options that do not fit together.
        FileNotFoundError: `path` holds no such images.
    """

    def __init__(
        self,
        *,
        name: str,
        contour: int = 14,
        kind: str = "tokens",
        seed: int = 0,
        train_rows: int | None = None,
        eval_rows: int | None = None,
        easier: Sequence[str] = (),
        source: str = "offline",
        path: Path | str | None = None,
        hub_id: str | None = None,
        hub_revision: str | None = None,
        allow_pickle: bool = False,
        protocol: str = "default",
        cache_dir: Path | str = Path("data"),
        workers: int | None = None,
    ) -> None:
        for option, value, allowed in (("name", name, SIZES), ("kind", kind, KINDS)):
            if value not in allowed:
                raise ValueError(f"{option} ({value!r}) must be one of {', '.join(allowed)}")
        self.name, self.contour, self.kind, self.seed, self.size = name, contour, kind, seed, SIZES[name]
        self.easier = [_easier(text) for text in easier]
        self.rows = {"train": train_rows, "val": eval_rows, "test": eval_rows}
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        self.cache_dir = Path(cache_dir)
        self.source, self.protocol, self.hub_id, self.hub_revision = source, protocol, hub_id, hub_revision
        self._check(path)
        self.dump = None if path is None else self._dump(Path(path), allow_pickle)
        self.files = None if path is None or self.dump else find(Path(path), self.size, contour)

    def _check(self, path: Path | str | None) -> None:
        check_scene(self.size, self.contour)
        check_source(self.source, path, seed=self.seed, protocol=self.protocol)
        if (self.source == "hub") != (self.hub_id is not None):
            raise ValueError(f"hub_id ({self.hub_id}) must be given for source=hub, and for no other")
        if self.seed and self.source != "offline":
            raise ValueError(f"seed ({self.seed}) must be 0 for source={self.source}, whose split is fixed")
        if self.protocol == "s4" and self.kind != "series":
            raise ValueError("protocol ('s4') needs kind=series: of tokens it is the default")
        for split, option in (("train", "train_rows"), ("val", "eval_rows")):
            rows = self.rows[split]
            if rows is not None and not 1 <= rows <= ALL[split]:
                raise ValueError(f"{option} ({rows}) must be from 1 to {ALL[split]}, or None for all")
        for easy in self.easier:
            check_scene(self.size, easy.contour, easy.clutter)
        if self.workers < 1:
            raise ValueError(f"workers ({self.workers}) must be at least 1, or None for one per core")

    def _dump(self, path: Path, allow_pickle: bool) -> Dump | None:
        stem = f"pathfinder{self.size}-{FOLDERS[self.contour]}"
        found = find_dump(path, stem, allow_pickle=allow_pickle)
        if found is not None and found.layout == "mega" and self.contour != 14:
            raise ValueError(f"contour ({self.contour}) must be 14 for the dump of mega in path ({path})")
        if found is not None and self.protocol == "lra":
            raise ValueError(f"protocol ('lra') must be another for the dump in path ({path}), whose split is given")
        return found

    @property
    def spec(self) -> TaskSpec:
        series = self.kind == "series"
        return TaskSpec(
            name="_".join(self._names()), inputs=self.kind, target="class", outputs=2, max_length=self.size**2,
            vocab_size=None if series else GREYS + 1, channels=1 if series else None, image=(self.size, self.size),
            input_mean=(self.manifest["mean"],) if series else (), input_std=(self.manifest["std"],) if series else (),
        )  # fmt: skip

    def _names(self) -> Iterator[str]:
        yield self.name
        if self.contour != 14:
            yield str(self.contour)
        if self.source == "offline":
            yield "generated"
        elif self.manifest["images"] != sum(ALL.values()):
            yield "own"

    def split(self, name: str) -> Dataset:
        """The rows of ``train``, ``val`` or ``test``: `input_ids`, or `values` of a series, and `label`."""
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Test accuracy of the commonest class, and of two rules fitted to a few thousand images.

        These are a limit to the distance of the markers, and a linear classifier on the pixels.
        """
        return dict(self.manifest["references"])

    def statistics(self) -> list[Statistic]:
        """What some of the training images are like, beside what they should be."""
        series = self.kind == "series"
        own = self.manifest["rows"]["train"] - sum(easy.rows for easy in self.easier)  # which are the first ones
        data = self.split("train").with_format("numpy")[: min(ROWS, LINEAR_PIXELS // self.size**2, own)]
        pixels = np.stack(data["values" if series else "input_ids"]) - (0 if series else 1)
        images = pixels.astype(np.uint8).reshape(-1, self.size, self.size)
        return statistics(images, data["label"], self.contour, self.manifest.get("tries_per_image"))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: counts, label histograms, grey values, references, build time; where from."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        source: dict[str, object] = {"seed": self.seed}
        if self.files is not None:
            source = {"path": str(self.files.resolve()), "files": state(self.files)}
        if self.dump is not None:
            source = {**self.dump.key}
        if self.source == "hub":
            source = {"hub": [self.hub_id, self.hub_revision]}
        if self.protocol != "default":
            source["protocol"] = self.protocol
        key = {"version": VERSION, "contour": self.contour, "kind": self.kind, "rows": self.rows, **source}
        if self.easier:
            key["stages"] = self.easier
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        started = time.perf_counter()
        source = self._generated() if self.source == "offline" else self._given(folder / "fetched")
        rows = {split: self._rows(split, source.available[split]) for split in SPLITS}
        seen = {split: _Seen(LINEAR_PIXELS // self.size**2) for split in SPLITS}
        easier = _Seen(0)
        for split in SPLITS:
            parts = self._parts(source, split, rows[split], seen[split])
            if split == "train" and self.easier:
                parts = self._staged(parts, easier)
            save_split(folder, split, parts)
        labels = {split: np.concatenate(seen[split].labels) for split in SPLITS}
        labels["train"] = np.concatenate([labels["train"], *easier.labels])
        lengths = {split: np.full(len(labels[split]), self.size**2) for split in SPLITS}
        shutil.rmtree(folder / "fetched", ignore_errors=True)
        mean, std = S4_GREY if self.protocol == "s4" else seen["train"].grey()
        manifest = {"task": self.name, "contour": self.contour, **source.facts(), **describe(lengths, labels, 2)}
        manifest |= {"mean": mean, "std": std, "references": _references(seen["train"], seen["test"])}
        write_manifest(folder, manifest | {"seconds": round(time.perf_counter() - started, 2)})

    def _rows(self, split: str, available: int) -> int:
        asked = self.rows[split]
        if asked is not None and asked > available:
            option = "train_rows" if split == "train" else "eval_rows"
            raise ValueError(f"{option} ({asked}) must be at most the rows of the {split} split, {available}")
        return available if asked is None else asked

    def _generated(self) -> "_Generated":
        try:
            generators = {
                split: Generator(self.size, self.contour, (self.seed, place)) for place, split in enumerate(SPLITS)
            }
        except NativeError as error:
            raise NativeError(f"{self.name} is generated by native code, and there is none: {error}. Install a C++ "
                              "compiler (CXX names one), or read images of your own: task.source=lra task.path=FOLDER"
                              ) from None  # fmt: skip
        return _Generated(generators, self.workers)

    def _given(self, scratch: Path) -> "_Read | _Dumped":
        if self.dump is not None:
            return _Dumped(self.dump, self.size)
        if self.files is not None:
            found = listing(self.files, self.contour)
            rows = split_rows(len(found.files), self.protocol)
            facts = {"source": str(found.folder), "images": len(found.files) + found.empty, "empty": found.empty}
            return _Read(lambda chosen: (read_images(found, chosen, self.size), found.labels[chosen]), rows, facts)
        assert self.hub_id is not None
        try:
            data = from_hub(self.hub_id, self.hub_revision, scratch)
        except Unavailable as error:
            raise Unavailable(f"{error}. {WAYS}") from None
        labels, facts = np.array(data["label"][:], np.uint8), {"source": self.hub_id, "images": len(data)}
        return _Read(lambda chosen: (read_hub(data, chosen, self.size), labels[chosen]),
                     split_rows(len(data), self.protocol), facts)  # fmt: skip

    def _staged(self, own: Iterator[Columns], seen: "_Seen") -> Iterator[Columns]:
        """Parts of the training split with their stage: its own, then the easier ones."""
        made = [Generator(self.size, easy.contour, (self.seed, 0), easy.clutter) for easy in self.easier]
        for part in own:
            yield {**part, "stage": np.full(len(part["label"]), len(made) + 1)}
        for stage, (easy, generator) in enumerate(zip(self.easier, made, strict=True), 1):
            for part in self._parts(_Generated({"train": generator}, self.workers), "train", easy.rows, seen):
                yield {**part, "stage": np.full(len(part["label"]), stage)}

    def _parts(self, source: "_Source", split: str, rows: int, seen: "_Seen") -> Iterator[Columns]:
        step = max(1, PART // self.size**2)
        for first in range(0, rows, step):
            pixels, labels = source.read(split, first, min(step, rows - first))
            flat = pixels.reshape(len(pixels), -1)
            seen.add(flat, labels)
            column = (
                {"values": list(flat)} if self.kind == "series" else {"input_ids": list(flat.astype(np.uint16) + 1)}
            )
            yield {**column, "label": labels.astype(np.int64)}


class _Easier(NamedTuple):
    """An entry of `easier`."""

    contour: int
    clutter: int
    rows: int


def _easier(text: str) -> _Easier:
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts) or not int(parts[2]):
        raise ValueError(f"easier ({text!r}) must have the form contour/clutter/rows, such as 3/0/20000")
    return _Easier(*map(int, parts))


Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (n, size, size), and their labels
Rows = NDArray[np.int64]  # of which the places are meant


class _Generated:
    """Images made as they are asked for."""

    def __init__(self, generators: Mapping[str, Generator], workers: int) -> None:
        self.generators, self.workers, self.available = generators, workers, ALL
        self.tries = self.made = 0

    def read(self, split: str, first: int, count: int) -> Part:
        images = self.generators[split].make(first, count, self.workers)
        self.tries += int(images.tries.sum())
        self.made += count
        return images.pixels, images.labels

    def facts(self) -> dict[str, Any]:
        return {"source": "offline", "images": self.made, "tries_per_image": round(self.tries / self.made, 1)}


class _Read:
    """Images that lie somewhere: `take` reads some of them."""

    def __init__(self, take: Callable[[Rows], Part], rows: Mapping[str, Rows], facts: dict[str, Any]) -> None:
        self.take, self.rows, self.found = take, rows, facts
        self.available = {split: len(own) for split, own in rows.items()}

    def read(self, split: str, first: int, count: int) -> Part:
        return self.take(self.rows[split][first : first + count])

    def facts(self) -> dict[str, Any]:
        return self.found


class _Dumped:
    """Images of a dump, of which each split is read once, from its first row on."""

    def __init__(self, dump: Dump, size: int) -> None:
        self.dump, self.size = dump, size
        self.available = {split: count_rows(dump, split) for split in SPLITS}
        self.rows = {split: dump_rows(dump, split) for split in SPLITS}

    def read(self, split: str, first: int, count: int) -> Part:
        rows = [*islice(self.rows[split], count)]
        return np.stack([dump_pixels(row, self.size) for row in rows]), np.array([_label(row) for row in rows])

    def facts(self) -> dict[str, Any]:
        return {"source": str(self.dump.files["train"][0].parent), "layout": self.dump.layout,
                "images": sum(self.available.values()), "empty": 0}  # fmt: skip


def _label(row: DumpRow) -> np.uint8:
    if row.label not in (0, 1):
        raise ValueError(f"{row.place}: the class ({row.label}) must be 0 or 1")
    return np.uint8(row.label)


_Source = _Generated | _Read | _Dumped


class _Seen:
    """What is kept of a split while it is written: labels, how often each grey value occurs, and the first rows."""

    def __init__(self, rows: int) -> None:
        self.labels: list[NDArray[np.uint8]] = []
        self.greys = np.zeros(GREYS, np.int64)
        self.first: list[NDArray[np.uint8]] = []
        self.room = min(rows, LINEAR_ROWS)

    def add(self, pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        self.labels.append(labels)
        self.greys += np.bincount(pixels.ravel(), minlength=GREYS)
        if self.room:
            self.first.append(pixels[: self.room].copy())  # a view would keep all of them
            self.room -= len(self.first[-1])

    def grey(self) -> tuple[float, float]:
        """Mean and deviation of the grey values; the latter is 1 where all are equal."""
        values, share = np.arange(GREYS), self.greys / self.greys.sum()
        mean = float(values @ share)
        return mean, float(np.sqrt((values - mean) ** 2 @ share)) or 1.0

    def sample(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels of the first rows, and whether both markers are on one snake."""
        pixels = np.concatenate(self.first)
        return pixels, np.concatenate(self.labels)[: len(pixels)] == 1


def _references(train: _Seen, test: _Seen) -> dict[str, float]:
    commonest = np.bincount(np.concatenate(train.labels)).argmax()
    (pixels, joined), (test_pixels, test_joined) = train.sample(), test.sample()
    linear = Ridge(alpha=PENALTY).fit(pixels / np.float32(255), 2.0 * joined - 1)
    size = math.isqrt(pixels.shape[1])
    apart, test_apart = (distances(part.reshape(-1, size, size)) for part in (pixels, test_pixels))
    limits = np.unique(apart)
    right = np.array([np.mean((apart > limit) == joined) for limit in limits])
    further = right.max() >= 1 - right.min()  # whether the far ones are on one snake, or the near ones
    limit = limits[right.argmax() if further else right.argmin()]
    lines = {
        "majority": float(np.mean(np.concatenate(test.labels) == commonest)),
        "linear": float(np.mean((linear.predict(test_pixels / np.float32(255)) > 0) == test_joined)),
        "marker distance": float(np.mean((test_apart > limit) == (test_joined == further))),
    }
    return dict(sorted(lines.items(), key=lambda line: line[1]))
