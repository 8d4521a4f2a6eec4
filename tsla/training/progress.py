"""What a person sees of a training: a bar with loss, tokens/s and time left, or plain lines where no terminal is."""

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from tsla.training.clock import Clock
from tsla.training.recorder import Recorder
from tsla.training.terminal import clock_time

PLAIN_SECONDS = 15  # between two plain lines


class ProgressBar(L.Callback):
    """Shows step, loss, validation score, tokens/s and time left.

    Args:
        clock: knows how far the run is.
        recorder: knows the latest numbers.
        console: where it is shown.
        score: name of the validation score to show.
    """

    def __init__(self, clock: Clock, recorder: Recorder, console: Console, score: str = "accuracy") -> None:
        self.clock, self.recorder, self.console, self.score = clock, recorder, console, score
        self.bar: Progress | None = None
        self.last_line = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_line = time.perf_counter()
        if self.console.is_terminal and trainer.is_global_zero:
            self.bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.fields[steps]}"), BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"), _TimeLeft(self.clock), console=self.console,
            )  # fmt: skip
            self.bar.add_task("", total=self.clock.total_steps, steps=self.clock.total_steps or "?", numbers="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and self.bar is None:
            self._show(trainer, now=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _show(self, trainer: L.Trainer, now: bool = False) -> None:
        if not trainer.is_global_zero:
            return
        if self.bar is not None:
            task = self.bar.tasks[0].id
            self.bar.update(task, completed=self.clock.step, numbers=self._numbers())
        elif now or time.perf_counter() - self.last_line > PLAIN_SECONDS:
            self.last_line = time.perf_counter()
            total = f"/{self.clock.total_steps}" if self.clock.total_steps else ""
            self.console.print(
                f"step {self.clock.step}{total}  {self._numbers()}  {_left(self.clock)}", highlight=False
            )

    def _numbers(self) -> str:
        latest = self.recorder.latest
        shown = (
            ("loss", "train/loss", ".3f"),
            ("aux", "train/aux", ".3f"),
            ("val", f"val/{self.score}", ".3f"),
            ("tokens/s", "perf/tokens_per_second", ",.0f"),
        )
        return "  ".join(f"{label} {latest[name]:{form}}" for label, name, form in shown if name in latest)

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class _TimeLeft(ProgressColumn):
    """Time left by the clock, which knows limits in minutes too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def render(self, task: Task) -> Text:
        return Text(_left(self.clock), style="progress.remaining")


def _left(clock: Clock) -> str:
    seconds = clock.seconds_left()
    if seconds is None:
        return ""
    return f"{clock_time(seconds)} left"
