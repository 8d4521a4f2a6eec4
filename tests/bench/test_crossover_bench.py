"""`tsla bench crossover`: options, the whole command on tiny sizes, and that nothing wrong is timed or kept."""

import csv
import json
import time

import pytest
import torch

import tsla.bench.crossover
import tsla.bench.forms
from tsla import cli
from tsla.bench.crossover import entry_of, measure
from tsla.bench.forms import Shape, calls, errors
from tsla.bench.options import CrossoverOptions, parse_crossover
from tsla.bench.timing import Timing
from tsla.config import ConfigError
from tsla.ops import native
from tsla.ops.measured import forget, measured_crossover, read_tables, table_file, this_machine

TINY = ("d=4", "e=4,8", "heads=2", "causal=true", "max_length=64", "width=8", "length=32", "out=o")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tsla.bench.timing.MOST", 3)
    forget()
    yield
    forget()


def rows(name):
    with open(f"o/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def command(*changed: str) -> list[str]:
    """The small measurement with some options changed."""
    options = dict(argument.split("=") for argument in (*TINY, *changed))
    return ["bench", "crossover", *("=".join(pair) for pair in options.items())]


def test_the_command(tmp_path, capsys):
    began = time.perf_counter()
    assert cli.main(["bench", "crossover", *TINY]) == 0
    assert time.perf_counter() - began < 60
    out = capsys.readouterr().out
    assert "GFLOP/s" in out and "1 threads" in out and "heads" in out
    found = rows("crossover")
    assert [(row["d"], row["e"], row["causal"], row["backward"]) for row in found] == [
        ("4", e, "True", backward) for e in ("4", "8") for backward in ("False", "True")
    ]
    assert all(0 < float(row[f"error_{form}"]) < 1e-5 for row in found for form in ("direct", "linear", "sdpa"))
    assert {row["form"] for row in rows("times")} == {"direct", "linear", "sdpa"}
    assert all(0 < float(r["quartile_1"]) <= float(r["seconds"]) <= float(r["quartile_3"]) for r in rows("times"))
    heads = rows("heads")
    assert [row["heads"] for row in heads] == [h for h in "1248" for _ in range(4)]
    for row in heads:
        assert int(row["heads"]) * int(row["d"]) == 8 and int(row["peak_bytes"]) > 3 * 4 * 32 * 8
    for name in ("crossover.png", "crossover.svg", "heads.png", "heads.svg"):
        assert (tmp_path / "o" / name).stat().st_size > 5000
    assert list((tmp_path / "o").glob("*.part")) == []
    (table,) = read_tables(table_file()).values()
    assert len(table.entries) == 4 and list(read_tables(table_file())) == [this_machine(native=native.ready())]
    assert measured_crossover(4, 8, causal=True, backward=True, native=native.ready()) is not None
    assert measured_crossover(4, 8, causal=False, backward=True, native=native.ready()) is None


def test_what_the_kernels_do_not_do_is_measured_in_torch_and_kept_apart(monkeypatch):
    monkeypatch.setattr(native, "WIDEST", 4)
    assert cli.main(command("d=4,5", "e=4", "backward=false", "width=0")) == 0
    kept = {
        machine.native: [entry.d for entry in table.entries] for machine, table in read_tables(table_file()).items()
    }
    assert kept == ({True: [4], False: [5]} if native.ready() else {False: [4, 5]})


def test_nothing_is_kept_if_it_is_not_wanted_or_killed(tmp_path, monkeypatch, capsys):
    assert cli.main(command("e=4", "backward=false", "width=0", "write=false")) == 0
    assert not table_file().exists() and not (tmp_path / "o" / "heads.csv").exists()
    (tmp_path / "cache").mkdir()
    table_file().write_text("before")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tsla.bench.crossover, "sweep", killed)
    assert cli.main(command("e=4", "backward=false")) == 130
    assert table_file().read_text() == "before" and list((tmp_path / "cache").iterdir()) == [table_file()]


def test_a_damaged_table_is_replaced_and_others_are_kept(capsys):
    quick = command("e=4", "backward=false", "width=0")
    table_file().parent.mkdir()
    table_file().write_text("{")
    assert cli.main(list(quick)) == 0
    assert "is replaced" in " ".join(capsys.readouterr().out.split())
    data = json.loads(table_file().read_text())
    data["tables"][0]["threads"] = 99
    table_file().write_text(json.dumps(data))
    assert cli.main([*quick, "threads=1"]) == 0
    assert sorted(machine.threads for machine in read_tables(table_file())) == [1, 99]


