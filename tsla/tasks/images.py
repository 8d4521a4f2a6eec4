"""Images as long sequences, pixel by pixel: LRA's Image (CIFAR-10 in grey), Fashion-MNIST, sequential MNIST."""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from tsla.tasks.base import TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.cifar import Labelled
from tsla.tasks.image_sources import Parts, Source, fashion, image, mnist
from tsla.tasks.pixel_orders import ORDERS, pixel_order, shuffled
from tsla.tasks.sources import PROTOCOLS, SOURCES, split_limits
from tsla.tasks.store import describe, load_split, read_manifest, save_split, write_manifest

VERSION = 1  # of rows, splits and reference lines: raised with any change to them
SIDES = {"image": (32,), "fashion": (28, 14), "smnist": (28, 14)}
KINDS = ("tokens", "series")
CLASSES = 10
HELD_OUT = 0.1  # of the training images, for validation
S4_SEED = 42
S4_GREY = (122.6, 61.0)  # mean and deviation by which S4 standardises
LINEAR_ROWS, NEIGHBOUR_ROWS, NEIGHBOURS = 10_000, 5_000, 3  # training rows of the reference lines, at most


class Images:
    """Which of ten things the pixels of an image show; satisfies `Task`.

    A substitute for the real images has another `spec.name`: ``image_fashion`` is Fashion-MNIST with a black frame,
    ``smnist_5k`` is 4000 and 1000 images of MNIST. Validation is a tenth of the training images. The rows of every
    split stand in a fixed shuffle, which `train_rows` and `eval_rows` cut.

    Args:
        name: ``image``, ``fashion`` or ``smnist``.
        source: of ``image``: ``"lra"``, CIFAR-10's own files in `path`; ``"hub"``; ``"offline"``, the substitute.
        path: a folder of files to read: CIFAR-10's own, or a dump (see `tsla.tasks.dumps`), whose validation rows are
            given; of the other two, idx files in place of a package.
        allow_pickle: whether the dump may be one of pickles.
        hub_id, hub_revision: of a data set of the Hub.
        side: pixels of a row: 32 for ``image``, 28 or, by means of 2 x 2 pixels, 14 for the others.
        kind: ``"tokens"``, grey value + 1; ``"series"``, grey values, standardised as a model reads them.
        order: in which pixels are read, see `pixel_order`.
        order_seed: of ``order="permuted"``.
        protocol: which images validate: ``"default"``, stratified, by `seed`; ``"lra"``, the last of the files;
            ``"s4"``, S4's own draw (and its mean and deviation for a series). The latter are of the real ``image``.
        seed: see there.
        train_rows: rows of the training split; None for all.
        eval_rows: rows of the validation and of the test split; None for all.
        cache_dir: where rows are kept.

    Raises:
        ValueError: options that do not go together.
        FileNotFoundError: `path` lacks files.
    """

    def __init__(
        self, *, name: str, source: str = "offline", path: Path | str | None = None, hub_id: str = "",
        hub_revision: str | None = None, side: int | None = None, kind: str = "tokens", order: str = "row",
        order_seed: int = 0, protocol: str = "default", seed: int = 0, train_rows: int | None = None,
        eval_rows: int | None = None, allow_pickle: bool = False, cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        known: dict[str, tuple[object, Sequence[object]]] = {
            "name": (name, tuple(SIDES)), "source": (source, SOURCES), "kind": (kind, KINDS), "order": (order, ORDERS),
            "protocol": (protocol, PROTOCOLS), "side": (side, (None, *SIDES.get(name, ()))),
        }  # fmt: skip
        for option, (value, allowed) in known.items():
            if value not in allowed:
                raise ValueError(f"{option} ({value!r}) must be one of {', '.join(map(str, allowed))}")
        if name != "image" and source != "offline":
            raise ValueError(f"source ({source!r}) belongs to image; {name} is given by a path, or from its package")
        if name == "image" and (path is not None) != (source == "lra"):
            raise ValueError(f"path ({path}) must be given for source='lra', and for no other, got {source!r}")
        if protocol != "default" and (name != "image" or source == "offline"):
            raise ValueError(f"protocol ({protocol!r}) must be 'default' for all but the images of Long Range Arena")
        self.name, self.kind, self.protocol, self.seed = name, kind, protocol, seed
        self.side = side or SIDES[name][0]
        self.order, self.order_seed = order, order_seed
        self.limits = split_limits(train_rows, eval_rows)
        self.cache_dir = Path(cache_dir)
        self.source = self._source(source, None if path is None else Path(path), hub_id, hub_revision, allow_pickle)
        if "layout" in self.source.key and (protocol != "default" or seed):
            raise ValueError(f"protocol ({protocol!r}) must be 'default' and seed ({seed}) 0 where path ({path}) says "
                             "itself which images validate, as a dump does")  # fmt: skip

    def _source(
        self, source: str, path: Path | None, hub_id: str, hub_revision: str | None, allow_pickle: bool
    ) -> Source:
        match self.name:
            case "image":
                return image(source, path, hub_id, hub_revision, self.cache_dir, allow_pickle=allow_pickle)
            case "fashion":
                return fashion(path, self.cache_dir)
            case _:
                return mnist(path, self.cache_dir)

    @property
    def spec(self) -> TaskSpec:
        tokens = self.kind == "tokens"
        mean, std = ((), ()) if tokens else ((value,) for value in self.manifest["grey"])
        return TaskSpec(
            name=self.source.name, inputs=self.kind, target="class", outputs=CLASSES, max_length=self.side**2,
            vocab_size=257 if tokens else None, channels=None if tokens else 1, names=self.source.classes,
            input_mean=mean, input_std=std, image=(self.side, self.side) if self.order == "row" else (),
        )  # fmt: skip

    def split(self, name: str) -> Dataset:
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: counts, labels, mean and deviation of the training pixels, reference lines, time."""
        return read_manifest(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        key = {
            "version": VERSION, "source": self.source.key, "side": self.side, "kind": self.kind, "order": self.order,
            "order_seed": self.order_seed, "protocol": self.protocol, "seed": self.seed, "limits": self.limits,
        }  # fmt: skip
        return cached(self.cache_dir, self.source.name, key, self._build)

    def _build(self, folder: Path) -> None:
        started = time.perf_counter()
        splits = self._splits(self.source.read(folder))
        order = pixel_order(self.order, self.side, self.order_seed)
        for name, (pixels, labels) in splits.items():
            if self.kind == "tokens":
                save_split(folder, name, [{"input_ids": list(pixels[:, order] + np.uint16(1)), "label": labels}])
            else:
                save_split(folder, name, [{"values": list(pixels[:, order].astype(np.float32)), "label": labels}])
        lengths = {name: np.full(len(labels), self.side**2) for name, (_, labels) in splits.items()}
        manifest: dict[str, object] = {"task": self.source.name, "source": self.source.key}
        manifest |= {name: self.source.key[name] for name in ("layout",) if name in self.source.key}
        manifest |= describe(lengths, {name: labels for name, (_, labels) in splits.items()}, CLASSES)
        manifest["grey"] = S4_GREY if self.protocol == "s4" else _mean_and_deviation(splits["train"].pixels)
        manifest["references"] = reference_lines(splits["train"], splits["test"])
        manifest["seconds"] = round(time.perf_counter() - started, 2)
        write_manifest(folder, manifest)

    def _splits(self, parts: Parts) -> dict[str, Labelled]:
        """Images as rows of pixels, and their labels."""
        whole = {name: (part, np.arange(len(part.labels))) for name, part in parts.items()}
        if "val" not in parts:
            train, val = self._hold_out(parts["train"].labels)
            whole = {"train": (parts["train"], train), "val": (parts["train"], val), "test": whole["test"]}
        splits = {}
        for place, (name, (part, rows)) in enumerate(whole.items()):
            limit = self.limits[name]
            if limit is not None and limit > len(rows):
                option = "train_rows" if name == "train" else "eval_rows"
                raise ValueError(f"{option} ({limit}) must be at most {len(rows)}, the rows of the {name} split")
            rows = rows[shuffled(len(rows), place)][:limit]
            pixels = resized(part.pixels[rows], self.side)
            splits[name] = Labelled(pixels.reshape(len(rows), -1), part.labels[rows])
        return splits

    def _hold_out(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the training images train, and which validate."""
        rows = np.arange(len(labels))
        match self.protocol:
            case "lra":
                held = len(rows) // 10
                return rows[:-held], rows[-held:]
            case "s4":
                rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(S4_SEED)).numpy()
                kept = int(len(rows) * (1 - HELD_OUT))
                return rows[:kept], rows[kept:]
            case _:
                train, val = train_test_split(rows, test_size=HELD_OUT, stratify=labels, random_state=self.seed)
                return train, val


