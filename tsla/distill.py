"""`tsla distill`: a trained softmax model with another mixer in its place, in three stages, each of them measured.

swap: the student has the teacher's weights, and nothing has learnt yet.  distil: its mixers learn from the teacher's
attention, each layer on the teacher's hidden states.  finetune: the student learns the task.
"""

import copy
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from rich.console import Console
from torch import nn

from tsla import build
from tsla.config import Config, ConfigError, read, to_yaml
from tsla.config.distill import KEPT, Distillation, stage
from tsla.config.distill import to_yaml as options_to_yaml
from tsla.config.mixers import TaylorConfig
from tsla.evaluation.attention import measure_attention
from tsla.evaluation.evaluate import evaluate
from tsla.evaluation.stages import StageTable
from tsla.models.lora import add_lora, merge_lora
from tsla.models.transfer import adopt, head_mixers, learn_only, map_loss, output_loss, paired, why_no_maps
from tsla.run import alone, check_data, conclude, told
from tsla.tasks.base import Task
from tsla.tasks.loading import Batch, Loader
from tsla.training.checkpoints import CrashSafeIO, latest_checkpoint, load_weights, read_checkpoint
from tsla.training.fit import Fitted, fit
from tsla.training.hardware import pick_device
from tsla.training.objective import Objective
from tsla.training.run_dir import RunDir, new_run_dir, write_text
from tsla.training.terminal import PLAIN

ZERO_SHOT: dict[str, dict[str, Any]] = {  # what is left of softmax if a polynomial stands for exp, and nothing learns
    "Taylor, order 2": {"order": 2},
    "Taylor, order 2, centred": {"order": 2, "center": "mean"},
    "Taylor, order 4": {"order": 4},
}
LOSSES = {"maps": map_loss, "outputs": output_loss}


class Sides(NamedTuple):
    """Teacher and student before anything is learnt.

    task: of both.  teacher: with its best weights, without dropout.  student: with the teacher's weights.
    new: the names of its parameters that the teacher has not.
    """

    task: Task
    teacher: build.Model
    student: build.Model
    new: frozenset[str]


class Job(NamedTuple):
    """All that the stages of a run need to know.

    asked, teacher, config: the command line's options, and the configs of teacher and student.
    loss, learn: what is asked for, or what fits where that is left open.
    """

    asked: Distillation
    teacher: Config
    config: Config
    sides: Sides
    loss: str
    learn: str


def begin(asked: Distillation, teacher: Config, config: Config) -> int:
    """Begin a run; returns its exit status.

    Args:
        asked: what the command line asks for.
        teacher, config: of the teacher and of the student.

    Raises:
        ConfigError: a mixer that cannot learn what is asked for, or a folder that holds something.
    """
    build.check_trainer(config)
    config = build.frozen(config)
    job = _job(asked, teacher, config)
    try:
        run = new_run_dir(config.run_dir, "distill")
    except FileExistsError:
        raise ConfigError([f"out ({config.run_dir}) exists: give another, or go on with it by "
                           f"resume={config.run_dir}"]) from None  # fmt: skip
    with alone(run):
        write_text(run.path / "distill.yaml", options_to_yaml(asked))
        write_text(run.config, to_yaml(config))
        return told(config, run, partial(_stages, job, run), "tsla distill")


def go_on(asked: Distillation, config: Config, path: Path) -> int:
    """Go on with a run of these options, whose student has this config; returns its exit status.

    Raises:
        ConfigError: the teacher is not there any more.
    """
    for file in ("config.yaml", "checkpoints/best.ckpt"):
        if not (asked.teacher / file).is_file():
            raise ConfigError([f"{asked.teacher / file} does not exist: {path} needs its teacher to go on"])
    run, job = RunDir(path), _job(asked, read(asked.teacher / "config.yaml"), config)
    with alone(run):
        return told(config, run, partial(_stages, job, run), "tsla distill")


