"""Classes of real-valued series: data sets of the UCR and UEA archives, or a user's own pair of `.ts` files."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.packages import Package, Unavailable, package_file
from tsla.tasks.sources import split_limits
from tsla.tasks.splitting import assign, fewer
from tsla.tasks.store import describe, load_split, read_manifest, save_split, write_manifest
from tsla.tasks.ts_files import TsFile, read_ts

VERSION = 1  # of rows, files and reference lines: raised with any change to them
AEON = Package("wheel", "aeon", "1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409")
DATASETS = ("ACSF1", "ArrowHead", "BasicMotions", "Covid3Month_disc", "GunPoint", "ItalyPowerDemand", "JapaneseVowels",
            "OSULeaf", "PickupGestureWiimoteZ")  # fmt: skip
SAMPLE = 2000  # rows of train, and of test, that reference lines are computed from at most
STEPS = 4096  # and steps of each

Array = NDArray[Any]


class Series:
    """Which class a series is of: `channels` numbers at each step, of any length. Satisfies `Task`.

    The test split is the archive's; validation rows are drawn from its training rows, over the classes in proportion.
    Rows are not changed but for values that are missing (see `read_ts`). Built on first use into a folder under
    `cache_dir`.

    Args:
        name: of the task.
        dataset: of `DATASETS`, inside the wheel of aeon, which is fetched, not installed.
        path: a folder with one pair of files ``NAME_TRAIN.ts`` and ``NAME_TEST.ts``, or the first of such a pair, to
            read instead.
        val_fraction: of the training rows.
        seed: of the draw.
        train_rows, eval_rows: at most so many rows to train, and so many of each other split.
        cache_dir: where rows and fetched files are kept.

    Raises:
        ValueError: another data set, or a fraction or number that is not possible.
        FileNotFoundError: no such pair of files.
    """

    def __init__(
        self, *, name: str = "series", dataset: str = "JapaneseVowels", path: Path | str | None = None,
        val_fraction: float = 0.2, seed: int = 0, train_rows: int | None = None, eval_rows: int | None = None,
        cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        if dataset not in DATASETS:
            raise ValueError(f"dataset ({dataset!r}) must be one of {', '.join(DATASETS)}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction ({val_fraction}) must be above 0 and below 1")
        self.name, self.dataset, self.val_fraction, self.seed = name, dataset, val_fraction, seed
        self.limits = split_limits(train_rows, eval_rows)
        self.files = None if path is None else _pair(Path(path))
        self.cache_dir = Path(cache_dir)

    @property
    def spec(self) -> TaskSpec:
        found = self.manifest
        return TaskSpec(
            name=self.name, inputs="series", target="class", outputs=len(found["classes"]),
            max_length=found["length"]["max"], channels=len(found["mean"]), names=tuple(found["classes"]),
            input_mean=tuple(found["mean"]), input_std=tuple(found["std"]),
        )  # fmt: skip

    def split(self, name: str) -> Dataset:
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Test accuracy of the commonest class, of a linear classifier, and of the nearest training row."""
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: rows, labels, lengths, classes, each channel's mean and deviation, references."""
        return read_manifest(self.folder)

    @property
    def fingerprint(self) -> str | None:
        """What a user's files and the options make; None for files that stay as they are."""
        return None if self.files is None else self.folder.name

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        if self.files is None:
            source: dict[str, object] = {"package": AEON._asdict(), "dataset": self.dataset}
        else:
            source = {"files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files]}
        options = {"val_fraction": self.val_fraction, "seed": self.seed, "limits": self.limits}
        return cached(self.cache_dir, self.name, {"version": VERSION, **source, **options}, self._build)

    def _build(self, folder: Path) -> None:
        train, test = (read_ts(file) for file in self.files or self._fetch())
        _check_pair(train, test)
        series, labels = [*train.series, *test.series], np.concatenate([train.labels, test.labels])
        origins = ["train"] * len(train.series) + ["test"] * len(test.series)
        drawn = assign(origins, {"val": self.val_fraction, "test": 0.0}, classes=[str(x) for x in labels],
                       seed=self.seed)  # fmt: skip
        rows = {split: fewer(drawn[split], self.limits[split]) for split in SPLITS}
        for split, chosen in rows.items():
            values = [series[row].reshape(-1) for row in chosen]
            save_split(folder, split, [{"values": values, "label": labels[chosen]}])
        steps = np.concatenate([series[row] for row in rows["train"]]).astype(np.float64)
        mean, std = steps.mean(0), steps.std(0)
        std[std == 0] = 1.0  # a channel that says nothing stays where it is
        manifest = describe(
            {split: np.array([len(series[row]) for row in chosen]) for split, chosen in rows.items()},
            {split: labels[chosen] for split, chosen in rows.items()}, len(train.classes),
        )  # fmt: skip
        standard = [(values - mean) / std for values in series]
        lines = reference_lines(standard, labels, rows["train"], rows["test"])
        write_manifest(folder, {
            **manifest, "classes": train.classes, "mean": mean.tolist(), "std": std.tolist(),
            "missing": train.missing + test.missing, "references": lines,
        })  # fmt: skip

    def _fetch(self) -> tuple[Path, Path]:
        stem = f"aeon/datasets/data/{self.dataset}/{self.dataset}"
        try:
            train, test = (package_file(AEON, f"{stem}_{part}.ts", self.cache_dir) for part in ("TRAIN", "TEST"))
        except Unavailable as error:
            raise Unavailable(f"{error}; or give task.path, a folder with a pair of .ts files") from None
        return train, test


def _pair(path: Path) -> tuple[Path, Path]:
    """The two files of a data set."""
    found = sorted(path.glob("*_TRAIN.ts")) if path.is_dir() else [path]
    pairs = [(train, train.with_name(train.name.removesuffix("_TRAIN.ts") + "_TEST.ts")) for train in found]
    if len(pairs) != 1 or not found[0].name.endswith("_TRAIN.ts") or not all(file.is_file() for file in pairs[0]):
        told = f", got {', '.join(file.name for file in found)}" if path.is_dir() else ""
        raise FileNotFoundError(f"path ({path}) must be a folder with one pair of NAME_TRAIN.ts and NAME_TEST.ts, or "
                                f"the first of a pair{told}")  # fmt: skip
    return pairs[0]


def _check_pair(train: TsFile, test: TsFile) -> None:
    if sorted(train.classes) != sorted(test.classes):
        raise ValueError(f"both files must list the same classes, got {', '.join(train.classes)} and "
                         f"{', '.join(test.classes)}")  # fmt: skip
    if train.classes != test.classes:  # in another order
        test.labels[:] = np.array([train.classes.index(name) for name in test.classes])[test.labels]
    if (channels := train.series[0].shape[1]) != (other := test.series[0].shape[1]):
        raise ValueError(f"both files must have the same channels, got {channels} and {other}")


def reference_lines(series: list[Array], labels: Array, train: Array, test: Array) -> dict[str, float]:
    """Test accuracy (0-1) of three rules, in rising order; `series` are standardised, `train` and `test` their rows.

    The two that look at values see all rows stretched, linearly, to the longest of the training rows.
    """
    train, test = train[:SAMPLE], test[:SAMPLE]
    steps = min(max(len(series[row]) for row in train), STEPS)
    known, asked = (np.stack([_stretched(series[row], steps) for row in rows]) for rows in (train, test))
    lines = {"majority": float(np.mean(labels[test] == np.bincount(labels[train]).argmax()))}
    lines["nearest"] = float(KNeighborsClassifier(1).fit(known, labels[train]).score(asked, labels[test]))
    if len(set(labels[train].tolist())) > 1:  # a linear classifier of one class is none
        lines["linear"] = float(RidgeClassifier().fit(known, labels[train]).score(asked, labels[test]))
    return dict(sorted(lines.items(), key=lambda line: line[1]))


def _stretched(values: Array, steps: int) -> Array:
    """All channels at `steps` evenly spaced places, one channel after the other."""
    places = np.linspace(0, len(values) - 1, steps)
    return np.concatenate([np.interp(places, np.arange(len(values)), channel) for channel in values.T])
