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
    """Fill `model` with the weights of a checkpoint of its training; only tensors and plain data are read from it."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})


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
        if trainer.global_step % self.every == 0 and trainer.global_step > self.saved_step:
            self.save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = float(trainer.callback_metrics[MONITOR])
        if score > self.best_score:
            self.best_score, self.best_step = score, trainer.global_step
            trainer.save_checkpoint(self.best)

    def save_last(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt` now."""
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
