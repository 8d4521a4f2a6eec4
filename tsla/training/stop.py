"""Ctrl-C and SIGTERM end a run after the step in hand and its validation, with its checkpoint written."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L

from tsla.training.checkpoints import Checkpoints, validation_follows

ECHO_SECONDS = 1.0  # within which a second signal is the first one again


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
    """Saves and raises `Stopped` after the step during which SIGINT or SIGTERM came.

    Gradients of half an accumulated step are in no checkpoint, so that step is finished first. Another signal is
    immediate, but for one right after the first: a process and the one that started it may both pass on the same.

    Args:
        checkpoints: writes the last state.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.received: int | None = None
        self.received_at = 0.0
        self.step, self.stepped = 0, False  # optimiser steps until now, and whether the latest batch ended one

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals. From before Lightning would, which ends a process with status 0 and nothing saved."""
        earlier = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere python allows no handlers
            earlier = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in earlier.items():
                signal.signal(signum, handler)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # Lightning has put its own before ours by now
            signal.signal(signal.SIGTERM, self._receive)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stepped, self.step = trainer.global_step > self.step, trainer.global_step
        if self.stepped and not validation_follows(trainer):
            self.stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and self.stepped:
            self.stop_if_asked(trainer)

    def stop_if_asked(self, trainer: L.Trainer) -> None:
        """Save and raise `Stopped`, if a signal has come to any of the processes that train together."""
        asked = self.received is not None
        if trainer.world_size > 1:  # all processes stop, and after the same step
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.checkpoints.save_last(trainer)
            raise Stopped(self.received or signal.SIGTERM, trainer.global_step)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = signum, time.monotonic()
        elif time.monotonic() - self.received_at > ECHO_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
