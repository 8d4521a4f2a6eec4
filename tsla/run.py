"""One run from its config to its result: data, model, training, the test, and everything that is written of it."""

import csv
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from tsla import __version__, build
from tsla.config import GROUPS, Config, read, to_yaml
from tsla.config.help import spell
from tsla.evaluation.card import run_card
from tsla.evaluation.curves import draw_curves
from tsla.evaluation.evaluate import Scores, evaluate
from tsla.evaluation.result import cost_line, make_result, score_table, slice_table
from tsla.models import account
from tsla.models.pretrained import read_model_config
from tsla.tasks.base import TaskSpec
from tsla.training.checkpoints import load_weights
from tsla.training.fit import Resume, fit, pick_device
from tsla.training.guards import TrainingFailed
from tsla.training.objective import Objective
from tsla.training.run_dir import RunDir, new_run_dir, provenance, write_json
from tsla.training.stop import Stopped
from tsla.training.terminal import open_console

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # for what holds paths


def start(config: Config) -> RunDir:
    """Make the folder of a new run and write its config there, before anything else.

    Raises:
        OSError: the folder exists and holds something, or cannot be made.
    """
    if not _is_main():  # a further process of a run on several devices: the first one has made the folder
        return RunDir(Path(os.environ["TSLA_RUN_DIR"]))
    run = new_run_dir(config.run_dir, config.experiment)
    run.config.write_text(to_yaml(config))
    return run


def unfinished(config: Config) -> Path | None:
    """The newest run of this very config that has no result yet: where it was to go, or under runs/<experiment>.

    Raises:
        ValueError: `run_dir` is given and holds a run of another config, with the options that differ.
    """
    if not _is_main():
        return Path(os.environ["TSLA_RUN_DIR"])
    if config.run_dir is not None:
        path = Path(config.run_dir)
        if not (path / "config.yaml").exists():
            return None
        if differing := _differing(config, read(path / "config.yaml")):
            raise ValueError(f"{path} holds a run with other options: {'; '.join(differing)}")
        return path
    found = [path.parent for path in Path("runs", config.experiment).glob("*/config.yaml")]
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            same = not _differing(config, read(path / "config.yaml"))
        except ValueError:  # not a config of this version: not this run
            continue
        if same and not (path / "result.json").exists():
            return path
    return None


def train(config: Config, run: RunDir, resume: Resume) -> int:
    """Train, evaluate once on the test split, and write the result; returns the exit status.

    Raises:
        BlockingIOError: another process trains this run.
    """
    if not _is_main():
        return _train(config, run, resume)
    try:
        with FileLock(run.path / ".lock", timeout=0):
            return _train(config, run, resume)
    except Timeout:
        raise BlockingIOError(f"{run.path} is being trained by another process") from None


def _train(config: Config, run: RunDir, resume: Resume) -> int:
    os.environ["TSLA_RUN_DIR"] = str(run.path)  # for further processes
    with open_console(run.log, quiet=not _is_main()) as console:
        print_config(config, console)
        console.print(f"[bold]run     [/]{escape(str(run.path))}", highlight=False, soft_wrap=True)
        try:
            _train_and_test(config, run, console, resume)
        except Stopped as stopped:
            console.print(f"{stopped}; go on with: tsla train resume={run.path}", **PLAIN)
            return 128 + stopped.signum
        except (ValueError, OSError, TrainingFailed) as error:
            console.print(f"failed: {error}", style="red", **PLAIN)
            return 1
    return 0


def initial_model(config: Config, spec: TaskSpec) -> build.Model:
    """A new model, from the seed; or with the weights of `init_from`.

    Raises:
        ValueError, FileNotFoundError: no such weights, or those of another model.
    """
    L.seed_everything(config.seed, verbose=False)
    model = build.build_model(config.model, config.mixer, spec)
    if config.init_from is not None:
        build.load_initial(model, spec, Path(config.init_from) / "model")
    return model


def print_config(config: Config, console: Console) -> None:
    """Every option."""
    console.print(f"[bold]tsla {__version__}[/]  experiment {config.experiment}  seed {config.seed}", highlight=False)
    for group in GROUPS:
        part = getattr(config, group)
        values = " ".join(f"{f.name}={spell(getattr(part, f.name))}" for f in fields(part) if f.name != "name")
        console.print(f"[bold]{group:8}[/]{part.name}  [dim]{escape(values)}[/]", highlight=False)


