"""`last.ckpt` every so often and when a run is stopped, `best.ckpt` whenever validation improves."""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from tsla.training.average import WeightAverage
from tsla.training.objective import plain


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
        except RuntimeError as error:  # torch's zip writer, after a disk that said no
            raise OSError(f"cannot write {target}: {error.__context__ or error}") from error
        finally:
            part.unlink(missing_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a training; only tensors and plain data are read from it, and only if its checksums hold.

    Raises:
        OSError: no such file, or no access to it.
        ValueError: a damaged or foreign file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
        if altered is not None:
            raise ValueError(f"the checksum of {altered} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle or storage: whatever breaks first, the reader needs to know the file
        told = str(error).splitlines()[0] if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{path} cannot be read: it is damaged or foreign ({told})") from None
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise ValueError(f"{path} is no checkpoint of a training")
    return state


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Fill `model` with the weights of a checkpoint of its training: their moving average, if there is one.

    Raises:
        OSError, ValueError: as `read_checkpoint`; also weights of another model, with what differs.
    """
    state = read_checkpoint(checkpoint)
    weights = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
    weights |= state.get("callbacks", {}).get(WeightAverage.__name__, {}).get("average", {})
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError("\n".join([f"{checkpoint} holds another model:", *str(error).splitlines()[1:6]])) from None


def latest_checkpoint(folder: Path, *, fall_back: bool) -> Path | None:
    """The checkpoint a run goes on from: last.ckpt; with `fall_back`, the one before if that is damaged or missing.

    None if the run was ended before it wrote one.

    Raises:
        ValueError: a damaged file, and `fall_back` is not wanted or does not help.
    """
    found = [path for path in (folder / "last.ckpt", folder / "previous.ckpt") if path.exists()]
    for path, *others in (found[i:] for i in range(len(found))):
        try:
            read_checkpoint(path)
            return path
        except ValueError as error:
            if not others:
                raise
            if not fall_back:
                raise ValueError(f"{error}; resume=auto falls back to {others[0].name}") from None
    return None


def _keep(file: Path, name: Path) -> None:
    """Give a file a second name, so that it keeps its first until another one takes it: no moment is without both."""
    name.unlink(missing_ok=True)
    try:
        os.link(file, name)
    except OSError:  # a filesystem without hard links
        os.replace(file, name)


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether this batch is followed by validation, which a checkpoint must hold: resuming does not repeat it."""
    assert isinstance(trainer.val_check_batch, int)
    return (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0


class Checkpoints(L.Callback):
    """Keeps the checkpoints of a run, `last` with the one before it and `best`; ends a run that has stopped improving.

    Args:
        folder: where they go.
        every: optimiser steps between writes of `last.ckpt`.
        monitor: the logged score, growing, that `best.ckpt` has most of.
        patience: validations without a new best after which training ends; None for never.
    """

    def __init__(self, folder: Path, every: int, *, monitor: str, patience: int | None = None) -> None:
        self.last, self.previous, self.next, self.best = (
            folder / f"{name}.ckpt" for name in ("last", "previous", "next", "best")
        )
        self.every, self.monitor, self.patience = every, monitor, patience
        self.best_score, self.best_step = -math.inf, -1
        self.stale = 0  # validations since the best
        self.saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step
        self.check_best()
        self._stop_if_stale(trainer)
        for left in self.last.parent.glob("*.part") if trainer.is_global_zero else ():  # by a kill during a save
            left.unlink()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not validation_follows(trainer):
            self._save_when_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = plain(trainer.callback_metrics[self.monitor])
        if not math.isfinite(score) or not math.isfinite(float(trainer.callback_metrics["val/loss"])):
            score = -math.inf  # whatever the score makes of outputs that are no numbers
        self.stale += 1
        if score > self.best_score or self.best_step < 0:
            self.best_score, self.best_step, self.stale = score, trainer.global_step, 0
            trainer.save_checkpoint(self.best)
        self._stop_if_stale(trainer)
        self._save_when_due(trainer)

    def check_best(self) -> None:
        """Forget the best if `best.ckpt` is not it: lost, or written after the state that a run went back to."""
        try:
            if self.best_step < 0 or read_checkpoint(self.best)["global_step"] == self.best_step:
                return
        except (OSError, ValueError, KeyError):
            pass
        self.best_score, self.best_step = -math.inf, -1

    def save_last(self, trainer: L.Trainer) -> None:
        """Write `last.ckpt` now; the one before stays as `previous.ckpt`."""
        trainer.save_checkpoint(self.next)
        if trainer.is_global_zero:
            if self.last.exists():
                _keep(self.last, self.previous)
            os.replace(self.next, self.last)
        trainer.strategy.barrier()
        self.saved_step = trainer.global_step

    def _save_when_due(self, trainer: L.Trainer) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step > self.saved_step:
            self.save_last(trainer)

    def _stop_if_stale(self, trainer: L.Trainer) -> None:
        if self.patience is not None and self.stale >= self.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step, "stale": self.stale}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
