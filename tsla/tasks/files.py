"""Your own data: rows of CSV, JSONL or Parquet files, of folders of texts, of saved data sets or of the Hub."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from functools import cached_property
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray

from tsla.tasks import tables
from tsla.tasks.base import SPLITS, TaskSpec, parse_spec
from tsla.tasks.cache import cached
from tsla.tasks.encoding import encode, shorten
from tsla.tasks.splitting import assign, by_name
from tsla.tasks.tables import Columns, column, each
from tsla.tasks.targets import Targets, make_targets, moments, parse_cells

Array = NDArray[Any]

VERSION = 2  # of the folders: raised with any change to them, so that no stale one is read
TOKENS = 1_000_000  # ids of a vocabulary; an embedding of more would be most of a model
CHUNK = 2**27  # numbers of rows that are written together: list offsets have 31 bits
SLICES_SHOWN = 100  # values of a slice that are no numbers
OPTIONS = (
    "path", "revision", "input", "label", "kind", "target", "how", "fractions", "split_column", "others", "max_length",
    "slices", "seed",
)  # fmt: skip
RESERVED = ("input_ids", "values", "label", "length")  # columns of a task, and a slice that every task has


class Raw(NamedTuple):
    """All rows of a source before anything is known of them together.

    inputs: encoded.  cells: of the targets, parsed.  slices: by name.  origins: split each row belongs to, or ``""``.
    """

    inputs: list[Array]
    cells: list[Any]
    slices: dict[str, list[Any]]
    origins: list[str]


class Files:
    """Learning from the columns of a user's own data; satisfies `Task`.

    Args:
        name: of the task.
        path: a file (csv, tsv, jsonl, json, parquet), a folder or the id of a data set on the Hub. A folder holds a
            saved data set, or files called train, val and test, or `<class>/*.txt`, or `{train,val,test}/<class>/*.txt`
            (these have the columns ``text`` and ``label``).
        revision: of a data set on the Hub.
        input: the column to learn from.
        label: the columns to learn; several for ``labels`` (each 0 or 1) and ``numbers``.
        kind: ``"bytes"``, ``"tokens"`` or ``"series"``, how inputs are read: see `tsla.tasks.encoding`.
        target: ``"class"``, ``"labels"`` or ``"numbers"``.
        split: ``"fraction"`` of rows, drawn; ``"column"``, as a column or the parts of the data set say; ``"file"``.
        val_fraction, test_fraction: of all rows; with the other two ways, of the training rows where no validation or
            test rows are given.
        split_column: says train, val or test.
        val_path, test_path: files or folders beside `path`, which then trains.
        max_length: longer inputs lose their end; None keeps all.
        slices: further columns; scores are told for each of their values.
        seed: of the drawn splits.
        cache_dir: where rows are kept.

    All of it is read on first use. Wrong options, files and cells raise ValueError, FileNotFoundError if nothing is
    at a path.
    """

    def __init__(
        self, *, path: str, name: str = "files", revision: str | None = None, input: str = "text",
        label: Sequence[str] = ("label",), kind: str = "bytes", target: str = "class", split: str = "fraction",
        val_fraction: float = 0.1, test_fraction: float = 0.1, split_column: str = "split",
        val_path: str | None = None, test_path: str | None = None, max_length: int | None = None,
        slices: Sequence[str] = (), seed: int = 0, cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        self.name, self.path, self.revision, self.input, self.label = name, path, revision, input, list(label)
        self.kind, self.target, self.how, self.split_column = kind, target, split, split_column
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.others = {"val": val_path, "test": test_path}
        self.max_length, self.slices, self.seed, self.cache_dir = max_length, list(slices), seed, Path(cache_dir)
        if wrong := [name for name in self.slices if name in RESERVED]:
            raise ValueError(f"slices ({', '.join(wrong)}) must not be one of {', '.join(RESERVED)}: rename the column")

    @cached_property
    def spec(self) -> TaskSpec:
        """What the data is, read back from its folder."""
        problems: list[str] = []
        file = self.folder / "spec.json"
        spec = parse_spec(json.loads(file.read_text()), problems)
        if spec is None:
            raise ValueError("\n".join(f"{file}: {problem}" for problem in problems))
        return spec

    def split(self, name: str) -> Dataset:
        """The rows of ``train``, ``val`` or ``test``."""
        if name not in SPLITS:
            raise ValueError(f"split ({name!r}) must be one of {', '.join(SPLITS)}")
        return load_from_disk(str(self.folder / name))

    def references(self) -> dict[str, float]:
        """Test score of a rule that does not look at the input.

        The commonest class; every label at once; the mean, whose r2 is 0 by definition.
        """
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Rows of each split, rows cut short, inputs that stand in two splits, references, fingerprint and source."""
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        return manifest

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of what the splits hold: inputs, targets and their names, in order; not of where it came from."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train`, `val` and `test` as Arrow, `spec.json` and `manifest.json`."""
        options = {name: getattr(self, name) for name in OPTIONS}
        given = [self.path, *(path for path in self.others.values() if path)]
        stats = {path: tables.sources(path) for path in given}
        return cached(self.cache_dir, self.name, {"version": VERSION, "files": stats, **options}, self._build)

    def _build(self, folder: Path) -> None:
        raw = self._read(folder / "download")
        spec = self._shape(raw)
        classes = raw.cells if self.target == "class" else None
        splits = assign(raw.origins, self.fractions, classes=classes, seed=self.seed)
        targets = make_targets(self.target, raw.cells, splits, self.label)
        spec = spec._replace(names=targets.names, outputs=_outputs(targets), target_mean=targets.mean,
                             target_std=targets.std)  # fmt: skip
        if spec.channels is not None:
            mean, std = moments(np.concatenate([raw.inputs[row] for row in splits["train"]]))
            spec = spec._replace(input_mean=mean, input_std=std)
        raw = raw._replace(slices={name: _slice(name, cells) for name, cells in raw.slices.items()})
        for split, rows in splits.items():
            _store(raw, targets, rows, spec, folder / split)
        manifest = {
            "source": [self.path, *(path for path in self.others.values() if path)],
            "rows": {split: len(rows) for split, rows in splits.items()},
            "truncated": self._truncated,
            "duplicates": _duplicates(raw.inputs, splits),
            "references": _references(targets, splits, self.target),
            "fingerprint": _fingerprint(raw.inputs, targets, splits),
        }
        (folder / "spec.json").write_text(json.dumps(spec._asdict(), indent=2) + "\n")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self, scratch: Path) -> Raw:
        """Every row of every file, encoded."""
        scratch.mkdir()
        raw = Raw([], [], {name: [] for name in self.slices}, [])
        self._truncated = 0
        for split, (columns, place) in self._parts(scratch).items():
            inputs = column(columns, self.input, "input", place)
            labels = {name: column(columns, name, "label", place) for name in self.label}
            if self.target == "class" and len(labels) != 1:
                raise ValueError(f"label ({', '.join(self.label)}) must be one column for target=class")
            raw.inputs.extend(each(inputs, self._encode, f"{place}, column {self.input!r}"))
            raw.cells.extend(parse_cells(self.target, labels, place))
            for name in self.slices:
                raw.slices[name] += column(columns, name, "slices", place)
            if not split and self.how == "column":
                found = column(columns, self.split_column, "split_column", place)
                raw.origins.extend(by_name(found, f"{place}, column {self.split_column!r}"))
            else:
                raw.origins.extend([split] * len(inputs))
        shutil.rmtree(scratch)  # what came from the Hub is in the rows now
        return raw

    def _parts(self, scratch: Path) -> dict[str, tuple[Columns, str]]:
        """Columns by the split they make up (``""``: to be shared out), each with its name for errors."""
        found = tables.read(self.path, revision=self.revision, scratch=scratch)
        if self.how == "column":
            return {split: (columns, f"{self.path} ({split})" if split else self.path)
                    for split, columns in found.items()}  # fmt: skip
        if list(found) != [""]:
            raise ValueError(f"{self.path} has the splits {', '.join(found)} already: take them by split=column")
        if self.how == "fraction":
            return {"": (found[""], self.path)}
        parts = {"train": (found[""], self.path)}
        for split, path in self.others.items():
            if path is not None:
                found = tables.read(path, scratch=scratch)
                if list(found) != [""]:
                    raise ValueError(f"{split}_path ({path}) must not have splits itself, it has {', '.join(found)}")
                parts[split] = (found[""], path)
        return parts

    def _encode(self, value: object) -> Array:
        row = encode(_any_spec(self.kind), value)
        if self.max_length is not None and len(row) > self.max_length:
            self._truncated += 1
            row = row[: self.max_length].copy()  # a view would keep the whole
        return row.astype(np.uint32) if self.kind == "tokens" else row

    def _shape(self, raw: Raw) -> TaskSpec:
        """What the inputs alone tell: longest row, vocabulary, channels."""
        spec = _any_spec(self.kind)._replace(
            name=self.name, target=self.target, max_length=max(len(row) for row in raw.inputs)
        )
        if self.kind == "tokens":
            return spec._replace(vocab_size=int(max(row.max() for row in raw.inputs)) + 1)
        if self.kind == "series":
            widths = [row.shape[1] for row in raw.inputs]
            wrong = next((row for row, width in enumerate(widths, 1) if width != widths[0]), None)
            if wrong is not None:
                raise ValueError(f"column {self.input!r}: row {wrong} has {widths[wrong - 1]} channels, row 1 has "
                                 f"{widths[0]}: all need as many")  # fmt: skip
            return spec._replace(channels=widths[0])
        return spec


