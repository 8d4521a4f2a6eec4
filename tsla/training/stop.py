"""Ctrl-C and SIGTERM end a run after the step in hand and its validation, with its checkpoint written."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L

from tsla.training.checkpoints import Checkpoints, validation_follows


class Stopped(Exception):
    """A signal ended the run; its state is in last.ckpt.

    Args:
        signum: the signal.
        step: optimiser steps that are saved.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


class StopOnSignal(L.Callback):
    """Saves and raises `Stopped` after the step during which SIGINT or SIGTERM came; a second one is immediate.

    Gradients of half an accumulated step are in no checkpoint, so that step is finished first.

    Args:
        checkpoints: writes the last state.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int | None = None
        self.step, self.stepped = 0, False  # optimiser steps until now, and whether the latest batch ended one
        self.earlier: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # elsewhere python allows no handlers
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.earlier[signum] = signal.signal(signum, self._receive)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stepped, self.step = trainer.global_step > self.step, trainer.global_step
        if self.stepped and not validation_follows(trainer):
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and self.stepped:
            self._stop_if_asked(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)
        self.earlier = {}

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        asked = self.received is not None
        if trainer.world_size > 1:  # all processes stop, and after the same step
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.checkpoints.save_last(trainer)
            raise Stopped(self.received or signal.SIGTERM, trainer.global_step)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, signal.SIG_DFL)
