"""`tsla bench attention device=cuda`: its order of events, graphs, memory and words, on a GPU that is made up."""

import math
import shlex
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from script_files import load_script

import tsla.bench.peers
from tsla import cli
from tsla.bench import cuda
from tsla.bench.cases import CUDA, TAYLOR, Case, Implementation, Unavailable
from tsla.bench.gpu_peers import log_second_order
from tsla.bench.judge import checked, judge
from tsla.bench.options import parse_attention
from tsla.bench.peers import OURS, implementations, ours

from .conftest import read
from .fake_gpu import CARD, L2, FakeGPU, OnTheCPU

CASE = Case(d=4, e=6, heads=2, kv_heads=2, batch=1, length=40, causal=False, backward=True, device=CUDA)
COMMAND = ["bench", "attention", "device=cuda", "d=4", "e=6", "heads=2", "compile=", "seconds=0", "out=o"]

pytestmark = pytest.mark.usefixtures("few_rounds")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(cuda, "FEWEST", 2)
    monkeypatch.setattr(cuda, "MOST", 2)
    monkeypatch.setattr(cuda, "SIZE", 8)
    monkeypatch.setattr("tsla.ops.native.why_not", lambda *_: "device (cuda) must be cpu")
    made = FakeGPU(monkeypatch)
    made.tick = 1e-3
    with OnTheCPU():
        yield made


def test_without_a_gpu_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tsla.bench.attention.judge", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, why in ((None, "was built without CUDA"), ("13.0", "finds none")):
        monkeypatch.setattr(torch.version, "cuda", built)
        assert cli.main(COMMAND) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"device ('cuda') needs an NVIDIA GPU: torch {torch.__version__} {why}" in said
    assert list(tmp_path.iterdir()) == []


def test_types_by_device():
    assert parse_attention([]).input_type == "float32" and parse_attention(["device=cuda"]).input_type == "bfloat16"
    assert parse_attention(["device=cuda", "dtype=float16"]).input_type == "float16"
    assert parse_attention(["device=cuda", "dtype=float32"]).input_type == "float32"


# Time -----------------------------------------------------------------------------------------------------------------


def test_events_alone_are_timed_after_a_flush_each(gpu, monkeypatch):
    """The flush takes a hundred seconds and the host's clock runs wild: medians are of what the events say."""
    gpu.tick = 0.0

    def flush():
        gpu.log.append("flush")
        gpu.now += 100

    def call(name, *seconds):
        left = [*seconds]
        return lambda: gpu.log.append(name) or setattr(gpu, "now", gpu.now + left.pop(0))

    monkeypatch.setattr(cuda, "FEWEST", 4)
    monkeypatch.setattr(cuda, "MOST", 9)
    monkeypatch.setattr(cuda, "flusher", lambda: flush)
    warm = [50.0] * cuda.WARM_UP
    calls = {"a": call("a", *warm, 1.0, 2.0, 4.0, 8.0), "b": call("b", *warm, 3.0, 3.0, 3.0, 3.0)}
    found = cuda.interleaved(calls, seconds=0.5, clock=iter(range(0, 10**6, 1000)).__next__)
    assert found["a"] == pytest.approx((3, 1.75, 5, 4)) and found["b"] == pytest.approx((3, 3, 3, 4))
    one = ["flush", "event", "{}", "event"]
    turns = [word.format(name) for name in "abba" for word in one]
    assert gpu.log[:18] == [*turns[:8], "wait", *turns[8:], "wait"]
    assert gpu.log.count("flush") == 2 * (cuda.WARM_UP + 4)


def test_rounds_go_on_for_some_seconds_and_end(gpu):
    times = cuda.interleaved({"a": int}, seconds=math.inf, clock=lambda: 0.0)
    assert times["a"].rounds == cuda.MOST


def test_a_flush_writes_twice_the_cache(gpu):
    flush = cuda.flusher()
    flush.__self__.fill_(1)
    assert flush().numel() * flush().element_size() == 2 * L2 and not flush().any()


def test_a_graph_replays_the_call(gpu):
    x = torch.randn(5, 3).requires_grad_()
    runs = []

    def run():
        runs.append(1)
        out = x.tanh() @ x.mT
        return [out, *torch.autograd.grad(out, x, out.detach())]

    graph = cuda.capture(run, 1e-6)
    assert graph is not None and len(runs) == cuda.WARM_UP + 1
    steps = len(graph.steps)
    graph.replay()
    assert len(runs) == cuda.WARM_UP + 1 and steps >= 4 and gpu.log.count("replay") == 2


def test_what_cannot_be_captured_is_called(gpu):
    x = torch.randn(5)
    gpu.broken, stream = True, gpu.stream
    assert cuda.capture(lambda: [x * 2], 1e-6) is None and gpu.stream is stream
    gpu.broken = False
    drawn = iter(range(1, 99))
    assert cuda.capture(lambda: [x * next(drawn)], 1e-6) is None  # its replay gives something else
    assert cuda.capture(lambda: [x * 2], 1e-6) is not None
    assert cuda.capture(lambda: [torch.from_numpy((x * 2).numpy().copy())], 1e-6) is None  # its replay does nothing


