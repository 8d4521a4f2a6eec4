"""The first stage of a run that has one: the encoder learns of the task's own inputs (arXiv 2310.02980)."""

import csv
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from tsla import build
from tsla.config import Config
from tsla.config.schema import MaskedPretrainConfig, PretrainOptions
from tsla.evaluation.curves import draw_curves
from tsla.evaluation.result import pretrain_line
from tsla.models import Denoiser, SequenceClassifier, TokenClassifier
from tsla.tasks.base import Task, TaskSpec
from tsla.tasks.loading import Loader
from tsla.tasks.pretext import ask_hidden, ask_next, pretext_spec
from tsla.training.checkpoints import load_weights
from tsla.training.fit import fit
from tsla.training.objective import Objective
from tsla.training.run_dir import RunDir, is_finished, write_json


class Pretext(NamedTuple):
    """All that pretraining is made of.

    config: of the run, with pretraining's own limits and learning rate.  model: the run's encoder under another head.
    share: of the tokens that are hidden; None where the next one is asked for.
    """

    config: Config
    model: Denoiser | TokenClassifier
    objective: Objective
    train: Loader
    val: Loader
    share: float | None


def make_pretext(config: Config, task: Task, model: build.Model) -> Pretext | None:
    """What a run of `config` learns before `task`, by the encoder of `model`; None if nothing."""
    asked, spec = config.pretrain, pretext_spec(task.spec)
    if not isinstance(asked, PretrainOptions):
        return None
    assert isinstance(model, SequenceClassifier | TokenClassifier)  # the config refuses others
    made: Denoiser | TokenClassifier
    share, pose = None, ask_next
    if isinstance(asked, MaskedPretrainConfig):
        share = _usual_share(spec) if asked.mask is None else asked.mask
        pose = partial(ask_hidden, share=share, seed=config.seed)
        made = Denoiser(model.encoder, outputs=spec.outputs, dropout=config.model.dropout)
    else:
        made = TokenClassifier(model.encoder, num_classes=spec.outputs, dropout=config.model.dropout)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    train, val = build.build_loaders(
        config, task, ("train", "val"), rank=rank, world=config.trainer.devices, pose=pose
    )  # fmt: skip
    return Pretext(_stage(config, asked), made, Objective(spec), train, val, share)


def pretrain(
    config: Config, run: RunDir, task: Task, model: build.Model, console: Console, start: Path | None
) -> None:  # fmt: skip
    """Pretrain the encoder of `model` in place, if `config` says so and it is not done; it ends with its best weights.

    Args:
        config: of the whole run.
        run: of the pretraining: a folder in that of the whole run.
        task: whose inputs it is.
        model: of the task; its head stays as it is.
        console: where to tell.
        start: a checkpoint of the pretraining to go on from.

    Raises:
        As `fit`.
    """
    pretext = make_pretext(config, task, model)
    if pretext is None:
        return
    if not is_finished(run.path):
        share = "" if pretext.share is None else f", {pretext.share:.0%} hidden"
        console.print(f"[bold]pretrain[/]  {config.pretrain.name}{share}", highlight=False)
        run.path.mkdir(exist_ok=True)
        fitted = fit(
            pretext.model, pretext.train, pretext.val, objective=pretext.objective,
            optim=build.build_optim(pretext.config), settings=build.build_fit(pretext.config), run=run,
            loggers=build.build_loggers(config, run.path), console=console, seed=config.seed, start=start,
        )  # fmt: skip
        if fitted.is_main:
            how = {"name": config.pretrain.name, **({} if pretext.share is None else {"mask": pretext.share})}
            costs = {"steps": fitted.steps, "seconds": fitted.seconds, "tokens": fitted.tokens,
                     "train_tokens_per_second": fitted.tokens_per_second}  # fmt: skip
            scores = {"best_step": fitted.best_step, "metrics": _scores_at(run.metrics, fitted.best_step)}
            title = f"{task.spec.name}, {config.pretrain.name} pretraining, seed {config.seed}"
            draw_curves(run.metrics, run.curves, pretext.objective.monitor, {}, title)
            write_json(run.result, {**how, **costs, **scores})
            console.print(pretrain_line(facts_of(run)["pretrain"]), highlight=False, soft_wrap=True)
    best = run.checkpoints / "best.ckpt"
    try:
        load_weights(pretext.model, best)
    except ValueError as error:
        raise ValueError(f"{error}; to pretrain anew, remove {run.path}") from None


def facts_of(run: RunDir) -> dict[str, Any]:
    """What result.json says of a run's pretraining, from the folder of that; nothing if there was none."""
    return {"pretrain": json.loads(run.result.read_text())} if is_finished(run.path) else {}


def _stage(config: Config, asked: PretrainOptions) -> Config:
    """`config` as pretraining takes it."""
    trainer, optim = config.trainer, config.optim
    if asked.max_steps is not None:
        trainer = replace(trainer, max_steps=asked.max_steps, max_epochs=None, max_minutes=None)
    return replace(config, trainer=trainer, optim=optim if asked.lr is None else replace(optim, lr=asked.lr))


def _usual_share(spec: TaskSpec) -> float:
    """Of the tokens that are hidden, as arXiv 2310.02980 has it for such inputs."""
    if spec.channels is not None or spec.image:
        return 0.5
    return 0.1 if spec.inputs == "listops" else 0.15


def _scores_at(metrics: Path, step: int) -> dict[str, float]:
    """The validation scores of a step."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) == step and row.get("val/loss")]
    return {name: float(value) for name, value in rows[-1].items() if name.startswith("val/") and value}
