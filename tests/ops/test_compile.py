"""torch.compile and torch.export give what eager gives, each as one graph."""

import pytest
import torch
from cases import agree, qkv, some_decay, some_mask
from torch._dynamo.backends.debugging import aot_eager
from torch.export import Dim

from tsla import (
    Encoder,
    FourierAttention,
    ScatterbrainAttention,
    SequenceClassifier,
    TaylorAttention,
    TaylorShiftAttention,
    TokenShift,
)
from tsla.models import TokenClassifier
from tsla.ops import fourier_attention, linear_attention, measured, taylor_attention, window_attention

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # the compiler's, about itself and the caches and leaves it comes across
]
LINEAR = [{}, {"decayed": True}, {"center": "mean"}, {"coefficients": (1.0, 0.5, 0.7)}, {"order": 4}]
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def inputs(decayed):
    return qkv(n=20, dtype=torch.float32) | ({"log_decay": some_decay(4, dtype=torch.float32)} if decayed else {})


def same_when_compiled(run, x, **options):
    agree(torch.compile(run, **options), run, x, 1e-5)


@CAUSAL
@pytest.mark.parametrize("decayed", [False, True])
def test_direct_form_is_one_graph(decayed, causal):
    mask = some_mask(2, 20)
    options = {"causal": causal, "key_mask": mask, "impl": "direct", "return_state": False}
    same_when_compiled(lambda **x: taylor_attention(**x, **options).output, inputs(decayed), fullgraph=True)


@pytest.mark.parametrize(("crossover", "table"), [(None, False), (None, True), (30.0, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "torch"])
def test_auto_that_takes_the_direct_form_is_one_graph(crossover, table, dtype, tmp_path, monkeypatch):
    """The table is read while the graph is made, and leaves a number in it."""
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path))
    if table:
        entries = (measured.Measured(3, 5, 4, False, True, 50, 70, 60.0),)
        found = measured.Table("2026-11-22", entries)
        text = measured.render({measured.this_machine(native=native): found for native in (False, True)})
        measured.table_file().write_text(text)
    measured.forget()
    n = 50 if table else 6  # by counts the linear form begins at 9
    x = qkv(n=n, dtype=dtype)
    same_when_compiled(lambda **x: taylor_attention(**x, crossover=crossover).output, x, fullgraph=True)
    measured.forget()


@CAUSAL
def test_window_is_one_graph(causal):
    mask = some_mask(2, 20)
    same_when_compiled(
        lambda **x: window_attention(**x, window=3, causal=causal, key_mask=mask), inputs(False), fullgraph=True
    )


@CAUSAL
def test_fourier_is_one_graph(causal):
    mask, x = some_mask(2, 20), inputs(False) | {"radius": torch.tensor([0.7, 1.0, 1.6])}
    same_when_compiled(lambda **x: fourier_attention(**x, causal=causal, key_mask=mask), x, fullgraph=True)


@pytest.mark.parametrize(
    "options",
    [{"map": "favor"}, {"map": "hedgehog", "causal": True}, {"support": "lsh", "cluster": 7}],
    ids=str,
)
def test_hybrids_compile_for_any_batch_and_length(options):
    """As `trainer.compile=true` compiles models: sizes are symbols, and there may be no block beside the first."""
    layer = ScatterbrainAttention(16, heads=4, kv_heads=2, **options)
    run = torch.compile(layer, dynamic=True, backend="inductor")
    for b, n in ((2, 64), (3, 40), (2, 200)):
        agree(lambda x: run(x), lambda x: layer(x), {"x": torch.randn(b, n, 16)}, 1e-5)


@CAUSAL
@pytest.mark.parametrize("options", LINEAR, ids=str)
def test_linear_form_is_one_graph(options, causal):
    """State and all; the chunks of the scan are unrolled, so these are few."""
    decayed, options = "decayed" in options, {k: v for k, v in options.items() if k != "decayed"}
    options |= {"causal": causal, "impl": "linear", "chunk_size": 8, "key_mask": some_mask(2, 20)}
    same_when_compiled(
        lambda **x: taylor_attention(**x, **options), inputs(decayed), fullgraph=True, backend="aot_eager"
    )


@CAUSAL
def test_linear_form_through_the_code_generator(causal):
    options = {"causal": causal, "impl": "linear", "chunk_size": 8, "key_mask": some_mask(2, 16), "center": "mean"}
    same_when_compiled(lambda **x: taylor_attention(**x, **options), qkv(n=16, dtype=torch.float32), fullgraph=True)


