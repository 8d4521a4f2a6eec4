"""Ctrl-C and SIGTERM end a run after the step in hand, with its checkpoint written."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L

from tsla.training.checkpoints import Checkpoints


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

    Args:
        checkpoints: writes the last state.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int | None = None
        self.earlier: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere python allows no handlers
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.earlier[signum] = signal.signal(signum, self._receive)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.received is not None:
            self.checkpoints.save_last(trainer)
            raise Stopped(self.received, trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for signum, handler in self.earlier.items():
            signal.signal(signum, handler)
        self.earlier = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        signal.signal(signum, signal.SIG_DFL)