def resized(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Square images at `side`: as they are, in a black frame, or of half their size, by means of 2 x 2 pixels."""
    own = pixels.shape[1]
    if side >= own:
        frame = (side - own) // 2
        return np.pad(pixels, ((0, 0), (frame, frame), (frame, frame)))
    sums = pixels.reshape(len(pixels), side, 2, side, 2).sum((2, 4), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


def reference_lines(train: Labelled, test: Labelled) -> dict[str, float]:
    """Test accuracy (0-1), in rising order, of the commonest class, of ridge regression and of the nearest images."""
    lines = {"majority": float(np.mean(test.labels == np.bincount(train.labels).argmax()))}
    if len(np.unique(train.labels)) > 1:  # else the others would say the same
        nearest = KNeighborsClassifier(min(NEIGHBOURS, len(train.labels)))
        for name, rule, rows in (("linear", RidgeClassifier(), LINEAR_ROWS), ("3-NN", nearest, NEIGHBOUR_ROWS)):
            rule.fit(train.pixels[:rows] / np.float32(255), train.labels[:rows])
            lines[name] = float(rule.score(test.pixels / np.float32(255), test.labels))
    return dict(sorted(lines.items(), key=lambda line: line[1]))


def _mean_and_deviation(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Of all pixels, exactly; the deviation of a single grey is 1, so that it can be divided by."""
    counts = np.bincount(pixels.reshape(-1), minlength=256)
    levels = np.arange(256)
    mean = float(counts @ levels / counts.sum())
    return mean, float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())) or 1.0
