"""`fit` on models and data made by hand: accumulation, clipping, types, limits, and what it learns."""

import csv
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import train_runs as runs
from datasets import Dataset, Features, List, Value
from rich.console import Console
from torch import Tensor, nn

from tsla.models import Encoder, SequenceClassifier
from tsla.tasks.digits import Digits
from tsla.tasks.loading import LengthBatches, Loader, Rows
from tsla.training import module as training_module
from tsla.training.clock import Limits
from tsla.training.fit import FitSettings, Fitted, _same_sums, fit
from tsla.training.module import Learner
from tsla.training.objective import Objective
from tsla.training.optim import OptimSettings
from tsla.training.run_dir import RunDir

OPTIM = OptimSettings(lr=1e-2, final_lr=0.0, warmup_steps=0, weight_decay=0.0, beta1=0.9, beta2=0.98, clip_norm=0.0)
SPEC = runs.spec(11)
SETTINGS = FitSettings(
    limits=Limits(6, None, None), batch_tokens=160, accumulate=1, validate_every=100, checkpoint_every=100,
    precision="fp32", accelerator="cpu", devices=1, compile=False,
)  # fmt: skip


def rows(count: int = 48, length: int = 10) -> Dataset:
    """Tokens 1 to 10; the label is the first of them."""
    ids = np.random.default_rng(0).integers(1, 11, (count, length))
    features = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
    return Dataset.from_dict({"input_ids": ids.tolist(), "label": (ids[:, 0] - 1).tolist()}, features=features)


def loader(data: Dataset, batch_rows: int, *, seed: int | None = None, length: int = 10) -> Loader:
    loaded = Rows(data, SPEC)
    return Loader(loaded, LengthBatches(loaded.lengths, batch_rows * length, seed=seed))


def model(dim: int = 16, depth: int = 1, vocab: int = 11, **options) -> SequenceClassifier:
    torch.manual_seed(0)
    return SequenceClassifier(Encoder(vocab_size=vocab, dim=dim, depth=depth, heads=2, **options), num_classes=10)


def run(folder: Path, made: nn.Module, train: Loader, *, val: Loader | None = None, start=None, optim=OPTIM,
        settings: FitSettings = SETTINGS) -> Fitted:  # fmt: skip
    folder.mkdir(exist_ok=True)
    return fit(
        made, train, loader(rows(16), 16) if val is None else val, objective=Objective(SPEC), optim=optim,
        settings=settings, run=RunDir(folder), loggers=[], console=Console(quiet=True), seed=0, start=start,
    )  # fmt: skip


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of every optimiser step, before and after clipping."""
    seen: dict[str, list[Tensor]] = {"before": [], "after": []}

    def flat(module: nn.Module) -> Tensor:
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    def before(module: Learner, optimizer: object) -> None:
        seen["before"].append(flat(module))

    make = training_module.make_optimizer

    def watched(made: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
        optimizer = make(made, settings)
        optimizer.register_step_post_hook(lambda *_: seen["after"].append(flat(made)))
        return optimizer

    monkeypatch.setattr(Learner, "on_before_optimizer_step", before)
    monkeypatch.setattr(training_module, "make_optimizer", watched)
    return seen


def test_accumulation_is_a_bigger_batch(tmp_path, gradients):
    data = rows()
    big, small = model(), model()
    run(tmp_path / "a", big, loader(data, 12), settings=SETTINGS._replace(limits=Limits(6, None, None)))
    run(tmp_path / "b", small, loader(data, 4), settings=SETTINGS._replace(accumulate=3))
    steps = gradients["before"]
    assert len(steps) == 12
    torch.testing.assert_close(steps[6], steps[0], rtol=1e-4, atol=1e-6)  # before any weight has changed
    torch.testing.assert_close(steps[7], steps[1], rtol=1e-2, atol=1e-4)
    for a, b in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_clipped(tmp_path, gradients, precision):
    settings = SETTINGS._replace(precision=precision)
    run(tmp_path / "a", model(), loader(rows(), 12), optim=OPTIM._replace(clip_norm=1e-2), settings=settings)
    for before, after in zip(gradients["before"], gradients["after"], strict=True):
        assert before.norm() > 1.5e-2
        torch.testing.assert_close(after, before * (1e-2 / before.norm()), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("clip_norm", [0.0, 1e3])
def test_gradients_are_left_alone_below_the_bound(tmp_path, gradients, clip_norm):
    run(tmp_path / "a", model(), loader(rows(), 12), optim=OPTIM._replace(clip_norm=clip_norm))
    assert all(torch.equal(a, b) for a, b in zip(gradients["before"], gradients["after"], strict=True))


def test_the_gradient_is_that_of_the_mean_loss(tmp_path, gradients):
    made, data = model(), loader(rows(), 12)
    batch = next(iter(data))
    nn.functional.cross_entropy(made(batch.inputs, batch.mask), batch.targets).backward()
    expected = torch.cat([p.grad.flatten() for p in made.parameters()])
    run(tmp_path / "a", model(), data, settings=SETTINGS._replace(limits=Limits(1, None, None)))
    torch.testing.assert_close(gradients["before"][0], expected)


class Aux(nn.Module):
    """A model whose only gradient is that of the loss its mixers add."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))

    def run(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(tokens), 10), (self.weight - 1).square().sum()


