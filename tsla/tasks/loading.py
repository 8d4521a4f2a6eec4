"""From rows to batches: rows of like length together under a budget of tokens, in an order fixed by seed and epoch."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tsla.tasks.base import IGNORE, PAD, TaskSpec

Array = NDArray[Any]
LEAST = 16  # batches that a curriculum begins with: one alone would be learnt by heart
BUCKETS = 16  # steps between the shortest and the longest row: finer pads less, coarser mixes rows more


class Curriculum(NamedTuple):
    """Easy rows first: none is harder than a limit that grows from the easiest to the hardest (Bengio et al., 2009).

    kind: of hardness: ``"length"`` of rows, whose limit grows by the same factor from batch to batch; ``"depth"`` of
        their trees, or the ``"stage"`` a task gives them, whose limit grows by the same number.
    hardness: of each row, ``(rows,)``.
    batches: after so many, those of all processes together, the limit is that of the hardest.
    """

    kind: str
    hardness: NDArray[np.int64]
    batches: int

    def limit(self, batch: NDArray[np.int64]) -> NDArray[np.float64]:
        """The hardest that a row of these batches may be, which are counted from the beginning of training."""
        low, high = max(1.0, float(self.hardness.min())), float(self.hardness.max())
        gone = np.minimum(batch / self.batches, 1.0)
        return low * (high / low) ** gone if self.kind == "length" else low + (high - low) * gone


class Batch(NamedTuple):
    """One batch of rows, padded; or packed, which is one row of them all and then n their tokens together.

    inputs: token ids ``(b, n)`` int64, padded right with 0, or a series ``(b, n, channels)`` float32. Of rows of two
        inputs ``(2 b, n)``, as many masks, and bounds of 2 b packed rows: the first inputs of all, then the second.
    mask: ``(b, n)`` bool, True = real.
    targets: classes ``(b,)`` int64, labels or numbers ``(b, outputs)`` float32, token classes ``(b, n)`` int64, or
        values ``(b, n, outputs)`` float32; of packed rows ``(rows,)``, ``(rows, outputs)``, ``(1, n)`` or
        ``(1, n, outputs)``.
    rows: which of the split these are, ``(b,)`` int64, or ``(rows,)``.
    cu_seqlens: where each packed row begins, and the end of the last, ``(rows + 1,)`` int64; None if padded.
    scored: the tokens that have a target, by their places when all rows stand in one, ``(count,)`` int64; None where
        the targets are those of rows. Made here, since a device that is asked for their count has to be waited for.
    """

    inputs: Tensor
    mask: Tensor
    targets: Tensor
    rows: Tensor
    cu_seqlens: Tensor | None = None
    scored: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on that device; a GPU copies it, from pinned memory, while this process goes on."""
        # Lightning moves a batch by this method and, as it is no tensor, does not ask for that by itself.
        ahead = torch.device(device).type == "cuda"
        return Batch(*(None if x is None else x.to(device, non_blocking=ahead) for x in self))  # type: ignore[arg-type]


