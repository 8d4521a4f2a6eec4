"""Exact weights in a window and kernel weights beyond it: against the dense formula, at both ends, and its cost."""

import oracle
import pytest
import torch
from cases import Largest, agree, error, qkv, some_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import tsla.ops.window_kernel
from tsla.ops import KernelState, linear_attention, window_kernel_attention
from tsla.ops.window_kernel import _cut

CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
RELATIVE = pytest.mark.parametrize("relative", [False, True], ids=["own scale", "relative"])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tsla.ops.window_kernel, "BLOCK", 4)


def inputs(f=7, m=None, dtype=torch.float64, **sizes):
    """q, k, v, features that are above 0, and a scale for each query."""
    x = qkv(m=m, dtype=dtype, **sizes)
    for name, of in (("fq", "q"), ("fk", "k")):
        x[name] = torch.rand(*x[of].shape[:3], f, dtype=dtype) + 0.1
    return x | {"log_scale": torch.randn(x["q"].shape[:3], dtype=dtype)}


def dense(q, k, v, fq, fk, log_scale, *, window, causal=False, relative=False, key_mask=None, scale=None):
    """`oracle.dense_hybrid` with a window for its support, the queries the last of the keys."""
    n, m = q.shape[2], k.shape[2]
    gap = torch.arange(m - n, m)[:, None] - torch.arange(m)
    support = (gap.abs() <= window).expand(*q.shape[:3], m)
    options = {"support": support, "causal": causal, "key_mask": key_mask, "scale": scale}
    if not relative:
        return oracle.dense_hybrid(q, k, v, fq, fk, log_scale=log_scale, **options)
    fq = fq * log_scale.exp()[..., None]  # against the largest score
    return oracle.dense_hybrid(q, k, v, fq, fk, gamma=torch.ones(q.shape[1], dtype=q.dtype), **options)


@RELATIVE
@CAUSAL
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 63, 65, 111])
def test_equals_the_formula(n, masked, causal, relative, small_blocks):
    x, mask = inputs(b=3, n=n), some_mask(3, n) if masked else None
    for window in sorted({-1, 0, 1, 5, 40, max(n - 2, 0), n + 40}):
        options = {"window": window, "causal": causal, "key_mask": mask, "relative": relative}
        agree(
            lambda options=options, **y: window_kernel_attention(**y, **options),
            lambda options=options, **y: dense(**y, **options),
            x,
        )


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_arguments(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    g, r, b, n = (draw(st.integers(1, high)) for high in (2, 3, 3, 300))
    sizes = {"d": draw(st.integers(1, 4)), "e": draw(st.integers(1, 5)), "f": draw(st.integers(1, 6))}
    options = {
        "window": draw(st.integers(-1, 90)), "causal": draw(st.booleans()), "relative": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.0, -0.7, 1.5])),
        "key_mask": some_mask(b, n) if draw(st.booleans()) else None,
    }  # fmt: skip
    agree(
        lambda **y: window_kernel_attention(**y, **options), lambda **y: dense(**y, **options),
        inputs(b=b, h=g * r, g=g, n=n, **sizes),
    )  # fmt: skip


@CAUSAL
@RELATIVE
def test_gradcheck(causal, relative):
    x = inputs(b=1, h=2, g=1, n=5, d=2, e=2, f=2)
    leaves = [y.requires_grad_() for y in x.values()]
    mask = torch.tensor([[False, True, True, False, True]])

    def run(q, k, v, fq, fk, log_scale):
        return window_kernel_attention(
            q, k, v, fq, fk, window=1, causal=causal, log_scale=log_scale, relative=relative, key_mask=mask
        )

    assert torch.autograd.gradcheck(run, leaves)


@CAUSAL
@RELATIVE
def test_a_window_over_everything_is_softmax_whatever_the_features(causal, relative):
    x = inputs(n=150)
    out = window_kernel_attention(**x, window=149, causal=causal, relative=relative)
    assert_close(out, oracle.dense_window(x["q"], x["k"], x["v"], window=149, causal=causal), **EXACT)


