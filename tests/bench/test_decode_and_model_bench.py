"""`tsla bench decode`, `tsla bench model`, and the README's table of all of them."""

import shlex
from pathlib import Path

import pytest
import torch
from script_files import load_script

import tsla.bench.decode
import tsla.bench.model
from tsla import cli
from tsla.bench.decode import LAYER, TOKENS, Setting, _of_one, decoders
from tsla.bench.loop import over_bare
from tsla.bench.model import Size, encoder, error_of, mixers, step_of
from tsla.bench.options import parse_attention, parse_decode, parse_model
from tsla.bench.peers import implementations
from tsla.bench.timing import Timing
from tsla.config import members
from tsla.mixers import SoftmaxAttention

from .conftest import read

SIZE = Size(dim=16, depth=1, heads=2, head_dim=8, batch=2, causal=False, length=24)
FOLDERS = ("", "alone", "short", "long", "long/causal", "batch")  # of docs/results/bench, which the table is made from
DECODE = ["bench", "decode", "width=12", "heads=2", "d=4", "context=30,50", "seconds=0", "threads=1", "out=o"]
MODEL = ["bench", "model", "dim=16", "depth=1", "heads=2", "head_dim=8", "length=16,24", "seconds=0", "threads=1",
         "memory=false", "out=o"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("few_rounds")


def test_decoding(capsys):
    assert cli.main(DECODE) == 0
    out = capsys.readouterr().out
    assert "a token after a context" in out and "tsla-0.2.0: causal needs pytorch-fast-transformers" in out
    rows = read("o/decode.csv")
    assert [row["context"] for row in rows[::5]] == ["30", "50"]
    measured = [row for row in rows if not row["problem"]]
    assert {row["implementation"] for row in measured} == {"auto", "linear", "sdpa", LAYER}
    assert all(0 < float(row["error"]) < 1e-5 and float(row["seconds"]) > 0 for row in measured)
    sizes = {(row["implementation"], row["context"]): int(row["state_bytes"]) for row in measured}
    assert sizes["linear", "30"] == sizes["linear", "50"] == 4 * 2 * 15 * (6 + 1)  # f = C(4 + 2, 2)
    assert sizes[LAYER, "30"] == sizes["linear", "30"]
    assert sizes["sdpa", "50"] == 4 * 2 * (50 + TOKENS) * (6 + 6)
    assert "| implementation | context | error | time | sdpa × | state MiB |" in Path("o/decode.md").read_text()
    assert Path("o/decode.png").stat().st_size > 5000


def test_a_decoder_that_is_wrong_has_no_time(monkeypatch):
    right = tsla.bench.decode.taylor_attention

    def forgetful(q, k, v, **options):
        return right(q, k, v, **(options | {"state": None}))

    monkeypatch.setattr(tsla.bench.decode, "taylor_attention", forgetful)
    assert cli.main(DECODE) == 0
    rows = {row["implementation"]: row for row in read("o/decode.csv")}
    assert rows["linear"]["problem"].startswith("wrong: off by") and rows["linear"]["seconds"] == ""
    assert rows["sdpa"]["seconds"]


@pytest.mark.parametrize("name", ["auto", "sdpa", LAYER])
def test_every_token_in_a_row_is_right_in_every_round(name):
    """From where the context ends, each time: neither a state nor a cache keeps what the round before wrote."""
    decoder = decoders()[name](Setting(4, 6, 2, 2, 20))
    for _ in range(2):
        out = decoder.steps()
        assert out.shape[-2] == TOKENS
        torch.testing.assert_close(out.double(), decoder.right, rtol=1e-5, atol=1e-5)


def test_the_time_is_of_one_token():
    assert _of_one(Timing(1.6, 0.8, 3.2, 5)) == pytest.approx((0.1, 0.05, 0.2, 5))


def test_training_steps(capsys):
    assert cli.main([*MODEL, "loop=0", "only=taylor,softmax"]) == 0
    assert "a training step" in capsys.readouterr().out
    rows = read("o/model.csv")
    assert [(row["mixer"], row["length"]) for row in rows] == [
        ("taylor", "16"), ("softmax", "16"), ("taylor", "24"), ("softmax", "24"),
    ]  # fmt: skip
    for row in rows:
        assert 0 < float(row["error"]) < 1e-4
        assert float(row["tokens_per_second"]) == pytest.approx(int(row["length"]) / float(row["seconds"]))
    assert not Path("o/loop.csv").exists() and Path("o/model.png").stat().st_size > 5000
    assert "| mixer | tokens | error | time | tokens/s | × taylor | MiB |" in Path("o/model.md").read_text()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", list(mixers()))
def test_models_are_right(name, causal):
    size = SIZE._replace(causal=causal)
    if name.startswith("tsla"):
        pytest.importorskip("taylor_series_linear_attention")
        if causal:
            with pytest.raises(ValueError, match="causal needs"):
                encoder(name, size)
            return
    able = members("mixer")[name].directions if name in members("mixer") else {"bidirectional", "causal"}
    if ("causal" if causal else "bidirectional") not in able:
        with pytest.raises(ValueError, match=rf"^{name} is \w+ only$"):
            encoder(name, size)
        return
    assert error_of(name, size) < 1e-4


def test_a_model_that_is_wrong_has_no_time(monkeypatch):
    right = SoftmaxAttention.attend

    def in_single(self, q, k, v, x, mask):
        out = right(self, q, k, v, x, mask)
        return 1.5 * out if q.dtype == torch.float32 else out

    monkeypatch.setattr(SoftmaxAttention, "attend", in_single)
    assert cli.main([*MODEL, "loop=0", "only=taylor,softmax"]) == 0
    rows = {row["mixer"]: row for row in read("o/model.csv")}
    assert rows["softmax"]["problem"].startswith("wrong: off by") and rows["softmax"]["seconds"] == ""
    assert rows["taylor"]["seconds"]


def test_a_step_learns():
    step = step_of("taylor", SIZE)
    first = step()[0]
    for _ in range(200):
        last = step()[0]
    assert last < first


def test_a_step_takes_the_loss_of_its_mixers_too(monkeypatch):
    """Only their own loss reaches the scales of Primal-Attention: the step goes down it."""
    model = encoder("primal", SIZE)
    (scale,) = (block.mixer.scale for block in model.encoder.blocks)
    tokens = tsla.bench.model._batch(SIZE)[0]
    slope, before = torch.autograd.grad(model.run(tokens).aux, scale)[0], scale.detach().clone()
    monkeypatch.setattr(tsla.bench.model, "encoder", lambda name, size: model)
    step_of("primal", SIZE)
    assert torch.equal((scale.detach() - before).sign(), -slope.sign()) and (slope != 0).all()


def test_lightning_over_a_bare_loop():
    loops = over_bare(lambda: encoder("softmax", SIZE), "softmax", 2, 24, 3)
    assert loops.fit > 0 and loops.bare > 0 and "a bare loop of the same steps" in loops.told


def test_the_table_of_the_readme():
    script, out = load_script("bench_table"), Path("o")
    assert cli.main(["bench", "attention", "d=4,2", "e=4", "heads=2", "length=32,40", "compile=", "memory=false",
                     "long=16", "seconds=0", "out=o", "only=auto,sdpa"]) == 0  # fmt: skip
    small = ["bench", "attention", "d=4", "e=4", "heads=2", "compile=", "long=0", "seconds=0", "only=auto"]
    assert cli.main([*small, "length=64", "backward=true", "out=o/long"]) == 0
    assert cli.main([*small, "length=50", "backward=true", "causal=true", "out=o/long/causal"]) == 0
    assert cli.main([*small, "length=48", "memory=false", "out=o/alone"]) == 0
    assert cli.main(DECODE) == 0
    table = script.table(out)
    assert (
        "| 40 tokens, 2 heads | error | d=4 e=4, forward | d=4 e=4, both | d=2 e=4, forward | d=2 e=4, both |" in table
    )
    assert table.count("(× 1.00)") == 6 and "| causal over bidirectional | × " in table
    assert "memory beyond inputs" in table and "\n| 50 | " in table
    assert (
        "\n| `auto`, causal | 50 | " in table and "in a process of their own" in table and "\n| 48 tokens, 2" in table
    )
    page = script.replaced("a\n<!-- bench -->\nold\n<!-- /bench -->\nb", table)
    assert page.startswith("a\n<!-- bench -->\n") and page.endswith("\n<!-- /bench -->\nb") and "old" not in page
    with pytest.raises(ValueError, match="once each"):
        script.replaced("nothing", table)
    assert script.replaced((script.ROOT / "README.md").read_text(), table).count(table) == 1


def test_make_bench_runs_commands_that_are_there():
    """Their options parse, and `only` names what there is; their folders are those the table is made from."""
    parsers = {"attention": parse_attention, "model": parse_model, "decode": parse_decode}
    script = load_script("bench_table")
    lines = (script.ROOT / "scripts" / "bench.sh").read_text().replace("$out", "docs/results/bench").splitlines()
    commands = [shlex.split(line)[2:] for line in lines if line.startswith("tsla bench ")]
    asked = [parsers[name](options) for name, *options in commands]
    assert [name for name, *_ in commands] == ["attention"] * 7 + ["model"] * 2 + ["decode"]
    names = [name for (kind, *_), one in zip(commands, asked, strict=True) if kind == "attention" for name in one.only]
    assert all(name in implementations() for name in names)
    assert {script.ROOT / one.out for one in asked} >= {script.FOLDER / name for name in FOLDERS}
