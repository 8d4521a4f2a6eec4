"""One run from its config to its result: data, model, training, the test, and everything that is written of it."""

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape

from tsla import __version__, build
from tsla.config import GROUPS, Config, read, to_yaml
from tsla.config.compose import command_of, differing
from tsla.config.options import spell
from tsla.config.tasks import TaskConfig
from tsla.evaluation.card import run_card
from tsla.evaluation.curves import draw_curves
from tsla.evaluation.evaluate import Scores, evaluate
from tsla.evaluation.plateau import plateau_of
from tsla.evaluation.result import cost_line, make_result, pretrain_line, score_table, scores_of, slice_table
from tsla.models import account
from tsla.models.pretrained import read_model_config
from tsla.pretrain import facts_of, pretrain
from tsla.tasks.base import Task, TaskSpec
from tsla.tasks.loading import Rows
from tsla.training.checkpoints import latest_checkpoint, load_weights
from tsla.training.fit import Fitted, fit
from tsla.training.guards import TrainingFailed
from tsla.training.hardware import pick_device
from tsla.training.objective import Objective
from tsla.training.run_dir import RunDir, has_trained, is_finished, new_run_dir, provenance, write_json, write_text
from tsla.training.stop import Stopped
from tsla.training.terminal import PLAIN, open_console

SAME = ("inputs", "target", "outputs", "vocab_size", "channels", "pairs", "names", "alphabet", "end")  # of one model
Resume = Literal["new", "exact", "fall back"]  # a new run; from its last checkpoint; from the one before if need be


def start(config: Config) -> RunDir:
    """Make the folder of a new run and write its config there, before anything else, with what it leaves open settled.

    Raises:
        OSError: the folder exists and holds something, or cannot be made.
    """
    if not _is_main():  # a further process of a run on several devices: the first one has made the folder
        return RunDir(Path(os.environ["TSLA_RUN_DIR"]))
    config = build.frozen(config)
    run = new_run_dir(config.run_dir, config.experiment)
    with alone(run):
        write_text(run.config, to_yaml(config))
    return run


def begun(config: Config, run: RunDir) -> Config:
    """`config` as its run has settled it, in the folder that `config` names."""
    return replace(read(run.config), run_dir=config.run_dir)


def unfinished(config: Config) -> Path | None:
    """The newest run of this very config that has no result yet: where it was to go, or under runs/<experiment>.

    Raises:
        ValueError: `run_dir` is given and holds a run of another config, with the options that differ.
    """
    if not _is_main():
        return Path(os.environ["TSLA_RUN_DIR"])
    if config.run_dir is not None:
        path = Path(config.run_dir)
        if not (path / "config.yaml").exists() or not has_trained(path):
            return None  # what failed or was killed before it trained has nothing to go on with
        if others := differing(config, read(path / "config.yaml")):
            raise ValueError(f"{path} holds a run with other options: {'; '.join(others)}")
        return path
    found = [path.parent for path in Path("runs", config.experiment).glob("*/config.yaml")]
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            same = not differing(config, read(path / "config.yaml"))
        except ValueError:  # not a config of this version: not this run
            continue
        if same and not is_finished(path):
            return path
    return None


def train(config: Config, run: RunDir, resume: Resume) -> int:
    """Train, evaluate once on the test split, and write the result; returns the exit status.

    Raises:
        BlockingIOError: another process trains this run.
    """
    if not _is_main():
        return _work(config, run, resume)
    with alone(run):
        return _work(config, run, resume)


@contextmanager
def alone(run: RunDir) -> Iterator[None]:
    """Hold the run, or raise BlockingIOError: another process does."""
    try:
        with FileLock(run.path / ".lock", timeout=0):
            yield
    except Timeout:
        raise BlockingIOError(f"{run.path} is being trained by another process") from None


def _work(config: Config, run: RunDir, resume: Resume) -> int:
    os.environ["TSLA_RUN_DIR"] = str(run.path)  # for further processes
    return told(config, run, lambda console: _train_and_test(config, run, console, resume), "tsla train")


