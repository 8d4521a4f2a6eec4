"""The command line: what it prints, how it ends, and what a user who errs is told."""

import json
import re
import subprocess
import sys
from pathlib import Path

import image_cases
import pytest
import text_cases
import torch
import train_runs as runs
from data_files import write_genbank, write_series

import tsla
from tsla import cli
from tsla.config import GROUPS, group_choices, members
from tsla.tasks.digits import Digits

EXPERIMENTS = [name for name in group_choices("experiment") if not name.startswith("lra_")]  # see test_lra_recipes
FIELDS = {
    "task", "mixer", "seed", "params", "metrics", "train_tokens_per_second", "peak_memory_bytes", "state_bytes",
    "seconds", "steps", "command", "git_sha", "versions", "host",
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and how often each split was read."""
    torch.set_num_threads(1)
    folder, read = tmp_path_factory.mktemp("trained"), []
    split = Digits.split
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Digits, "split", lambda task, name: (read.append(name), split(task, name))[1])
        patch.setattr("sys.argv", ["tsla", "train", "experiment=digits"])
        assert runs.train(*runs.DIGITS, *runs.HEADS, "trainer.max_steps=12", "trainer.validate_every=6", "seed=3") == 0
    (run,) = (folder / "runs" / "digits").iterdir()
    return run, read


def main(*arguments: str) -> int:
    return cli.main(list(arguments))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"], ["--help", "train"]])
def test_help(capsys, arguments):
    assert main(*arguments) == 0
    out = capsys.readouterr().out
    for part in (
        "tsla train",
        "resume=RUN_DIR",
        "tsla eval",
        "tsla info",
        "bench attention|model|mixers|decode",
        "--version",
    ):
        assert part in out


def test_version(capsys):
    assert main("--version") == 0
    assert capsys.readouterr().out == f"tsla {tsla.__version__}\n"


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_train_names_every_option(capsys, flag):
    assert main("train", "mixer=softmax", flag) == 0
    out = capsys.readouterr().out
    for group in ("experiment", *GROUPS):
        for name in group_choices(group):
            assert re.search(rf"^{group}= .*\b{name}\b", out, re.MULTILINE), (group, name)
    for group in GROUPS:
        for cls in members(group).values():
            for name in cls.__dataclass_fields__:
                assert name == "name" or re.search(rf"^  {group}\.{name}=", out, re.MULTILINE), (group, name)
    for name in ("seed", "run_dir", "data_dir"):
        assert re.search(rf"^  {name}=", out, re.MULTILINE)


WRONG = {
    "trian": "tsla: tsla has no command 'trian' (did you mean 'train'?); see tsla --help",
    "experiment=digits": "tsla has no command 'experiment=digits'",
    "--verbose": "tsla has no command '--verbose'",
    "train mixer=tayler": f"must be one of {', '.join(group_choices('mixer'))}",
    "train model.dims=3 seed=-1": "seed (-1) must be at least 0",
    "train digits": "argument 'digits' must have the form key=value",
    "train run_dir=taken": "run_dir (taken) exists: give another, or go on with it by resume=taken",
    "train run_dir=file/below": "Not a directory",
    "train run_dir=/proc/no/where": "No such file or directory: '/proc/no",
    "train resume=nowhere": "resume (nowhere) must be auto, or a run directory with a config.yaml",
    "train resume=": "resume (.) must be auto, or a run directory with a config.yaml",
    "train resume=taken seed=1": "resume goes on with the run's own options; leave out seed=1",
    "train resume=taken resume=taken": "leave out the second resume",
    "train resume=hostile": "hostile/config.yaml: mixer._target_ is not an option",
    "eval": "eval takes one run directory, got 0",
    "eval a b": "eval takes one run directory, got 2",
    "eval nowhere": "nowhere/config.yaml does not exist: nowhere is not a run that has it",
    "eval taken split=dev": "split ('dev') must be one of train, val, test",
    "eval taken checkpoint=first": "checkpoint ('first') must be one of best, last",
    "eval taken slit=test": "there is no option 'slit' (did you mean 'split'?): it takes split=, checkpoint=",
    "eval hostile": "hostile/config.yaml: mixer._target_ is not an option",
    "info now": "info takes no argument but --build, got now",
    "info --build now": "info takes no argument but --build, got --build now",
}


@pytest.mark.parametrize("line", WRONG)
def test_usage_errors_are_told_on_stderr(capsys, tmp_path, line):
    (tmp_path / "file").touch()
    for name in ("taken", "hostile"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.ckpt").touch()
        (tmp_path / name / "config.yaml").write_text("mixer: {name: taylor, _target_: os.system}\n")
    assert main(*line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("tsla: ")
    assert WRONG[line] in told.err
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_holds_everything(trained):
    run, _ = trained
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.csv", "result.json", "curves.png", "confusion.csv", "README.md", "log.txt",
        "checkpoints", "model", ".lock",
    }  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}
    assert {path.name for path in (run / "model").iterdir()} == {"config.json", "model.safetensors"}
    log = (run / "log.txt").read_text()
    for part in ("experiment digits", "to beat: majority", "linear 0.9", "test accuracy", "taylor", str(run.name)):
        assert part in log
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_has_every_field(trained):
    run, _ = trained
    result = json.loads((run / "result.json").read_text(), parse_constant=pytest.fail)
    assert result.keys() >= FIELDS
    assert (result["task"], result["mixer"], result["experiment"], result["seed"]) == ("digits", "taylor", "digits", 3)
    assert result["steps"] == 12 and "model.dim=16" in result["command"]
    assert 0 <= result["metrics"]["test/accuracy"] <= 1 and result["metrics"]["val/accuracy"] > 0
    assert set(result["references"]) == {"majority", "linear", "3-NN"}
    for name in ("params", "train_tokens_per_second", "peak_memory_bytes", "state_bytes", "seconds"):
        assert result[name] > 0
    assert result["params"] == sum(tensor.numel() for tensor in runs.weights(run).values())


def test_the_test_split_is_read_once(trained):
    _, read = trained
    assert sorted(read) == ["test", "train", "val"]


def test_the_saved_model_is_that_of_the_last_step(trained):
    from tsla import build
    from tsla.config import read
    from tsla.training.checkpoints import load_weights

    run, _ = trained
    config = read(run / "config.yaml")
    model = build.build_model(config.model, config.mixer, build.build_task(config).spec).eval()
    load_weights(model, run / "checkpoints" / "last.ckpt")
    ids = torch.randint(1, 18, (2, 64))
    assert torch.equal(tsla.load_model(run / "model")(ids), model(ids))


def test_eval_repeats_the_result(trained, capsys):
    run, _ = trained
    accuracy = runs.result(run)["metrics"]["test/accuracy"]
    assert main("eval", str(run)) == 0
    out = capsys.readouterr().out
    assert f"{accuracy:.3f}" in re.search(r"taylor.*", out)[0] and "test split, best.ckpt" in out and "majority" in out
    assert main("eval", str(run), "split=val", "checkpoint=best") == 0
    out = capsys.readouterr().out
    assert f"{runs.result(run)['metrics']['val/accuracy']:.3f}" in re.search(r"taylor.*", out)[0]
    assert "majority" not in out  # which is known of the test split only
    assert main("eval", "split=train", str(run), "checkpoint=last") == 0
    assert "train split, last.ckpt" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "other model"])
def test_eval_of_a_damaged_run_is_one_clear_error(trained, tmp_path, capsys, damage):
    run = tmp_path / "copy"
    (run / "checkpoints").mkdir(parents=True)
    content = (trained[0] / "checkpoints" / "best.ckpt").read_bytes()
    config = (trained[0] / "config.yaml").read_text()
    (run / "checkpoints" / "best.ckpt").write_bytes(content[:-100] if damage == "cut" else content)
    (run / "config.yaml").write_text(config if damage == "cut" else config.replace("dim: 16\n", "dim: 32\n"))
    assert main("eval", str(run)) == 1
    told = capsys.readouterr()
    assert told.err.startswith("tsla: ") and "best.ckpt" in told.err and "Traceback" not in told.err


def test_info(capsys):
    assert main("info") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"tsla {tsla.__version__}\n")
    for part in ("python", "torch", "lightning", "cores", "commit", "configs", "native", "triton"):
        assert re.search(rf"^  {part} +\S", out, re.MULTILINE), part


def test_a_failed_run_keeps_its_files(tmp_path, capsys):
    (tmp_path / "data").touch()
    arguments = (*runs.LISTOPS, *runs.HEADS, "trainer.max_steps=2", "run_dir=run", "data_dir=data")
    assert runs.train(*arguments) == 1
    assert "failed: " in capsys.readouterr().out
    assert (tmp_path / "run" / "config.yaml").exists() and "failed: " in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "result.json").exists()


def test_hardware_that_is_not_there(tmp_path, capsys):
    missing = "mps" if torch.cuda.is_available() or not torch.backends.mps.is_available() else "cuda"
    arguments = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=2", f"trainer.accelerator={missing}")
    assert runs.train(*arguments) == 1
    assert f"failed: trainer.accelerator ({missing}) is not on this machine" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["two words", "[bold]läuft[/b] 日本", "a=b, c's"])
def test_any_folder_will_do(tmp_path, capsys, folder):
    quoted = folder.replace("'", "\\'")
    assert runs.train(*runs.DIGITS, *runs.HEADS, "trainer.max_steps=1", f"run_dir='{quoted}'") == 0
    assert f"run {folder}\nlearning curve" in capsys.readouterr().out
    assert main("eval", folder) == 0
    assert runs.train(f"resume={folder}") == 0


FEW = ["task.train_rows=40", "task.eval_rows=8"]
ROWS = {
    "listops": FEW, "quickstart": FEW,
    "files": ["task.path=texts.csv"],
    "smnist": ["task.path=idx"], "psmnist": ["task.path=idx"],
    "r8": [], "text": ["task.max_length=60"], "retrieval": ["task.max_length=60"],
    "pathfinder": ["task.train_rows=4", "task.eval_rows=2"], "pathx": ["task.train_rows=2", "task.eval_rows=1"],
    "mqar": ["task.train=[64/4/40]", "task.val=[64/4/8]", "task.test=[64/4/8]", "trainer.max_minutes=null"],
    "induction": ["task.train=[64/40]", "task.val=[64/8]", "task.test=[64/8]"],
    "selective": ["task.train=[64/4/40]", "task.val=[64/4/8]", "task.test=[64/4/8]"],
    "series": ["task.path=tiny_TRAIN.ts"],
    "dna": ["task.path=genome.gbk", "task.length=64", "task.min_gene=100"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("experiment", "mixer"),
    [(name, "taylor") for name in EXPERIMENTS] + [("quickstart", mixer) for mixer in group_choices("mixer")],
)
def test_every_experiment_trains_with_every_mixer(tmp_path_factory, monkeypatch, experiment, mixer):
    """Two steps on tiny data; what the experiment says of model, optimiser and trainer stands, but for the width."""
    rows = ROWS.get(experiment.split("_")[0], [])
    Path("texts.csv").write_text(
        "text,label\n" + "".join(f"number {n},{'odd' if n % 2 else 'even'}\n" for n in range(40))
    )
    image_cases.installed(monkeypatch, Path.cwd())
    image_cases.write_idx(Path("idx"))
    write_series(".")
    write_genbank("genome.gbk")
    data = tmp_path_factory.getbasetemp() / "data"
    able = members("mixer")[mixer].directions
    way = [f"model.causal={str('causal' in able).lower()}"] if len(able) == 1 else []
    text_cases.small(monkeypatch)
    status = runs.train(
        f"experiment={experiment}", f"mixer={mixer}", *way, *rows, f"data_dir={data}", "model.dim=16",
        "trainer.max_steps=2", "trainer.accelerator=cpu", "run_dir=run",
    )  # fmt: skip
    assert status == 0
    assert runs.result("run")["steps"] == 2 and runs.result("run")["mixer"] == mixer


@pytest.mark.parametrize("model", group_choices("model"))
def test_every_model_trains(model):
    status = runs.train(
        "experiment=digits", f"model={model}", "model.dim=16", "trainer.max_steps=2", "trainer.accelerator=cpu",
        "run_dir=run",
    )  # fmt: skip
    assert status == 0 and runs.result("run")["steps"] == 2


EDGES = {
    "one step": ("trainer.max_steps=1",),
    "validation later than the end": ("trainer.max_steps=3", "trainer.validate_every=1000"),
    "validation at every step": ("trainer.max_steps=3", "trainer.validate_every=1", "trainer.checkpoint_every=1"),
    "more to accumulate than an epoch has": ("trainer.max_steps=3", "trainer.accumulate=50"),
    "a budget below a row": ("trainer.max_steps=3", "trainer.batch_tokens=1"),
    "a budget above everything": ("trainer.max_steps=3", "trainer.batch_tokens=1000000"),
    "a pattern": ("trainer.max_steps=2", "model.depth=2", "model.layers=[window,taylor]"),
    "local heads": ("trainer.max_steps=2", "mixer.local_heads=1"),
    "everything": ("trainer.max_steps=2", "mixer.gate=true", "mixer.qk_norm=true", "mixer.kv_heads=1",
                   "model.positions=rotary", "model.pool=attention", "model.short_conv=3", "model.feed_forward=swiglu",
                   "model.dropout=0.1", "model.gradient_checkpointing=true", "trainer.precision=bf16",
                   "mixer.impl=linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_edges(tmp_path_factory, name):
    data = tmp_path_factory.getbasetemp() / "data"
    arguments = (*runs.LISTOPS, *runs.HEADS, f"data_dir={data}", "run_dir=run", *EDGES[name])
    assert runs.train(*arguments) == 0
    steps = int(re.search(r"max_steps=(\d+)", " ".join(EDGES[name]))[1])
    assert runs.result("run")["steps"] == steps
    last = [row for row in runs.metrics("run") if row["step"] == str(steps)]
    assert [name for row in last for name in row if name in ("train/loss", "val/loss")] in (
        ["train/loss", "val/loss"], ["val/loss", "train/loss"],
    )  # fmt: skip


def test_the_process_ends_with_the_status(tmp_path):
    """The installed command itself, in a fresh folder."""
    command = [str(Path(sys.executable).parent / "tsla")]
    for arguments, status in ((["--version"], 0), (["trian"], 2), (["train", "mixer=x"], 2)):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == status and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
