"""`tsla data inspect`: what data hold, and what to type to learn from them."""

import shlex
from dataclasses import fields
from pathlib import Path

from rich.text import Text

from tsla import build
from tsla.config import Config
from tsla.config.options import as_argument
from tsla.tasks.guess import guess
from tsla.tasks.inspect import inspect as inspect_task
from tsla.tasks.inspect import render


def look(path: Path) -> str:
    """A first look at data of which nothing is known: columns, and the commands that suit them.

    Raises:
        ValueError, OSError: data that cannot be read, with the place.
    """
    found = guess(path)
    if len(found.columns) == 1:
        told = f"there is only one column ({found.columns[0]!r}): a label column is missing; to predict it:"
        commands = [["tsla", "predict", "RUN_DIR", str(path)]]
    elif found.options is None:
        told, commands = "there is no column to learn and one to learn from: two are needed", []
    else:
        told = "a guess at what to type; the first looks closer, the second trains"
        given = [as_argument(*pair) for pair in found.options.items()]
        train = [f"task.{part}" for part in (as_argument("path", str(path)), *given)]
        closer = given or ["kind=bytes"]  # with an option there is no guess again
        commands = [["tsla", "data", "inspect", str(path), *closer], ["tsla", "train", "experiment=files", *train]]
    return render([*found.parts, "", told, *(Text(f"  {shlex.join(command)}") for command in commands)])


def inspect(config: Config) -> str:
    """The report on a config's task, with the command that trains on it.

    Raises:
        ValueError, OSError: data that cannot be read, with the place.
    """
    task, usual = config.task, type(config.task)()
    changed = [f.name for f in fields(task) if f.name != "name" and getattr(task, f.name) != getattr(usual, f.name)]
    return inspect_task(build.build_task(config), [as_argument(name, getattr(task, name)) for name in changed])