def test_the_threads_asked_for_are_used_and_given_back():
    torch.set_num_threads(1)
    assert cli.main(command("e=4", "backward=false", "width=0", "threads=2")) == 0
    assert torch.get_num_threads() == 1 and [machine.threads for machine in read_tables(table_file())] == [2]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("d", "e"), [(3, 5), (5, 3)])
def test_forms_are_right(d, e, causal, backward):
    assert max(errors(Shape(d, e, 2, causal, backward), 70).values()) < 1e-5


@pytest.mark.parametrize("form", ["direct", "linear", "sdpa"])
def test_a_form_that_is_wrong_is_not_timed(form, monkeypatch, capsys):
    right = tsla.bench.forms.forms

    def wrong(shape):
        made = right(shape)
        return made | {form: lambda q, k, v: 1.01 * made[form](q, k, v)}

    monkeypatch.setattr(tsla.bench.forms, "forms", wrong)
    monkeypatch.setattr(tsla.bench.crossover, "interleaved", lambda _: pytest.fail("timed"))
    assert cli.main(["bench", "crossover", *TINY]) == 1
    assert f"{form} is off by" in capsys.readouterr().err


def test_measured_lengths_are_those_of_the_clock(monkeypatch):
    """With a clock that says n^2 / 100 for direct and 2 n for SDPA's rival: crossings at 100 and 300."""
    costs = {"direct": lambda n: n * n, "linear": lambda n: 100 * n, "sdpa": lambda n: n * n / 3}
    monkeypatch.setattr(tsla.bench.crossover, "calls", lambda shape, n: dict.fromkeys(costs, n))
    monkeypatch.setattr(
        tsla.bench.crossover, "interleaved",
        lambda run: {name: Timing(*[float(costs[name](n))] * 3, 1) for name, n in run.items()},
    )  # fmt: skip
    found = measure(Shape(8, 16, 2, False, True), 1024)
    assert found.direct.length == pytest.approx(100) and found.sdpa.length == pytest.approx(300)
    entry = entry_of(found)
    assert (entry.d, entry.e, entry.heads, entry.causal, entry.backward) == (8, 16, 2, False, True)
    assert entry.threshold == pytest.approx(100) and entry.direct <= 100 <= entry.linear
    assert all("direct" in found.times[n] for n in (entry.direct, entry.linear))


def test_gradients_are_what_is_timed():
    assert len(calls(Shape(2, 3, 1, False, True), 5)["linear"]()) == 4
    (out,) = calls(Shape(2, 3, 1, False, False), 5)["linear"]()
    assert not out.requires_grad


WRONG = {
    "crossover dd=3": "there is no option 'dd' (did you mean 'd'?): bench crossover takes d=, e=, heads=",
    "crossover d=": "d ('') must be a whole number from 1 to 1024, or several with commas",
    "crossover d=8,x e=0 causal=maybe": "e ('0') must be a whole number from 1 to 4096",
    "crossover causal=yes": "causal ('yes') must be true or false, or both with a comma",
    "crossover max_length=31": "max_length (31) must be at least 32",
    "crossover threads=99999999999": "threads ('99999999999') must be a whole number from 1 to 1024",
    "crossover d": "there is no option 'd'",
    "crosover": "bench has no 'crosover' (did you mean 'crossover'?)",
    "": "bench takes: attention, model, mixers, decode, crossover [key=value ...]",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items())
def test_wrong_options(line, message, capsys, tmp_path):
    assert cli.main(["bench", *line.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_options():
    assert parse_crossover([]) == CrossoverOptions()
    got = parse_crossover(["d=3,3,4", "threads=", "causal=true", "write=false", "width=0"])
    assert (got.d, got.threads, got.causal, got.write, got.width) == ((3, 4), None, (True,), False, 0)
    with pytest.raises(ConfigError) as caught:
        parse_crossover(["d=x", "heads=0", "what=1"])
    assert len(caught.value.problems) == 3


def test_nothing_is_measured_if_something_is_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tsla.bench.crossover, "measure", lambda *_: pytest.fail("measured"))
    (tmp_path / "o" / "crossover.csv").mkdir(parents=True)
    assert cli.main(command()) == 2
    assert "o/crossover.csv is in the way: it is a folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(command("out=file/o")) == 2
    assert "file is in the way of file/o/crossover.csv: it is not a folder" in capsys.readouterr().err
    table_file().mkdir(parents=True)
    assert cli.main(command("out=p")) == 2
    assert "crossover.json is in the way: it is a folder" in capsys.readouterr().err
    assert cli.main(["bench", "crossover", "d=4", "d=8"]) == 2
    assert "d is given twice; several values take commas" in capsys.readouterr().err