def _any_spec(kind: str) -> TaskSpec:
    """A spec that allows every input of its kind."""
    vocabulary = {"bytes": 257, "tokens": TOKENS + 1}.get(kind)
    return TaskSpec("", kind, "class", outputs=1, max_length=1, vocab_size=vocabulary)


def _outputs(targets: Targets) -> int:
    return len(targets.names) or targets.values.shape[1]


# --- writing ----------------------------------------------------------------------------------------------------------


def _store(raw: Raw, targets: Targets, rows: NDArray[np.int64], spec: TaskSpec, folder: Path) -> None:
    """One split as an Arrow data set."""
    lengths = np.array([raw.inputs[row].size for row in rows])
    series = spec.channels is not None
    kind = np.dtype(np.float64) if series else np.min_scalar_type((spec.vocab_size or 0) - 1)
    if spec.inputs == "bytes":  # UTF-8 never has the byte 255, whose id alone needs a second byte
        kind = np.min_scalar_type(max(int(row.max()) for row in raw.inputs))
    parts = []
    for start, end in pairwise(_cuts(lengths)):
        chosen = rows[start:end]
        flat = np.concatenate([raw.inputs[row].astype(kind).reshape(-1) for row in chosen])
        offsets = np.concatenate([[0], np.cumsum(lengths[start:end])]).astype(np.int32)
        columns = {"values" if series else "input_ids": pa.ListArray.from_arrays(offsets, flat)}
        columns["label"] = _target_column(targets.values[chosen])
        columns |= {name: pa.array([cells[row] for row in chosen]) for name, cells in raw.slices.items()}
        parts.append(pa.table(columns))
    Dataset(pa.concat_tables(parts)).save_to_disk(str(folder))