@CAUSAL
def test_a_window_of_nothing_is_the_kernel_whatever_its_scale(causal):
    x = inputs(n=150)
    expected = linear_attention(x["fq"], x["fk"], x["v"], causal=causal, eps=0.0).output
    for log_scale in (None, x["log_scale"], x["log_scale"] * 1e6):
        out = window_kernel_attention(**x | {"log_scale": log_scale}, window=-1, causal=causal)
        assert_close(out, expected, **EXACT)


@pytest.mark.parametrize(("n", "m", "window"), [(1, 6, 5), (9, 12, 5), (9, 14, 5), (3, 3, 0), (7, 10, 100)])
def test_the_queries_may_be_the_last_of_the_keys(n, m, window, small_blocks):
    x, mask = inputs(b=3, n=n, m=m), some_mask(3, m)
    options = {"window": window, "causal": True, "key_mask": mask}
    agree(lambda **y: window_kernel_attention(**y, **options), lambda **y: dense(**y, **options), x)


def test_a_state_is_what_came_before(small_blocks):
    """Keys before the run, further back than any window reaches, are their sums."""
    x, early, window = inputs(n=30), 10, 3
    whole = window_kernel_attention(**x, window=window, causal=True)
    sums = linear_attention(
        x["fk"][:, :, :0], x["fk"][:, :, :early], x["v"][:, :, :early], return_state=True
    ).state  # fmt: skip
    own = {name: y[:, :, early + (window if name in ("q", "fq", "log_scale") else 0) :] for name, y in x.items()}
    out = window_kernel_attention(**own, window=window, causal=True, state=sums)
    assert_close(out, whole[:, :, early + window :], **EXACT)


@pytest.mark.parametrize("place", [0, 3, 4, 20, 49])
def test_a_later_key_however_large_reaches_no_earlier_output(place, small_blocks):
    x = inputs(n=50, dtype=torch.float32)
    before = window_kernel_attention(**x, window=3, causal=True)
    for name in x:
        x[name][:, :, place:] = x[name][:, :, place:] * 1e18 if name != "log_scale" else 80.0
    after = window_kernel_attention(**x, window=3, causal=True)
    assert torch.equal(after[:, :, :place], before[:, :, :place])


