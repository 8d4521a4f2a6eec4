"""What ends a training that cannot go on, and how it is told: numbers that are not finite, memory that is not there."""

from collections.abc import Mapping

import torch
from torch import Tensor


class TrainingFailed(RuntimeError):
    """Training cannot go on; nothing of what is saved is touched by what went wrong."""


def describe_nonfinite(step: int, loss: Tensor | float, gradients: Mapping[str, Tensor]) -> str:
    """Which of them is not finite, at which optimiser step; `gradients` by the name of their parameter."""
    culprits = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    told = f"the loss is {float(loss)}"
    if culprits:
        more = f" and {len(culprits) - 1} more" if len(culprits) > 1 else ""
        told += f", the gradient of {culprits[0]}{more} is not finite"
    elif torch.isfinite(torch.as_tensor(loss)):
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