def test_a_call_that_fails_is_no_failed_capture(gpu):
    def run():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cuda.capture(run, 1e-6)


def test_graphs_share_the_memory_of_the_first_that_lives(gpu):
    names = ("auto", "linear", "sdpa")
    found = judge(CASE, [implementations(CUDA)[name] for name in names], seconds=0, memory=False)
    assert [(one.by, one.extra_bytes) for one in found] == [("graph", None)] * 3
    assert gpu.pools == [None, id(gpu.graphs[0]), id(gpu.graphs[0])] and "empty" in gpu.log


# Memory ---------------------------------------------------------------------------------------------------------------


def test_memory_of_a_call_is_beyond_what_was_there_and_is_returned(gpu):
    gpu.allocated, gpu.peak = 1000, 99999

    def run():
        gpu.peak = 1000 + 700 + 4 * 50
        return [torch.zeros(50), torch.zeros(0)]

    assert cuda.extra_bytes(run) == 700
    assert cuda.extra_bytes(lambda: [torch.zeros(50)]) == 0  # never below


def test_what_would_not_fit_on_the_card_is_not_tried(gpu):
    gpu.allocated = 40
    assert cuda.free_bytes() == 2**30 + 100 - 40
    too_long = CASE._replace(length=6000)
    (found,) = judge(too_long, [implementations(CUDA)["direct"]], seconds=0, memory=True)
    assert found.problem.startswith("needs some") and found.time is None


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command(gpu, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    gpu.tick, gpu.replaying = 1e-5, 1e-5
    line = ["length=32,64", "dtype=float32", "long=64", "only=auto,linear,sdpa,sdpa-flash,fla-based"]
    assert cli.main([*COMMAND, *line]) == 0
    out = " ".join(capsys.readouterr().out.split())
    machine = f"{CARD.name} (compute capability 9.1, 24 GiB, 0 MiB of L2), torch {torch.__version__}, CUDA"
    assert machine in out and "torch's matmul in float32 (precision highest)" in out and "ours against ours" in out
    rows = read("o/attention.csv")
    assert len(rows) == 4 * 5 and {row["device"] for row in rows} == {"cuda"}
    timed = [row for row in rows if row["implementation"] in ("auto", "linear", "sdpa")]
    assert len(timed) == 12 and all(row["by"] == "graph" and row["problem"] == "" for row in timed)
    assert all(float(row["seconds"]) == pytest.approx(2e-5) and float(row["error"]) < 1e-5 for row in timed)
    untimed = {row["implementation"]: row["problem"] for row in rows if row not in timed}
    assert untimed == {"sdpa-flash": "FlashAttention takes float16 and bfloat16", "fla-based": "causal only"}
    page = Path("o/attention.md").read_text()
    assert "| MiB | by |" in page and "events on the GPU" in page and "fresh process" not in page
    assert "| 0.0200 ms [0.0200, 0.0200] |" in page and "| graph |" in page
    assert Path("o/attention.png").stat().st_size > 5000 and len(read("o/variants.csv")) == 10
    assert all(float(row["seconds"]) == pytest.approx(2e-5) for row in read("o/variants.csv"))


def test_what_is_called_says_so(gpu):
    gpu.broken = True
    (found,) = judge(CASE, [implementations(CUDA)["auto"]], seconds=0, memory=True)
    assert found.by == "calls" and found.time is not None and found.extra_bytes == 0


def test_the_yardstick_is_of_the_cards_size(gpu, monkeypatch):
    gpu.tick = 0.25
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: setattr(gpu, "now", gpu.now + 0.25) or multiply(a, b))
    (found,) = judge(CASE, [implementations(CUDA)["auto"]], seconds=0, memory=False)
    assert found.of_matmul == pytest.approx(found.rate / (cuda.MATMUL_OPERATIONS / 0.5))
    assert f"{cuda.MATMUL_OPERATIONS / 0.5e12:.1f} TFLOP/s" in cuda.described("bfloat16")


def test_an_error_of_one_kernel_is_not_that_of_the_run(gpu):
    def make(case):
        raise AssertionError

    broken = Implementation("broken", TAYLOR, make)
    found = judge(CASE, [broken, implementations(CUDA)["auto"]], seconds=0, memory=False)
    assert [one.problem for one in found] == ["AssertionError", ""]


