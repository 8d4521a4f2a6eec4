"""`tsla distill` from a trained softmax run to a run of another mixer: stages, files, stops, and what is refused."""

import csv
import json
import shutil
import signal
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import train_runs as runs

from tsla import cli, load_model
from tsla.config import ConfigError, read
from tsla.config.distill import DistillOptions, parse_distill, read_distill, to_yaml
from tsla.models.lora import LoraLinear
from tsla.training.module import Learner

ROOT = Path(__file__).resolve().parents[1]
SHORT = ("distill_steps=12", "finetune_steps=10", "rows=8")
TEACHER = (*runs.DIGITS, *runs.HEADS, "mixer=softmax", "trainer.max_steps=20", "trainer.checkpoint_every=5")
TEACHERS = {
    "digits": TEACHER,
    "everything": (*TEACHER, "model.positions=rotary", "mixer.kv_heads=1", "mixer.qk_norm=true", "mixer.gate=true",
                   "mixer.bias=true", "model.pool=cls", "mixer.value_dim=4", "model.depth=2"),
    "mqar": (*runs.MQAR, *runs.HEADS, "mixer=softmax", "trainer.max_steps=10", "model.gradient_checkpointing=true"),
    "listops": (*runs.LISTOPS, *runs.HEADS, "mixer=softmax", "trainer.max_steps=5", "task.packing=true"),
    "vision": (*TEACHER, "model=vision", "trainer.precision=bf16", "model.depth=1", "model.layers=[softmax]"),
}  # fmt: skip
STAGES = [
    "teacher", "Taylor, order 2", "Taylor, order 2, centred", "Taylor, order 4", "after the swap", "after distilling",
    "after finetuning",
]  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A finished run of each kind, made when it is first asked for."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teachers")

    def made(kind: str) -> Path:
        if not (folder / kind).exists():
            assert runs.train(*TEACHERS[kind], f"run_dir={folder / kind}", f"data_dir={folder / 'data'}") == 0
        return folder / kind

    return made


def distill(*arguments: object) -> int:
    return cli.main(["distill", *map(str, arguments)])


def rows(run: Path) -> list[dict]:
    return json.loads((run / "distill.json").read_text())["rows"]


def assert_same(a: Path, b: Path) -> None:
    """Bit for bit, stage by stage; of a model with LoRA merged, whose checkpoint holds nothing else, the weights."""
    lora = (a / "lora").exists()
    if not lora:
        runs.assert_same_run(a, b)
    assert rows(a) == rows(b) == runs.result(a)["distill"]["rows"] == runs.result(b)["distill"]["rows"]
    assert runs.result(a)["metrics"] == runs.result(b)["metrics"]
    for name in ("last", "best"):
        assert runs.same_weights(*(runs.checkpoint(run, name)["state_dict"] for run in (a, b)))
        for part in ("distilled", "lora")[: 1 + lora]:
            assert runs.metrics(a / part) == runs.metrics(b / part)
            states = [runs.without_times(runs.checkpoint(run / part, name)) for run in (a, b)]
            runs.assert_same_state(*states, f"{part}/{name}")


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_student_of_every_kind_of_teacher(teachers, kind, tmp_path, capsys):
    teacher, out = teachers(kind), tmp_path / "out"
    assert distill(teacher, "mixer=hedgehog", *SHORT, f"out={out}") == 0
    told = capsys.readouterr().out
    assert "distil  12 steps, loss=maps, learn=maps: " in told and "finetune  10 steps, all weights: " in told
    found, monitor = rows(out), "accuracy"
    assert [row["stage"] for row in found] == STAGES
    for row in found:
        assert 0 <= row["entropy"] <= 1 and -1 <= row["monotonicity"] <= 1 and row["kl"] > -1e-6
        assert 0 <= row[f"val/{monitor}"] <= 1 and 0 <= row[f"test/{monitor}"] <= 1
    assert found[0]["monotonicity"] > 0.99 and abs(found[0]["kl"]) < 1e-3
    assert found[0][f"test/{monitor}"] == pytest.approx(runs.result(teacher)["metrics"][f"test/{monitor}"], abs=1e-6)
    result = runs.result(out)
    assert found[-1][f"test/{monitor}"] == result["metrics"][f"test/{monitor}"]
    assert (result["mixer"], result["steps"]) == ("hedgehog", 10) and result["distill"]["rows"] == found
    assert result["command"].startswith(f"tsla distill {teacher} mixer=hedgehog distill_steps=12")
    aux = [float(row["train/aux"]) for row in runs.metrics(out / "distilled") if "train/aux" in row]
    assert len(aux) == 2 and not any("train/aux" in row for row in runs.metrics(out))


