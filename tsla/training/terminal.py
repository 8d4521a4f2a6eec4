"""A console whose lines also go to a log file, and how times are written there."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # to print what holds paths


class TeeConsole(Console):
    """A rich console that writes each printed line to a file as well, without colours.

    Args:
        log: open text file; what a progress bar redraws does not go there.
        quiet: show nothing, and log nothing: for all but the first of several processes.
    """

    def __init__(self, log: io.TextIOBase, *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._log = None if quiet else Console(file=log, width=120, no_color=True)  # type: ignore[arg-type]

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`, twice."""
        super().print(*objects, **options)
        if self._log is not None:
            self._log.print(*objects, **options)


def clock_time(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def open_console(log: Path, *, quiet: bool = False) -> Iterator[Console]:
    """The terminal, with `log` appended to."""
    with log.open("a") as file:
        yield TeeConsole(file, quiet=quiet)
