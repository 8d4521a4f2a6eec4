"""metrics.csv, and the same numbers for any other logger: one row every few steps, flushed as it is written."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tsla.tasks.loading import Batch
from tsla.training.objective import plain

LOG_EVERY = 10  # optimiser steps


class MetricsFile:
    """A CSV file whose rows are appended one by one; a new column rewrites it.

    Args:
        path: of the file; an existing one is gone on with.
        keep: its first rows so many, which a checkpoint knows; later ones come again. None for all.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self.path = path
        self.columns = ["step", "epoch"]
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.columns)
                rows = [row for row in reader if (row.get("step") or "").isdigit() and len(row) == len(self.columns)]
                rows = [row for row in rows if None not in row.values()]  # nor too long, nor cut short
            self.rows = rows[:keep]
        self._rewrite()

    def append(self, row: dict[str, Any]) -> None:
        """Add one row and flush it to the disk's queue."""
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def _rewrite(self) -> None:
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.path)


class Recorder(L.Callback):
    """Writes training rows every `LOG_EVERY` optimiser steps and a row after each validation; measures throughput.

    Args:
        path: of metrics.csv.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: MetricsFile | None = None
        self.tokens, self.seconds = 0, 0.0  # real tokens and seconds of training, validation left out
        self.since_tokens, self.since_seconds = torch.zeros((), dtype=torch.long), 0.0  # those since the last row
        self.mark = 0.0  # when seconds were last added up
        self.validated_step = self.written_step = -1
        self.epoch = 0  # of the latest step: Lightning counts on before it validates for the last time
        self.latest: dict[str, float] = {}
        self.rows = 0  # written so far

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second of training, over the whole run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the row of the steps since the last full one; a resumed run may have no other left to write."""
        if self.file is None and trainer.is_global_zero:
            self.file = MetricsFile(self.path, self.rows)
        if int(self.since_tokens):
            self._training_row(trainer, module, trainer.global_step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.written_step = trainer.global_step
        self.since_tokens = self.since_tokens.to(pl_module.device)
        if trainer.is_global_zero:
            self.file = MetricsFile(self.path, self.rows)
        self.mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.since_tokens = self.since_tokens + batch.mask.sum()  # stays on the device
        self.epoch = trainer.current_epoch
        step = trainer.global_step
        if step % LOG_EVERY == 0 and step > self.written_step:
            self._training_row(trainer, pl_module, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since_seconds += time.perf_counter() - self.mark

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validated_step = trainer.global_step
        metrics = {name: plain(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._write(trainer, trainer.global_step, metrics)
        self.mark = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        state = {"tokens": self.tokens, "seconds": self.seconds, "since_seconds": self.since_seconds}
        return {
            **state, "since_tokens": int(self.since_tokens), "validated_step": self.validated_step, "epoch": self.epoch,
            "rows": self.rows,
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, torch.tensor(value) if name == "since_tokens" else value)
        self.mark = time.perf_counter()

    def _training_row(self, trainer: L.Trainer, module: Any, step: int) -> None:
        tokens = int(trainer.strategy.reduce(self.since_tokens, reduce_op="sum"))  # waits for the device
        seconds = self.since_seconds + time.perf_counter() - self.mark
        metrics = {
            "train/loss": plain(module.train_loss.compute()),
            **{f"train/{name}": plain(value) for name, value in module.train_scores.compute().items()},
            **({"train/aux": plain(module.train_aux.compute())} if module.adds_loss else {}),
            "optim/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "perf/tokens_per_second": tokens / seconds,
        }
        module.train_loss.reset()
        module.train_aux.reset()
        module.train_scores.reset()
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self.since_tokens, self.since_seconds = torch.zeros_like(self.since_tokens), 0.0
        self.written_step = step
        self._write(trainer, step, metrics)
        self.mark = time.perf_counter()

    def _write(self, trainer: L.Trainer, step: int, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        self.rows += 1
        if self.file is not None:
            self.file.append({"step": step, "epoch": self.epoch, **metrics})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
