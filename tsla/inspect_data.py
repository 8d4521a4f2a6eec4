"""`tsla data inspect PATH key=value ...`: the data of a config as training would see it."""

from dataclasses import fields

from tsla import build
from tsla.config import Config
from tsla.tasks.guess import argument
from tsla.tasks.inspect import inspect as inspect_task


def inspect(config: Config) -> str:
    """The report on a config's task, with the command that trains on it.

    Raises:
        ValueError, OSError: data that cannot be read, with the place.
    """
    task, usual = config.task, type(config.task)()
    changed = [f.name for f in fields(task) if f.name != "name" and getattr(task, f.name) != getattr(usual, f.name)]
    return inspect_task(build.build_task(config), [argument(name, getattr(task, name)) for name in changed])
