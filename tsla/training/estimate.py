"""How long and how much memory a training will take, from a few of its steps."""

import time
from typing import Any, NamedTuple

import torch
from torch import nn

from tsla.tasks.loading import Batch, Loader
from tsla.training.fit import FitSettings
from tsla.training.hardware import pick_device
from tsla.training.objective import Objective
from tsla.training.optim import OptimSettings, make_optimizer
from tsla.training.run_dir import peak_memory_bytes

STEPS = 2  # that are measured, after one that is not: the first of a process is slow


class Estimate(NamedTuple):
    """What a training takes.

    seconds: all of it, validation included;  tokens_per_second: real ones;  peak_memory_bytes: so far;  loss: of the
    last step that was tried.
    """

    seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    loss: float


def estimate(
    model: nn.Module, train: Loader, val: Loader, *, objective: Objective, optim: OptimSettings, settings: FitSettings
) -> Estimate:  # fmt: skip
    """Run a few steps of training and two batches of validation, and scale by their numbers of tokens.

    The model is trained by those steps: throw it away.
    """
    device = pick_device(settings.accelerator)
    model = model.to(device).train()
    run: Any = model.run
    optimizer = make_optimizer(model, optim)
    batches = _spread(train, 1 + STEPS)
    tokens, started, loss = 0, 0.0, torch.zeros(())
    for number, batch in enumerate(batches):
        if number == 1:
            _wait(device)
            started = time.perf_counter()
        answers = objective.ask(run, batch.to(device))
        loss = objective.loss(answers)
        (loss if answers.aux is None else loss + answers.aux).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokens += int(batch.mask.sum()) if number else 0
    _wait(device)
    train_rate = tokens / (time.perf_counter() - started)
    model.eval()
    tokens, started = 0, time.perf_counter()
    with torch.inference_mode():
        for batch in _spread(val, STEPS):
            objective.ask(run, batch.to(device))
            tokens += int(batch.mask.sum())
    _wait(device)
    val_rate = tokens / (time.perf_counter() - started)
    epoch_tokens, val_tokens = int(train.rows.lengths.sum()), int(val.rows.lengths.sum())
    per_step = epoch_tokens / len(train) * settings.accumulate / train_rate
    per_step += val_tokens / val_rate / settings.validate_every
    steps_per_epoch = -(-len(train) // settings.accumulate)
    limits = settings.limits
    ends = [
        limits.max_steps and limits.max_steps * per_step,
        limits.max_epochs and limits.max_epochs * steps_per_epoch * per_step,
        limits.max_minutes and limits.max_minutes * 60,
    ]
    return Estimate(min(end for end in ends if end), train_rate, peak_memory_bytes(), float(loss.detach()))


def _spread(loader: Loader, count: int) -> list[Batch]:
    """`count` batches from all over the epoch, again and again if it has fewer."""
    order = list(loader.batches)
    return [loader.batch(order[i * len(order) // count]) for i in range(count)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
