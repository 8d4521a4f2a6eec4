"""What a run would be: shapes, parameters, operations, memory and time; nothing is kept.

Time is that of two steps, which are tried where they fit and end soon.
"""

import math

from rich.console import Console
from rich.table import Table
from torch import nn

from tsla import build
from tsla.config import Config
from tsla.models import account
from tsla.models.account import account_step, example_input, rows_of
from tsla.models.summary import summarise
from tsla.pretrain import make_pretext
from tsla.run import initial_model, print_config
from tsla.tasks.base import Task, TaskSpec
from tsla.tasks.loading import Loader
from tsla.training.estimate import Estimate, estimate
from tsla.training.hardware import memory_of, pick_device
from tsla.training.objective import Objective
from tsla.training.terminal import clock_time

CPU_FLOPS = 10**12  # of a step that is tried on a CPU


def dry_run(config: Config) -> int:
    """Print what a run of `config` would be; returns the exit status."""
    console = Console()
    print_config(config, console)
    with console.status(f"preparing {config.task.name}"):
        task, model, train, val = _prepared(config)
    spec = task.spec
    console.print(_layers(model, spec))
    costs = account(model, spec.max_length, channels=spec.channels)
    longest = f"at {spec.max_length} tokens"
    console.print(f"{costs.parameters:,} parameters, {costs.flops_per_token:,.0f} operations per token and "
                  f"{costs.state_bytes / 1024:,.0f} KiB of state {longest}", highlight=False)  # fmt: skip
    console.print(f"{len(train.rows):,} training rows in {len(train):,} batches, {len(val.rows):,} validation rows",
                  highlight=False)  # fmt: skip
    rows, length = largest_batch(train)
    step = account_step(model, length, rows, channels=spec.channels)
    held, kept = step.held_bytes / 2**30, step.kept_bytes / 2**30
    console.print(f"a step of {rows:,} x {length:,} tokens: {step.flops:.3g} operations, and in fp32 about "
                  f"{held + kept:,.2f} GiB, {held:,.2f} of them for weights, gradients and averages",
                  highlight=False)  # fmt: skip
    device = pick_device(config.trainer.accelerator)
    if device.type == "cpu" and step.flops > CPU_FLOPS:
        console.print("minutes on a CPU: no step is tried")
        return 0
    present = memory_of(device)
    if present is not None and step.held_bytes + step.kept_bytes > present:
        console.print(f"more than the {present / 2**30:,.1f} GiB there are here: no step is tried", highlight=False)
        return 0
    for name, found in _estimates(config, task, model, train, val).items():
        console.print(
            f"{name}loss {found.loss:.3f} after two steps; {found.tokens_per_second:,.0f} tokens/s, "
            f"{found.peak_memory_bytes / 2**20:,.0f} MiB, about {clock_time(found.seconds)} in all",
            highlight=False,
        )
    return 0


def largest_batch(loader: Loader) -> tuple[int, int]:
    """Rows of the batch with the most tokens, padding included, and the length of its longest row."""
    longest = loader.rows.padded // len(loader.rows.inputs)
    return max(((len(rows), int(longest[rows].max())) for rows in loader.batches), key=math.prod)


def measure(config: Config) -> Estimate:
    """Speed, memory and time of a training, from a few of its steps; its time with that of pretraining."""
    *_, found = stages = [*_estimates(config, *_prepared(config)).values()]
    return found._replace(seconds=sum(stage.seconds for stage in stages))


def _prepared(config: Config) -> tuple[Task, build.Model, Loader, Loader]:
    """Task, new model, and batches for training and validation."""
    build.check_trainer(config)
    task = build.build_task(config)
    train, val = build.build_loaders(config, task, ("train", "val"))
    return task, initial_model(config, task.spec), train, val


def _estimates(config: Config, task: Task, model: build.Model, train: Loader, val: Loader) -> dict[str, Estimate]:
    """Of each stage, in their order, by what goes before it in a line; the last one is the training itself."""
    found = {}
    if (first := make_pretext(config, task, model)) is not None:
        found["pretraining: "] = _estimate(first.config, first.model, first.train, first.val, first.objective)
    return {**found, "": _estimate(config, model, train, val, Objective(task.spec))}


def _estimate(config: Config, model: nn.Module, train: Loader, val: Loader, objective: Objective) -> Estimate:
    return estimate(
        model, train, val, objective=objective, optim=build.build_optim(config), settings=build.build_fit(config)
    )


def _layers(model: build.Model, spec: TaskSpec) -> Table:
    table = Table()
    for heading in ("part", "class"):
        table.add_column(heading, overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("output")
    for part in summarise(model, example_input(spec.max_length, spec.channels, rows=rows_of(model))):
        table.add_row(part.name, part.kind, f"{part.parameters:,}", " × ".join(map(str, part.shape)))
    return table