def told(config: Config, run: RunDir, work: Callable[[Console], None], command: str) -> int:
    """Do the work of a run, with what it shows and how it ends told on the terminal and in the log; its exit status.

    Args:
        config: of the run.
        run: its folder, which goes if it failed before it trained, unless the user named it.
        work: is given where to print.
        command: which, with resume=..., goes on with a run that was stopped.
    """
    with open_console(run.log, quiet=not _is_main()) as console:
        print_config(config, console)
        console.print(f"[bold]run     [/]{escape(str(run.path))}", highlight=False, soft_wrap=True)
        try:
            work(console)
        except Stopped as stopped:
            console.print(f"{stopped}; go on with: {command} resume={run.path}", **PLAIN)
            return 128 + stopped.signum
        except (ValueError, OSError, TrainingFailed) as error:
            console.print(f"failed: {error}", style="red", **PLAIN)
            if config.run_dir is None and not has_trained(run.path):  # nothing of it is worth a folder
                shutil.rmtree(run.path, ignore_errors=True)
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
        console.print(f"[bold]{group:9}[/]{part.name}  [dim]{escape(values)}[/]", highlight=False)


def evaluate_run(
    config: Config, checkpoint: Path, split: str, console: Console, *, on: TaskConfig | None = None,
    out: Path | None = None,
) -> None:  # fmt: skip
    """Print the scores of a checkpoint on a split.

    Args:
        config: of the run.
        checkpoint: of its model.
        split: of the task's rows.
        console: where to print.
        on: the task with other options, whose rows are taken in place of the run's own.
        out: a JSON file for the scores.

    Raises:
        ValueError, OSError: a checkpoint that cannot be read, data that is not there or that is of another kind.
    """
    device = pick_device(config.trainer.accelerator)
    own = build.build_task(config)
    spec = own.spec
    model = build.build_model(config.model, config.mixer, spec)
    load_weights(model, checkpoint)
    task = own
    if on is not None and on != config.task:
        config = replace(config, task=on)
        task = build.build_task(config)
        if unlike := [name for name in SAME if getattr(spec, name) != getattr(task.spec, name)]:
            raise ValueError(f"the rows asked for are not of the run's kind: they differ in {', '.join(unlike)}")
    known = RunDir(checkpoint.parents[1]).fingerprint
    if known.exists() and known.read_text().strip() != getattr(own, "fingerprint", None):
        console.print("[yellow]the data have changed since this run was trained: its splits were others[/]")
    objective = Objective(task.spec)
    (loader,) = build.build_loaders(config, task, (split,))
    seen = {}
    if task is not own and split != "train":  # another number of rows, say, is another cut of the same ones
        seen = {"trained_on": loader.rows.shared_with(Rows(own.split("train"), spec))}
        if seen["trained_on"]:
            console.print(f"[yellow]{seen['trained_on']:,} of these {len(loader.rows):,} rows are among those that the "
                          "run was trained on[/]", highlight=False)  # fmt: skip
    scores = evaluate(model, loader, objective, device)
    told = "  ".join(f"{name} {value:.4f}" for name, value in scores.metrics.items())
    console.print(f"[bold]{task.spec.name}, {split} split, {checkpoint.name}[/]  {told}", highlight=False)
    references = task.references() if split == "test" else {}
    _print_scores(build.mixer_name(config), split, objective, scores, references, console)
    if out is not None:
        what = {"task": task.spec.name, "mixer": build.mixer_name(config), "seed": config.seed, "split": split,
                "checkpoint": str(checkpoint), "task_options": asdict(config.task)}  # fmt: skip
        write_json(out, {**what, **seen, **scores_of(objective, scores, references, split), **provenance()})
        console.print(f"scores {out}", **PLAIN)


