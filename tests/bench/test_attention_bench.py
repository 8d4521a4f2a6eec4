"""`tsla bench attention`: everybody is right before being timed, and whoever is not, or is not there, is told."""

import sys
from pathlib import Path

import pytest
import torch
from script_files import load_script

import tsla.bench.judge
import tsla.bench.peers
from tsla import cli
from tsla.bench.cases import Case, Unavailable, inputs_of, operations
from tsla.bench.judge import NOT_INSTALLED, call_of, checked, judge, prepare
from tsla.bench.peers import OURS, implementations
from tsla.bench.timing import MATMUL, MATMUL_OPERATIONS, Timing
from tsla.bench.variants import variants
from tsla.ops.attention import FORMS

from .conftest import read

CASE = Case(d=4, e=6, heads=2, kv_heads=2, batch=1, length=40, causal=False, backward=True)
TINY = ["bench", "attention", "d=4", "e=6", "heads=2", "length=32,64", "compile=", "memory=false", "long=64",
        "seconds=0", "threads=1", "out=o"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("few_rounds")


def command(*changed: str) -> list[str]:
    options = dict(argument.split("=") for argument in (*TINY[2:], *changed))
    return [*TINY[:2], *("=".join(pair) for pair in options.items())]


def absent(monkeypatch, *packages: str) -> None:
    for package in packages:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


def test_the_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main([*TINY, "only=auto,linear,sdpa,sdpa-full,taylorshift"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[1:-1])) <= 100 and "ours against ours" in out and "torch's matmul" in out
    rows = read("o/attention.csv")
    assert [(row["length"], row["backward"]) for row in rows[::5]] == [
        ("32", "False"), ("64", "False"), ("32", "True"), ("64", "True"),
    ]  # fmt: skip
    assert list(rows[0]) == [
        *Case._fields, "implementation", "computes", "problem", "error", "seconds", "quartile_1", "quartile_3",
        "rounds", "gflops", "of_matmul", "extra_bytes", "by",
    ]  # fmt: skip
    for row in rows:
        assert row["problem"] == "" and 0 < float(row["error"]) < 1e-5 and row["rounds"] == "2"
        assert 0 < float(row["quartile_1"]) <= float(row["seconds"]) <= float(row["quartile_3"])
        assert (row["gflops"] != "") == (row["implementation"] in OURS)
    text = Path("o/attention.md").read_text()
    assert "| implementation | computes | error | time | × auto | GFLOP/s | of mm | MiB |" in text
    assert text.count("## ") == 5 and "| taylorshift | TaylorShift |" in text and "| causal |" in text
    assert len(read("o/variants.csv")) == 10 and all(float(row["ratio"]) > 0 for row in read("o/variants.csv"))
    assert all(Path(f"o/attention.{end}").stat().st_size > 5000 for end in ("png", "svg"))


def test_shapes_go_in_pairs():
    assert cli.main(command("d=2,4", "e=4,2", "length=16,32", "backward=false", "only=sdpa", "long=0")) == 0
    assert [(row["d"], row["e"]) for row in read("o/attention.csv")] == [("2", "4")] * 2 + [("4", "2")] * 2
    assert Path("o/attention-d2-e4.png").exists() and not Path("o/variants.csv").exists()


@pytest.mark.parametrize("name", list(implementations()))
@pytest.mark.parametrize(
    "changed",
    [{}, {"causal": True}, {"kv_heads": 1}, {"e": 4, "batch": 2}, {"e": 4, "causal": True}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_implementations_are_right(name, changed):
    case = CASE._replace(**changed)
    one = implementations()[name]._replace(compiled=False)
    try:
        error = checked(one, case).error
    except (Unavailable, ModuleNotFoundError) as reason:
        pytest.skip(str(reason))
    assert error < (1e-5 if case.dtype == "float32" else 5e-2)


def test_every_form_of_ours_is_there():
    assert set(OURS) == set(FORMS) - {"native", "triton"} and list(implementations())[: len(OURS)] == list(OURS)


def test_what_is_wrong_has_no_time(monkeypatch, capsys):
    right = tsla.bench.peers.taylor_attention

    def wrong(*inputs, **options):
        out = right(*inputs, **options)
        return out._replace(output=1.01 * out.output) if options["impl"] == "linear" else out

    monkeypatch.setattr(tsla.bench.peers, "taylor_attention", wrong)
    assert cli.main(command("only=auto,direct,linear", "backward=false", "length=40", "long=0")) == 0
    rows = {row["implementation"]: row for row in read("o/attention.csv")}
    assert rows["linear"]["problem"] == "wrong: off by 0.01, no time"
    assert all(rows["linear"][name] == "" for name in ("seconds", "quartile_1", "gflops", "error"))
    assert float(rows["direct"]["seconds"]) > 0
    assert "linear: wrong: off by 0.01, no time" in capsys.readouterr().out


def test_what_is_wrong_in_a_gradient_or_only_when_long_has_no_time(monkeypatch):
    one = implementations()["direct"]

    def backwards(case):
        made = one.make(case)
        return made._replace(form=lambda q, k, v: made.form(q, k.detach() + 0 * k, v))

    with pytest.raises(ValueError, match=r"wrong: off by 1, no time"):
        checked(one._replace(make=backwards), CASE)
    monkeypatch.setattr(tsla.bench.judge, "CHECKED", 16)

    def when_long(case):
        made = one.make(case)
        return made._replace(form=lambda q, k, v: made.form(q, k[:, :, -20:], v[:, :, -20:]))

    with pytest.raises(ValueError, match=r"wrong: off by"):
        checked(one._replace(make=when_long), CASE)
    assert checked(one._replace(make=when_long), CASE._replace(length=20)).error < 1e-5


def test_compiled_peers(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda form, dynamic: form)
    assert cli.main(command("compile=64", "only=taylorshift,taylorshift+compile", "long=0")) == 0
    rows = read("o/attention.csv")
    assert [row["length"] for row in rows if row["implementation"] == "taylorshift+compile"] == ["64", "64"]
    assert all(row["seconds"] for row in rows)
    monkeypatch.setattr(
        torch, "compile", lambda form, dynamic: lambda q, k, v: form(q, k, v + 0.05 * k.detach().mean())
    )
    (found,) = judge(CASE, [implementations()["taylorshift+compile"]], seconds=0, memory=False)
    assert found.problem.startswith("wrong: off by") and found.time is None


def test_what_is_not_installed_is_told_and_the_rest_needs_no_package(monkeypatch, capsys):
    packages = (
        "taylor_series_linear_attention",
        "performer_pytorch",
        "linear_attention_transformer",
        "local_attention",
    )
    absent(monkeypatch, *packages)
    assert cli.main(command("e=4", "length=40", "long=0", "backward=false")) == 0
    rows = {row["implementation"]: row for row in read("o/attention.csv")}
    without = {name for name, row in rows.items() if row["problem"] == NOT_INSTALLED}
    assert without == {
        "tsla-0.2.0", "tsla-0.2.0-packed", "performer", "linear-attention-transformer", "local-attention",
    }  # fmt: skip
    assert rows["sdpa-full"]["problem"] == "the same as sdpa: d = e"
    assert {name for name, row in rows.items() if row["seconds"]} == {*OURS, "linear-elu", "sdpa", "taylorshift"}
    assert "performer: not installed: pip install 'tsla[bench]'" in capsys.readouterr().out
    assert "tsla[bench]" in Path("o/attention.md").read_text()


def test_what_would_not_fit_into_memory_is_not_tried(monkeypatch):
    monkeypatch.setattr(tsla.bench.judge, "free_bytes", lambda: 6 * 4 * 2 * 40**2 * 2 - 1)
    ready, problems = prepare({name: implementations()[name] for name in ("direct", "linear")},
                              {"direct": CASE, "linear": CASE})  # fmt: skip
    assert list(ready) == ["linear"] and problems["direct"].startswith("needs some")


def test_causal_in_the_package_exits_and_here_does_not():
    pytest.importorskip("taylor_series_linear_attention")
    with pytest.raises(Unavailable, match=r"causal needs pytorch-fast-transformers .* the package exits"):
        implementations()["tsla-0.2.0"].make(CASE._replace(causal=True))


def test_rates_count_packed_operations(monkeypatch):
    case = Case(d=2, e=3, heads=5, kv_heads=5, batch=2, length=10, causal=False, backward=False)
    assert operations(case) == 2 * 5 * 10 * 2 * (2 * 6 * 4)  # f = 1 + 2 + 3
    assert operations(case._replace(backward=True)) == 3 * operations(case)
    seconds = {MATMUL: MATMUL_OPERATIONS / 50e9, "auto": operations(case) / 10e9, "sdpa": 1.0}
    monkeypatch.setattr(
        tsla.bench.judge, "interleaved",
        lambda runs, seconds_=None, **_: {name: Timing(*[seconds[name]] * 3, 1) for name in runs},
    )  # fmt: skip
    ours, softmax = judge(case, [implementations()[name] for name in ("auto", "sdpa")], seconds=0, memory=False)
    assert ours.rate == pytest.approx(10e9) and ours.of_matmul == pytest.approx(0.2)
    assert softmax.rate is None and softmax.time.median == 1.0


def test_variants_are_ratios_of_one_run(monkeypatch):
    asked = []

    def fake(runs, seconds, device, dtype):
        asked.append([[tuple(x.shape) for x in run()] for run in runs.values()])
        return {"case": Timing(3.0, 3, 3, 1), "other": Timing(2.0, 2, 2, 1)}

    monkeypatch.setattr("tsla.bench.variants.timed", fake)
    found = variants(implementations()["auto"], CASE._replace(backward=False), 64, 0)
    assert [one.ratio for one in found] == [1.5] * 5
    assert [(one.what, one.over) for one in found][3:] == [("1 head, 64 tokens", "2 heads, 32"),
                                                           ("64 tokens", "16 tokens")]  # fmt: skip
    assert asked[3] == [[(1, 1, 64, 6)], [(1, 2, 32, 6)]] and asked[4] == [[(1, 2, 64, 6)], [(1, 2, 16, 6)]]


def test_everybody_gets_the_same_inputs():
    assert all(torch.equal(a, b) for a, b in zip(inputs_of(CASE), inputs_of(CASE), strict=True))
    (out, *gradients) = call_of("linear", CASE)()
    assert [x.shape[-1] for x in (out, *gradients)] == [6, 4, 4, 6]


WRONG = {
    "attention onyl=auto": "there is no option 'onyl' (did you mean 'only'?): bench attention takes d=, e=, heads=",
    "attention only=autoo": "only ('autoo') must be of auto, direct, linear",
    "attention d=1,2,3 e=4,5": "d (3 values) and e (2) go in pairs",
    "attention heads=6 kv_heads=4": "kv_heads (4) must divide heads (6)",
    "attention dtype=float16": "dtype ('float16') must be one of float32, bfloat16",
    "attention long=31": "long (31) must be 0, or at least 4 x heads (32)",
    "attention memory=maybe length=0": "length ('0') must be a whole number from 1 to 1048576, or several with commas",
    "model dim=30": "heads (8) must divide dim (30)",
    "model only=sofmax": "only ('sofmax') must be of taylor",
    "decode width=30": "heads (8) must divide width (30)",
    "decode only=tsla": "only ('tsla') must be of auto, linear, sdpa, auto-layer, tsla-0.2.0",
    "atention": "bench has no 'atention' (did you mean 'attention'?): it takes attention, model, mixers, decode",
    "": "bench takes: attention, model, mixers, decode, crossover",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items())
def test_wrong_options(line, message, capsys, tmp_path):
    assert cli.main(["bench", *line.split()]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_measured_if_something_is_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tsla.bench.attention.judge", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "o" / "attention.csv").mkdir(parents=True)
    assert cli.main(TINY) == 2
    assert "o/attention.csv is in the way: it is a folder" in capsys.readouterr().err


def test_a_gradient_that_is_wrong_only_when_long_has_no_time(monkeypatch):
    monkeypatch.setattr(tsla.bench.judge, "CHECKED", 16)
    one = implementations()["linear"]

    def when_long(case):
        made = one.make(case)
        return made._replace(form=lambda q, k, v: made.form(q.detach() + 0 * q if q.shape[2] > 16 else q, k, v))

    with pytest.raises(ValueError, match=r"wrong: off by 1, no time"):
        checked(one._replace(make=when_long), CASE)


def test_a_long_causal_gradient_is_measured_by_its_largest_rows():
    """Those of late queries are averages of thousands of values: beside them alone, rounding looks like an error."""
    case = CASE._replace(d=16, e=64, heads=1, kv_heads=1, length=16384, causal=True)
    assert checked(implementations()["auto"], case).error < 2e-6


def test_the_script_of_given_features(capsys, monkeypatch):
    script = load_script("bench_features")
    monkeypatch.setattr(script, "WIDTHS", ((2, 3),))
    monkeypatch.setattr(script, "LONGEST_PAIRS", 8)
    script.main([8, 9])
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head.count("|") == 9 and len(lines) == 2 * 2 * 2
    for at, line in enumerate(lines):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:4] == ["2", "3", str((8, 9)[at % 2])] and (cells[4] == "–") == (at % 2 == 1)
        assert all(float(cell) > 0 for cell in cells[5:7]) and float(cells[7]) >= 1
    assert lines[0].startswith("| bidirectional, forward |") and lines[-1].startswith("| causal, both passes |")