def evaluate_run(config: Config, checkpoint: Path, split: str, console: Console) -> None:
    """Print the scores of a checkpoint on a split.

    Raises:
        ValueError, OSError: a checkpoint that cannot be read, or data that is not there.
    """
    task = build.build_task(config)
    objective = Objective(task.spec)
    model = build.build_model(config.model, config.mixer, task.spec)
    load_weights(model, checkpoint)
    (loader,) = build.build_loaders(config, task, (split,))
    scores = evaluate(model, loader, objective, pick_device(config.trainer.accelerator))
    told = "  ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items())
    console.print(f"[bold]{task.spec.name}, {split} split, {checkpoint.name}[/]  {told}", highlight=False)
    references = task.references() if split == "test" else {}
    _print_scores(build.mixer_name(config), split, objective.monitor, scores, references, console)


def _train_and_test(config: Config, run: RunDir, console: Console, resume: Resume) -> None:
    if config.init_from is not None:
        read_model_config(Path(config.init_from) / "model")  # a wrong path shows before any work is done
    with console.status(f"preparing {config.task.name}"):
        task = build.build_task(config)
        spec, references = task.spec, task.references()
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        loaders = build.build_loaders(config, task, ("train", "val"), rank=rank, world=config.trainer.devices)
    objective = Objective(spec)
    model = initial_model(config, spec)
    costs = account(model, spec.max_length, channels=spec.channels)
    lines = "  ".join(f"{name} {value:.3f}" for name, value in references.items())
    console.print(f"{costs.parameters:,} parameters; to beat: {lines}", highlight=False)
    fitted = fit(
        model, *loaders, objective=objective, optim=build.build_optim(config), settings=build.build_fit(config),
        run=run, loggers=build.build_loggers(config, run.path), console=console, seed=config.seed, resume=resume,
    )  # fmt: skip
    if not fitted.is_main:
        return
    build.save(model, config, spec, run.model)
    load_weights(model, run.checkpoints / "best.ckpt")
    (test,) = build.build_loaders(config, task, ("test",))
    tested = evaluate(model, test, objective, fitted.device)  # the one time a run looks at the test split
    mixer = build.mixer_name(config)
    what = {"task": spec.name, "mixer": mixer, "experiment": config.experiment, "seed": config.seed}
    result = make_result(what, costs, fitted, tested, objective.monitor, references, provenance())
    title = f"{spec.name}, {mixer}, seed {config.seed}"
    draw_curves(run.metrics, run.curves, objective.monitor, references, title)
    if tested.confusion is not None:
        _write_confusion(run.confusion, tested.confusion, spec.names)
    run.card.write_text(run_card(result, title))
    write_json(run.result, result)
    console.print()
    console.print(f"[bold]{title}[/]", highlight=False)
    _print_scores(mixer, "test", objective.monitor, tested, references, console)
    console.print(cost_line(result), highlight=False, soft_wrap=True)
    console.print(f"run {run.path}   learning curve {run.curves}", **PLAIN)


def _print_scores(
    mixer: str, split: str, monitor: str, scores: Scores, references: Mapping[str, float], console: Console
) -> None:
    heading = f"{split} {monitor}"
    console.print(score_table(mixer, heading, scores.metrics[monitor], references))
    for name, parts in scores.slices.items():
        if 1 < len(parts) <= 20:
            console.print(slice_table(name, [part._asdict() for part in parts], heading))


def _write_confusion(path: Path, confusion: list[list[int]], names: tuple[str, ...]) -> None:
    labels = names or tuple(map(str, range(len(confusion))))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true class \\ predicted class", *labels])
        writer.writerows([label, *row] for label, row in zip(labels, confusion, strict=True))


def _differing(a: Config, b: Config) -> list[str]:
    """The options in which two configs differ, run_dir aside, as ``key: x here, y there``."""
    flat = [_flat(asdict(config)) for config in (a, b)]
    return [
        f"{key}: {flat[0].get(key)} here, {flat[1].get(key)} there"
        for key in sorted(flat[0].keys() | flat[1].keys())
        if key != "run_dir" and flat[0].get(key) != flat[1].get(key)
    ]


def _flat(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def _is_main() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
