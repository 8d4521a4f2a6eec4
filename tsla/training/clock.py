"""How far a run is: steps, epochs and minutes against their limits, through every resume."""

import time
from typing import Any, NamedTuple

import lightning as L


class Limits(NamedTuple):
    """When training ends: at the first of the limits that are given (optimiser steps, epochs, minutes)."""

    max_steps: int | None
    max_epochs: int | None
    max_minutes: float | None


class Clock(L.Callback):
    """Counts optimiser steps and seconds, ends training at the time limit, and tells how much of it is done.

    The schedule follows the steps where their number is known, and the time only where nothing else is given.

    Args:
        limits: see `Limits`.
        steps_per_epoch: optimiser steps of one epoch.
    """

    def __init__(self, limits: Limits, steps_per_epoch: int) -> None:
        ends = [limits.max_steps, limits.max_epochs and limits.max_epochs * steps_per_epoch]
        self.total_steps = min((end for end in ends if end), default=None)
        self.limit_seconds = limits.max_minutes and 60 * limits.max_minutes
        self.step = 0
        self.elapsed = 0.0  # seconds at the latest step, the same in all processes, which would part otherwise
        self.earlier_seconds = 0.0
        self.started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, validation included."""
        return self.earlier_seconds + (time.perf_counter() - self.started if self.started is not None else 0.0)

    def progress(self) -> float:
        """Fraction of the training done, as the schedule counts it."""
        if self.total_steps is not None:
            return self.step / self.total_steps
        return self.elapsed / self.limit_seconds if self.limit_seconds else 0.0

    def seconds_left(self) -> float | None:
        """Estimate from the fraction done; None before the first step."""
        fraction = max(self.progress(), self.seconds / self.limit_seconds if self.limit_seconds else 0.0)
        return self.seconds * max(0.0, 1 - fraction) / fraction if fraction > 0 and self.step else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()
        self.step = trainer.global_step
        self._stop_at_limit(trainer)  # a run that was ended after its last step has none left

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.step = trainer.global_step + 1  # the schedule asks after this step, before Lightning has counted it
        if self.limit_seconds:
            self.elapsed = trainer.strategy.broadcast(self.seconds)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stop_at_limit(trainer)

    def _stop_at_limit(self, trainer: L.Trainer) -> None:
        if self.limit_seconds and self.elapsed >= self.limit_seconds:
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.earlier_seconds, self.started = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_seconds = self.elapsed = state_dict["seconds"]