def _train_and_test(config: Config, run: RunDir, console: Console, resume: Resume) -> None:
    build.check_trainer(config)
    start = _latest(run, resume)
    first = _latest(run.pretrain, resume) if start is None else None
    if (start or first) is not None:
        config = replace(config, init_from=None)  # its weights have been had
    if config.init_from is not None:
        read_model_config(Path(config.init_from) / "model")
    with console.status(f"preparing {config.task.name}"):
        task = build.build_task(config)
        spec, references = task.spec, task.references()
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        loaders = build.build_loaders(config, task, ("train", "val"), rank=rank, world=config.trainer.devices)
    check_data(run, task)
    objective = Objective(spec)
    model = initial_model(config, spec)
    costs = account(model, spec.max_length, channels=spec.channels)
    lines = "  ".join(f"{name} {value:.3f}" for name, value in references.items())
    console.print(f"{costs.parameters:,} parameters; to beat: {lines}", highlight=False)
    if start is None:
        pretrain(config, run.pretrain, task, model, console, first)
    fitted = fit(
        model, *loaders, objective=objective, optim=build.build_optim(config), settings=build.build_fit(config),
        run=run, loggers=build.build_loggers(config, run.path), console=console, seed=config.seed, start=start,
    )  # fmt: skip
    if not fitted.is_main:
        return
    build.save(model, config, spec, run.model)
    load_weights(model, run.checkpoints / "best.ckpt")
    facts = {"command": command_of(config), **facts_of(run.pretrain)}
    conclude(config, run, task, model, fitted, facts, console)


def _latest(run: RunDir, resume: Resume) -> Path | None:
    return None if resume == "new" else latest_checkpoint(run.checkpoints, fall_back=resume == "fall back")


def conclude(
    config: Config, run: RunDir, task: Task, model: build.Model, fitted: Fitted, facts: Mapping[str, Any],
    console: Console,
) -> None:  # fmt: skip
    """Test a model that has its best weights, and write and show the result, with `facts` beside those of every run."""
    spec, references = task.spec, task.references()
    objective, costs = Objective(spec), account(model, spec.max_length, channels=spec.channels)
    (test,) = build.build_loaders(config, task, ("test",))
    tested = evaluate(model, test, objective, fitted.device)  # the one time a run looks at the test split
    mixer = build.mixer_name(config)
    what = {"task": spec.name, "mixer": mixer, "experiment": config.experiment, "seed": config.seed}
    result = make_result(what, costs, fitted, tested, objective, references, {**provenance(), **facts})
    title = f"{spec.name}, {mixer}, seed {config.seed}"
    draw_curves(run.metrics, run.curves, objective.monitor, references, title)
    if tested.confusion is not None:
        _write_confusion(run.confusion, tested.confusion, spec.names)
    run.card.write_text(run_card(result, title))
    write_json(run.result, result)
    console.print()
    console.print(f"[bold]{title}[/]", highlight=False)
    _print_scores(mixer, "test", objective, tested, references, console)
    console.print(cost_line(result), highlight=False, soft_wrap=True)
    if "pretrain" in result:
        console.print(pretrain_line(result["pretrain"]), highlight=False, soft_wrap=True)
    console.print(f"run {run.path}", **PLAIN)
    console.print(f"learning curve {run.curves}", **PLAIN)


def check_data(run: RunDir, task: Task) -> None:
    """Remember the data of a run that were not generated here; on resume, they must be the same.

    Raises:
        ValueError: they are not.
    """
    found = getattr(task, "fingerprint", None)
    if found is None or not _is_main():
        return
    if not run.fingerprint.exists():
        write_text(run.fingerprint, f"{found}\n")
    elif run.fingerprint.read_text().strip() != found:
        raise ValueError("the data have changed since this run began: its splits would be others. "
                         "Put them back, or start a new run")  # fmt: skip


def _print_scores(
    mixer: str, split: str, objective: Objective, scores: Scores, references: Mapping[str, float], console: Console
) -> None:
    score = scores.metrics[objective.monitor]
    console.print(score_table(mixer, f"{split} {objective.monitor}", score, references))
    if (rule := plateau_of(score, references)) is not None:
        console.print(f"on the plateau of: {rule} ({references[rule]:.3f})", **PLAIN)
    for name, parts in scores.slices.items():
        if 1 < len(parts) <= 20:
            heading = f"{split} {objective.slice_score}"
            console.print(slice_table(name, [part._asdict() for part in parts], heading))


def _write_confusion(path: Path, confusion: list[list[int]], names: tuple[str, ...]) -> None:
    labels = names or tuple(map(str, range(len(confusion))))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true class \\ predicted class", *labels])
        writer.writerows([label, *row] for label, row in zip(labels, confusion, strict=True))


def _is_main() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"
