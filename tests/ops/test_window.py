"""Windowed softmax against the oracle and against the field's own package."""

import oracle
import pytest
import torch
from cases import Largest, agree, qkv, results, some_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

import tsla.ops.window
from tsla.ops import window_attention

CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
LENGTHS = (1, 2, 3, 63, 64, 65, 111, 257)


@CAUSAL
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_every_kind_of_window_equals_the_formula(n, masked, causal):
    x, mask = qkv(b=3, n=n), some_mask(3, n) if masked else None
    for window in sorted({0, 1, 5, 16, 17, max(n - 2, 0), n - 1, n, n + 40}):
        options = {"window": window, "causal": causal, "key_mask": mask}
        agree(
            lambda options=options, **y: window_attention(**y, **options),
            lambda options=options, **y: oracle.dense_window(**y, **options),
            x,
        )


@CAUSAL
@pytest.mark.parametrize("window", [0, 1, 5, 40])
def test_loops(window, causal):
    options = {"window": window, "causal": causal, "key_mask": some_mask(2, 20), "scale": 0.3}
    agree(lambda **y: window_attention(**y, **options), lambda **y: oracle.window(**y, **options), qkv(n=20))


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_arguments(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    g, r, b, n = (draw(st.integers(1, high)) for high in (2, 3, 3, 60))
    x = qkv(b=b, h=g * r, g=g, n=n, d=draw(st.integers(1, 4)), e=draw(st.integers(1, 5)))
    options = {
        "window": draw(st.integers(0, n + 5)), "causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.0, -0.7, 1.5])),
        "key_mask": some_mask(b, n) if draw(st.booleans()) else None,
    }  # fmt: skip
    agree(lambda **y: window_attention(**y, **options), lambda **y: oracle.dense_window(**y, **options), x)


@CAUSAL
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [1, 4, 10])
def test_a_package_of_the_field(window, masked, causal):
    """local-attention takes whole windows; a row that sees no key is a plain average there, so none does here."""
    package = pytest.importorskip("local_attention")
    x, mask = qkv(h=4, g=4, n=40, d=6, e=6), None
    if masked:
        mask = some_mask(2, 40)
        mask |= (torch.arange(40) % window == 0) | (torch.arange(40) == 0)
        mask = mask if window > 1 else torch.ones_like(mask)
    theirs = package.LocalAttention(window, causal=causal, exact_windowsize=True, use_rotary_pos_emb=False)
    got, gradients = results(lambda **y: window_attention(**y, window=window, causal=causal, key_mask=mask), x)
    expected, their_gradients = results(lambda **y: theirs(**y, mask=mask), x)
    assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert_close(gradients, their_gradients, rtol=1e-9, atol=1e-9)


@CAUSAL
def test_gradcheck(causal):
    x = [t.requires_grad_() for t in qkv(b=1, h=2, g=1, n=5, d=2, e=3).values()]
    mask = torch.tensor([[False, True, True, False, True]])
    assert torch.autograd.gradcheck(lambda *y: window_attention(*y, window=2, causal=causal, key_mask=mask), x)


@CAUSAL
@pytest.mark.parametrize("window", [0, 3])
def test_nothing_beyond_the_window_is_seen(window, causal):
    """Changing one key changes the outputs of the rows that see it, and no others."""
    x = qkv(n=50, dtype=torch.float32)
    before = window_attention(**x, window=window, causal=causal)
    for name in "kv":
        x[name][:, :, 20] += 10
    changed = (window_attention(**x, window=window, causal=causal) != before).any(-1)
    expected = torch.zeros(50, dtype=torch.bool)
    expected[20 if causal else 20 - window : 21 + window] = True
    assert (changed == expected).all()


@CAUSAL
def test_no_backend_is_asked_for_a_softmax_over_nothing(causal, monkeypatch):
    """Some return NaN for it, and NaN gradients for rows that are erased afterwards."""
    visible = []

    def attention(*args, attn_mask, **options):
        visible.append(attn_mask)
        return scaled_dot_product_attention(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(tsla.ops.window, "scaled_dot_product_attention", attention)
    window_attention(**qkv(b=3, n=20), window=2, causal=causal, key_mask=some_mask(3, 20))
    assert len(visible) == 1 and visible[0].any(-1).all()


def test_a_window_beyond_the_sequence_costs_no_more():
    x = qkv(b=1, h=1, g=1, n=20)
    with Largest() as made:
        window_attention(**x, window=10**6)
    assert made.numel <= 3 * 20 * 20


@CAUSAL
def test_no_tokens_rows_or_heads(causal):
    for empty in ("n", "b", "h", "e"):
        x = qkv(**{"b": 2, "h": 4, "e": 5, "n": 7} | {empty: 0})
        out = window_attention(**x, window=2, causal=causal)
        assert out.shape == (*x["q"].shape[:3], x["v"].shape[-1])
        assert out.dtype == torch.float64