def _cuts(lengths: NDArray[np.int64]) -> list[int]:
    """Where to cut rows so that no part holds more than `CHUNK` numbers, long rows aside."""
    cuts, held = [0], 0
    for row, length in enumerate(lengths.tolist()):
        if held + length > CHUNK and row > cuts[-1]:
            cuts.append(row)
            held = 0
        held += length
    return [*cuts, len(lengths)]


def _target_column(values: Array) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.reshape(-1))


def _slice(name: str, cells: list[Any]) -> list[Any]:
    """Values of a slice: all whole numbers, or else all texts.

    Raises:
        ValueError: too many values for a table.
    """
    try:
        whole = [cell if type(cell) is int else int(cell) if isinstance(cell, str) else None for cell in cells]
        if None not in whole and all(abs(x) < 2**63 for x in whole if x is not None):
            return whole
    except ValueError:
        pass
    texts = ["" if cell is None else shorten(cell) if not isinstance(cell, str) else cell for cell in cells]
    if (count := len(set(texts))) > SLICES_SHOWN:
        raise ValueError(f"slices: column {name!r} has {count} values, such as {shorten(texts[0])}: a slice has "
                         f"{SLICES_SHOWN} at most, or whole numbers")  # fmt: skip
    return texts


def _fingerprint(inputs: list[Array], targets: Targets, splits: dict[str, NDArray[np.int64]]) -> str:
    """Hex sha256 of the rows of each split, in order; counts and lengths keep what stands side by side apart."""
    digest = hashlib.sha256(json.dumps([targets.names, targets.values.shape[1:], inputs[0].shape[1:]]).encode())
    for split in SPLITS:
        rows = splits[split]
        digest.update(np.array([len(rows), *(len(inputs[row]) for row in rows)], dtype=np.int64).tobytes())
        for row in rows:
            digest.update(inputs[row].tobytes())
        digest.update(targets.values[rows].tobytes())
    return digest.hexdigest()


# --- what is known without a model ------------------------------------------------------------------------------------


def _duplicates(inputs: list[Array], splits: dict[str, NDArray[np.int64]]) -> dict[str, int]:
    """Different inputs that stand in two splits, for each pair of them."""
    found = {split: {hash(inputs[row].tobytes()) for row in rows} for split, rows in splits.items()}
    return {f"{a} and {b}": len(found[a] & found[b]) for a, b in combinations(SPLITS, 2)}


def _references(targets: Targets, splits: dict[str, NDArray[np.int64]], target: str) -> dict[str, float]:
    train, test = targets.values[splits["train"]], targets.values[splits["test"]]
    match target:
        case "class":
            return {"majority": float(np.mean(test == np.bincount(train).argmax()))}
        case "labels":
            share = test.mean(0)
            return {"all labels": float(np.mean(2 * share / (1 + share)))}
        case _:
            return {"mean": 0.0}
