"""No option is dead: each one, changed alone, changes what is built, or is refused with a reason.

A new field of any config dataclass needs a line in `CASES`; that of a new mixer gets one by itself.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import image_cases
import lightning as L
import mixer_options
import pytest
import text_cases
import train_runs as runs
from mixer_options import Case, model
from rich.console import Console

from tsla import build, cli
from tsla.config import GROUPS, Config, compose, members
from tsla.config.compose import command_of
from tsla.run import initial_model
from tsla.tasks.images import Images
from tsla.training.fit import fit
from tsla.training.objective import Objective
from tsla.training.run_dir import RunDir

SMALL = ("experiment=digits", "model.dim=16", "trainer.accelerator=cpu", "optim.warmup_steps=5")
MQAR = ("task=mqar", "model.causal=true", "task.train=[16/4/30]", "task.val=[16/4/5]", "task.test=[16/4/5]")
PATHFINDER = ("task=pathfinder", "task.train_rows=4", "task.eval_rows=2")
ROWS = ("task=listops_short", "task.train_rows=30", "task.val_rows=5", "task.test_rows=5")


VISION = ("model=vision",)

IMAGE = ("task=image", "task.train_rows=40")
CIFAR = (*IMAGE, "task.source=lra", "task.path=cifar")
HUB = (*IMAGE, "task.source=hub", "task.hub_id=hub")
GREY = ("task=fashion",)

FILES = ("task=files", "task.path=own.jsonl")
R8, TEXT, PAIRS = ("task=r8",), ("task=text",), ("task=retrieval",)
REVIEWS, PAPERS, ONLINE = (
    ("task.source=lra", "task.path=aclImdb"),
    ("task.source=lra", "task.path=aan"),
    ("task.source=hub",),
)


def write_own_files() -> None:
    """Files of a user's own, in the folder of the moment."""
    for name, first in (("own", 0), ("other", 100), ("val", 200)):
        rows = [
            {"text": f"text {n}", "tokens": f"{n % 7} {n % 5} 3", "label": "odd" if n % 2 else "even", "number": n % 2,
             "part": ("train", "val", "test", "train")[n % 4], "split": ("test", "val", "train", "train")[n % 4]}
            for n in range(first, first + 40)
        ]  # fmt: skip
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_images(patch: pytest.MonkeyPatch) -> None:
    """Files of images, in the folder of the moment, under which Fashion-MNIST is as if installed."""
    image_cases.installed(patch, Path.cwd())
    image_cases.write_idx(Path("idx"), seed=1)
    for seed, other in enumerate(("", "_other")):
        image_cases.write_cifar(Path(f"cifar{other}"), seed=seed)
        image_cases.write_hub(Path(f"hub{other}"), seed=seed)


def write_texts() -> None:
    """Reviews and pairs of papers, two of each, and a clone of a data set of the Hub."""
    text_cases.papers(Path("aan"))
    text_cases.papers(Path("other_aan"), seed=4)
    text_cases.reviews(Path("aclImdb"))
    text_cases.reviews(Path("other"), seed=5)
    text_cases.hub(Path("imdb"))


class Captured(Exception):
    """Training was about to start."""


def data(config: Config) -> object:
    """The first epoch, how it is loaded, and the folders that were made for it."""
    task = build.build_task(config)
    loaders = build.build_loaders(config, task, ("train", "val", "test"))
    listed = [
        ([(b.inputs.tolist(), b.targets.tolist()) for b in map(loader.rows.__getitems__, loader.batches)],
         loader.rows.slices)
        for loader in loaders
    ]  # fmt: skip
    places = sorted(path.name for path in Path().iterdir())
    return task.spec, listed, [loader.num_workers for loader in loaders], places


def source(config: Config) -> object:
    """Which images will be asked for."""
    task = build.build_task(config)
    assert isinstance(task, Images)
    return task.source.key


def pair_rows(config: Config) -> object:
    """Rows of two documents."""
    task = build.build_task(config)
    return task.spec, [task.split(name).to_list() for name in ("train", "val", "test")]


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


def loggers(config: Config) -> object:
    return [(type(logger), getattr(logger, "_wandb_init", None)) for logger in build.build_loggers(config, Path("run"))]


