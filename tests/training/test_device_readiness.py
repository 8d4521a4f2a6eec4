"""What a GPU needs of the training loop, without one: no waiting between two rows, batches that come by themselves."""

import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import train_runs as runs
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data._utils.pin_memory import pin_memory

import tsla
from tsla import build
from tsla.config.compose import compose
from tsla.tasks.digits import Digits
from tsla.tasks.loading import Batch, LengthBatches, Loader, Rows
from tsla.training import hardware
from tsla.training.guards import FiniteGuard, TrainingFailed
from tsla.training.module import Learner
from tsla.training.objective import Answers, Objective

# Whatever gives the host a number, or a shape that numbers decide, waits for the device; so does a copy of a constant
# to it, which on the CPU is seen as `lift_fresh`, of `torch.tensor`.
WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim",
         "unique_consecutive", "repeat_interleave", "lift_fresh"}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
ROWS = {"_training_row", "check", "__iter__", "__getitems__"}  # where it may: rows, the guard's look, making a batch
ENCODER, LANGUAGE = (*runs.LISTOPS, "model.pool=attention"), runs.MQAR
STEPS = 23
OURS = f"{Path(tsla.__file__).parent}/"  # the package, wherever the repository is and whatever it is called


class Waits(TorchDispatchMode):
    """Counts what would wait for a device, by the function of ours it was asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False
        self.allowed: Counter[str] = Counter()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        boolean = name in INDEXED and any(x is not None and x.dtype == torch.bool for x in args[1])
        sized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None
        if boolean or (name in WAITS and not sized):
            frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)]
            names = {frame.name for frame in frames}
            place = f"{name} in {frames[-1].name}" if frames else f"{name} in a library"
            (self.allowed if names & ROWS else self.found)[place] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def watched(monkeypatch, no_native) -> Waits:
    """Counts from the second step to the end of training, the loop's own work and the loading of batches included.

    What is made once, on the way through the first step, is left out. So is native code: the CPU's own kernels are not
    those of a device.
    """
    waits = Waits()
    start = Learner.on_train_batch_start

    def begin(module: Learner, batch: Batch, batch_idx: int) -> None:
        if module.global_step == 1 and not waits.running:
            waits.running = True
            waits.__enter__()
        start(module, batch, batch_idx)

    def end(module: Learner) -> None:
        waits.__exit__(None, None, None)

    monkeypatch.setattr(Learner, "on_train_batch_start", begin)
    monkeypatch.setattr(Learner, "on_train_end", end)
    return waits


@pytest.mark.parametrize("task", [ENCODER, LANGUAGE], ids=["encoder", "language model"])
@pytest.mark.parametrize(
    "options",
    [
        ("mixer=taylor", "mixer.impl=linear"),
        ("mixer=taylor", "optim.clip_norm=0", "model.positions=rotary", "mixer.center=mean", "mixer.impl=linear"),
        ("mixer=softmax", "trainer.precision=bf16", "trainer.ema=0.9"),
        ("mixer=softmax", "optim.clip_norm=0", "trainer.accumulate=2", "model.dropout=0.1"),
    ],
    ids=lambda options: " ".join(options),
)
def test_a_training_step_waits_for_nothing(tmp_path, watched, task, options):
    """Of 22 steps, two write rows: these ask for numbers, and the guard looks with them."""
    far = ("trainer.validate_every=500", "trainer.checkpoint_every=500", f"trainer.max_steps={STEPS}")
    assert runs.train(*task, *runs.HEADS, *far, *options, f"run_dir={tmp_path / 'run'}") == 0
    assert watched.found == {}
    looks = {place: count for place, count in watched.allowed.items() if "_local_scalar_dense" in place}
    looks.pop("_local_scalar_dense in __iter__", None)  # the loader draws a number on the host, once an epoch
    assert looks == {"_local_scalar_dense in _training_row": 2, "_local_scalar_dense in check": 2}


@pytest.mark.parametrize(("task", "mixer"), [(ENCODER, "linformer"), (ENCODER, "primal"), (LANGUAGE, "primal")])
def test_nor_for_a_mixer_that_chooses_rows_by_their_number(tmp_path, watched, task, mixer):
    """Of real tokens, which only masks know."""
    options = (f"mixer={mixer}", "mixer.heads=2", f"trainer.max_steps={STEPS}")
    assert runs.train(*task, *options, f"run_dir={tmp_path / 'run'}") == 0
    assert watched.running and watched.found == {}


@pytest.mark.parametrize("target", ["labels", "numbers"])
def test_nor_do_the_losses_and_scores_of_other_targets(target):
    spec = runs.spec(outputs=3, target=target, target_mean=(1.0,) * 3, target_std=(2.0,) * 3)
    objective = Objective(spec)
    scores = objective.scores(training=True)
    answers = Answers(torch.randn(5, 3), torch.ones(5, 3), torch.arange(5), None)
    objective.update(scores, answers)  # what is made once
    with Waits() as waits:
        objective.loss(answers)
        objective.update(scores, answers)
    assert waits.found == {}


def test_what_waits_would_be_counted(tmp_path, watched, monkeypatch):
    """The count is of real steps: a look at the loss in each shows in each."""
    step = Learner.training_step

    def looking(module: Learner, *arguments: Any) -> Tensor:
        loss = step(module, *arguments)
        one = loss.detach()[None]
        float(one), one[one > 0], torch.tensor([1.0])
        return loss

    monkeypatch.setattr(Learner, "training_step", looking)
    assert runs.train(*LANGUAGE, *runs.HEADS, "trainer.max_steps=9", f"run_dir={tmp_path / 'run'}") == 0
    assert {place.split()[0]: count for place, count in watched.found.items()} == dict.fromkeys(
        ("_local_scalar_dense", "index", "lift_fresh"), 8
    )


# --- the guard ---


def test_the_optimiser_leaves_out_every_step_from_the_first_unfit_one_on():
    weights = nn.Parameter(torch.ones(3))
    optimizer, guard = torch.optim.AdamW([weights], lr=0.1, fused=True), FiniteGuard()
    kept: list[Tensor] = []
    for step, gradient in enumerate((1.0, 2.0, float("nan"), 1.0), 1):
        weights.grad, loss = torch.full((3,), gradient), torch.ones(())
        with Waits() as waits:
            _, optimizer.found_inf = guard.watch(step, loss, {"w": weights.grad}, together=False)
            optimizer.step()
        assert waits.found == {}
        kept.append(weights.detach().clone())
        state = {name: x.clone() for name, x in optimizer.state[weights].items()}
        if step == 2:
            before = state
    assert not torch.equal(kept[0], kept[1])
    assert torch.equal(kept[1], kept[2]) and torch.equal(kept[2], kept[3])
    assert runs.same_weights(before, state) and float(state["step"]) == 2
    with pytest.raises(TrainingFailed, match=r"^step 3: the loss is 1.0, the gradient of w is not finite"):
        guard.check()


def test_a_look_that_finds_nothing_forgets_the_steps():
    guard = FiniteGuard()
    for step in range(1, 4):
        guard.watch(step, torch.tensor(1.0), {"w": torch.ones(3), "none": torch.ones(0)}, together=False)
    assert len(guard.steps) == 3
    guard.check()
    assert guard.steps == []
    guard.watch(4, torch.tensor(float("inf")), {"w": torch.ones(3)}, together=False)
    with pytest.raises(TrainingFailed, match=r"^step 4: the loss is inf; stopped"):
        guard.check()


@pytest.mark.parametrize("option", ["trainer.validate_every=4", "trainer.checkpoint_every=4", "trainer.max_steps=4"])
def test_it_is_looked_at_before_validation_checkpoint_and_end(tmp_path, monkeypatch, capsys, option):
    """The second of more than ten steps goes wrong, and nothing is written of it."""
    watch = FiniteGuard.watch

    def spoiled(guard: FiniteGuard, step: int, loss: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return watch(guard, step, loss + float("inf") if step == 2 else loss, *arguments, **options)

    monkeypatch.setattr(FiniteGuard, "watch", spoiled)
    far = ("trainer.max_steps=30", "trainer.validate_every=500", "trainer.checkpoint_every=500")
    run = tmp_path / "run"
    assert runs.train(*LANGUAGE, *runs.HEADS, *far, option, f"run_dir={run}") == 1
    assert "step 2: the loss is inf" in capsys.readouterr().out
    assert not list((run / "checkpoints").glob("*")) and runs.metrics(run) == []


# --- batches ---


@pytest.fixture
def moves(monkeypatch) -> list[tuple[str, bool]]:
    """The devices that tensors were sent to, and whether they were waited for; they stay where they are."""
    seen: list[tuple[str, bool]] = []

    def to(x: Tensor, device: Any, non_blocking: bool = False) -> Tensor:
        seen.append((str(device), non_blocking))
        return x

    monkeypatch.setattr(Tensor, "to", to)
    return seen


@pytest.mark.parametrize(("device", "ahead"), [("cuda", True), ("cuda:1", True), ("cpu", False), ("mps", False)])
def test_lightning_moves_batches_without_waiting(moves, device, ahead):
    batch = Batch(*(torch.ones(2) for _ in range(4)), scored=torch.ones(1))
    moved = move_data_to_device(batch, torch.device(device))
    assert isinstance(moved, Batch) and moved.cu_seqlens is None
    assert moves == [(device, ahead)] * 5


def test_every_tensor_of_a_batch_is_pinned(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda x, *_: x + 1)
    batch = pin_memory(Batch(*(torch.ones(2) for _ in range(4)), scored=torch.ones(1)))
    assert isinstance(batch, Batch) and batch.cu_seqlens is None
    assert all(x is None or bool((x == 2).all()) for x in batch)


def found(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 1) -> None:
    """A machine with `count` devices of a kind."""
    device = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: device)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("kind", "accelerator", "pinned"),
    [
        ("cuda", "auto", True),
        ("cuda", "cuda", True),
        ("cuda", "cpu", False),
        (None, "auto", False),
        ("mps", "auto", False),
    ],
)
def test_batches_are_pinned_for_cuda_alone(monkeypatch, kind, accelerator, pinned):
    found(monkeypatch, kind)
    config = compose(["experiment=digits", f"trainer.accelerator={accelerator}", "trainer.workers=2"])
    loaders = build.build_loaders(config, Digits(), ("train", "val"))
    assert [loader.pin_memory for loader in loaders] == [pinned, pinned]
    assert loaders[0].prefetch_factor == 2  # batches that each worker makes ahead


def test_no_tensor_of_a_batch_shares_the_rows():
    """What is copied in the background must not be written to, nor go, before it has arrived."""
    rows = Rows(Digits().split("val"), Digits().spec)
    (batch, *_) = Loader(rows, LengthBatches(rows.lengths, 640, seed=0))
    assert not any(
        np.shares_memory(x.numpy(), y) for x in batch if x is not None for y in (*rows.inputs[0].pieces, rows.targets)
    )


# --- hardware ---


def check(**options: Any) -> torch.device:
    asked = {"accelerator": "auto", "devices": 1, "precision": "fp32", "compiled": False, **options}
    return hardware.check_hardware(asked.pop("accelerator"), **asked)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (None, {"accelerator": "cuda"}, r"trainer.accelerator \(cuda\) is not on this machine, which has cpu"),
        ("cuda", {"accelerator": "mps"}, r"trainer.accelerator \(mps\) is not on this machine, which has cuda"),
        ("cuda", {"devices": 3}, r"trainer.devices \(3\) must be at most 2, the cuda devices there are"),
        (
            "cuda",
            {"precision": "bf16"},
            r"trainer.precision \(bf16\) must be fp32: Old has no products of bfloat16",
        ),
        ("cuda", {"compiled": True}, r"trainer.compile \(true\) must be false: for cuda it needs the package triton"),
    ],
)
def test_what_the_hardware_cannot_do_is_refused(monkeypatch, kind, options, message):
    found(monkeypatch, kind, 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(**options)
    assert check(**(options | {"accelerator": "cpu"})).type == "cpu"


def test_what_it_can_do_is_not(monkeypatch):
    found(monkeypatch, "cuda", 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(hardware, "find_spec", lambda name: object())
    everything = {"devices": 2, "precision": "bf16", "compiled": True}
    assert check(**everything).type == check(accelerator="cuda", **everything).type == "cuda"


def test_how_much_memory_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=7))
    assert hardware.memory_of(torch.device("cuda")) == 7 and hardware.memory_of(torch.device("mps")) is None
    told = Path("/proc/meminfo")
    if told.exists():
        assert hardware.memory_of(torch.device("cpu")) == 1024 * int(told.read_text().split()[1])


@pytest.mark.parametrize("more", [(), ("dry_run=true",)])
def test_it_is_refused_before_data_is_made(tmp_path, monkeypatch, capsys, more):
    found(monkeypatch, "cuda", 1)
    monkeypatch.setattr(build, "build_task", lambda config: pytest.fail("too late"))
    arguments = (*runs.LISTOPS, "trainer.accelerator=auto", "trainer.devices=2", *more, f"run_dir={tmp_path / 'run'}")
    assert runs.train(*arguments) != 0
    told = capsys.readouterr()
    assert "trainer.devices (2) must be at most 1, the cuda devices there are" in " ".join(
        (told.out + told.err).split()
    )