def _job(asked: Distillation, teacher: Config, config: Config) -> Job:
    """What there is to do.

    Raises:
        ConfigError: a mixer that cannot learn what is asked for.
        ValueError, OSError: weights that cannot be read, or other data than the teacher had.
    """
    mixer, options = f"mixer={config.mixer.name}", asked.options
    try:
        sides = _sides(asked.teacher, teacher, config)
    except ValueError as error:
        raise ConfigError([f"{mixer}: {error}"]) from None
    try:
        if options.lora:
            add_lora(copy.deepcopy(sides.student), options.lora)  # does the rank fit?
    except ValueError as error:
        raise ConfigError([f"lora={options.lora}: {error}"]) from None
    missing = why_no_maps(head_mixers(sides.student)[0])
    if options.loss == "maps" and missing:
        raise ConfigError([f"loss=maps is not for {mixer}: {missing}; use loss=outputs"])
    if options.learn == "maps" and not sides.new:
        raise ConfigError([f"learn=maps needs parameters that the teacher has not, and {mixer} has none: "
                           "use learn=mixers"])  # fmt: skip
    loss = options.loss or ("outputs" if missing else "maps")
    return Job(asked, teacher, config, sides, loss, options.learn or ("maps" if sides.new else "mixers"))


def _sides(folder: Path, teacher: Config, config: Config) -> Sides:
    task = build.build_task(teacher)
    known = RunDir(folder).fingerprint
    if known.exists() and known.read_text().strip() != getattr(task, "fingerprint", None):
        raise ValueError(f"the data have changed since {folder} was trained: its splits were others")
    mixer: Any = teacher.mixer
    one = build.build_model(replace(teacher.model, dropout=0.0), replace(mixer, dropout=0.0), task.spec)
    load_weights(one, folder / "checkpoints" / "best.ckpt")
    L.seed_everything(config.seed, verbose=False)
    other = build.build_model(config.model, config.mixer, task.spec)
    head_mixers(other)  # says which layer has none
    return Sides(task, one.eval(), other, adopt(other, one))


def _stages(job: Job, run: RunDir, console: Console) -> None:
    """Swap, distil, finetune; and a row of the table after each."""
    task, student = job.sides.task, job.sides.student
    check_data(run, task)
    facts = {"teacher": str(job.asked.teacher), "mixer": job.config.mixer.name, "loss": job.loss, "learn": job.learn,
             "lora": job.asked.options.lora, "command": job.asked.command}  # fmt: skip
    table = StageTable(run.path, facts, Objective(task.spec).monitor)
    with console.status("measuring teacher and swap"):
        _measure(job, table, "teacher", job.sides.teacher)
        for name, options in ZERO_SHOT.items():
            _measure(job, table, name, _swapped(job, options))
        _measure(job, table, "after the swap", student)
    console.print(table.as_table())
    _distil(job, RunDir(run.path / "distilled"), table, console)
    fitted = _finetune(job, run, console)
    build.save(student, job.config, task.spec, run.model)
    load_weights(student, run.checkpoints / "best.ckpt")
    _measure(job, table, "after finetuning", student)
    conclude(
        job.config, run, task, student, fitted, {"command": job.asked.command, "distill": table.content}, console
    )  # fmt: skip
    console.print(table.as_table())
    console.print(f"table {run.path / 'distill.md'}", **PLAIN)


def _swapped(job: Job, options: dict[str, Any]) -> build.Model:
    """The teacher with Taylor attention in the place of softmax."""
    kept = {name: getattr(job.teacher.mixer, name) for name in KEPT}
    made = build.build_model(job.teacher.model, TaylorConfig(impl="direct", **options, **kept), job.sides.task.spec)
    adopt(made, job.sides.teacher)
    return made


def _measure(job: Job, table: StageTable, stage: str, model: build.Model) -> None:
    """Add a row of a model, unless a run that was stopped had it."""
    if table.has(stage):
        return
    task, device = job.sides.task, pick_device(job.config.trainer.accelerator)
    val, test = build.build_loaders(job.config, task, ("val", "test"))
    attention = measure_attention(job.sides.teacher, model, _some(val, job.asked.options.rows), device)
    objective = Objective(task.spec)
    scores = [evaluate(model, loader, objective, device).metrics[objective.monitor] for loader in (val, test)]
    table.add(stage, attention, *scores)


