"""torch.compile gives what eager gives: one graph for the direct form and windows, several for the linear form."""

import pytest
import torch
from cases import agree, qkv, some_decay, some_mask

from tsla.ops import measured, taylor_attention, window_attention

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # the compiler's, about itself and the caches and leaves it comes across
]
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
def test_auto_that_takes_the_direct_form_is_one_graph(crossover, table, tmp_path, monkeypatch):
    """The table is read while the graph is made, and leaves a number in it."""
    monkeypatch.setenv("TSLA_CACHE", str(tmp_path))
    if table:
        entries = (measured.Measured(3, 5, 4, False, True, 50, 70, 60.0),)
        text = measured.render({measured.this_machine(): measured.Table("2026-11-22", entries)})
        measured.table_file().write_text(text)
    measured.forget()
    n = 50 if table else 6  # by counts the linear form begins at 9
    x = qkv(n=n, dtype=torch.float32)
    same_when_compiled(lambda **x: taylor_attention(**x, crossover=crossover).output, x, fullgraph=True)
    measured.forget()


@CAUSAL
def test_window_is_one_graph(causal):
    mask = some_mask(2, 20)
    same_when_compiled(
        lambda **x: window_attention(**x, window=3, causal=causal, key_mask=mask), inputs(False), fullgraph=True
    )


@CAUSAL
@pytest.mark.parametrize("decayed", [False, True])
def test_linear_form_falls_back_where_it_must(decayed, causal):
    """Its table of coefficients cannot be traced, so its passes run as they are; hence no code generator here."""
    options = {"causal": causal, "impl": "linear", "chunk_size": 8}
    same_when_compiled(lambda **x: taylor_attention(**x, **options), inputs(decayed), backend="aot_eager")
