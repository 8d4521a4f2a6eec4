"""metrics.csv: rows often enough, whole while the run goes on, and cut back where a run resumes."""

import csv
from pathlib import Path

import pytest
import train_runs as runs

from tsla import build
from tsla.config import read as config_of
from tsla.tasks.loading import Batch, Loader
from tsla.training.module import Learner
from tsla.training.recorder import MetricsFile

LISTOPS = (*runs.LISTOPS, *runs.HEADS)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_there_as_soon_as_they_are_written(tmp_path):
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path)
    assert path.read_text() == "step,epoch\n" and read(path) == []
    file.append({"step": 1, "epoch": 0, "a": 0.5})
    assert read(path) == [{"step": "1", "epoch": "0", "a": "0.5"}]
    file.append({"step": 2, "epoch": 0, "a": 0.25})
    file.append({"step": 2, "epoch": 0, "b, c": 1.0})  # a new column, and one that needs quotes
    file.append({"step": 3, "epoch": 1, "a": 1e-20})
    assert read(path) == [
        {"step": "1", "epoch": "0", "a": "0.5", "b, c": ""},
        {"step": "2", "epoch": "0", "a": "0.25", "b, c": ""},
        {"step": "2", "epoch": "0", "a": "", "b, c": "1.0"},
        {"step": "3", "epoch": "1", "a": "1e-20", "b, c": ""},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("keep", [None, 0, 2, 5])
def test_an_existing_file_is_gone_on_with(tmp_path, keep):
    path = tmp_path / "metrics.csv"
    first = MetricsFile(path)
    for step in (1, 2, 2, 3):
        first.append({"step": step, "epoch": 0, "a": step / 2})
    second = MetricsFile(path, keep)
    kept = [1, 2, 2, 3][:keep]
    assert [int(row["step"]) for row in read(path)] == kept
    second.append({"step": 9, "epoch": 0, "a": 4.5})
    assert [int(row["step"]) for row in read(path)] == [*kept, 9]
    assert all(float(row["a"]) == int(row["step"]) / 2 for row in read(path))


@pytest.mark.parametrize(
    "tail", ["3,0", "3", "x,0,1.0\r\n", ",,\r\n", "3,0,1.0,7,8\r\n", "\r\n", "\x00", "-1,0,1.0\r\n"]
)
def test_rows_that_are_none_are_dropped(tmp_path, tail):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,a\r\n1,0,0.5\r\n" + tail, newline="")
    file = MetricsFile(path, 10)
    file.append({"step": 4, "epoch": 0, "a": 2.0})
    assert [(row["step"], row["a"]) for row in read(path)] == [("1", "0.5"), ("4", "2.0")]


@pytest.mark.parametrize("content", ["", "\r\n", "colour\r\nred\r\n", "step,epoch,a\r\n"])
def test_files_of_another_kind_do_no_harm(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content, newline="")
    MetricsFile(path, 10).append({"step": 4, "epoch": 0, "a": 2.0})
    (row,) = read(path)
    assert (row["step"], row["epoch"], row["a"]) == ("4", "0", "2.0")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 34 steps; what metrics.csv held at each."""
    folder = tmp_path_factory.mktemp("recorder")
    step, seen = Learner.training_step, {}

    def training_step(module, *arguments):
        seen[module.trainer.global_step] = read(folder / "run" / "metrics.csv")
        return step(module, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "training_step", training_step)
        status = runs.train(
            *LISTOPS, "trainer.max_steps=34", "trainer.validate_every=15", f"run_dir={folder / 'run'}",
            f"data_dir={folder / 'data'}",
        )  # fmt: skip
    assert status == 0
    return folder / "run", seen


def training_loader(folder: Path) -> Loader:
    config = config_of(folder / "config.yaml")
    return build.build_loaders(config, build.build_task(config), ("train",))[0]


def first_batches(folder: Path, count: int) -> list[Batch]:
    """What a run was trained on, made again."""
    loader, batches = training_loader(folder), []
    for epoch in range(count):
        loader.batches.set_epoch(epoch)
        batches += loader
    return batches[:count]


def test_a_row_every_ten_steps_and_after_each_validation(run):
    folder, _ = run
    rows = read(folder / "metrics.csv")
    assert list(rows[0])[:2] == ["step", "epoch"]
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [10, 20, 30, 34]
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [15, 30, 34]
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
    for row in rows:
        for name, value in row.items():
            assert not value or (name in ("step", "epoch")) == value.isdigit(), (name, value)
            assert not value or "accuracy" not in name or 0 <= float(value) <= 1
    names = {"step", "epoch", "train/loss", "train/accuracy", "optim/lr", "perf/tokens_per_second"}
    assert set(rows[0]) == names | {"val/loss", "val/accuracy", "val/f1"}


def test_rows_are_on_disk_while_the_run_goes_on(run):
    _, seen = run
    last = {at: max((int(row["step"]) for row in rows), default=0) for at, rows in seen.items()}
    assert last == {at: max((step for step in (10, 15, 20, 30) if step <= at), default=0) for at in range(34)}


def test_the_epoch_is_that_of_the_step(run):
    folder, _ = run
    rows = read(folder / "metrics.csv")
    epochs = {int(row["step"]): int(row["epoch"]) for row in rows}
    batches = len(training_loader(folder))
    assert batches < 15
    assert epochs == {step: (step - 1) // batches for step in (10, 15, 20, 30, 34)}


def test_tokens_are_real_and_the_rate_is_theirs(run):
    folder, _ = run
    state = runs.checkpoint(folder)["callbacks"]["Recorder"]
    result = runs.result(folder)
    assert result["train_tokens_per_second"] == pytest.approx(state["tokens"] / state["seconds"])
    assert state["tokens"] == sum(int(batch.mask.sum()) for batch in first_batches(folder, 34))
    rates = [float(row["perf/tokens_per_second"]) for row in read(folder / "metrics.csv") if row["train/loss"]]
    assert min(rates) <= result["train_tokens_per_second"] <= max(rates)


def test_a_run_of_one_step_has_its_rows(tmp_path):
    arguments = ("trainer.max_steps=1", "trainer.validate_every=500", f"run_dir={tmp_path / 'run'}")
    assert runs.train(*runs.DIGITS, *runs.HEADS, *arguments) == 0
    rows = read(tmp_path / "run" / "metrics.csv")
    assert [(row["step"], row["epoch"], bool(row["train/loss"])) for row in rows] == [
        ("1", "0", True),
        ("1", "0", False),
    ]
    assert runs.result(tmp_path / "run")["train_tokens_per_second"] > 0
