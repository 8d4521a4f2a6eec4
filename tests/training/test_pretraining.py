"""Pretraining: what it hands on, how its run resumes, and what is told of it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import text_cases
import torch
import train_runs as runs
from datasets import Dataset

from tsla import build, cli
from tsla.config import compose
from tsla.config.compose import command_of
from tsla.config.distill import parse_distill, student_config
from tsla.evaluation.report import write_report
from tsla.evaluation.runs import find_runs
from tsla.evaluation.tables import make_tables
from tsla.pretrain import make_pretext
from tsla.tasks.pretext import ask_hidden

# Batches of the first stage, then of the second: 16 and 24; causally 10, two to a step, and 48.
STOPS = [("pretrained", [1, 7, 16, 33]), ("pretrained causally", [3, 30])]
TINY = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=4")
SHORT = (*TINY, "pretrain=masked", "pretrain.max_steps=3")


def arguments(kind: str, expected: Path, run: Path) -> tuple[str, ...]:
    return (*runs.KINDS[kind], f"data_dir={expected.parent.parent / 'data'}", f"run_dir={run}")


def crash(*_: Any, **__: Any) -> None:
    raise runs.Crash


@pytest.mark.parametrize(("kind", "batch"), [(kind, batch) for kind, batches in STOPS for batch in batches])
def test_a_stopped_run_goes_on_in_its_stage(tmp_path, whole, kind, batch, capsys):
    expected, run = whole(kind), tmp_path / "run"
    assert runs.stopped_at_batch(batch, *arguments(kind, expected, run)) == 130
    first = batch <= {"pretrained": 16, "pretrained causally": 10}[kind]
    assert (run / "checkpoints").exists() != first and (run / "pretrain" / "checkpoints" / "last.ckpt").exists()
    assert f"go on with: tsla train resume={run}" in capsys.readouterr().out
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(expected, run)


@pytest.mark.parametrize(("batch", "again"), [(4, "resume=auto"), (12, "resume=run"), (20, "resume=run")])
def test_a_crashed_run_goes_on_from_its_last_checkpoint(tmp_path, whole, batch, again):
    """At 4 nothing has been saved; at 20 nothing of the second stage."""
    expected, run = whole("pretrained"), tmp_path / "run"
    runs.crash_at_batch(batch, *arguments("pretrained", expected, run))
    given = (f"resume={run}",) if again == "resume=run" else (*arguments("pretrained", expected, run), again)
    assert runs.train(*given) == 0
    runs.assert_same_run(expected, run)


@pytest.mark.parametrize(
    "place", ["tsla.pretrain.fit", "tsla.pretrain.write_json", "tsla.run.fit", "tsla.run.conclude"]
)
def test_a_crash_between_the_stages_loses_nothing(tmp_path, whole, monkeypatch, place):
    expected, run = whole("pretrained"), tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(runs.Crash):
        patch.setattr(place, crash)
        runs.train(*arguments("pretrained", expected, run))
    assert not (run / "result.json").exists() and (run / "pretrain").exists()
    assert runs.train(*arguments("pretrained", expected, run), "resume=auto") == 0
    runs.assert_same_run(expected, run)


def test_a_folder_that_holds_a_first_stage_is_not_written_over(tmp_path, capsys):
    run = f"run_dir={tmp_path / 'run'}"
    assert runs.stopped_at_batch(2, *SHORT, run) == 130
    (found,) = make_tables(find_runs([tmp_path / "run"])).unfinished
    assert found.val == "pretraining"
    assert runs.train(*SHORT, run) == 2 and "exists: give another" in capsys.readouterr().err
    assert runs.train(*SHORT, run, "pretrain.mask=0.3", "resume=auto") == 2
    assert "pretrain.mask: 0.3 here, None there" in capsys.readouterr().err


def test_a_finished_run_is_left_alone(whole, capsys):
    run = whole("pretrained")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    assert runs.train(f"resume={run}") == 0 and "is finished" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


def test_the_second_stage_does_not_need_the_checkpoints_of_the_first(tmp_path, whole):
    expected, run = whole("pretrained"), tmp_path / "run"
    assert runs.stopped_at_batch(30, *arguments("pretrained", expected, run)) == 130
    for path in (run / "pretrain" / "checkpoints").iterdir():
        path.unlink()
    assert runs.train(f"resume={run}") == 0
    assert runs.same_weights(runs.weights(expected), runs.weights(run))


def test_a_first_stage_does_not_need_the_weights_it_started_from(tmp_path):
    first, run = tmp_path / "first", tmp_path / "run"
    assert runs.train(*TINY, f"run_dir={first}") == 0
    assert runs.stopped_at_batch(2, *SHORT, f"init_from={first}", f"run_dir={run}") == 130
    first.rename(tmp_path / "moved")
    assert runs.train(f"resume={run}") == 0


def test_the_encoder_begins_with_the_best_pretrained_weights_and_the_head_anew(tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []

    def fit(model: torch.nn.Module, *_: Any, **__: Any) -> None:
        seen.append({name: x.clone() for name, x in model.state_dict().items()})
        raise ValueError("seen enough")

    monkeypatch.setattr("tsla.run.fit", fit)
    rate = ("pretrain.lr=1", "trainer.validate_every=3")  # so high that the last weights are not the best
    assert runs.train(*TINY, "pretrain=masked", "pretrain.max_steps=12", *rate, f"run_dir={run}") == 1
    assert runs.train(*TINY, f"run_dir={tmp_path / 'none'}") == 1
    pretrained, new = seen
    best = runs.checkpoint(run / "pretrain", "best")
    assert best["global_step"] < 12
    for name, weights in pretrained.items():
        if name.startswith("encoder."):
            assert torch.equal(weights, best["state_dict"][f"model.{name}"]), name
        else:
            assert torch.equal(weights, new[name]), name


def test_what_is_told_of_it(whole, capsys):
    run, plain = whole("pretrained"), whole("listops")
    result, own = runs.result(run), json.loads((run / "pretrain" / "result.json").read_text())
    assert (
        result["mixer"] == "taylor (pretrained)" and result["pretrain"] == own and "pretrain" not in runs.result(plain)
    )
    assert (own["name"], own["mask"], own["steps"]) == ("masked", 0.1, 16)
    rows = [row for row in runs.metrics(run / "pretrain") if row["step"] == str(own["best_step"]) and "val/loss" in row]
    assert {name: float(rows[-1][name]) for name in own["metrics"]} == own["metrics"]
    assert set(own["metrics"]) == {"val/loss", "val/accuracy"} and own["seconds"] > 0
    assert (run / "pretrain" / "curves.png").exists()
    assert "pretrain=masked" in result["command"] and "pretrain.lr=0.02" in result["command"]
    assert "Pretrained: masked, 10% hidden, 16 steps, " in (run / "README.md").read_text()
    assert cli.main(["eval", str(run)]) == 0
    assert f"{result['metrics']['test/accuracy']:.4f}" in capsys.readouterr().out


def test_a_report_tells_pretrained_runs_apart(whole, tmp_path):
    run, plain = whole("pretrained"), whole("listops")
    for name, paths in (("both", [run, plain]), ("alone", [run])):
        write_report(paths, tmp_path / name)
        with next((tmp_path / name).glob("*.csv")).open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["kind"] not in ("reference", "slice")]
        assert {row["mixer"] for row in rows} >= {"taylor (pretrained)"}
        assert ("taylor" in {row["mixer"] for row in rows}) == (name == "both")


def test_tokens_of_the_first_stage_are_counted(whole):
    """16 batches of the run's own order: what they hold that is real."""
    run = whole("pretrained")
    config = compose([*runs.KINDS["pretrained"], f"data_dir={run.parent.parent / 'data'}"])
    task = build.build_task(config)
    (train,) = build.build_loaders(config, task, ("train",))
    batches: list[Any] = []
    for epoch in (0, 1):
        train.batches.set_epoch(epoch)
        batches += list(train)
    assert runs.result(run)["pretrain"]["tokens"] == sum(int(batch.mask.sum()) for batch in batches[:16])


