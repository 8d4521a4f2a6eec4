"""What a run starts from and what it would be: other runs' weights, and dry runs."""

import json
from pathlib import Path

import pytest
import torch
import train_runs as runs

from tsla import cli, load_model
from tsla.build import build_task
from tsla.config import read
from tsla.config.compose import with_task

SHORT = ("trainer.max_steps=2",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("initial")
    assert runs.train(*runs.DIGITS, *runs.HEADS, *SHORT, "model.positions=rotary", f"run_dir={folder / 'run'}") == 0
    return folder / "run"


def initial(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, torch.Tensor]:
    """The weights at the first step of a training."""
    seen: dict[str, torch.Tensor] = {}

    def fit(model: torch.nn.Module, *_: object, **__: object) -> None:
        seen.update({name: x.clone() for name, x in model.state_dict().items()})
        raise ValueError("seen enough")

    with monkeypatch.context() as patch:
        patch.setattr("tsla.run.fit", fit)
        assert runs.train(*arguments) == 1
    return seen


def test_weights_of_another_run(trained, tmp_path, monkeypatch):
    arguments = (*runs.DIGITS, *runs.HEADS, "model.positions=rotary", f"init_from={trained}", "seed=5")
    got = initial(monkeypatch, *arguments, f"run_dir={tmp_path / 'a'}")
    assert runs.same_weights(got, dict(load_model(trained / "model").state_dict()))


def test_a_head_of_another_task_stays_new(trained, tmp_path, monkeypatch):
    """MQAR here has other classes; its vocabulary is made that of digits."""
    arguments = (*runs.MQAR, *runs.HEADS, "task.vocab_size=17", "model.causal=true", "model.short_conv=19",
                 "model.feed_forward_mult=2", "model.positions=rotary")  # fmt: skip
    new = initial(monkeypatch, *arguments, f"run_dir={tmp_path / 'a'}")
    got = initial(monkeypatch, *arguments, f"init_from={trained}", f"run_dir={tmp_path / 'b'}")
    saved = runs.weights(trained)
    for name, weights in got.items():
        assert torch.equal(weights, (new if name.startswith("head.") else saved)[name]), name
    assert not torch.equal(got["encoder.embedding.weight"], new["encoder.embedding.weight"])


def test_weights_that_do_not_fit_are_told_before_training(trained, tmp_path, capsys):
    run = tmp_path / "run"
    assert runs.train(*runs.DIGITS, *runs.HEADS, "model.dim=32", f"init_from={trained}", f"run_dir={run}") == 1
    assert "holds another model" in capsys.readouterr().out
    assert runs.train(*runs.DIGITS, f"init_from={tmp_path}", f"run_dir={tmp_path / 'other'}") == 2
    assert "must be the directory of a finished run" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["digits", "mqar"])