def test_the_hybrid_of_lolcats(teachers, tmp_path, capsys):
    """Its maps learn, and how much a window counts beside them."""
    out = tmp_path / "out"
    hybrid = ("mixer=scatterbrain", "mixer.map=hedgehog", "mixer.window=4")
    assert distill(teachers("digits"), *hybrid, *SHORT, f"out={out}") == 0
    assert "distil  12 steps, loss=maps, learn=maps: " in capsys.readouterr().out
    learnt = runs.checkpoint(out / "distilled")["state_dict"]
    (gamma,) = (x for name, x in learnt.items() if name.endswith("student.log_gamma"))
    assert (gamma.exp() - 0.1).abs().min() > 1e-4
    assert load_model(out / "model").encoder.blocks[0].mixer.window == 4


def test_what_a_run_leaves(teachers, tmp_path, capsys):
    """Its files; it is a run like others to eval, predict and report."""
    out = tmp_path / "out"
    assert distill(teachers("digits"), "mixer=hedgehog", "mixer.kind=joint", *SHORT, f"out={out}") == 0
    assert {path.name for path in out.iterdir()} >= {
        "config.yaml", "distill.yaml", "distill.json", "distill.csv", "distill.md", "distilled", "metrics.csv",
        "checkpoints", "model", "result.json", "log.txt", "README.md",
    }  # fmt: skip
    with (out / "distill.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["stage"] for row in table] == STAGES
    assert [float(row["entropy"]) for row in table] == [row["entropy"] for row in rows(out)]
    page = (out / "distill.md").read_text().splitlines()
    assert page[0].startswith("`tsla distill ") and page[2].startswith("|  | entropy | monotonicity | KL (nats) |")
    assert len(page) == 4 + len(STAGES) and page[4].split("|")[1].strip() == "teacher"
    assert load_model(out / "model").encoder.blocks[0].mixer.feature_map.kind == "joint"
    assert read(out / "config.yaml").trainer.max_steps == 10
    asked = read_distill(out / "distill.yaml")
    assert asked.options.distill_steps == 12 and asked.mixer == ("mixer=hedgehog", "mixer.kind=joint")
    capsys.readouterr()
    assert cli.main(["eval", str(out)]) == 0
    assert f"{runs.result(out)['metrics']['test/accuracy']:.4f}" in capsys.readouterr().out
    (tmp_path / "new.jsonl").write_text(json.dumps({"input_ids": list(range(1, 17)) * 4}) + "\n")
    assert cli.main(["predict", str(out), str(tmp_path / "new.jsonl"), f"out={tmp_path / 'said.csv'}"]) == 0
    assert cli.main(["report", str(out), f"out={tmp_path / 'report'}"]) == 0
    assert "hedgehog" in (tmp_path / "report" / "report.md").read_text()


def test_each_stage_changes_what_it_should(teachers, tmp_path):
    teacher, out = teachers("everything"), tmp_path / "out"
    assert distill(teacher, "mixer=hedgehog", *SHORT, f"out={out}") == 0
    before, after = runs.checkpoint(teacher, "best")["state_dict"], runs.checkpoint(out / "distilled")["state_dict"]
    paired = {name.replace(".mixer.", ".mixer.teacher."): x for name, x in before.items()}
    for name, x in paired.items():  # the teacher, and what the student has of it
        assert torch.equal(after[name], x), name
        if ".mixer." in name:
            assert torch.equal(after[name.replace(".teacher.", ".student.")], x), name
    learnt = {name for name in after if name not in paired and name.replace(".student.", ".teacher.") not in paired}
    assert learnt and all(".mixer.student.feature_map." in name for name in learnt)
    finetuned = runs.checkpoint(out)["state_dict"]
    assert all(not torch.equal(finetuned[name], x) for name, x in before.items() if "to_" in name or "head" in name)


def test_mixers_without_parameters_of_their_own_learn_in_their_projections(teachers, tmp_path, capsys):
    teacher, out = teachers("digits"), tmp_path / "out"
    assert distill(teacher, "mixer=taylor", *SHORT, f"out={out}") == 0
    assert "loss=maps, learn=mixers: 1,024 of" in capsys.readouterr().out
    before, after = runs.checkpoint(teacher, "best")["state_dict"], runs.checkpoint(out / "distilled")["state_dict"]
    mixer = "model.encoder.blocks.0.mixer."
    changed = {name for name in ("to_q", "to_k", "to_v", "to_out")
               if not torch.equal(after[f"{mixer}student.{name}.weight"], before[f"{mixer}{name}.weight"])}  # fmt: skip
    assert changed == {"to_q", "to_k"}  # maps say nothing of values
    assert not any("student" in name for name in after if ".mixer." not in name)


def test_mechanisms_without_maps_learn_from_outputs(teachers, tmp_path, capsys):
    out = tmp_path / "out"
    assert distill(teachers("mqar"), "mixer=lightning", *SHORT, f"out={out}") == 0
    assert "loss=outputs, learn=mixers" in capsys.readouterr().out
    found = rows(out)
    assert [row["stage"] for row in found] == STAGES and found[0]["kl"] is not None
    assert all(row[name] is None for row in found[4:] for name in ("entropy", "monotonicity", "kl"))
    line = (out / "distill.md").read_text().splitlines()[-1]
    assert line.startswith("| after finetuning | - | - | - | ")


def test_lora_trains_its_factors_and_leaves_a_plain_model(teachers, tmp_path, capsys):
    teacher, out = teachers("digits"), tmp_path / "out"
    assert distill(teacher, "mixer=hedgehog", "lora=2", *SHORT, f"out={out}") == 0
    assert f"finetune  10 steps, lora=2: {4 * 2 * 32} parameters" in capsys.readouterr().out
    start, end = runs.checkpoint(out / "distilled")["state_dict"], runs.checkpoint(out / "lora")["state_dict"]
    for name, x in end.items():
        if not name.endswith((".a", ".b")):
            where = name.replace(".mixer.", ".mixer.student.").replace(".base.", ".")
            assert torch.equal(x, start[where]), name
    for name in ("last", "best"):
        merged = runs.checkpoint(out, name)["state_dict"]
        apart = runs.checkpoint(out / "lora", name)["state_dict"]
        for projection in ("to_q", "to_k", "to_v", "to_out"):
            layer = f"model.encoder.blocks.0.mixer.{projection}"
            a, b, base = (apart[f"{layer}.{part}"] for part in ("a", "b", "base.weight"))
            torch.testing.assert_close(merged[f"{layer}.weight"], base + 2.0 * b @ a)
    last = {name.removeprefix("model."): x for name, x in runs.checkpoint(out)["state_dict"].items()}
    assert runs.same_weights(dict(last), runs.weights(out))
    assert not any(isinstance(m, LoraLinear) for m in load_model(out / "model").modules())
    assert runs.metrics(out) == runs.metrics(out / "lora")
    assert cli.main(["eval", str(out), "checkpoint=last"]) == 0


# Stops ----------------------------------------------------------------------------------------------------------------


def crash_at_batch(patch: pytest.MonkeyPatch, batch: int) -> None:
    """As good as a kill: nothing is saved after it."""
    step, seen = Learner.training_step, 0

    def training_step(module, *arguments):
        nonlocal seen
        seen += 1
        if seen == batch:
            raise runs.Crash
        return step(module, *arguments)

    patch.setattr(Learner, "training_step", training_step)


@pytest.mark.parametrize("options", [("mixer=hedgehog",), ("mixer=performer", "lora=2", "mixer.redraw_every=3")])
def test_stops_and_kills_change_nothing(teachers, tmp_path, monkeypatch, options, capsys):
    """Batches 1-12 distil, 13-22 finetune; last.ckpt is written after every 5th step."""
    teacher, whole, run = teachers("digits"), tmp_path / "whole", tmp_path / "run"
    assert distill(teacher, *options, *SHORT, f"out={whole}") == 0
    with monkeypatch.context() as patch:
        runs.signal_at_batch(patch, 3, signal.SIGTERM)
        assert distill(teacher, *options, *SHORT, f"out={run}") == 128 + signal.SIGTERM
    assert f"go on with: tsla distill resume={run}" in capsys.readouterr().out
    assert not (run / "metrics.csv").exists() and len(rows(run)) == 5
    for batch in (5, 6, 9):  # into distilling again, to its end and on into finetuning, twice
        with monkeypatch.context() as patch:
            crash_at_batch(patch, batch)
            with pytest.raises(runs.Crash):
                distill(f"resume={run}")
    assert len(rows(run)) == 6
    with monkeypatch.context() as patch:
        patch.setattr("tsla.distill.conclude", lambda *_: (_ for _ in ()).throw(runs.Crash()))
        with pytest.raises(runs.Crash):
            distill(f"resume={run}")
    assert cli.main(["train", f"resume={run}"]) == 2
    assert f"go on with it by tsla distill resume={run}" in capsys.readouterr().err
    assert distill(f"resume={run}") == 0
    assert_same(whole, run)


def test_a_finished_run_is_left_alone(teachers, tmp_path, capsys):
    out = tmp_path / "out"
    assert distill(teachers("digits"), "mixer=linear", *SHORT, f"out={out}") == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert distill(f"resume={out}") == 0
    assert capsys.readouterr().out == f"{out} is finished: see {out / 'result.json'}\n"
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()}


