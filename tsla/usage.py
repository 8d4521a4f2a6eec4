"""What a command line that asks for something impossible is told."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tsla.config import ConfigError


class UsageError(Exception):
    """The command line asks for something that does not exist: exit status 2."""


def usage(headline: str, error: "ConfigError") -> UsageError:
    """A config's problems, one on a line."""
    return UsageError("\n      ".join([headline, *error.problems]))