def _some(loader: Loader, count: int) -> list[Batch]:
    """So many rows of a split, evenly spaced, eight to a batch: maps of more would be large."""
    total = len(loader.rows)
    chosen = [place * total // min(count, total) for place in range(min(count, total))]
    return [loader.rows.__getitems__(chosen[at : at + 8]) for at in range(0, len(chosen), 8)]


def _distil(job: Job, run: RunDir, table: StageTable, console: Console) -> None:
    """The student's mixers learn from the teacher's; all else is frozen."""
    options, sides, name = job.asked.options, job.sides, "after distilling"
    both = paired(sides.teacher, sides.student, LOSSES[job.loss])
    new = {name.partition(".mixer.")[2] for name in sides.new}
    count = learn_only(both, lambda own: job.learn == "mixers" or own in new)
    whole = sum(p.numel() for p in sides.student.parameters())
    console.print(
        f"[bold]distil[/]  {options.distill_steps:,} steps, loss={job.loss}, learn={job.learn}: "
        f"{count:,} of {whole:,} parameters", highlight=False,
    )  # fmt: skip
    if table.has(name):
        load_weights(both, run.checkpoints / "last.ckpt")
    else:
        asked = stage(job.teacher, options.distill_steps, options.distill_lr, options.distill_batch_tokens)
        config = replace(asked, seed=options.seed, task=job.config.task, optim=replace(asked.optim, weight_decay=0.0))
        run.path.mkdir(exist_ok=True)
        _fit(both, config, job, run, console)
    sides.student.requires_grad_(True)
    _measure(job, table, name, sides.student)


def _finetune(job: Job, run: RunDir, console: Console) -> Fitted:
    """The student learns the task; it ends with its last weights, and its checkpoints are of a plain model."""
    student, rank = job.sides.student, job.asked.options.lora
    count = sum(p.numel() for p in student.parameters())
    place = run
    if rank:
        torch.manual_seed(job.config.seed)
        count, place = add_lora(student, rank), RunDir(run.path / "lora")
        place.path.mkdir(exist_ok=True)
    how = f"lora={rank}" if rank else "all weights"
    console.print(
        f"[bold]finetune[/]  {job.config.trainer.max_steps:,} steps, {how}: {count:,} parameters", highlight=False
    )
    fitted = _fit(student, job.config, job, place, console)
    if rank:
        for name in ("best", "last"):  # the last one stays in the student
            load_weights(student, place.checkpoints / f"{name}.ckpt")
            _write_merged(student, place.checkpoints / f"{name}.ckpt", run.checkpoints / f"{name}.ckpt")
        merge_lora(student)
        shutil.copyfile(place.metrics, run.metrics)
    return fitted


def _fit(model: nn.Module, config: Config, job: Job, run: RunDir, console: Console) -> Fitted:
    """Train, from the last checkpoint if there is one."""
    loaders = build.build_loaders(config, job.sides.task, ("train", "val"))
    return fit(
        model.train(), *loaders, objective=Objective(job.sides.task.spec), optim=build.build_optim(config),
        settings=build.build_fit(config), run=run, loggers=build.build_loggers(config, run.path), console=console,
        seed=config.seed, start=latest_checkpoint(run.checkpoints, fall_back=True),
    )  # fmt: skip


def _write_merged(model: nn.Module, checkpoint: Path, target: Path) -> None:
    """The checkpoint of the plain model that a model with LoRA is, beside the step of the one it comes from."""
    plain = copy.deepcopy(model)
    merge_lora(plain)
    known = read_checkpoint(checkpoint)
    weights = {f"model.{name}": x.cpu() for name, x in plain.state_dict().items()}
    CrashSafeIO().save_checkpoint({**{k: known[k] for k in ("global_step", "epoch")}, "state_dict": weights}, target)