def test_an_unfinished_run_says_in_a_report_how_to_go_on(teachers, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        runs.signal_at_batch(patch, 15)
        assert distill(teachers("digits"), "mixer=linear", *SHORT, f"out={out}") == 130
    assert cli.main(["report", str(out), f"out={tmp_path / 'report'}"]) == 0
    assert f"tsla distill resume={out}" in (tmp_path / "report" / "report.md").read_text()


# What is refused ------------------------------------------------------------------------------------------------------


REFUSED = {
    ("mixer=hedgehgo",): "mixer ('hedgehgo') must be one of",
    ("mixer=hedgehog", "mixer.knid=exp"): "mixer.knid is not an option of mixer=hedgehog (did you mean 'kind'?)",
    ("mixer=hedgehog", "mixer.kind=exq"): "mixer.kind ('exq') must be one of softmax, exp, max, joint",
    ("mixer=hedgehog", "mixer.heads=4"): "mixer.heads is as the run has it (2): leave it out",
    ("mixer=hedgehog", "mixer.local_heads=1"): "mixer.local_heads puts something beside the mechanism",
    ("mixer=hedgehog", "mixer.token_shift=true"): "mixer.token_shift puts something beside the mechanism",
    ("mixer=none",): "mixer=none has no attention that could learn from softmax: it takes one of taylor, taylorshift,",
    ("mixer=softmax",): "mixer=softmax is what the teacher has: choose another",
    ("mixer=rfa_gate",): "mixer=rfa_gate needs model.causal=true: it is causal only",
    (): "give mixer=NAME, one of",
    ("mixer=hedgehog", "distill_step=3"): "distill_step is not an option of distill (did you mean 'distill_steps'?)",
    ("mixer=hedgehog", "distill_steps=0"): "distill_steps (0) must be at least 1",
    ("mixer=hedgehog", "distill_steps=x"): "distill_steps ('x') must be a whole number",
    ("mixer=hedgehog", "rows=4", "rows=5"): "rows is given twice",
    ("mixer=hedgehog", "loss=map"): "loss ('map') must be one of maps, outputs (did you mean 'maps'?)",
    ("mixer=hedgehog", "lora=9"): "lora=9: rank (9) must be 1 to 8",
    ("mixer=hedgehog", "run_dir"): "distill takes one run directory, got 2",
    ("mixer=taylorshift", "loss=maps"): "loss=maps is not for mixer=taylorshift: its output is no average",
    ("mixer=taylor_poly", "loss=maps"): "loss=maps is not for mixer=taylor_poly: it weighs pairs of tokens, not tokens",
    ("mixer=linformer", "loss=maps"): "loss=maps is not for mixer=linformer: its output is no average",
    ("mixer=primal",): "mixer=primal has no attention that could learn from softmax: it takes one of taylor,",
    ("mixer=taylor", "learn=maps"): "mixer=taylor has none: use learn=mixers",
}  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED, ids=" ".join)
def test_what_is_refused_before_any_work(teachers, tmp_path, monkeypatch, capsys, arguments):
    teacher = teachers("digits") if "lora=9" not in arguments else teachers("everything")
    monkeypatch.chdir(tmp_path)
    assert distill(teacher, *arguments) == 2
    assert REFUSED[arguments] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_teacher(teachers, tmp_path, capsys):
    def said(*arguments: object) -> str:
        assert distill(*arguments) == 2
        return capsys.readouterr().err

    assert "distill takes one run directory, got 0" in said("mixer=hedgehog")
    assert "is not a run that has it" in said(tmp_path / "nothing", "mixer=hedgehog")
    run = shutil.copytree(teachers("digits"), tmp_path / "run")
    for pattern, why in (
        (("name: softmax", "name: window"), "in all layers, and this run has window"),
        (("layers: []", "layers: [none, softmax]\n  depth: 2"), "in all layers, and this run has none"),
        (("local_heads: 0", "local_heads: 1"), "alone, and this run has mixer.local_heads=1"),
        (("token_shift: false", "token_shift: true"), "alone, and this run has mixer.token_shift=true"),
    ):  # fmt: skip
        text = (teachers("digits") / "config.yaml").read_text()
        changed = text.replace("  depth: 1\n", "") if "depth" in pattern[1] else text
        (run / "config.yaml").write_text(changed.replace(*pattern))
        assert why in said(run, "mixer=hedgehog")
    (run / "config.yaml").write_text(text)
    (run / "result.json").unlink()
    assert "is unfinished: a teacher has to have its result.json" in said(run, "mixer=hedgehog")
    shutil.copy(teachers("digits") / "result.json", run)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert "best.ckpt does not exist" in said(run, "mixer=hedgehog")