@CAUSAL
@pytest.mark.parametrize("impl", ["direct", "linear"])
def test_layers_are_one_graph(impl, causal):
    for layer in (
        TaylorAttention(16, heads=4, impl=impl, causal=causal, rotary=True, gate=True, decay="selective"),
        TaylorShiftAttention(16, heads=4, impl=impl, causal=causal),
        TokenShift(TaylorAttention(16, heads=4, kv_heads=1, order=4, head_dim=3, impl=impl, causal=causal)),
    ):
        mask = some_mask(2, 20)
        run = lambda x, f=layer, m=mask: f(x, mask=m)  # noqa: E731
        same_when_compiled(run, {"x": torch.randn(2, 20, 16)}, fullgraph=True, backend="aot_eager")


@CAUSAL
@pytest.mark.parametrize("impl", ["direct", "linear"])
@pytest.mark.parametrize("options", [{}, {"center": "mean", "decay": "selective"}], ids=["plain", "centre, decay"])
def test_export(options, impl, causal):
    """As one graph for any batch; for any length too in the direct form. The linear form's chunks are unrolled."""
    layer = TaylorAttention(16, heads=4, impl=impl, causal=causal, rotary=True, **options).eval()
    exported(layer, any_batch := {0: Dim.DYNAMIC}, (5, 20))
    if not options:
        exported(FourierAttention(16, heads=4, causal=causal).eval(), {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, (5, 33))
    exported(TaylorShiftAttention(16, heads=4, impl=impl, causal=causal).eval(), any_batch, (5, 20))
    if impl == "direct" and not options:  # the mean of the keys so far is a scan too
        exported(layer, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, (5, 33))


class Given(torch.nn.Module):
    """`linear_attention` of a layer's input as it is."""

    def forward(self, x, mask):
        heads = x.unflatten(-1, (4, 4)).transpose(1, 2)
        return linear_attention(heads, heads, heads, causal=True, key_mask=mask, floor=1.0, impl="linear").output


@pytest.mark.parametrize("length", [20, 150])
def test_given_features_export_for_any_batch(length):
    """How many chunks a step takes depends on the batch, but not in a graph."""
    x, mask = torch.randn(2, length, 16), some_mask(2, length)
    free = {0: Dim.DYNAMIC}
    graph = torch.export.export(Given(), (x, mask), dynamic_shapes={"x": free, "mask": free}).module()
    for rows in (1, 2, 300):
        x, mask = torch.randn(rows, length, 16), some_mask(rows, length)
        torch.testing.assert_close(graph(x, mask), Given()(x, mask), rtol=1e-4, atol=1e-4)


def test_export_of_a_model():
    model = SequenceClassifier(Encoder(vocab_size=11, dim=16, depth=2, heads=2, positions="rotary"), num_classes=3)
    tokens = torch.randint(11, (2, 20))
    graph = torch.export.export(model.eval(), (tokens,)).module()
    torch.testing.assert_close(graph(tokens), model(tokens))


@pytest.mark.parametrize("tokens", [False, True], ids=["rows, bidirectional", "tokens, causal"])
@pytest.mark.parametrize("impl", ["direct", "linear"])
def test_a_step_in_bf16_is_one_graph(impl, tokens):
    """As training runs it: padding, several lengths, the logits of some tokens; constants are in the graph already."""
    encoder = Encoder(
        vocab_size=11, dim=16, depth=1, causal=tokens, positions="sinusoidal",
        mixer=lambda _: TaylorAttention(16, heads=2, head_dim=8, causal=tokens, impl=impl),
    )  # fmt: skip
    model = (TokenClassifier if tokens else SequenceClassifier)(encoder, num_classes=3)
    run, graphs = model.run, []

    def backend(graph, examples):
        graphs.append(graph)
        return aot_eager(graph, examples)

    compiled = torch.compile(run, dynamic=True, fullgraph=True, backend=backend)
    for length in (20, 30):
        inputs = [torch.randint(11, (3, length)), some_mask(3, length)]
        inputs += [torch.tensor([1, 7, 30, 31])] if tokens else []
        found = []
        for made in (compiled, run):
            with torch.autocast("cpu", torch.bfloat16):
                logits, _ = made(*inputs)
            assert logits.dtype == torch.bfloat16
            found.append((logits, *torch.autograd.grad(logits.float().square().sum(), list(model.parameters()))))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=3e-2, atol=3e-2)
    for graph in graphs:
        calls = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
        assert not any("torch.tensor" in call or "built-in method tensor" in call for call in calls)


def exported(layer, free, shape):
    """The graph of a layer for x and mask with some dimensions left free gives what the layer gives."""
    x, mask = torch.randn(2, 20, 16), some_mask(2, 20)
    graph = torch.export.export(layer, (x,), {"mask": mask}, dynamic_shapes={"x": free, "mask": free}).module()
    for other, real in ((x, mask), (torch.randn(*shape, 16), some_mask(*shape))):
        torch.testing.assert_close(graph(other, mask=real), layer(other, mask=real))
