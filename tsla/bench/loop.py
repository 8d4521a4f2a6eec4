"""What Lightning costs: tokens per second of `fit` over those of the same steps in a bare loop."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset, Features, List, Value
from rich.console import Console
from torch import nn

from tsla.tasks.base import TaskSpec
from tsla.tasks.loading import LengthBatches, Loader, Rows
from tsla.training.clock import Limits
from tsla.training.fit import FitSettings, fit
from tsla.training.objective import Objective
from tsla.training.optim import OptimSettings, make_optimizer
from tsla.training.run_dir import RunDir

ROUNDS = 3
OPTIM = OptimSettings(1e-4, 1.0, 0, weight_decay=0.01, beta1=0.9, beta2=0.98, clip_norm=1.0)


class Loops(NamedTuple):
    """Tokens per second of the same steps, medians of rounds in turns."""

    mixer: str
    batch: int
    length: int
    steps: int
    fit: float
    bare: float

    @property
    def told(self) -> str:
        """In words."""
        return (
            f"`fit` (Lightning, metrics, clipping) with {self.mixer}, {self.length} tokens: {self.fit:,.0f} tokens/s, "
            f"{self.fit / self.bare:.2f} times those of a bare loop of the same steps, {self.bare:,.0f}"
        )


def over_bare(make: Callable[[], nn.Module], mixer: str, batch: int, length: int, steps: int) -> Loops:
    """Both loops in turns, each from the same weights over the same batches of random tokens."""
    data = _data(batch * steps, length)
    with_fit, bare = [], []
    for _ in range(ROUNDS):
        with_fit.append(_fit(make(), data, batch * length, steps))
        bare.append(_bare(make(), data, batch * length))
    return Loops(mixer, batch, length, steps, statistics.median(with_fit), statistics.median(bare))


SPEC = TaskSpec("bench", "tokens", "class", 10, 2**20, vocab_size=256)


def _data(rows: int, length: int) -> Rows:
    torch.manual_seed(0)
    ids, labels = torch.randint(1, 256, (rows, length)), torch.randint(SPEC.outputs, (rows,))
    features = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
    return Rows(Dataset.from_dict({"input_ids": ids.tolist(), "label": labels.tolist()}, features=features), SPEC)


def _loader(data: Rows, batch_tokens: int) -> Loader:
    return Loader(data, LengthBatches(data.lengths, batch_tokens, seed=None))


def _fit(model: nn.Module, data: Rows, batch_tokens: int, steps: int) -> float:
    settings = FitSettings(
        limits=Limits(steps, None, None), batch_tokens=batch_tokens, accumulate=1, validate_every=2**30,
        checkpoint_every=2**30, precision="fp32", accelerator="cpu", devices=1, compile=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return fit(
            model, _loader(data, batch_tokens), _loader(_data(1, 2), batch_tokens), objective=Objective(SPEC),
            optim=OPTIM, settings=settings, run=RunDir(Path(folder)), loggers=[], console=Console(quiet=True), seed=0,
        ).tokens_per_second  # fmt: skip


def _bare(model: nn.Module, data: Rows, batch_tokens: int) -> float:
    optimizer, objective, tokens = make_optimizer(model, OPTIM), Objective(SPEC), 0
    model.train()
    began = time.perf_counter()
    for batch in _loader(data, batch_tokens):
        optimizer.zero_grad()
        loss = objective.loss(objective.ask(model.run, batch))  # type: ignore[arg-type]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        optimizer.step()
        tokens += batch.inputs.numel()
    return tokens / (time.perf_counter() - began)