def test_triton_is_told_where_it_is(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(cuda, "version", lambda name: {"triton": "3.9.0"}[name])
    assert cuda._triton() == "3.9.0"
    monkeypatch.setattr(cuda, "version", missing)
    assert cuda._triton() == "not installed"


# Peers ----------------------------------------------------------------------------------------------------------------


def test_peers_of_a_gpu():
    added = {"sdpa-flash", "flex", "fla-based", "triton"}
    assert set(implementations(CUDA)) == set(implementations()) | added
    assert ours() == OURS and "triton" not in implementations()
    assert ours(CUDA) == (*OURS, "triton")
    assert list(implementations(CUDA))[: len(OURS) + 1] == [*OURS, "triton"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "changed", [{}, {"causal": True}, {"kv_heads": 1, "batch": 2}, {"causal": True, "length": 150}], ids=str
)
def test_flex_attention_of_log_t2_is_taylor_attention(changed):
    case = CASE._replace(backward=False, device="cpu", **changed)
    assert checked(implementations(CUDA)["flex"], case).error < 1e-6


def test_flex_attention_is_compiled_on_a_gpu(gpu, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function.__name__) or function)
    implementations(CUDA)["flex"].make(CASE._replace(causal=True))
    assert compiled == ["flex_attention", "create_block_mask"]


def test_the_logarithm_of_the_polynomial_is_finite_with_its_slope():
    s = torch.tensor([-1e3, -1.0, 0.0, 2.0, 1e3], dtype=torch.float64, requires_grad=True)
    made = log_second_order(s, *[torch.tensor(0)] * 4)
    expected = [math.log(1 + x + x * x / 2) for x in s.tolist()]
    assert made.tolist() == pytest.approx(expected)
    (slope,) = torch.autograd.grad(made.sum(), s)
    assert slope.tolist() == pytest.approx([(1 + x) / (1 + x + x * x / 2) for x in s.tolist()])


def test_flash_attention_is_forced(monkeypatch):
    from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

    found = []
    right = tsla.bench.peers.scaled_dot_product_attention

    def watched(*inputs, **options):
        found.append(_cur_sdpa_kernel_backends())
        return right(*inputs, **options)

    monkeypatch.setattr(tsla.bench.peers, "scaled_dot_product_attention", watched)
    case = CASE._replace(dtype="bfloat16", device="cpu", causal=True, kv_heads=1)
    assert checked(implementations(CUDA)["sdpa-flash"], case).error < 5e-2
    assert set(map(tuple, found)) == {(SDPBackend.FLASH_ATTENTION,)}


def test_based_is_turned_round_and_says_what_it_lacks(monkeypatch):
    make = implementations(CUDA)["fla-based"].make
    with pytest.raises(Unavailable, match=r"d \(129\) must be at most 128"):
        make(CASE._replace(causal=True, d=129))
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(Unavailable, match="not installed: pip install flash-linear-attention"):
        make(CASE._replace(causal=True))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_based_by_its_formula(monkeypatch, kv_heads):
    """A stand-in for the kernel, which needs Triton: tensors (b, n, h, d), weights 1 + s + s^2 / 2 of s = scale q.k."""

    def parallel_based(q, k, v, scale=None, use_norm=False):
        assert q.shape[2] == k.shape[2] == 2 and use_norm
        s = torch.einsum("bihd,bjhd->bhij", q, k) * scale
        weights = (1 + s + s * s / 2).tril()
        return torch.einsum("bhij,bjhe->bihe", weights / (weights.sum(-1, keepdim=True) + 1e-6), v)

    stand_in = type("based", (), {"parallel_based": staticmethod(parallel_based)})
    for name in ("fla", "fla.ops", "fla.ops.based"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    case = CASE._replace(causal=True, device="cpu", kv_heads=kv_heads)
    assert checked(implementations(CUDA)["fla-based"], case).error < 1e-5


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("causal", [False, True])
def test_on_a_gpu(causal, monkeypatch):
    """Whoever is there is right, and ours are replayed as graphs."""
    monkeypatch.undo()  # the compiler of FlexAttention makes memory by torch.empty as well
    case = Case(16, 64, 4, 4, 1, 512, causal, True, "bfloat16", CUDA)
    found = {one.name: one for one in judge(case, [*implementations(CUDA).values()], seconds=0, memory=True)}
    assert not [one for one in found.values() if one.problem.startswith("wrong")]
    for name in ("auto", "linear", "direct", "sdpa", "sdpa-flash", "flex"):
        assert found[name].problem == "" and found[name].time.median > 0 and found[name].extra_bytes > 0, name
    assert found["auto"].by == "graph"


def test_the_commands_of_the_sweep():
    """Their options parse, `only` names what there is, and no two write to the same folder."""
    text = (load_script("bench_table").ROOT / "scripts" / "bench_gpu.sh").read_text().replace("$out", "o")
    assert text.count("in bfloat16 float16 float32; do\n") == text.count("\nfor ") == 3
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("tsla bench ")]
    each = [line.replace("$dtype", dtype) for line in lines for dtype in ("bfloat16", "float16", "float32")]
    asked = [parse_attention(shlex.split(line)[3:]) for line in dict.fromkeys(each)]
    assert len(asked) == 3 * 3 + 4 and all(one.device == CUDA for one in asked)
    assert all(name in implementations(CUDA) for one in asked for name in one.only)
    assert len({one.out for one in asked}) == len(asked)
    assert max(max(one.length) for one in asked) == 2**20 and all(one.causal == (False, True) for one in asked)
