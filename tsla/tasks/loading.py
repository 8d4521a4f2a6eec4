"""From rows to batches: rows of like length together under a budget of tokens, in an order fixed by seed and epoch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from tsla.tasks.base import PAD

BUCKETS = 16  # steps between the shortest and the longest row: finer pads less, coarser mixes rows more


class Batch(NamedTuple):
    """tokens ``(b, n)`` int64, padded right with 0;  mask ``(b, n)`` bool, True = real;  labels ``(b,)`` int64."""

    tokens: Tensor
    mask: Tensor
    labels: Tensor


class Rows(TorchDataset[Batch]):
    """Token rows in one flat uint8 buffer, straight from Arrow (memory-mapped if the dataset is); fetched by the batch.

    Args:
        data: columns `input_ids` (list<uint8>) and `label`.
    """

    def __init__(self, data: Dataset) -> None:
        column = data.with_format("arrow")[:]["input_ids"].combine_chunks()
        self.offsets: NDArray[np.int64] = column.offsets.to_numpy().astype(np.int64)
        self.values: NDArray[np.uint8] = column.values.to_numpy(zero_copy_only=True)
        self.labels: NDArray[np.int64] = np.asarray(data.with_format("numpy")[:]["label"], dtype=np.int64)
        self.lengths = np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch: torch hands over all its indices at once."""
        lengths = self.lengths[indices]
        tokens = np.full((len(indices), int(lengths.max())), PAD, dtype=np.int64)
        for row, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            tokens[row, :length] = self.values[self.offsets[index] : self.offsets[index] + length]
        mask = np.arange(tokens.shape[1]) < lengths[:, None]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(self.labels[indices]))

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


class LengthBatches:
    """Batches of row indices: a batch sampler whose every order is a function of (seed, epoch).

    Rows are sorted by length bucket, ties in random order, and cut wherever rows x longest would pass the budget; then
    the batches are shuffled. The cuts do not depend on the epoch, so every epoch has the same number of batches.

    Args:
        lengths: tokens of each row.
        batch_tokens: budget of a batch, padding included; a single longer row is a batch of its own.
        seed: of the order; None keeps rows sorted and batches unshuffled, as evaluation wants.
        rank, world: this process and their number; process r takes every world-th batch.
        drop_uneven: leave out the last batches so that all processes take the same number, as training needs.
    """

    def __init__(
        self, lengths: NDArray[np.int64], batch_tokens: int, *, seed: int | None, rank: int = 0, world: int = 1,
        drop_uneven: bool = False,
    ) -> None:  # fmt: skip
        step = max(1, int(lengths.max(initial=1)) // BUCKETS)
        self.bucket = -(-lengths // step)
        self.seed, self.epoch, self.start = seed, 0, 0
        self.rank, self.world = rank, world
        self.sampler = self  # Lightning looks for set_epoch there
        widest = np.sort(self.bucket, kind="stable") * step
        cuts, start = [0], 0
        for row, width in enumerate(np.minimum(widest, lengths.max(initial=1))):
            if row > start and (row - start + 1) * width > batch_tokens:
                start = row
                cuts.append(row)
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
            rows = np.argsort(self.bucket, kind="stable")
            order = np.arange(len(self.cuts) - 1)
        else:
            random = np.random.default_rng((self.seed, self.epoch))
            rows = random.permutation(len(self.bucket))
            rows = rows[np.argsort(self.bucket[rows], kind="stable")]
            order = random.permutation(len(self.cuts) - 1)
        for batch in order[self.rank :: self.world][start : self.count]:
            yield rows[self.cuts[batch] : self.cuts[batch + 1]].tolist()


class Loader(DataLoader[Any]):
    """A data loader that knows how many batches of the epoch it has given, so that a run can go on in mid-epoch."""

    def __init__(self, rows: Rows, batches: LengthBatches, *, workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            rows, batch_sampler=batches, collate_fn=_as_is, num_workers=workers, pin_memory=pin_memory,
            persistent_workers=workers > 0,
        )  # fmt: skip
        self.batches = batches
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
            yield batch


def _as_is(batch: Any) -> Any:
    """The rows come as a batch already."""
    return batch