def start(config: Config) -> object:
    """The weights a run starts with."""
    model = initial_model(config, build.build_task(config).spec)
    return [p.sum().item() for p in model.parameters()]


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
    "ListOpsConfig": {
        "name": Case(data, ("listops_short", "listops"), ROWS),
        "packing": Case(data, ("false", "true"), ROWS),
        "min_length": Case(data, ("20", "21"), ROWS),
        "max_length": Case(data, ("100", "90"), ROWS),
        "max_depth": Case(data, ("10", "4"), ROWS),
        "max_args": Case(data, ("10", "4"), ROWS),
        "train_rows": Case(data, ("30", "31"), ROWS),
        "val_rows": Case(data, ("5", "6"), ROWS),
        "test_rows": Case(data, ("5", "6"), ROWS),
        "seed": Case(data, ("0", "1"), ROWS),
        "path": Case(data, ("null", "nowhere"), ROWS, "path (nowhere) must hold basic_train.tsv"),
    },
    "MqarConfig": {
        "name": Case(data, ("mqar", "mqar_mix"), MQAR),
        "packing": Case(data, ("false", "true"), MQAR),
        "vocab_size": Case(data, ("20", "30"), MQAR),
        "train": Case(data, ("[16/4/30]", "[16/4/31]", "[16/3/30]", "[12/3/20,16/3/10]"), MQAR),
        "val": Case(data, ("[16/4/5]", "[16/4/6]"), MQAR),
        "test": Case(data, ("[16/4/5]", "[16/4/6]"), MQAR),
        "power": Case(data, ("0.01", "1"), MQAR),
        "filler": Case(data, ("true", "false"), MQAR),
        "seed": Case(data, ("0", "1"), MQAR),
    },
    "PathfinderConfig": {
        "name": Case(data, ("pathfinder", "pathfinder_64", "pathx"), PATHFINDER),
        "packing": Case(data, ("false", "true"), PATHFINDER),
        "contour": Case(data, ("14", "9", "6", "7"), PATHFINDER, "task.contour (7) must be 6 or 9 or 14"),
        "kind": Case(data, ("tokens", "series"), PATHFINDER),
        "seed": Case(data, ("0", "1"), PATHFINDER),
        "train_rows": Case(data, ("4", "5"), PATHFINDER),
        "eval_rows": Case(data, ("2", "3"), PATHFINDER),
        "source": Case(data, ("offline", "lra"), PATHFINDER, "task.source=lra needs task.path"),
        "path": Case(data, ("null", "nowhere"), PATHFINDER, "task.path (nowhere) needs task.source=lra, got offline"),
    },
    "FilesConfig": {
        "name": Case(data, ("files",), FILES),
        "packing": Case(data, ("false", "true"), FILES),
        "path": Case(data, ("own.jsonl", "other.jsonl", "null"), FILES, "task.path must be given"),
        "revision": Case(data, ("null", "x"), FILES, "revision ('x') belongs to a data set of the Hub"),
        "input": Case(data, ("text", "tokens"), FILES),
        "label": Case(data, ("[label]", "[part]"), FILES),
        "kind": Case(data, ("bytes", "tokens", "series"), (*FILES, "task.input=tokens")),
        "target": Case(data, ("class", "labels", "numbers"), (*FILES, "task.label=[number]")),
        "split": Case(data, ("fraction", "column"), FILES),
        "val_fraction": Case(data, ("0.1", "0.2"), FILES),
        "test_fraction": Case(data, ("0.1", "0.2"), FILES),
        "split_column": Case(data, ("split", "part"), (*FILES, "task.split=column")),
        "val_path": Case(data, ("val.jsonl", "other.jsonl", "null"), (*FILES, "task.split=file"),
                         "task.split=file needs task.val_path, task.test_path or both"),
        "test_path": Case(data, ("null", "other.jsonl"), (*FILES, "task.split=file", "task.val_path=val.jsonl")),
        "seed": Case(data, ("0", "1"), FILES),
        "max_length": Case(data, ("null", "5"), FILES),
        "slices": Case(data, ("[]", "[part]"), FILES),
    },
    "TextConfig": {
        "name": Case(data, ("text", "r8"), TEXT),
        "packing": Case(data, ("false", "true"), TEXT),
        "source": Case(data, ("offline", "lra"), TEXT, "task.path must be given for task.source=lra"),
        "path": Case(data, ("aclImdb", "other", "null"), (*TEXT, *REVIEWS), "task.path must be given"),
        "hub_id": Case(data, ("imdb", "nowhere"), (*TEXT, *ONLINE), "the Hub does not give nowhere"),
        "hub_revision": Case(data, ("null", "x"), TEXT, "task.hub_revision (x) needs task.source=hub, got offline"),
        "protocol": Case(data, ("default", "lra"), TEXT),
        "max_length": Case(data, ("4096", "50"), TEXT),
        "train_rows": Case(data, ("null", "20", "30"), TEXT),
        "eval_rows": Case(data, ("null", "3", "5"), TEXT),
        "seed": Case(data, ("0", "1"), TEXT),
    },
    "R8Config": {
        "name": Case(data, ("r8",), R8),
        "packing": Case(data, ("false", "true"), R8),
        "max_length": Case(data, ("512", "50"), R8),
        "train_rows": Case(data, ("null", "20", "30"), R8),
        "eval_rows": Case(data, ("null", "3", "5"), R8),
        "seed": Case(data, ("0", "1"), R8),
    },
    "RetrievalConfig": {
        "name": Case(pair_rows, ("retrieval",), PAIRS),
        "packing": Case(data, ("false", "true"), PAIRS),
        "source": Case(pair_rows, ("offline", "lra"), PAIRS, "task.path must be given for task.source=lra"),
        "path": Case(pair_rows, ("aan", "other_aan", "null"), (*PAIRS, *PAPERS), "task.path must be given"),
        "hub_id": Case(pair_rows, ("OpenNLPLab/lra", "x"), PAIRS, "task.hub_id (x) needs task.source=hub, got offline"),
        "hub_revision": Case(pair_rows, ("null", "x"), PAIRS, "task.hub_revision (x) needs task.source=hub"),
        "pairs": Case(model, ("nli", "concat"), PAIRS),
        "max_length": Case(pair_rows, ("4000", "50"), PAIRS),
        "train_rows": Case(pair_rows, ("null", "20", "30"), PAIRS),
        "eval_rows": Case(pair_rows, ("null", "3", "5"), PAIRS),
        "seed": Case(pair_rows, ("0", "1"), PAIRS),
    },
    "DigitsConfig": {
        "name": Case(data, ("digits",)),
        "packing": Case(data, ("false", "true")),
        "seed": Case(data, ("0", "1")),
    },
    "ImageConfig": {
        "name": Case(data, ("image",), IMAGE),
        "packing": Case(data, ("false", "true"), IMAGE),
        "source": Case(data, ("offline", "lra"), IMAGE, "task.source=lra needs task.path"),
        "path": Case(data, ("cifar", "cifar_other", "null"), CIFAR, "task.source=lra needs task.path"),
        "hub_id": Case(data, ("hub", "hub_other"), HUB),
        "hub_revision": Case(source, ("null", "x"), HUB),
        "kind": Case(data, ("tokens", "series"), IMAGE),
        "order": Case(data, ("row", "snake", "hilbert", "permuted"), IMAGE),
        "order_seed": Case(data, ("0", "1"), (*IMAGE, "task.order=permuted")),
        "protocol": Case(data, ("default", "lra", "s4"), CIFAR),
        "seed": Case(data, ("0", "1"), IMAGE),
        "train_rows": Case(data, ("40", "41"), IMAGE),
        "eval_rows": Case(data, ("null", "5"), IMAGE),
    },
    "GreyConfig": {
        "name": Case(data, ("fashion", "smnist"), (*GREY, "task.path=idx")),
        "packing": Case(data, ("false", "true"), GREY),
        "path": Case(data, ("null", "idx"), GREY),
        "side": Case(data, ("14", "28", "20"), GREY, "task.side (20) must be 28 or 14"),
        "kind": Case(data, ("tokens", "series"), GREY),
        "order": Case(data, ("row", "snake", "hilbert", "permuted"), GREY),
        "order_seed": Case(data, ("0", "1"), (*GREY, "task.order=permuted")),
        "seed": Case(data, ("0", "1"), GREY),
        "train_rows": Case(data, ("null", "40"), GREY),
        "eval_rows": Case(data, ("null", "5"), GREY),
    },
    "EncoderConfig": {
        "name": Case(model, ("encoder", "vision", "based", "transnormer")),
        "dim": Case(model, ("16", "32")),
        "depth": Case(model, ("1", "2")),
        "causal": Case(model, ("false", "true")),
        "positions": Case(model, ("none", "learned", "sinusoidal", "rotary")),
        "layers": Case(model, ("[]", "[taylor,window]", "[softmax,taylor]", "[taylor,none]")),
        "short_conv": Case(model, ("0", "1", "4")),
        "conv_embedding": Case(model, ("false", "true")),
        "embedding_scale": Case(model, ("false", "true")),
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
        "accumulate": Case(training, ("1", "2")),
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
    "CsvLoggerConfig": {"name": Case(loggers, ("csv", "tensorboard"))},
    "WandbLoggerConfig": {
        "name": Case(loggers, ("wandb", "csv")),
        "project": Case(loggers, ("tsla", "other"), ("logger=wandb",)),
        "mode": Case(loggers, ("offline", "online"), ("logger=wandb",), "logger.mode=online needs a key that works"),
    },
    "TensorboardLoggerConfig": {"name": Case(loggers, ("tensorboard", "csv"))},
}  # fmt: skip


CASES |= mixer_options.MIXERS
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
    case = CASES[name][leaf]
    key = (CLASSES[name][1] if name in CLASSES else "") + leaf
    key = key.removesuffix(".name") if key.count(".") and leaf == "name" else key
    seen = []
    for at, value in enumerate(case.values):
        (tmp_path / str(at)).mkdir()
        monkeypatch.chdir(tmp_path / str(at))
        write_own_files()
        if name in ("ImageConfig", "GreyConfig"):
            write_images(monkeypatch)
        if name in ("TextConfig", "RetrievalConfig", "R8Config"):
            write_texts()
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
