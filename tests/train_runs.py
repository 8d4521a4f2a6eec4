"""Whole runs on tiny data, in this process, through the command line's own entry."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tsla import cli
from tsla.tasks.base import TaskSpec
from tsla.training.module import Learner

TINY = ("model.dim=16", "model.depth=1", "trainer.accelerator=cpu", "optim.warmup_steps=2")
HEADS = ("mixer.heads=2", "mixer.head_dim=8")
LISTOPS = ("experiment=listops_short", "task.train_rows=200", "task.eval_rows=40",
           "trainer.batch_tokens=1000", *TINY)  # fmt: skip
MQAR = ("experiment=mqar", "task.train=[16/4/300]", "task.val=[16/4/40]", "task.test=[16/4/20,16/2/20]",
        "task.vocab_size=20", "trainer.batch_tokens=320", *TINY)  # fmt: skip
DIGITS = ("experiment=digits", "trainer.batch_tokens=6400", *TINY)


def spec(vocab_size: int = 18, outputs: int = 10, max_length: int = 64, **others: Any) -> TaskSpec:
    """A task of classes over tokens, or what `others` make of it."""
    made = {"name": "x", "inputs": "tokens", "target": "class", "vocab_size": vocab_size, "outputs": outputs}
    return TaskSpec(**{**made, "max_length": max_length, **others})


def train(*arguments: str) -> int:
    """`tsla train`, and its exit status."""
    return cli.main(["train", *arguments])


def result(run: Path | str) -> dict[str, Any]:
    return json.loads((Path(run) / "result.json").read_text())


def metrics(run: Path | str) -> list[dict[str, str]]:
    """The rows of metrics.csv, without their empty cells and without what depends on the time."""
    with (Path(run) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and not name.startswith("perf/")} for row in rows]


def weights(run: Path | str) -> dict[str, Tensor]:
    return load_file(Path(run) / "model" / "model.safetensors")


def checkpoint(run: Path | str, name: str = "last") -> dict[str, Any]:
    return torch.load(Path(run) / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at_batch(patch: pytest.MonkeyPatch, batch: int, act: Callable[[], None]) -> None:
    """Do something before this process trains on its `batch`-th batch, counted from 1."""
    step, seen = Learner.training_step, 0

    def training_step(module: Learner, *arguments: Any) -> Tensor:
        nonlocal seen
        seen += 1
        if seen == batch:
            act()
        return step(module, *arguments)

    patch.setattr(Learner, "training_step", training_step)


def signal_at_batch(patch: pytest.MonkeyPatch, batch: int, signum: int = signal.SIGINT) -> None:
    """Send this process a signal then."""
    at_batch(patch, batch, lambda: os.kill(os.getpid(), signum))


def crash_at_batch(batch: int, *arguments: str) -> None:
    """A training that ends there by `Crash`."""

    def crash() -> None:
        raise Crash

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        at_batch(patch, batch, crash)
        train(*arguments)


def stopped_at_batch(batch: int, *arguments: str, signum: int = signal.SIGINT) -> int:
    """Exit status of a training, or of a resumed one, to which a signal comes at a batch."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at_batch(patch, batch, signum)
        return train(*arguments)


def assert_same_run(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    assert same_weights(weights(a), weights(b))
    first, second = result(a), result(b)
    for name in ("metrics", "references", "best_step", "steps", "params", "state_bytes", "seed", "task", "mixer"):
        assert first[name] == second[name], name
    for stage in ("", "pretrain")[: 1 + ("pretrain" in first)]:
        for name in ("last", "best"):
            assert_same_state(*(without_times(checkpoint(run / stage, name)) for run in (a, b)), name)
    if "pretrain" in first:
        assert metrics(a / "pretrain") == metrics(b / "pretrain")
        known, found = ({k: v for k, v in one["pretrain"].items() if "second" not in k} for one in (first, second))
        assert known == found


def without_times(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint without what depends on the hour, or on how often the run was stopped."""
    callbacks = {name: dict(state) for name, state in checkpoint["callbacks"].items() if name != "Clock"}
    callbacks["Recorder"] = {k: v for k, v in callbacks["Recorder"].items() if "seconds" not in k}
    # Lightning's own counters say how often an epoch was begun, and after the last step how it was left.
    kept = {k: v for k, v in checkpoint.items() if k not in ("callbacks", "loops", "epoch")}
    return kept | {"callbacks": callbacks}


def assert_same_state(a: Any, b: Any, path: str) -> None:
    """Equal through and through, tensors bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_state(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for at, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{path}.{at}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, path


LIMITS = (
    *HEADS,
    "trainer.max_steps=24",
    "trainer.validate_every=7",
    "trainer.checkpoint_every=9",
    "optim.lr=0.01",
)
KINDS = {
    "listops": (*LISTOPS, *LIMITS),
    "digits": (*DIGITS, *LIMITS, "model.dropout=0.3", "trainer.precision=bf16"),
    "accumulated": (*DIGITS, *LIMITS, "trainer.accumulate=3"),
    "worker": (*LISTOPS, *LIMITS, "trainer.workers=1"),
    "averaged": (*MQAR, *LIMITS, "trainer.ema=0.9", "trainer.accumulate=2"),
    "pretrained": (*LISTOPS, *LIMITS, "pretrain=masked", "pretrain.max_steps=16", "pretrain.lr=0.02",
                   "model.dropout=0.2"),
    "pretrained causally": (*LISTOPS, *LIMITS, "pretrain=causal", "pretrain.max_steps=5", "model.causal=true",
                            "task.packing=true", "trainer.accumulate=2", "mixer=performer", "mixer.redraw_every=3"),
    "epochs": (*DIGITS, *HEADS, "trainer.max_steps=null", "trainer.max_epochs=2", "trainer.validate_every=5"),
}  # fmt: skip


class Crash(Exception):
    """As good as a kill: nothing is saved after it."""


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "empty":
            content.clear()
        case "cut at 1 %" | "cut at 50 %" | "cut at 99 %":
            del content[len(content) * int(how.split()[2]) // 100 :]
        case "one bit":  # in the middle of the largest tensor, where only a checksum notices
            content[len(content) // 2] ^= 1
        case "gone":
            path.unlink()
            return
    path.write_bytes(bytes(content))
