"""Multi-query associative recall (arXiv 2312.04927): key-value pairs, then each key once more, asking for its value."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from numpy.typing import NDArray

from tsla.tasks.base import IGNORE, SPLITS, TaskSpec
from tsla.tasks.cache import cached

VERSION = 1  # of the rows: raised with any change to them
CHUNK = 2**22  # random numbers drawn at a time


class Segment(NamedTuple):
    """Rows of one kind: `rows` of `length` tokens with `pairs` key-value pairs."""

    length: int
    pairs: int
    rows: int

    @classmethod
    def parse(cls, text: str) -> "Segment":
        """From ``length/pairs/rows``, such as ``64/4/20000``.

        Raises:
            ValueError: another form, an odd length, or pairs and their queries that do not fit into it.
        """
        parts = text.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"segment ({text!r}) must have the form length/pairs/rows, such as 64/4/20000")
        made = cls(*map(int, parts))
        if made.length % 2 or made.pairs < 1 or made.rows < 1 or 4 * made.pairs > made.length:
            raise ValueError(f"segment ({text!r}) must have an even length of at least 4 * pairs, and pairs and rows")
        return made


class Mqar:
    """Recall of `pairs` values by their keys; the class of a scored token is its value. Satisfies `Task`.

    Raw tokens: keys from 1 to v/2 - 1, values from v/2 to v - 1, v = `vocab_size`; 0 fills what is empty unless
    `filler` draws it from the whole vocabulary. As ids they are one higher, since 0 is padding here. Columns beside
    `input_ids` and `label`: `pairs` of the row, and for each scored token `gap`, the tokens since its key was given.

    Args:
        name: of the task.
        vocab_size: v; keys and values have half each.
        train, val, test: segments as ``length/pairs/rows``.
        power: the place of a query is drawn with probability proportional to place^(power - 1): small is near.
        filler: random tokens, not zeros, between queries.
        seed: of the rows.
        cache_dir: where they are kept.

    Raises:
        ValueError: segments that do not fit the vocabulary.
    """

    def __init__(
        self, *, name: str = "mqar", vocab_size: int = 256, train: Sequence[str], val: Sequence[str],
        test: Sequence[str], power: float = 0.01, filler: bool = True, seed: int = 0,
        cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        self.name, self.vocab_size, self.power, self.filler, self.seed = name, vocab_size, power, filler, seed
        self.segments = {
            s: [Segment.parse(text) for text in t] for s, t in zip(SPLITS, (train, val, test), strict=True)
        }
        for split, segments in self.segments.items():
            if not segments:
                raise ValueError(f"{split} ({segments}) must name at least one segment")
            for segment in segments:
                if vocab_size <= segment.length or segment.pairs > vocab_size // 2 - 1:
                    raise ValueError(f"vocab_size ({vocab_size}) must be above length ({segment.length}) and hold "
                                     f"{segment.pairs} keys and values")  # fmt: skip
        self.cache_dir = Path(cache_dir)

    @property
    def spec(self) -> TaskSpec:
        longest = max(segment.length for segments in self.segments.values() for segment in segments)
        return TaskSpec(
            name=self.name, inputs="tokens", target="tokens", outputs=self.vocab_size, max_length=longest,
            vocab_size=self.vocab_size + 1,
        )  # fmt: skip

    def split(self, name: str) -> Dataset:
        """The rows of ``train``, ``val`` or ``test``."""
        if name not in SPLITS:
            raise ValueError(f"split ({name!r}) must be one of {', '.join(SPLITS)}")
        return load_from_disk(str(self.folder / name))

    def references(self) -> dict[str, float]:
        """Accuracy of a guess among all values, and of one among the values of the row."""
        test = self.segments["test"]
        seen = sum(segment.rows / segment.pairs for segment in test) / sum(segment.rows for segment in test)
        return {"any value": 2 / self.vocab_size, "any value of the row": seen}

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train`, `val` and `test` as Arrow."""
        key = {"version": VERSION, "vocab_size": self.vocab_size, "power": self.power, "filler": self.filler,
               "seed": self.seed, "segments": {s: [list(x) for x in t] for s, t in self.segments.items()}}  # fmt: skip
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        width = "uint8" if self.vocab_size < 2**8 else "uint16" if self.vocab_size < 2**16 else "uint32"
        features = Features({
            "input_ids": List(Value(width)), "label": List(Value("int32")), "pairs": Value("int32"),
            "gap": List(Value("int32")),
        })  # fmt: skip
        for place, split in enumerate(SPLITS):
            parts = []
            for number, segment in enumerate(self.segments[split]):
                random = np.random.default_rng((self.seed, place, number))
                tokens, targets = draw(segment, self.vocab_size, self.power, filler=self.filler, random=random)
                scored = targets != IGNORE
                gap = scored.nonzero()[1].reshape(-1, segment.pairs) - _key_places(tokens, scored, segment.pairs)
                columns = {"input_ids": tokens + 1, "label": targets, "gap": gap}
                rows: dict[str, Any] = {name: list(values) for name, values in columns.items()}
                rows["pairs"] = [segment.pairs] * segment.rows
                parts.append(Dataset.from_dict(rows, features=features))
            concatenate_datasets(parts).save_to_disk(str(folder / split))


def draw(
    segment: Segment, vocab_size: int, power: float, *, filler: bool, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Raw tokens and targets of a segment's rows, each ``(rows, length)``."""
    length, pairs, rows = segment
    half = vocab_size // 2
    keys = 1 + _distinct(np.zeros(half - 1), pairs, rows, random)
    values = half + _distinct(np.zeros(vocab_size - half), pairs, rows, random)
    places = np.arange(1, (length - 2 * pairs) // 2 + 1)
    slots = _distinct((power - 1) * np.log(places), pairs, rows, random)
    tokens, targets = lay_out(keys, values, slots, length)
    if filler:
        free = tokens == 0
        tokens[free] = random.integers(0, vocab_size, int(free.sum()))
    return tokens, targets


def lay_out(
    keys: NDArray[np.int64], values: NDArray[np.int64], slots: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens k1 v1 k2 v2 ..., then key j again at the slot-th even place after them, where its value is the target."""
    rows, pairs = keys.shape
    tokens = np.zeros((rows, length), dtype=np.int64)
    targets = np.full((rows, length), IGNORE, dtype=np.int64)
    tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
    queries = 2 * pairs + 2 * slots
    np.put_along_axis(tokens, queries, keys, axis=1)
    np.put_along_axis(targets, queries, values, axis=1)
    return tokens, targets


def _distinct(
    log_weights: NDArray[np.float64], count: int, rows: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Indices drawn one after the other without replacement, ``(rows, count)``.

    They are the `count` largest of log-weights plus Gumbel noise, in falling order (arXiv 1903.06059).
    """
    chosen = []
    step = max(1, CHUNK // len(log_weights))
    for start in range(0, rows, step):
        noise = random.gumbel(size=(min(step, rows - start), len(log_weights))) + log_weights
        top = np.argpartition(-noise, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(noise, top, axis=1), axis=1)
        chosen.append(np.take_along_axis(top, order, axis=1))
    return np.concatenate(chosen)


def _key_places(tokens: NDArray[np.int64], scored: NDArray[np.bool_], pairs: int) -> NDArray[np.int64]:
    """Where the key of each query was given, ``(rows, pairs)``, in the order of the queries."""
    asked = tokens[scored].reshape(-1, pairs)
    given = tokens[:, 0 : 2 * pairs : 2]
    return 2 * (asked[:, :, None] == given[:, None, :]).argmax(2)