def test_a_dry_run_tells_both_stages(tmp_path, monkeypatch, capsys):
    from tsla.dry_run import measure

    monkeypatch.chdir(tmp_path)
    assert runs.train(*SHORT, "dry_run=true") == 0
    out = capsys.readouterr().out
    assert "pretraining: loss" in out and out.count("after two steps") == 2
    assert not list(tmp_path.iterdir())
    short, long = (measure(compose([*SHORT, f"pretrain.max_steps={steps}"])).seconds for steps in (1, 100_000))
    assert long > 50 * short


def test_a_series_recovers_its_numbers_and_learns(tmp_path):
    rows = [{"x": [[float(i), (-1.0) ** i] for i in range(n % 7 + 3)], "label": n % 2} for n in range(80)]
    Dataset.from_list(rows).to_json(tmp_path / "a.jsonl")
    run = tmp_path / "run"
    assert runs.train("experiment=files", f"task.path={tmp_path / 'a.jsonl'}", "task.input=x", "task.kind=series",
                      *runs.TINY, *runs.HEADS, "trainer.max_steps=2", f"data_dir={tmp_path / 'data'}",
                      f"run_dir={run}", "pretrain=masked", "pretrain.max_steps=60", "optim.lr=0.01") == 0  # fmt: skip
    found = runs.result(run)["pretrain"]
    assert found["mask"] == 0.5 and set(found["metrics"]) == {"val/loss", "val/r2", "val/mae"}
    losses = [float(row["train/loss"]) for row in runs.metrics(run / "pretrain") if "train/loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    (tmp_path / "new.jsonl").write_text('{"x": [[0, 1], [1, -1], [2, 1]]}\n')
    assert cli.main(["predict", str(run), str(tmp_path / "new.jsonl"), f"out={tmp_path / 'out.csv'}"]) == 0


@pytest.mark.parametrize("packing", ["false", "true"])
def test_the_documents_of_a_pair_are_recovered_each_by_itself(tmp_path, monkeypatch, packing):
    monkeypatch.chdir(tmp_path)
    text_cases.small(monkeypatch)
    options = ("experiment=retrieval", "task.max_length=60", f"task.packing={packing}", "task.train_rows=40",
               "task.eval_rows=20", *runs.TINY, *runs.HEADS, "trainer.max_steps=2", "pretrain=masked")  # fmt: skip
    config = compose(options)
    task = build.build_task(config)
    pretext = make_pretext(config, task, build.build_model(config.model, config.mixer, task.spec))
    batch = pretext.train.batch([0, 1, 2])
    again = ask_hidden(pretext.train.rows.__getitems__([0, 1, 2]), 0, share=0.15, seed=0)
    assert torch.equal(batch.scored, again.scored) and len(batch.scored)
    assert pretext.objective.ask(pretext.model.run, batch).outputs.shape == (len(batch.scored), task.spec.vocab_size)
    assert runs.train(*options, "run_dir=run") == 0
    assert runs.result("run")["pretrain"]["steps"] == 2


def test_the_command_says_it_again():
    config = compose(["experiment=digits", "pretrain=masked", "pretrain.mask=0.3", "pretrain.max_steps=7"])
    assert command_of(config) == "tsla train experiment=digits pretrain=masked pretrain.max_steps=7 pretrain.mask=0.3"


def test_sub_trees_of_listops_come_after_their_tokens(tmp_path, monkeypatch):
    """The task then scores tokens, and of a row the last one; what is hidden is scored as it is everywhere."""
    monkeypatch.chdir(tmp_path)
    options = (*runs.LISTOPS, *runs.HEADS, "task.supervision=dense", "trainer.max_steps=2", "pretrain=masked")
    config = compose(options)
    task = build.build_task(config)
    pretext = make_pretext(config, task, build.build_model(config.model, config.mixer, task.spec))
    assert task.spec.final and not pretext.objective.spec.final
    assert runs.train(*options, "run_dir=run") == 0
    assert (tmp_path / "run" / "pretrain" / "result.json").exists()


def test_a_student_is_not_pretrained_as_its_teacher_was():
    teacher = compose([*runs.DIGITS, "mixer=softmax", "pretrain=masked"])
    assert student_config(teacher, parse_distill(["teacher", "mixer=taylor"])).pretrain.name == "none"