class Ragged:
    """Rows of numbers, in the pieces that Arrow has mapped into memory, none of which is copied.

    Args:
        column: of lists.
        width: numbers of a step; lengths count steps.
    """

    def __init__(self, column: pa.ChunkedArray, width: int = 1) -> None:
        self.pieces: list[Array] = []
        piece, start, length = [], [], []
        for place, chunk in enumerate(column.chunks or [pa.array([], column.type)]):
            offsets = chunk.offsets.to_numpy().astype(np.int64)
            self.pieces.append(chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, *(width,) * (width > 1)))
            start.append((offsets[:-1] - offsets[0]) // width)
            length.append(np.diff(offsets) // width)
            piece.append(np.full(len(chunk), place))
        self.piece, self.start, self.lengths = (
            np.concatenate([np.zeros(0, np.int64), *parts]) for parts in (piece, start, length)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Array:
        start = self.start[row]
        return self.pieces[self.piece[row]][start : start + self.lengths[row]]

    def joined(self, rows: Sequence[int]) -> Array:
        """These rows, one after another."""
        return np.concatenate([self[row] for row in rows] or [self.pieces[0][:0]])


class Rows(TorchDataset[Batch]):
    """Rows in flat buffers, straight from Arrow (memory-mapped if the dataset is); fetched by the batch.

    A batch of n rows of two inputs has 2 n rows: the first inputs of all, then the second ones.

    Args:
        data: columns as `tsla.tasks.base.Task` says.
        spec: of the task; its means and deviations standardise a series and numbers.
        packed: make packed batches.
    """

    def __init__(self, data: Dataset, spec: TaskSpec, *, packed: bool = False) -> None:
        self.spec, self.packed = spec, packed
        table = data.with_format("arrow")[:]
        names = set(table.column_names)
        columns = [name for name in ("input_ids", "values", "input_ids_2") if name in names]
        self.inputs = [Ragged(table[name], spec.channels or 1) for name in columns]
        if len(self.inputs) != 1 + bool(spec.pairs):
            raise ValueError(f"rows have the inputs {', '.join(columns)}, {spec.name} needs {1 + bool(spec.pairs)}")
        self.lengths = np.sum([one.lengths for one in self.inputs], axis=0)
        self.targets: Any = self._targets(table["label"])
        self.sides = {name: table[name] for name in sorted(names - {*columns, "label"})}

    @cached_property
    def slices(self) -> dict[str, list[Any]]:
        """What scores are told by: the other columns, as values of the rows, or of the scored tokens of all rows."""
        return {name: _flat(column.to_pylist()) for name, column in self.sides.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def hardness(self, kind: str) -> NDArray[np.int64]:
        """Of each row, as a `Curriculum` wants it, ``(rows,)``.

        Raises:
            ValueError: rows without such a thing, or all alike in it.
        """
        found = self._hardness(kind)
        if len(found) and found.min() == found.max():
            raise ValueError(f"a curriculum of {kind} needs rows that differ in it, and all those of {self.spec.name} "
                             f"that are trained on have {found[0]}")  # fmt: skip
        return found

    def _hardness(self, kind: str) -> NDArray[np.int64]:
        if kind == "length":
            return self.lengths
        grades = self.sides.get(kind)
        if grades is None:
            raise ValueError(f"a curriculum of {kind} needs rows with a {kind}, which those of {self.spec.name} lack")
        if pa.types.is_integer(grades.type):
            return grades.to_numpy().astype(np.int64)
        each = Ragged(grades)  # of every closing bracket: a row is as deep as the deepest
        return np.array([each[row].max() for row in range(len(each))], dtype=np.int64)

    def shared_with(self, others: "Rows") -> int:
        """How many of these rows have the inputs of one of the others."""
        theirs = set(others._hashes())
        return sum(found in theirs for found in self._hashes())

    def _hashes(self) -> Iterator[int]:
        return (hash(tuple(one[row].tobytes() for one in self.inputs)) for row in range(len(self)))

    @property
    def padded(self) -> NDArray[np.int64]:
        """Tokens that each row takes of a batch in which none is longer, ``(rows,)``."""
        longest: NDArray[np.int64] = np.max([one.lengths for one in self.inputs], axis=0)
        return longest * len(self.inputs)

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch: torch hands over all its indices at once."""
        lengths = np.concatenate([one.lengths[indices] for one in self.inputs])
        cu_seqlens = scored = None
        if self.packed:
            mask = np.ones((1, int(lengths.sum())), dtype=bool)
            cu_seqlens = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
        else:
            mask = np.arange(int(lengths.max())) < lengths[:, None]
        given = np.concatenate([one.joined(indices) for one in self.inputs])
        if self.spec.channels is None:
            inputs = _placed(given, mask, PAD, np.int64)
        else:
            given = given.reshape(-1, self.spec.channels)
            inputs = _placed(_standardised(given, self.spec.input_mean, self.spec.input_std), mask, 0.0, np.float32)
        if self.spec.target == "tokens":
            targets = _placed(self.targets.joined(indices), mask, IGNORE, np.int64)
            scored = torch.from_numpy(np.flatnonzero(targets != IGNORE))
        else:
            targets = self.targets[indices]
        rows = np.asarray(indices, dtype=np.int64)
        tensors = [torch.from_numpy(x) for x in (inputs, mask, targets, rows)]
        return Batch(*tensors, cu_seqlens=cu_seqlens, scored=scored)  # type: ignore[misc]

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def _targets(self, column: pa.ChunkedArray) -> "Array | Ragged":
        if self.spec.target == "class":
            return column.to_numpy().astype(np.int64)
        found = Ragged(column)
        if self.spec.target == "tokens":
            return found
        values = found.joined(range(len(found))).reshape(-1, self.spec.outputs)
        if self.spec.target == "labels":
            return values.astype(np.float32)
        return _standardised(values, self.spec.target_mean, self.spec.target_std)


def _placed(given: Array, mask: Array, fill: float, kind: type) -> Array:
    """Rows, one after another, where `mask` is True: padded, or packed into one row."""
    placed = np.full((*mask.shape, *given.shape[1:]), fill, dtype=kind)
    placed[mask] = given
    return placed


def _standardised(values: Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    return ((values - np.asarray(mean)) / np.asarray(std)).astype(np.float32)


def _flat(values: list[Any]) -> list[Any]:
    """Values of rows as they are, those of scored tokens one after the other."""
    return [item for value in values for item in value] if values and isinstance(values[0], list) else values


class LengthBatches:
    """Batches of row indices: a batch sampler whose every order is a function of (seed, epoch).

    Rows are sorted by length bucket, ties in random order, and cut wherever they would pass a limit of a batch; then
    the batches are shuffled. The cuts do not depend on the epoch, so every epoch has the same number of batches.

    Args:
        lengths: tokens of each row.
        batch_tokens: budget of a batch, padding included; a single longer row is a batch of its own.
        batch_rows: most rows of a batch; None: as many as the budget allows.
        seed: of the order; None keeps rows sorted and batches unshuffled, as evaluation wants.
        rank, world: this process and their number; process r takes every world-th batch.
        drop_uneven: leave out the last batches so that all processes take the same number, as training needs.
        curriculum: until it is over, batches are drawn, each anew, from those without a row beyond its limit.
    """

    def __init__(
        self, lengths: NDArray[np.int64], batch_tokens: int, *, batch_rows: int | None = None, seed: int | None,
        rank: int = 0, world: int = 1, drop_uneven: bool = False, curriculum: Curriculum | None = None,
    ) -> None:  # fmt: skip
        step = max(1, int(lengths.max(initial=1)) // BUCKETS)
        self.bucket = -(-lengths // step)
        self.seed, self.epoch, self.start = seed, 0, 0
        self.rank, self.world = rank, world
        self.sampler = self  # Lightning looks for set_epoch there
        self.curriculum = curriculum
        self.key = self.bucket  # rows that are alike in it go together
        if curriculum is not None:
            self.key = curriculum.hardness * (self.bucket.max(initial=0) + 1) + self.bucket
        rows = np.argsort(self.key, kind="stable")
        cuts, start, widest = [0], 0, 0
        for row, width in enumerate(np.minimum(self.bucket[rows] * step, lengths.max(initial=1))):
            count, widest = row - start + 1, max(widest, width)  # with this row
            if row > start and (count * widest > batch_tokens or count > (batch_rows or count)):
                start, widest = row, width
                cuts.append(row)
        if curriculum is not None:
            self.hardest = np.maximum.reduceat(curriculum.hardness[rows], cuts)  # of each batch, in rising order
        self.cuts = [*cuts, len(lengths)] if len(lengths) else [0]
        total = len(self.cuts) - 1
        self.count = total // world if drop_uneven else len(range(rank, total, world))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next (Lightning calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        if self.seed is None:
            rows = np.argsort(self.key, kind="stable")
            order = np.arange(len(self.cuts) - 1)
        else:
            random = np.random.default_rng((self.seed, self.epoch))
            rows = random.permutation(len(self.key))
            rows = rows[np.argsort(self.key[rows], kind="stable")]
            order = random.permutation(len(self.cuts) - 1)
            if self.curriculum is not None:
                order = self._easy_first(order, self.curriculum, random)
        for batch in order[self.rank :: self.world][start : self.count]:
            yield rows[self.cuts[batch] : self.cuts[batch + 1]].tolist()

    def _easy_first(
        self, order: NDArray[np.int64], curriculum: Curriculum, random: np.random.Generator
    ) -> NDArray[np.int64]:  # fmt: skip
        """`order`, with batches that are easy enough where the curriculum is not over."""
        batch = self.epoch * len(order) + np.arange(len(order))
        allowed = np.searchsorted(self.hardest, curriculum.limit(batch), side="right")
        drawn = random.integers(np.clip(allowed, min(LEAST, len(order)), len(order)))
        over = np.count_nonzero(batch < curriculum.batches)
        return np.concatenate([drawn[:over], order[: len(order) - over]])


class Loader(DataLoader[Any]):
    """A data loader that knows how many batches of the epoch it has given, so that a run can go on in mid-epoch.

    Args:
        rows, batches: what is loaded, and in which order.
        workers: processes that make batches.
        pin_memory: for copies to a GPU.
        pose: makes of a batch and the epoch one that asks something else; where the order is fixed, the epoch stays 0.
    """

    def __init__(
        self, rows: Rows, batches: LengthBatches, *, workers: int = 0, pin_memory: bool = False,
        pose: Callable[[Batch, int], Batch] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            rows, batch_sampler=batches, collate_fn=_as_is, num_workers=workers, pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )  # fmt: skip
        self.rows, self.batches, self.pose = rows, batches, pose
        self.given = 0
        self.skip = 0

    def state_dict(self) -> dict[str, int]:
        """Batches given in this epoch; Lightning keeps it in the checkpoint."""
        return {"given": self.given % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out, once, the batches a run has already had."""
        self.skip = state["given"]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.given, self.skip = self.skip, 0
        self.batches.start = self.given
        for batch in super().__iter__():
            self.given += 1
            yield self._posed(batch)

    def batch(self, rows: list[int]) -> Batch:
        """One batch of these rows, whatever the order."""
        return self._posed(self.rows.__getitems__(rows))

    def _posed(self, batch: Batch) -> Batch:
        return batch if self.pose is None else self.pose(batch, 0 if self.batches.seed is None else self.batches.epoch)


def _as_is(batch: Any) -> Any:
    """The rows come as a batch already."""
    return batch
