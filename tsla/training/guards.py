"""What ends a training that cannot go on, and how it is told: numbers that are not finite, memory that is not there."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from tsla.training.checkpoints import validation_follows
from tsla.training.recorder import LOG_EVERY


class TrainingFailed(RuntimeError):
    """Training cannot go on; nothing of what is saved is touched by what went wrong."""


class _Step(NamedTuple):
    """An optimiser step: its number; 1.0 if it is unfit; its loss; the largest entry of each gradient, by name."""

    number: int
    unfit: Tensor
    loss: Tensor | float
    names: tuple[str, ...]
    largest: Tensor


class FiniteGuard(L.Callback):
    """Keeps what is not finite out of the weights, and ends the training that has met it.

    A device that is asked in every step whether all is well has to be waited for in every step. So it keeps the answer:
    from the first loss or gradient on that is not finite, the optimiser is told to leave out every step, and changes
    neither the weights nor what it remembers. The host looks before each row of metrics.csv, each validation and each
    checkpoint, at least every `LOG_EVERY` steps, and only then raises, naming the step that it was.
    """

    def __init__(self) -> None:
        self.unfit: Tensor | None = None  # 1.0 from that step on
        self.steps: list[_Step] = []  # since the last look

    def watch(
        self, step: int, loss: Tensor | float, gradients: Mapping[str, Tensor], *, together: bool
    ) -> tuple[Tensor, Tensor]:
        """The norm of all gradients; and 1.0 if the optimiser is to leave out this step, else 0.0. Waits for nothing.

        Args:
            step: counted from 1.
            loss: of the step.
            gradients: by the name of their parameter.
            together: several processes train together. A loss is that of one of them: all leave out a step, or none.
        """
        held = {name: gradient for name, gradient in gradients.items() if gradient.numel()}
        norm = torch.nn.utils.get_total_norm(held.values())
        unfit = (~torch.isfinite(norm + loss)).float()
        if together:  # Lightning's own reduction has the processes wait for each other first
            torch.distributed.all_reduce(unfit, op=torch.distributed.ReduceOp.MAX)
        # Of each gradient by itself: the norm of finite numbers may overflow.
        largest = torch.stack(torch._foreach_norm(list(held.values()), torch.inf)) if held else norm.new_empty(0)
        self.steps.append(_Step(step, unfit, loss, tuple(held), largest))
        self.unfit = unfit if self.unfit is None else torch.maximum(self.unfit, unfit)
        return norm, self.unfit

    def check(self) -> None:
        """Wait for the device, and look.

        Raises:
            TrainingFailed: with the first step that was unfit, and the first parameter whose gradient is not finite.
        """
        steps, self.steps = self.steps, []
        if not steps or self.unfit is None or not self.unfit.item():
            return
        first = next(step for step in steps if step.unfit.item())
        finite = zip(first.names, first.largest.isfinite().tolist(), strict=True)
        culprits = [name for name, fine in finite if not fine]
        raise TrainingFailed(describe_nonfinite(first.number, float(first.loss), culprits))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % LOG_EVERY == 0 or validation_follows(trainer):
            self.check()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check()


def describe_nonfinite(step: int, loss: float, culprits: list[str]) -> str:
    """What is not finite at an optimiser step: the loss, the gradients of the parameters `culprits`, or their norm."""
    told = f"the loss is {loss}"
    if culprits:
        more = f" and {len(culprits) - 1} more" if len(culprits) > 1 else ""
        told += f", the gradient of {culprits[0]}{more} is not finite"
    elif isfinite(loss):
        told = "the norm of the gradient overflows"
    return f"step {step}: {told}; stopped before the update. Try a smaller optim.lr or more optim.warmup_steps"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whatever device: not all of torch's allocators have an exception of their own."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def describe_out_of_memory(step: int, batch: tuple[int, int], batch_tokens: int, accumulate: int) -> str:
    """What did not fit, and two things to try: the same step in smaller batches, or a leaner backward pass."""
    rows, length = batch
    smaller = max(batch_tokens // 2, 1)
    return (
        f"step {step}: out of memory on a batch of {rows} rows of up to {length} tokens. Try "
        f"trainer.batch_tokens={smaller} trainer.accumulate={2 * accumulate}, or model.gradient_checkpointing=true"
    )
