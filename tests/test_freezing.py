"""A run that leaves the choice of the form to what is measured writes down by which number, and stays with it."""

from pathlib import Path

import pytest
import train_runs as runs
from report_runs import write as write_run

from tsla import build
from tsla.config import ConfigError, compose, read
from tsla.config.compose import command_of, differing, freeze, to_yaml
from tsla.evaluation.runs import find_runs
from tsla.evaluation.tables import options_of
from tsla.models.pretrained import read_model_config
from tsla.ops import measured, native, taylor_crossover
from tsla.ops.measured import Measured, Table, render, table_file

SHORT = (*runs.DIGITS, *runs.HEADS, "trainer.max_steps=4", "trainer.validate_every=2", "trainer.checkpoint_every=2")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path))
    measured.forget()
    yield
    measured.forget()


def measure(length: float) -> None:
    """As if `tsla bench crossover` had found this for training with heads of width 8, and 50 more if causal."""
    lengths = {False: length, True: length + 50}
    entries = tuple(Measured(8, 8, 8, causal, True, int(n) - 5, int(n) + 5, n) for causal, n in lengths.items())
    tables = {measured.this_machine(native=compiled): Table("2026-11-22", entries) for compiled in (False, True)}
    table_file().write_text(render(tables))
    measured.forget()


def test_a_run_freezes_what_is_measured(tmp_path):
    measure(30.0)
    assert runs.train(*SHORT, "run_dir=a") == 0
    config = read(Path("a/config.yaml"))
    assert config.mixer.crossover == 30 and config.frozen == ["mixer.crossover"]
    assert read_model_config(Path("a/model"))["mixer"]["crossover"] == 30
    assert build.load_model("a/model").encoder.blocks[0].mixer.crossover == 30
    assert "crossover" not in runs.result("a")["command"] and "frozen" not in runs.result("a")["command"]
    assert runs.train(*SHORT, "run_dir=b", "model.causal=true") == 0
    assert read(Path("b/config.yaml")).mixer.crossover == 80


def test_without_a_table_the_counted_number_is_frozen():
    config = build.frozen(compose(["mixer=taylorshift", "mixer.head_dim=null", "model.dim=64", "mixer.heads=4"]))
    assert config.model.causal  # so that the kernels leave out half of the pairs
    counted = 2 * taylor_crossover(16, value_dim=16) if native.ready() else taylor_crossover(16)
    assert config.mixer.crossover == pytest.approx(counted, abs=0.006)
    assert build.frozen(config) == config
    assert build.frozen(compose(["mixer.order=4"])).mixer.crossover == pytest.approx(
        taylor_crossover(16, order=4), abs=0.006
    )


@pytest.mark.parametrize(
    "asked", [("mixer.crossover=12",), ("mixer.impl=linear",), ("mixer=softmax",), ("mixer=none",)]
)
def test_what_leaves_nothing_open_is_written_as_it_is(asked):
    config = compose(asked)
    assert build.frozen(config) == config and config.frozen == []


@pytest.mark.parametrize("how", [("run_dir=run", "resume=auto"), ("resume=auto",), ("resume=run",)])
def test_a_run_is_gone_on_with_whatever_is_measured_later(tmp_path, how):
    """The form changes the last digits, so only the same form gives the same run bit for bit."""
    measure(20.0)
    where = () if how == ("resume=auto",) else ("run_dir=run",)
    assert runs.train(*SHORT, "run_dir=whole") == 0
    assert runs.stopped_at_batch(3, *SHORT, *where) == 130
    measure(900.0)
    assert runs.train(*(() if how == ("resume=run",) else SHORT), *how) == 0
    (run,) = [tmp_path / "run"] if where else (tmp_path / "runs" / "digits").iterdir()
    assert read(run / "config.yaml").mixer.crossover == 20
    runs.assert_same_run(run, tmp_path / "whole")
    assert runs.result(run)["command"] == runs.result("whole")["command"]
    assert runs.train(*SHORT, "run_dir=other") == 0
    assert read(Path("other/config.yaml")).mixer.crossover == 900