@CAUSAL
@RELATIVE
@pytest.mark.parametrize("log_scale", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_weights_of_any_size(log_scale, causal, relative):
    """Scores of thousands beside kernel weights of any scale: finite, and near float64's."""
    x = inputs(n=150, d=16)
    x["q"], x["k"], x["log_scale"] = x["q"] * 25, x["k"] * 25, x["log_scale"] + log_scale
    exact = window_kernel_attention(**x, window=4, causal=causal, relative=relative)
    low = {name: y.float().requires_grad_() for name, y in x.items()}
    out = window_kernel_attention(**low, window=4, causal=causal, relative=relative)
    out.square().sum().backward()
    assert error(out.detach(), exact) < 1e-3 and all(y.grad.isfinite().all() for y in low.values())


def test_features_of_next_to_nothing_count_as_none():
    x = inputs(n=100, dtype=torch.float32)
    x["fq"], x["fk"] = x["fq"] * 1e-22, (x["fk"] * 1e-22).requires_grad_()
    out = window_kernel_attention(**x, window=2)
    out.sum().backward()
    assert_close(out, oracle.dense_window(x["q"], x["k"], x["v"], window=2), rtol=1e-5, atol=1e-5)
    assert x["fk"].grad.isfinite().all()


@CAUSAL
def test_what_a_masked_key_holds_and_a_row_that_sees_nothing(causal):
    x, mask = inputs(b=3, n=100, dtype=torch.float32), torch.rand(3, 100) < 0.7
    mask[0], mask[1, :20] = False, False
    clean = window_kernel_attention(**x, window=2, causal=causal, key_mask=mask)
    assert (clean[0] == 0).all() and (not causal or (clean[1, :, :20] == 0).all())
    for bad in (torch.nan, torch.inf):
        y = {name: t.clone() for name, t in x.items()}
        for name in ("k", "v", "fk"):
            y[name].masked_fill_(~mask[:, None, :, None], bad)
        leaves = {name: t.requires_grad_() for name, t in y.items()}
        out = window_kernel_attention(**leaves, window=2, causal=causal, key_mask=mask)
        out.sum().backward()
        assert torch.equal(out, clean)
        assert all(t.grad.isfinite().all() for t in leaves.values())


@CAUSAL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_comes_in_and_goes_out_only(dtype, causal):
    x = inputs(n=200, dtype=dtype)
    out = window_kernel_attention(**x, window=5, causal=causal)
    exact = window_kernel_attention(**{name: y.double() for name, y in x.items()}, window=5, causal=causal)
    assert out.dtype == dtype and error(out, exact) <= torch.finfo(dtype).eps


@CAUSAL
def test_nothing_grows_with_the_square_of_the_length_or_holds_n_states(causal):
    n, f, e, window = 2048, 64, 16, 15
    x = inputs(b=1, h=1, g=1, n=n, d=8, e=e, f=f, dtype=torch.float32)
    with Largest() as made:
        window_kernel_attention(**x, window=window, causal=causal)
    assert made.numel <= max(n * (64 + 2 * window), n * f * (e + 1) // 32)


@CAUSAL
def test_no_tokens_rows_or_values(causal):
    for empty in ("n", "b", "e"):
        x = inputs(**{"b": 2, "h": 4, "e": 5, "n": 7} | {empty: 0})
        out = window_kernel_attention(**x, window=2, causal=causal)
        assert out.shape == (*x["q"].shape[:3], x["v"].shape[-1]) and out.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"window": -2}, r"window \(-2\) must be at least -1"),
        ({"fq": (2, 4, 8, 7)}, {}, r"fq must have the batch, heads and length of q \(2, 4, 9\), got \(2, 4, 8\)"),
        ({"fk": (2, 4, 9, 7)}, {}, r"v must have the heads and length of k \(4, 9\), got \(2, 9\)"),
        ({"fk": (2, 2, 9, 6)}, {}, r"k \(6\) must be as wide as q \(7\)"),
        ({"log_scale": (4,)}, {}, r"log_scale must have shape \(2, 4, 9\), got \(4,\)"),
        ({"q": (2, 4, 8, 3), "fq": (2, 4, 8, 7), "log_scale": (2, 4, 8)}, {},
         r"window attention needs as many keys \(9\) as queries \(8\)$"),
        ({"q": (2, 4, 6, 3), "fq": (2, 4, 6, 7), "log_scale": (2, 4, 6)}, {"causal": True},
         r"window attention needs as many keys \(9\) as queries \(6\), or up to the window \(2\) more"),
        ({}, {"state": (2, 2, 7, 5)}, r"state needs causal=True: "),
        ({}, {"state": (2, 2, 6, 5), "causal": True}, r"state\.kv must have shape \(2, 2, 7, 5\), got \(2, 2, 6, 5\)"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(change, options, message):
    x = inputs() | {name: torch.ones(shape) for name, shape in change.items()}
    if "state" in options:
        kv = torch.zeros(options["state"])
        options = options | {"state": KernelState(kv, kv[..., 0], torch.zeros(2))}
    with pytest.raises(ValueError, match=f"^{message}"):
        window_kernel_attention(**x, **{"window": 2} | options)


def test_blocks_are_cut_only_where_that_spares_pairs():
    """Of short inputs blocks and the stretches they reach would have more pairs than there are."""
    for n, causal, many in ((100, False, 1), (129, False, 1), (400, False, 7), (129, True, 1), (400, True, 7)):
        assert _cut(n, n, 32, causal).many == many
