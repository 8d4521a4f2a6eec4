"""Checkpoints: never half-written, the best one kept, and one clear error for what cannot be read."""

import contextlib
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import train_runs as runs
from torch import nn

from tsla.training.checkpoints import Checkpoints, CrashSafeIO, latest_checkpoint, load_weights, read_checkpoint


class Model(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2)


def write(path: Path, model: nn.Module) -> Path:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"val_loss.value": torch.ones(1)}
    CrashSafeIO().save_checkpoint({"state_dict": state, "global_step": 3}, path)
    return path


def test_weights_come_back_from_a_checkpoint(tmp_path):
    first, second = Model(), Model()
    load_weights(second, write(tmp_path / "deep" / "a.ckpt", first))
    assert torch.equal(first.layer.weight, second.layer.weight)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.ckpt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.ckpt", Model())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, Model(5))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (order.append("fsync"), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write(tmp_path / "a.ckpt", Model())
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("operation", range(6))
def test_a_kill_between_any_two_changes_of_names_leaves_a_last_checkpoint(tmp_path, monkeypatch, operation, links):
    """Without hard links there is one moment when the newest goes by `previous` alone; resuming takes that."""
    trainer = SimpleNamespace(
        save_checkpoint=lambda path: write(path, Model()), is_global_zero=True, global_step=1,
        strategy=SimpleNamespace(barrier=lambda: None),
    )  # fmt: skip
    checkpoints = Checkpoints(tmp_path, 1, monitor="val/accuracy")
    checkpoints.save_last(trainer)
    checkpoints.save_last(trainer)
    left = [operation]

    def killed_at(real, refused=False):
        def change(*arguments, **options):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            if refused:
                raise OSError(1, "Operation not permitted")
            return real(*arguments, **options)

        return change

    for name in ("replace", "link", "unlink"):
        monkeypatch.setattr(os, name, killed_at(getattr(os, name), refused=name == "link" and not links))
    with contextlib.suppress(KeyboardInterrupt):
        checkpoints.save_last(trainer)
    monkeypatch.undo()
    assert links is False or (tmp_path / "last.ckpt").exists()
    found = latest_checkpoint(tmp_path, fall_back=False)
    assert found is not None and read_checkpoint(found)["global_step"] == 3


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "no weights", "evil", "list"])
def test_what_cannot_be_read_is_one_clear_error(tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.ckpt", Model())
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a checkpoint")
        case "no weights":
            torch.save({"epoch": 3}, path)
        case "evil":
            path.write_bytes(pickle.dumps({"state_dict": Evil()}))
        case "list":
            torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"a.ckpt (cannot be read|is no checkpoint)") as caught:
        load_weights(Model(), path)
    assert len(str(caught.value)) < 600 and "weights_only" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_a_checkpoint_of_another_model(tmp_path):
    path = write(tmp_path / "a.ckpt", Model(3))
    with pytest.raises(ValueError, match=r"a.ckpt holds another model(.|\n)*size mismatch for layer.weight"):
        load_weights(Model(5), path)
    with pytest.raises(FileNotFoundError):
        load_weights(Model(), tmp_path / "b.ckpt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 steps, validated every third and saved every fourth."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    status = runs.train(
        *runs.DIGITS, "trainer.max_steps=12", "trainer.validate_every=3", "trainer.checkpoint_every=4",
        "optim.lr=0.01", f"run_dir={folder}",
    )  # fmt: skip
    assert status == 0
    return folder


def test_the_best_checkpoint_is_the_first_with_the_best_validation(run):
    scores = [(float(row["val/accuracy"]), int(row["step"])) for row in runs.metrics(run) if "val/accuracy" in row]
    assert [step for _, step in scores] == [3, 6, 9, 12]
    best, step = max(scores, key=lambda score: (score[0], -score[1]))
    result = runs.result(run)
    assert (result["best_step"], result["metrics"]["val/accuracy"]) == (step, pytest.approx(best))
    assert runs.checkpoint(run, "best")["global_step"] == step


def test_the_last_checkpoint_and_the_model_are_those_of_the_last_step(run):
    last = runs.checkpoint(run)
    assert last["global_step"] == 12
    state = {name.removeprefix("model."): x for name, x in last["state_dict"].items() if name.startswith("model.")}
    assert runs.same_weights(state, runs.weights(run))


def test_checkpoints_are_written_every_so_often(tmp_path, monkeypatch):
    written = []
    save = CrashSafeIO.save_checkpoint

    def note(io: CrashSafeIO, checkpoint: dict, path: Path, storage_options: object = None) -> None:
        written.append((Path(path).stem, checkpoint["global_step"]))
        save(io, checkpoint, path)

    monkeypatch.setattr(CrashSafeIO, "save_checkpoint", note)
    runs.train(
        *runs.DIGITS, "trainer.max_steps=10", "trainer.validate_every=8", "trainer.checkpoint_every=4",
        f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert [step for name, step in written if name == "next"] == [4, 8, 10, 10]  # before and after the last validation
    assert written[1] == ("best", 8)
