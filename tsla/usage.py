"""What a command line that asks for something impossible is told."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsla.config import ConfigError


class UsageError(Exception):
    """The command line asks for something that does not exist: exit status 2."""


def usage(headline: str, error: "ConfigError") -> UsageError:
    """A config's problems, one on a line."""
    return UsageError("\n      ".join([headline, *error.problems]))


def check_out(out: Path, run: Path) -> None:
    """Raise UsageError unless this is a file that may be written: an ordinary one, and none of the run's own."""
    if (out.exists() and not out.is_file()) or not os.access(out.parent, os.W_OK):
        raise UsageError(f"out ({out}) must be a file, in a folder that is there and can be written to")
    if out.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"out ({out}) must not lie in the run's own folder, {run}")
