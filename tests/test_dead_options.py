"""No option is dead: each one, changed alone, changes what is built, or is refused with a reason.

A new field of any config dataclass needs a line in `CASES`, of a task in `task_options`; a new mixer gets its own.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import mixer_options
import pytest
import text_cases
import train_runs as runs
from mixer_options import ONE_WAY, Case, model
from rich.console import Console
from task_options import ROWS, TASKS, data, package_file, prepare

from tsla import build, cli
from tsla.config import GROUPS, Config, compose, members
from tsla.config.compose import command_of
from tsla.pretrain import make_pretext
from tsla.run import initial_model
from tsla.training.fit import fit
from tsla.training.objective import Objective
from tsla.training.run_dir import RunDir

SMALL = ("experiment=digits", "model.dim=16", "trainer.accelerator=cpu", "optim.warmup_steps=5")
VISION = ("model=vision",)
FEW = (*ROWS[:1], "task.train_rows=300", "task.eval_rows=5", "trainer.batch_tokens=300")
MASKED = ("pretrain=masked",)


class Captured(Exception):
    """Training was about to start."""


def training(config: Config) -> object:
    """What Lightning, the optimiser, the schedule and the callbacks are told."""
    task = build.build_task(config)
    loaders = build.build_loaders(config, task, ("train", "val"))
    made = build.build_model(config.model, config.mixer, task.spec)
    try:
        fit(made, *loaders, objective=Objective(task.spec), optim=build.build_optim(config),
            settings=build.build_fit(config), run=RunDir(Path("run")), loggers=[], console=Console(quiet=True),
            seed=0)  # fmt: skip
    except Captured as captured:
        trainer, module = captured.args
    _, clock, _, _, average, checkpoints, *_ = trainer.callbacks
    made = module.configure_optimizers()
    (factor, _) = made["lr_scheduler"]["scheduler"].lr_lambdas
    rates = []
    for clock.step in (0, 3, 50, 1000):
        rates.append(factor(clock.step))
    return (
        trainer.max_steps, trainer.max_epochs, trainer.accumulate_grad_batches, trainer.gradient_clip_val,
        trainer.val_check_interval, trainer.precision, type(trainer.accelerator), trainer.num_devices,
        type(trainer.strategy), clock.total_steps, clock.limit_seconds, checkpoints.every, checkpoints.patience,
        average.decay, type(module.run),
        [{k: v for k, v in group.items() if k != "params"} for group in made["optimizer"].param_groups], rates,
    )  # fmt: skip


def pretraining(config: Config) -> object:
    """How long and how fast it goes, and what its first batch asks of what model."""
    task = build.build_task(config)
    pretext = make_pretext(config, task, build.build_model(config.model, config.mixer, task.spec))
    if pretext is None:
        return None
    batch = pretext.train.batch([0, 1])
    return pretext.config.trainer, pretext.config.optim, type(pretext.model), batch.targets.sum(), batch.scored


def loggers(config: Config) -> object:
    return [(type(logger), getattr(logger, "_wandb_init", None)) for logger in build.build_loggers(config, Path("run"))]


def start(config: Config) -> object:
    """The weights a run starts with."""
    model = initial_model(config, build.build_task(config).spec)
    return [p.sum().item() for p in model.parameters()]


def parts(config: Config) -> object:
    """The parameters of the model of the task itself."""
    return [name for name, _ in initial_model(config, build.build_task(config).spec).named_parameters()]


def outcome(config: Config) -> object:
    """What a command leaves behind."""
    assert cli._new_run(config, resume=False) == 0
    return sorted(path.name for path in Path().rglob("*"))


def folder(config: Config) -> object:
    """Where a run goes."""
    assert cli._new_run(config, resume=False) == 0
    return [path.parent.name if "runs" in str(path) else str(path) for path in Path().rglob("config.yaml")]


CASES: dict[str, dict[str, Case]] = {
    "Config": {
        "experiment": Case(folder, ("digits", "quickstart")),
        "seed": Case(data, ("0", "1")),
        "run_dir": Case(folder, ("a", "b")),
        "data_dir": Case(data, ("here", "there"), ROWS),
        "init_from": Case(start, ("null", "nowhere"), (), "No such file or directory: 'nowhere/model/config.json'"),
        "dry_run": Case(outcome, ("false", "true")),
        "frozen": Case(command_of, ("[]", "[mixer.crossover]"), ("mixer.crossover=30",)),
    },
    "EncoderConfig": {
        "name": Case(model, ("encoder", "vision", "based", "transnormer")),
        "dim": Case(model, ("16", "32")),
        "depth": Case(model, ("1", "2")),
        "causal": Case(model, ("false", "true")),
        "positions": Case(model, ("none", "learned", "sinusoidal", "rotary")),
        "layers": Case(model, ("[]", "[taylor,window]", "[softmax,taylor]", "[taylor,none]")),
        "short_conv": Case(model, ("0", "1", "4")),
        "conv_residual": Case(model, ("false", "true"), ("model.short_conv=3",)),
        "conv_embedding": Case(model, ("false", "true")),
        "bracket_depth": Case(parts, ("false", "true"), ROWS),
        "embedding_scale": Case(model, ("false", "true")),
        "loops": Case(model, ("1", "2", "3")),
        "norm": Case(model, ("layer", "srms", "rms"), (), "model.norm ('rms') must be one of layer, srms"),
        "feed_forward": Case(model, ("gelu", "swiglu", "sglu")),
        "feed_forward_mult": Case(model, ("2", "4")),
        "pool": Case(model, ("mean", "cls", "attention")),
        "dropout": Case(model, ("0", "0.5")),
        "gradient_checkpointing": Case(model, ("false", "true")),
    },
    "VisionConfig": {
        "name": Case(model, ("vision", "encoder")),
        "patch_size": Case(model, ("1", "2", "4", "3"), VISION, "model.patch_size (3) must divide the images of"),
        "dim": Case(model, ("16", "32"), VISION),
        "depth": Case(model, ("1", "2"), VISION),
        "causal": Case(model, ("false", "true"), VISION),
        "positions": Case(model, ("none", "learned", "sinusoidal", "rotary"), VISION),
        "layers": Case(model, ("[]", "[taylor,window]", "[softmax,taylor]", "[taylor,none]"), VISION),
        "short_conv": Case(model, ("0", "1", "3"), VISION),
        "conv_residual": Case(model, ("false", "true"), (*VISION, "model.short_conv=3")),
        "norm": Case(model, ("layer", "srms", "rms"), VISION, "model.norm ('rms') must be one of layer, srms"),
        "feed_forward": Case(model, ("gelu", "swiglu", "sglu"), VISION),
        "feed_forward_mult": Case(model, ("2", "4"), VISION),
        "pool": Case(model, ("mean", "attention", "cls"), VISION, "model.pool ('cls') must be one of mean, attention"),
        "dropout": Case(model, ("0", "0.5"), VISION),
        "gradient_checkpointing": Case(model, ("false", "true"), VISION),
    },
    "AdamWConfig": {
        "name": Case(training, ("adamw",)),
        "lr": Case(training, ("0.1", "0.2")),
        "decay": Case(training, ("cosine", "rsqrt")),
        "final_lr": Case(training, ("0", "0.5")),
        "warmup_steps": Case(training, ("0", "5")),
        "weight_decay": Case(training, ("0", "0.5")),
        "beta1": Case(training, ("0.9", "0.8")),
        "beta2": Case(training, ("0.9", "0.8")),
        "clip_norm": Case(training, ("0", "1", "2")),
    },
    "TrainerConfig": {
        "name": Case(training, ("default",)),
        "max_steps": Case(training, ("null", "100", "200"), ("trainer.max_epochs=500",)),
        "max_epochs": Case(training, ("null", "1", "2")),
        "max_minutes": Case(training, ("null", "1", "2")),
        "batch_tokens": Case(data, ("640", "641", "6400")[::2]),
        "batch_rows": Case(data, ("null", "7", "8")),
        "accumulate": Case(training, ("1", "2")),
        "curriculum": Case(data, ("length", "depth", "stage", "none"),
                           (*FEW, "trainer.curriculum_steps=50", "task.easier=[5/20/3/9]"),
                           "trainer.curriculum_steps (50) needs trainer.curriculum=length, depth or stage"),
        "curriculum_steps": Case(data, ("1", "20", "null"), (*FEW, "trainer.curriculum=length"),
                                 "trainer.curriculum=length needs trainer.curriculum_steps"),
        "validate_every": Case(training, ("10", "20")),
        "checkpoint_every": Case(training, ("10", "20")),
        "precision": Case(training, ("fp32", "bf16")),
        "accelerator": Case(training, ("cpu", "mps"), (), "trainer.accelerator (mps) is not on this machine"),
        "devices": Case(training, ("1", "2")),
        "compile": Case(training, ("false", "true")),
        "workers": Case(data, ("0", "1")),
        "ema": Case(training, ("null", "0.9", "0.99")),
        "patience": Case(training, ("null", "1", "2")),
    },
    "NoPretrainConfig": {"name": Case(pretraining, ("none", "masked"))},
    "MaskedPretrainConfig": {
        "name": Case(pretraining, ("masked", "none", "causal"), (), "pretrain=causal needs model.causal=true"),
        "max_steps": Case(pretraining, ("null", "7"), MASKED),
        "lr": Case(pretraining, ("null", "0.5"), MASKED),
        "mask": Case(pretraining, ("null", "0.1", "0.3", "1.1"), MASKED, "pretrain.mask (1.1) must be at most 1"),
    },
    "CausalPretrainConfig": {
        "name": Case(pretraining, ("causal", "masked", "none"), ONE_WAY),
        "max_steps": Case(pretraining, ("null", "7"), (*ONE_WAY, "pretrain=causal")),
        "lr": Case(pretraining, ("null", "0.5"), (*ONE_WAY, "pretrain=causal")),
    },
    "CsvLoggerConfig": {"name": Case(loggers, ("csv", "tensorboard"))},
    "WandbLoggerConfig": {
        "name": Case(loggers, ("wandb", "csv")),
        "project": Case(loggers, ("tsla", "other"), ("logger=wandb",)),
        "mode": Case(loggers, ("offline", "online"), ("logger=wandb",), "logger.mode=online needs a key that works"),
    },
    "TensorboardLoggerConfig": {"name": Case(loggers, ("tensorboard", "csv"))},
}  # fmt: skip


CASES |= mixer_options.MIXERS | TASKS
CLASSES = {cls.__name__: (cls, f"{group}.") for group in GROUPS for cls in members(group).values()}
LEAVES = [(name, leaf) for name, cases in CASES.items() for leaf in cases]


def test_every_field_has_a_case():
    found = {name: [f.name for f in fields(cls)] for name, (cls, _) in CLASSES.items()}
    found["Config"] = [f.name for f in fields(Config) if f.name not in GROUPS]
    assert {name: sorted(cases) for name, cases in CASES.items()} == {name: sorted(own) for name, own in found.items()}


def test_a_name_without_an_alternative_is_the_only_one():
    for name, cases in CASES.items():
        for leaf, case in cases.items():
            if len(case.values) == 1:
                (f,) = (f for f in fields(CLASSES[name][0]) if f.name == leaf)
                assert leaf == "name" and f.metadata["choices"] == case.values


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch.compile's own
@pytest.mark.parametrize(("name", "leaf"), LEAVES)
def test_changing_an_option_changes_something(name, leaf, tmp_path, monkeypatch):
    def capture(trainer: L.Trainer, module: L.LightningModule, *_: Any, **__: Any) -> None:
        raise Captured(trainer, module)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L.Trainer, "fit", capture)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    text_cases.small(monkeypatch)
    monkeypatch.setattr("tsla.run._train_and_test", lambda *_, **__: None)
    for module in ("series", "dna"):
        monkeypatch.setattr(f"tsla.tasks.{module}.package_file", package_file)
    case = CASES[name][leaf]
    key = (CLASSES[name][1] if name in CLASSES else "") + leaf
    key = key.removesuffix(".name") if key.count(".") and leaf == "name" else key
    seen = []
    for at, value in enumerate(case.values):
        (tmp_path / str(at)).mkdir()
        monkeypatch.chdir(tmp_path / str(at))
        prepare(name, monkeypatch)
        arguments = (*SMALL, *case.arguments, f"{key}={value}")
        if case.error is not None and value == case.values[-1]:
            with pytest.raises((ValueError, OSError)) as caught:
                case.see(compose(arguments))
            assert case.error in str(caught.value)
        else:
            seen.append(repr(case.see(compose(arguments))))
    assert len(set(seen)) == len(seen)


def test_the_seed_decides_over_weights_and_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert cli.main(["train", *SMALL, "trainer.max_steps=1", f"run_dir={run}", f"seed={seed}"]) == 0
    assert runs.metrics("a") == runs.metrics("b") != runs.metrics("c")
    assert runs.same_weights(runs.weights("a"), runs.weights("b"))
