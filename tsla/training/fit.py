"""One training: the only place that makes a Lightning Trainer."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import nn

from tsla.tasks.loading import Loader
from tsla.training.average import WeightAverage
from tsla.training.checkpoints import Checkpoints, CrashSafeIO, load_weights
from tsla.training.clock import Clock, Limits
from tsla.training.guards import TrainingFailed, describe_out_of_memory, is_out_of_memory
from tsla.training.loggers import end_logging
from tsla.training.module import Learner
from tsla.training.objective import Objective
from tsla.training.optim import OptimSettings
from tsla.training.progress import ProgressBar
from tsla.training.recorder import Recorder
from tsla.training.redraw import Redraw
from tsla.training.run_dir import RunDir
from tsla.training.stop import StopOnSignal, Stopped


class FitSettings(NamedTuple):
    """How to train; the meaning of each stands in `tsla.config.schema.TrainerConfig`.

    idle_parameters: some get no gradient, which several processes that train together have to know.
    """

    limits: Limits
    batch_tokens: int
    accumulate: int
    validate_every: int
    checkpoint_every: int
    precision: str
    accelerator: str
    devices: int
    compile: bool
    ema: float | None = None
    patience: int | None = None
    idle_parameters: bool = False


class Fitted(NamedTuple):
    """What a training reports: steps, seconds with validation, real tokens per second without, the best validation.

    tokens: real ones that it read.
    best_score is of the objective's monitored score, best_step the optimiser step it was reached at.
    """

    steps: int
    seconds: float
    tokens: int
    tokens_per_second: float
    best_step: int
    best_score: float
    device: torch.device
    is_main: bool


def fit(
    model: nn.Module, train: Loader, val: Loader, *, objective: Objective, optim: OptimSettings, settings: FitSettings,
    run: RunDir, loggers: list[Logger], console: Console, seed: int, start: Path | None = None,
) -> Fitted:  # fmt: skip
    """Train `model` in place until the first limit, with metrics.csv and checkpoints in `run`.

    Args:
        model: has `run(inputs, mask) -> (logits, aux)`; it ends with its moving average if there is one.
        train, val: batches; `train` in an order of its own for each epoch.
        objective, optim, settings: see there.
        run: where everything goes.  loggers: beside metrics.csv.  console: for the progress bar.
        seed: of dropout and of random features.
        start: a checkpoint of this run to go on from.

    Raises:
        Stopped: after SIGINT or SIGTERM, with the state saved.
        TrainingFailed: a loss or gradient that is not finite, before it reaches the weights; memory that ran out.
        ValueError: hardware that is not there, or a checkpoint that cannot be gone on with.
    """
    if start is not None:
        load_weights(model, start)  # Lightning does it again; this says what is wrong with a file that does not fit
    clock = Clock(settings.limits, -(-len(train) // settings.accumulate))
    recorder = Recorder(run.metrics)
    average = WeightAverage(model, settings.ema)
    checkpoints = Checkpoints(
        run.checkpoints, settings.checkpoint_every, monitor=f"val/{objective.monitor}", patience=settings.patience
    )
    module = Learner(
        model, objective=objective, optim=optim, progress=clock.progress, seed=seed, compiled=settings.compile
    )
    bar = ProgressBar(clock, recorder, console, objective.monitor)
    stop = StopOnSignal(checkpoints)
    callbacks = [module.guard, clock, recorder, Redraw(seed), average, checkpoints, stop, bar]
    with _quiet(), stop.listening(), _memory_told(module, settings):
        trainer = _trainer(settings, optim.clip_norm, callbacks, loggers)
        try:
            trainer.fit(module, train, val, ckpt_path=start, weights_only=True)
            _end(trainer, module, val, recorder, checkpoints)
            stop.stop_if_asked(trainer)
        except SIGTERMException:  # Lightning's answer to a signal that came before ours could
            raise Stopped(signal.SIGTERM, max(checkpoints.saved_step, 0)) from None
    average.swap()
    end_logging(loggers)
    return Fitted(
        trainer.global_step, clock.seconds, recorder.tokens, recorder.tokens_per_second, checkpoints.best_step,
        checkpoints.best_score, trainer.strategy.root_device, trainer.is_global_zero,
    )  # fmt: skip


def _end(trainer: L.Trainer, module: Learner, val: Loader, recorder: Recorder, checkpoints: Checkpoints) -> None:
    """What a training has left to do after its last step: the last row, the last validation, the last checkpoint."""
    if checkpoints.saved_step != trainer.global_step:
        checkpoints.save_last(trainer)  # before the time that a validation takes
    recorder.finish(trainer, module)
    checkpoints.check_best()
    if recorder.validated_step != trainer.global_step or checkpoints.best_step < 0:
        trainer.validate(module, val, verbose=False, weights_only=True)
    checkpoints.save_last(trainer)


def _trainer(settings: FitSettings, clip_norm: float, callbacks: list[L.Callback], loggers: list[Logger]) -> L.Trainer:
    """Lightning's trainer with everything of its own switched off that `callbacks` do.

    Raises:
        ValueError: hardware that is not there.
    """
    together = "ddp_find_unused_parameters_true" if settings.idle_parameters else "ddp"
    try:
        return L.Trainer(
            accelerator=settings.accelerator, devices=settings.devices, precision=_PRECISIONS[settings.precision],
            strategy=together if settings.devices > 1 else "auto",
            max_steps=settings.limits.max_steps or -1, max_epochs=settings.limits.max_epochs or -1,
            accumulate_grad_batches=settings.accumulate, gradient_clip_val=clip_norm or None,
            val_check_interval=settings.validate_every * settings.accumulate, check_val_every_n_epoch=None,
            callbacks=callbacks, logger=loggers, plugins=[CrashSafeIO()], use_distributed_sampler=False,
            num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            log_every_n_steps=1,  # of Lightning's own logging, which has nothing to log: no advice on it
            deterministic=_same_sums(settings.accelerator),
        )  # fmt: skip
    except MisconfigurationException as error:
        raise ValueError(f"trainer.accelerator={settings.accelerator}: {error}") from None


def _same_sums(accelerator: str) -> Literal["warn"] | None:
    """On a GPU, where sums of atomic additions differ each time, asks torch for others: a resumed run is the same run.

    What has no other way warns of it. New memory is not filled, as torch would then do too.
    """
    if accelerator not in ("auto", "cuda") or not torch.cuda.is_available():
        return None
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return "warn"


@contextmanager
def _memory_told(module: Learner, settings: FitSettings) -> Iterator[None]:
    """Memory that runs out, as `TrainingFailed` with the batch it ran out on."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        told = module.global_step + 1, module.batch_shape, settings.batch_tokens, settings.accumulate
        raise TrainingFailed(describe_out_of_memory(*told)) from error


_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advertisements and advice off; its errors stay."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")  # but restored
            yield
    finally:
        log.setLevel(level)