def test_where_it_goes(teachers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert distill(teachers("digits"), "mixer=linear", "out=out") == 2
    assert "out (out) exists: give another, or go on with it by resume=out" in capsys.readouterr().err
    assert distill("resume=out") == 2
    assert "must be a run of tsla distill, and has no distill.yaml" in capsys.readouterr().err
    assert distill("resume=out", "rows=3") == 2
    assert "give resume=out alone" in capsys.readouterr().err
    assert distill(teachers("digits"), "mixer=linear", *SHORT) == 0
    (run,) = (tmp_path / "runs" / "distill").iterdir()
    assert (run / "result.json").exists()


def test_a_teacher_that_has_gone(teachers, tmp_path, monkeypatch, capsys):
    teacher = shutil.copytree(teachers("digits"), tmp_path / "teacher")
    with monkeypatch.context() as patch:
        runs.signal_at_batch(patch, 2)
        assert distill(teacher, "mixer=linear", *SHORT, f"out={tmp_path / 'out'}") == 130
    shutil.rmtree(teacher)
    assert distill(f"resume={tmp_path / 'out'}") == 2
    assert f"{teacher / 'config.yaml'} does not exist" in capsys.readouterr().err


# Options --------------------------------------------------------------------------------------------------------------


def test_options_are_read_back(tmp_path):
    asked = parse_distill(["runs/teacher", "mixer=hedgehog", "loss=maps", "finetune_lr=1e-4", "out=null", "lora=8"])
    assert asked.options == DistillOptions(loss="maps", finetune_lr=1e-4, lora=8)
    (tmp_path / "distill.yaml").write_text(to_yaml(asked))
    assert read_distill(tmp_path / "distill.yaml") == asked
    assert asked.command == "tsla distill runs/teacher mixer=hedgehog loss=maps finetune_lr=0.0001 lora=8"
    for text in ("", "[", "teacher: x", to_yaml(asked).replace("rows: 64", "rows: 0")):
        (tmp_path / "distill.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"distill\.yaml: "):
            read_distill(tmp_path / "distill.yaml")


def test_help_names_every_option(capsys):
    assert distill("--help") == 0
    out = capsys.readouterr().out
    assert all(f"  {f.name}=" in out for f in fields(DistillOptions)) and "hedgehog | scatterbrain | lightning" in out


def test_the_page_shows_the_committed_results():
    """docs/distill.md against docs/results/distill, row by row."""
    page = (ROOT / "docs" / "distill.md").read_text()
    found = sorted((ROOT / "docs" / "results" / "distill").glob("*.json"))
    assert len(found) >= 4
    for path in found:
        told = json.loads(path.read_text())
        assert told["command"] in page, path.name
        for row in told["rows"]:
            numbers = ("-" if row[name] is None else f"{row[name]:.3f}" for name in list(row)[1:])
            assert f"| {row['stage']} | {' | '.join(numbers)} |" in page, path.name


@pytest.mark.parametrize(
    "option", ["loss=outputs", "learn=mixers", "distill_lr=0.1", "finetune_lr=0.02", "distill_batch_tokens=640",
               "finetune_batch_tokens=640", "rows=3", "seed=5"],
)  # fmt: skip
def test_no_option_is_dead(teachers, tmp_path, monkeypatch, option):
    """Each changes what comes out, at the stage that it is of and not before."""
    monkeypatch.setattr("tsla.distill.ZERO_SHOT", {})
    usual, out = tmp_path.parent / "usual", tmp_path / "out"
    short = (teachers("digits"), "mixer=hedgehog", *SHORT[:2])
    if not usual.exists():
        assert distill(*short, f"out={usual}") == 0
    assert distill(*short, option, f"out={out}") == 0
    same_distilled = runs.metrics(usual / "distilled") == runs.metrics(out / "distilled")
    same_finetuned = runs.same_weights(runs.weights(usual), runs.weights(out))
    if option.startswith("rows"):
        assert same_distilled and same_finetuned and rows(usual) != rows(out)
    else:
        assert same_distilled == option.startswith("finetune") and not same_finetuned
