"""`last.ckpt` every so often and when a run is stopped, `best.ckpt` whenever validation improves."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

MONITOR = "val/accuracy"


class CrashSafeIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs it to disk and renames it, so a target is never half-written.

    Lightning's own writer goes through the system's temporary folder, and a move between filesystems is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Fill `model` with the weights of a checkpoint of its training; only tensors and plain data are read from it.

    Raises:
        OSError: no such file, or no access to it.
        ValueError: a damaged or foreign file, or weights of another model, with what differs.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle or storage: whatever breaks first, the reader needs to know the file
        raise ValueError(f"{checkpoint} cannot be read: it is damaged or foreign ({type(error).__name__})") from None
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise ValueError(f"{checkpoint} is no checkpoint of a training")
    weights = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError("\n".join([f"{checkpoint} holds another model:", *str(error).splitlines()[1:6]])) from None


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether this batch is followed by validation, which a checkpoint must hold: resuming does not repeat it."""
    assert isinstance(trainer.val_check_batch, int)
    return (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0


class Checkpoints(L.Callback):
    """Keeps the two checkpoints of a run.

    Args:
        folder: where they go.
        every: optimiser steps between writes of `last.ckpt`.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.last, self.best = folder / "last.ckpt", folder / "best.ckpt"
        self.every = every
        self.best_score = self.best_step = self.saved_step = -1.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not validation_follows(trainer):
            self._save_when_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics[MONITOR])
        if score > self.best_score:
            self.best_score, self.best_step = score, trainer.global_step
            trainer.save_checkpoint(self.best)
        self._save_when_due(trainer)

    def save_last(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt` now."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.last)

    def _save_when_due(self, trainer: L.Trainer) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step > self.saved_step:
            self.save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
