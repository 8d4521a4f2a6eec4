"""`tsla data`: which tasks there are, making one ready, checking what was made, and what a trivial rule scores."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from tsla.config import Config, ConfigError, compose
from tsla.config.compose import group_choices
from tsla.config.options import as_argument, did_you_mean
from tsla.usage import UsageError, usage

if TYPE_CHECKING:
    from tsla.tasks.base import Task

USAGE = ("data takes: list | prepare TASK | verify TASK | baselines TASK, each with options such as train_rows=1000, "
         "or inspect PATH [key=value ...], the options those of task=files")  # fmt: skip


def data(arguments: list[str]) -> int:
    """Run a command of `tsla data`; its exit status.

    Raises:
        UsageError: another command, task or option.
        ValueError, OSError: data that cannot be read or had.
    """
    match arguments:
        case ["inspect", path, *rest]:
            return _inspect(path, rest)
        case ["list"]:
            print(_listed())
            return 0
        case ["prepare" | "verify" | "baselines" as verb, name, *rest]:
            config = composed(name, rest)
            from tsla.build import build_task

            task = build_task(config)
            return {"prepare": _prepare, "verify": _verify, "baselines": _baselines}[verb](name, task)
        case _:
            raise UsageError(USAGE)


def _inspect(path: str, rest: Sequence[str]) -> int:
    if not rest:
        from tsla.inspect_data import look

        print(look(Path(path)))
        return 0
    try:
        config = compose(["experiment=files", as_argument("task.path", path), *(f"task.{a}" for a in rest)])
    except ConfigError as error:
        raise usage("these options do not work:", error) from None
    from tsla.inspect_data import inspect

    print(inspect(config))
    return 0


def composed(name: str, rest: Sequence[str]) -> Config:
    """The config of an experiment or a task of that name, with options of the task, or `data_dir=`."""
    for group in ("experiment", "task"):  # an experiment says more of its task
        if name in group_choices(group):
            options = [a if a.startswith(("task.", "data_dir=")) else f"task.{a}" for a in rest]
            try:
                return compose([f"{group}={name}", *options])
            except ConfigError as error:
                raise usage("these options do not work:", error) from None
    known = sorted({*group_choices("experiment"), *group_choices("task")})
    raise UsageError(f"there is no task {name!r}{did_you_mean(name, known)}: `tsla data list` shows all")


def _listed() -> str:
    """A table of all tasks: what they are, where their data come from, under which licence, how much there is."""
    from rich.text import Text

    from tsla.build import build_task
    from tsla.tasks.cache import NotBuilt, only_built
    from tsla.tasks.facts import FACTS
    from tsla.tasks.inspect import new_table, render

    shown = new_table("task", "source", "licence", "train rows x tokens", "to beat, where prepared")
    for column in shown.columns:
        column.justify = "left"
    for name in group_choices("task"):
        fact = FACTS[name]
        lines = ""
        if name != "files":
            task = build_task(composed(name, []))
            with suppress(NotBuilt), only_built():
                lines = "  ".join(f"{rule} {score:.3f}" for rule, score in task.references().items())
        shown.add_row(name, *(Text(text) for text in (fact.source, fact.licence, fact.size, lines)))
    return render([shown], width=200)


def _prepare(name: str, task: "Task") -> int:
    from tsla.tasks.base import SPLITS

    began = perf_counter()
    rows = {split: len(task.split(split)) for split in SPLITS}
    print(f"{name}  {'  '.join(f'{split} {count:,}' for split, count in rows.items())} rows, "
          f"ready in {perf_counter() - began:.1f} s")  # fmt: skip
    if (folder := getattr(task, "folder", None)) is not None:
        print(f"  in {folder}")
    if layout := getattr(task, "manifest", {}).get("layout"):
        print(f"  read as the dump of {layout}")
    return _baselines(name, task)


def _baselines(name: str, task: "Task") -> int:
    """Scores of trivial rules on the test split."""
    for rule, score in task.references().items():
        print(f"  {rule:<24} {score:.3f}")
    return 0


def _verify(name: str, task: "Task") -> int:
    """Counts anew what the build wrote down, and statistics of generated tasks; 1 if any is not what it should be."""
    from tsla.tasks.listops import ListOps
    from tsla.tasks.pathfinder import Pathfinder
    from tsla.tasks.verify import recount

    found, written = recount(task), getattr(task, "manifest", {})
    wrong = 0
    for key, value in found.items():
        same = key not in written or written[key] == value
        wrong += not same
        print(f"  {key:<8} {value}" + ("" if same else f"\n           the build wrote {written[key]}"))
    print(f"{name}: {'differs from its manifest' if wrong else 'as it was built'}")
    statistics = task.statistics() if isinstance(task, ListOps | Pathfinder) else []
    for one in statistics:
        expected = f"{one.low:.4g} to {one.high:.4g}" if one.high > one.low else f"{one.low:.4g}"
        print(f"  {one.name:<40} {one.found:>9.4g}  expected {expected}{'' if one.right else '  OFF'}")
    if off := sum(not one.right for one in statistics):
        print(f"{name}: {off} of {len(statistics)} statistics are off")
    return int(wrong + off > 0)
