"""What inputs ask of a model by themselves, before any task does: those that are hidden, or the next one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsla.tasks.base import TaskSpec
from tsla.tasks.loading import Batch


def pretext_spec(spec: TaskSpec) -> TaskSpec:
    """The spec of such a question: the id of each scored token, or the values of each scored step.

    Of a row of two inputs each is asked by itself.
    """
    kept: dict[str, Any] = {name: getattr(spec, name) for name in ("name", "inputs", "max_length", "image")}
    if spec.vocab_size is not None:
        return TaskSpec(**kept, target="tokens", outputs=spec.vocab_size, vocab_size=spec.vocab_size)
    assert spec.channels is not None  # the one or the other
    return TaskSpec(
        **kept, target="values", outputs=spec.channels, channels=spec.channels, input_mean=spec.input_mean,
        input_std=spec.input_std, target_mean=spec.input_mean, target_std=spec.input_std,
    )  # fmt: skip


def ask_hidden(batch: Batch, epoch: int, *, share: float, seed: int) -> Batch:
    """The batch with its own inputs for targets, of which a share is scored; a model is to hide those from itself.

    Which ones is a function of the seed, the epoch and the first row of the batch, which no other batch of the epoch
    has: a resumed run draws the same, and each of several processes its own.
    """
    random = np.random.default_rng((seed, epoch, int(batch.rows[0])))
    drawn = torch.from_numpy(random.random(tuple(batch.mask.shape)) < share)
    return batch._replace(targets=batch.inputs, scored=_places(drawn & batch.mask))


def ask_next(batch: Batch, epoch: int) -> Batch:
    """The batch with the input after each for its target; the last one of a row has none."""
    followed = batch.mask.roll(-1, 1) & batch.mask
    followed[:, -1] = False
    if batch.cu_seqlens is not None:
        followed[0, batch.cu_seqlens[1:] - 1] = False
    return batch._replace(targets=batch.inputs.roll(-1, 1), scored=_places(followed))


def _places(chosen: Tensor) -> Tensor:
    return chosen.flatten().nonzero().flatten()