def test_a_dry_run_tells_and_keeps_nothing(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = (*{"digits": runs.DIGITS, "mqar": runs.MQAR}[kind], *runs.HEADS, "trainer.max_steps=2000")
    assert runs.train(*arguments, "dry_run=true", "run_dir=run") == 0
    out = capsys.readouterr().out
    for part in ("encoder.blocks.0.mixer", "TaylorAttention", "parameters", "operations per token", "KiB of state",
                 "training rows in", "after two steps", "tokens/s", "MiB", "in all"):  # fmt: skip
        assert part in out, part
    assert not Path("run").exists() and not Path("runs").exists()


def test_the_estimate_counts_steps_epochs_and_minutes(tmp_path, monkeypatch):
    from tsla.config import compose
    from tsla.dry_run import measure

    monkeypatch.chdir(tmp_path)
    base = [*runs.DIGITS, *runs.HEADS]
    assert measure(compose([*base, "trainer.max_minutes=0.001"])).seconds <= 0.06
    few, many = (measure(compose([*base, f"trainer.max_steps={n}"])).seconds for n in (10, 100_000))
    assert 0 < few < many / 50
    epochs = measure(compose([*base, "trainer.max_steps=null", "trainer.max_epochs=10000"])).seconds
    assert epochs > few


def test_the_confusion_and_the_card_are_those_of_the_result(trained):
    result = runs.result(trained)
    rows = [line.split(",") for line in (trained / "confusion.csv").read_text().splitlines()]
    counts = torch.tensor([[int(x) for x in row[1:]] for row in rows[1:]])
    assert counts.sum() == 360 and rows[0][1:] == [row[0] for row in rows[1:]] == [str(n) for n in range(10)]
    assert counts.diagonal().sum() / 360 == pytest.approx(result["metrics"]["test/accuracy"])
    card = (trained / "README.md").read_text()
    assert f"{result['metrics']['test/accuracy']:.4f}" in card and result["command"] in card
    assert "curves.png" in card and (trained / "curves.png").exists()


def test_eval_tells_slices(tmp_path, capsys):
    assert runs.train(*runs.MQAR, *runs.HEADS, *SHORT, f"run_dir={tmp_path / 'run'}") == 0
    result = runs.result(tmp_path / "run")
    pairs = {part["value"]: part for part in result["slices"]["pairs"]}
    assert {value: part["items"] for value, part in pairs.items()} == {"2": 40, "4": 80}
    mean = sum(part["score"] for part in pairs.values()) / 2
    assert result["metrics"]["test/accuracy"] == pytest.approx(mean, abs=1e-6)
    assert sum(part["items"] for part in result["slices"]["gap"]) == 120
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "gap" in out and "pairs" in out and "any value of the row" in out


def test_eval_needs_no_easier_rows_that_training_began_with(tmp_path):
    """An order of training rows says nothing of those that are scored."""
    first = ("task.easier=[5/20/3/30]", "trainer.curriculum=stage", "trainer.curriculum_steps=2")
    run = tmp_path / "run"
    assert runs.train(*runs.LISTOPS, *runs.HEADS, *SHORT, *first, f"run_dir={run}") == 0
    assert cli.main(["eval", str(run), "task.easier=[]", f"out={tmp_path / 'scores.json'}"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["metrics"]["test/accuracy"] == runs.result(run)["metrics"]["test/accuracy"]


def test_eval_tells_how_many_rows_were_trained_on(tmp_path, capsys):
    """Other numbers of rows are another cut of the same stream: some of those that test have trained."""
    run, out = tmp_path / "run", tmp_path / "scores.json"
    assert runs.train(*runs.LISTOPS, *runs.HEADS, *SHORT, f"run_dir={run}") == 0
    task = build_task(read(run / "config.yaml"))
    fewer = "task.train_rows=20"
    other = build_task(with_task(read(run / "config.yaml"), [fewer]))
    trained = {bytes(ids) for ids in task.split("train")["input_ids"]}
    seen = sum(bytes(ids) in trained for ids in other.split("test")["input_ids"])
    assert seen > 0
    assert cli.main(["eval", str(run), fewer, f"out={out}"]) == 0
    assert json.loads(out.read_text())["trained_on"] == seen
    assert f"{seen} of these" in capsys.readouterr().out
    assert cli.main(["eval", str(run), fewer, "task.seed=1", f"out={out}"]) == 0
    assert json.loads(out.read_text())["trained_on"] < seen


def test_eval_on_other_rows_of_the_task(tmp_path, capsys, monkeypatch):
    """As a training on these rows would score the same weights; longer ones too, by the positions of the run's own."""
    monkeypatch.chdir(tmp_path)
    for name, length in (("a", "max_length=60"), ("b", "max_length=90")):
        assert runs.train(*runs.LISTOPS, *runs.HEADS, *SHORT, f"task.{length}", f"run_dir={name}") == 0
    (tmp_path / "b" / "checkpoints" / "best.ckpt").write_bytes((tmp_path / "a/checkpoints/best.ckpt").read_bytes())
    told = []
    for arguments in (["a", "task.max_length=90"], ["b"], ["a"]):
        assert cli.main(["eval", *arguments, "out=scores.json"]) == 0
        told.append(json.loads(Path("scores.json").read_text()))
    assert told[0]["metrics"] == told[1]["metrics"] != told[2]["metrics"]
    assert told[2]["metrics"]["test/accuracy"] == runs.result("a")["metrics"]["test/accuracy"]
    assert told[0]["slices"] == told[1]["slices"] and told[0]["task_options"]["max_length"] == 90
    assert told[0]["trained_on"] < 10 and "trained_on" not in told[2]  # short rows are few
    assert {"plateau", "references", "monitor", "versions", "checkpoint"} <= told[0].keys()
    capsys.readouterr()
    for arguments, message in (
        ["task.max_len=9", "task.max_len is not an option of task=listops_short"],
        ["task.name=listops", "task.name cannot be changed: only other options of task=listops_short can"],
        ["task.min_length=80", "task.min_length (80) must be below task.max_length - 1 (59)"],
        ["out=nowhere/other.json", "out (nowhere/other.json) must be a file, in a folder that is there"],
        ["out=/dev/null", "out (/dev/null) must be a file, in a folder that is there"],
        ["out=a/result.json", "out (a/result.json) must not lie in the run's own folder, a"],
        ["task.supervision=dense", "the rows asked for are not of the run's kind: they differ in target"],
    ):
        others = [] if arguments.startswith("out=") else ["out=other.json"]
        assert cli.main(["eval", "a", arguments, *others]) in (1, 2)
        assert message in capsys.readouterr().err
    assert not Path("other.json").exists()