def test_the_loss_of_the_mixers_is_trained_and_not_reported(tmp_path):
    made = Aux()
    run(tmp_path / "a", made, loader(rows(), 12), settings=SETTINGS._replace(limits=Limits(10, None, None)))
    assert (made.weight > 0.03).all()
    with (tmp_path / "a" / "metrics.csv").open() as file:
        (row, *_) = csv.DictReader(file)
    assert float(row["train/loss"]) == pytest.approx(math.log(10))


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"accumulate": 2}, {"limits": Limits(None, 10, None)}])
def test_it_learns(tmp_path, change):
    settings = SETTINGS._replace(limits=Limits(40, None, None))._replace(**change)
    optim = OPTIM._replace(clip_norm=1.0)
    data = rows(96)
    fitted = run(
        tmp_path / "a", model(positions="learned", max_length=10), loader(data, 12, seed=0), val=loader(data, 48),
        optim=optim, settings=settings,
    )  # fmt: skip
    assert fitted.best_score > 0.25


def test_gradient_checkpointing_trains_the_same(tmp_path):
    plain, again = model(dropout=0.2), model(dropout=0.2, gradient_checkpointing=True)
    run(tmp_path / "a", plain, loader(rows(), 12))
    run(tmp_path / "b", again, loader(rows(), 12))
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bf16_keeps_weights_in_full_precision(tmp_path):
    made = model()
    run(tmp_path / "a", made, loader(rows(), 12), settings=SETTINGS._replace(precision="bf16"))
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    full = model()
    run(tmp_path / "b", full, loader(rows(), 12))
    assert any(not torch.equal(a, b) for a, b in zip(made.parameters(), full.parameters(), strict=True))


LIMITS = {
    "steps": (Limits(5, None, None), 1, 5),
    "epochs": (Limits(None, 2, None), 1, 8),  # 4 batches
    "steps before epochs": (Limits(5, 2, None), 1, 5),
    "epochs before steps": (Limits(50, 2, None), 1, 8),
    "accumulated": (Limits(None, 2, None), 3, 4),  # 4 batches are 2 steps, of 3 batches and of 1
    "one step an epoch": (Limits(None, 3, None), 9, 3),
}


@pytest.mark.parametrize("name", LIMITS)
def test_training_ends_at_the_first_limit(tmp_path, name):
    limits, accumulate, steps = LIMITS[name]
    settings = SETTINGS._replace(limits=limits, accumulate=accumulate)
    assert run(tmp_path / "a", model(), loader(rows(), 12), settings=settings).steps == steps


@pytest.mark.parametrize("name", LIMITS)
def test_the_rate_falls_until_the_end_and_not_before(tmp_path, name, monkeypatch):
    limits, accumulate, steps = LIMITS[name]
    rates = []

    def note(module: Learner, optimizer: torch.optim.Optimizer) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Learner, "on_before_optimizer_step", note)
    run(tmp_path / "a", model(), loader(rows(), 12), settings=SETTINGS._replace(limits=limits, accumulate=accumulate))
    expected = [1e-2 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    assert rates == pytest.approx(expected)
    assert all(a > b for a, b in pairwise(rates))


def test_minutes_end_a_training_and_guide_its_rate(tmp_path):
    settings = SETTINGS._replace(limits=Limits(None, None, 0.01))
    fitted = run(tmp_path / "a", model(), loader(rows(), 12), settings=settings)
    assert fitted.seconds >= 0.6 and fitted.steps > 1
    with (tmp_path / "a" / "metrics.csv").open() as file:
        rates = [float(row["optim/lr"]) for row in csv.DictReader(file) if row["optim/lr"]]
    assert all(a >= b for a, b in pairwise(rates)) and rates[-1] < 1e-2


def digits(rows_: slice, *, labels: Tensor | None = None, split: str = "train") -> Loader:
    loaded = Rows(Digits().split(split).select(range(*rows_.indices(len(Digits().split(split))))), Digits().spec)
    if labels is not None:
        loaded.targets = loaded.targets[labels.numpy()]
    return Loader(loaded, LengthBatches(loaded.lengths, 64 * 64, seed=0))


@pytest.mark.slow
def test_256_rows_can_be_learnt_by_heart(tmp_path):
    data = digits(slice(256))
    made = model(dim=32, depth=2, vocab=18, positions="learned", max_length=64)
    run(tmp_path / "a", made, data, val=data, optim=OPTIM._replace(lr=3e-3, clip_norm=1.0),
        settings=SETTINGS._replace(limits=Limits(300, None, None)))  # fmt: skip
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(made.eval()(b.inputs, b.mask), b.targets) for b in data]
    assert sum(losses) / len(losses) < 0.05


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(tmp_path):
    """A leak of labels into inputs, or of test rows into training, would show here."""
    shuffled = torch.randperm(1257, generator=torch.Generator().manual_seed(0))
    made = model(dim=32, depth=1, vocab=18, positions="learned", max_length=64)
    test = digits(slice(None), split="test")
    run(tmp_path / "a", made, digits(slice(None), labels=shuffled), val=test, optim=OPTIM._replace(lr=3e-3),
        settings=SETTINGS._replace(limits=Limits(150, None, None)))  # fmt: skip
    with torch.no_grad():
        right = sum(int((made.eval()(b.inputs, b.mask).argmax(-1) == b.targets).sum()) for b in test)
    assert abs(right / 360 - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 360)


@pytest.mark.parametrize(("there", "accelerator", "asked"), [
    (True, "auto", "warn"), (True, "cuda", "warn"), (True, "cpu", None), (False, "auto", None),
])  # fmt: skip
def test_sums_of_a_gpu_are_asked_to_be_the_same_each_time(monkeypatch, there, accelerator, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert _same_sums(accelerator) == asked
    assert torch.utils.deterministic.fill_uninitialized_memory is (asked is None)