def test_a_number_that_is_asked_for_is_another_run(capsys):
    measure(20.0)
    assert runs.stopped_at_batch(3, *SHORT, "run_dir=run") == 130
    assert runs.train(*SHORT, "run_dir=run", "resume=auto", "mixer.crossover=20") == 2
    assert "mixer.crossover: 20.0 here, None there" in capsys.readouterr().err


def test_frozen_and_asked():
    asked = compose(["experiment=digits", "mixer.head_dim=8"])
    settled = freeze(asked, {"crossover": 31.5})
    assert differing(asked, settled) == [] and command_of(settled) == command_of(asked)
    typed = compose(["experiment=digits", "mixer.head_dim=8", "mixer.crossover=31.5"])
    assert differing(typed, settled) and "mixer.crossover=31.5" in command_of(typed)
    text = to_yaml(settled)
    Path("config.yaml").write_text(text)
    assert read(Path("config.yaml")) == settled
    Path("config.yaml").write_text(to_yaml(asked)[: text.index("frozen:")].rsplit("frozen", 1)[0])
    assert read(Path("config.yaml")) == asked  # runs of before have no such line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["mixer.crossover=5", "mixer.impl=direct"], "mixer.crossover (5) needs mixer.impl=auto or native, got direct"),
        (["mixer.crossover=-1"], "mixer.crossover (-1.0) must be at least 0"),
        (["mixer.crossover=inf"], "mixer.crossover (inf) must be finite"),
        (["frozen=[mixer.crossover]"], "frozen (mixer.crossover) needs a number at mixer.crossover"),
        (["mixer=none", "frozen=[mixer.crossover]"], "frozen (mixer.crossover) needs a number at mixer.crossover"),
        (["mixer.crossover=5", "frozen=[mixer.crossover,mixer.crossover]"], "must name an option once"),
        (["frozen=[seed]"], "frozen ('seed') must be one of mixer.crossover"),
    ],
)
def test_what_is_refused(arguments, problem):
    with pytest.raises(ConfigError) as caught:
        compose(arguments)
    assert any(problem in told for told in caught.value.problems)


def test_the_number_reaches_every_part():
    """Local heads take some of the heads, a pattern other mixers: the number is that of the config in all of them."""
    measure(900.0)
    spec = runs.spec()

    def crossovers(*arguments: str) -> list[float | None]:
        config = compose(["experiment=digits", "model.depth=2", *arguments])
        model = build.build_model(config.model, config.mixer, spec)
        return [part.crossover for part in model.modules() if hasattr(part, "crossover")]

    assert crossovers("mixer.crossover=33", "mixer.local_heads=2") == [33, 33]
    assert crossovers("mixer.crossover=33", "model.layers=[window,taylor]", "mixer=taylor") == [33]
    assert crossovers("mixer.crossover=33", "model.layers=[taylorshift,taylor]") == [33, 33]
    assert crossovers("mixer=softmax", "mixer.head_dim=8", "model.layers=[softmax,taylor]") == [taylor_crossover(8)]
    assert crossovers("mixer.impl=linear", "mixer.head_dim=8", "model.layers=[taylorshift,taylor]") == [
        taylor_crossover(8), None,
    ]  # fmt: skip


def test_reports_group_runs_by_what_was_asked(tmp_path):
    for name, options in {
        "a": {"mixer.crossover": 20.0, "frozen": ["mixer.crossover"]},
        "b": {"mixer.crossover": 30.0, "frozen": ["mixer.crossover"]},
        "c": {"mixer.crossover": 30.0, "frozen": []},
    }.items():
        write_run(tmp_path / name, options=options)
    a, b, c = (options_of(run) for run in find_runs([tmp_path / name for name in "abc"]))
    assert a == b != c


def test_hardware_that_is_not_there_is_told_by_the_run():
    config = compose(["trainer.accelerator=mps"])
    assert build.frozen(config) == config
