"""What a person sees: a bar on a terminal, plain lines elsewhere, and the same text in log.txt."""

import io

import pytest
from rich.console import Console

from tsla.training.clock import Clock, Limits
from tsla.training.progress import ProgressBar, _left
from tsla.training.recorder import Recorder
from tsla.training.terminal import TeeConsole, open_console


class Trainer:
    """As much of a trainer as the bar looks at."""

    is_global_zero = True

    class state:
        fn = "fit"


def bar(
    tmp_path,
    console: Console,
) -> ProgressBar:
    clock, recorder = Clock(Limits(100, None, None), 10), Recorder(tmp_path / "metrics.csv")
    clock.step, clock.earlier_seconds = 25, 30.0
    recorder.latest = {"train/loss": 1.23456, "val/accuracy": 0.5, "perf/tokens_per_second": 12345.6}
    return ProgressBar(clock, recorder, console)


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=200)
    shown = bar(tmp_path, console)
    shown.on_train_start(Trainer, None)
    shown.on_train_batch_end(Trainer, None, None, None, 0)
    assert console.file.getvalue() == ""  # not one for every step
    shown.on_validation_end(Trainer, None)
    assert console.file.getvalue() == "step 25/100  loss 1.235  val 0.500  tokens/s 12,346  1:30 left\n"


def test_a_bar_on_a_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=150, force_terminal=True)
    shown = bar(tmp_path, console)
    shown.on_train_start(Trainer, None)
    shown.on_train_batch_end(Trainer, None, None, None, 0)
    shown.bar.refresh()
    text = console.file.getvalue()
    for part in ("step 25/100", "loss 1.235", "val 0.500", "tokens/s 12,346", "1:30 left"):
        assert part in text
    shown.on_train_end(Trainer, None)
    assert shown.bar is None


def test_the_bar_is_closed_when_training_breaks_off(tmp_path):
    shown = bar(tmp_path, Console(file=io.StringIO(), force_terminal=True))
    shown.on_train_start(Trainer, None)
    shown.on_exception(Trainer, None, KeyboardInterrupt())
    assert shown.bar is None


def test_other_processes_show_nothing(tmp_path):
    class Other(Trainer):
        is_global_zero = False

    console = Console(file=io.StringIO(), force_terminal=True)
    shown = bar(tmp_path, console)
    shown.on_train_start(Other, None)
    shown.on_train_batch_end(Other, None, None, None, 0)
    shown.on_validation_end(Other, None)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(
    ("step", "seconds", "text"),
    [(0, 5.0, ""), (50, 10.0, "0:10 left"), (1, 100.0, "2:45:00 left"), (100, 9.0, "0:00 left")],
)
def test_time_left(step, seconds, text):
    clock = Clock(Limits(100, None, None), 10)
    clock.step, clock.earlier_seconds = step, seconds
    assert _left(clock) == text


def test_lines_go_to_the_log_without_colours_and_the_bar_does_not(tmp_path, capsys):
    with open_console(tmp_path / "log.txt") as console:
        console.print("[bold red]first[/]")
        shown = bar(tmp_path, console)
        shown.on_train_start(Trainer, None)
        shown.on_train_end(Trainer, None)
    with open_console(tmp_path / "log.txt") as console:
        console.print("second")
    assert (tmp_path / "log.txt").read_text() == "first\nsecond\n"
    assert capsys.readouterr().out == "first\nsecond\n"


def test_a_quiet_console_leaves_no_trace(capsys):
    log = io.StringIO()
    TeeConsole(log, quiet=True).print("x")
    assert log.getvalue() == "" and capsys.readouterr().out == ""
