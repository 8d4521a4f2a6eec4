"""FourierFormer's attention against its formula, where weights underflow and slopes cancel, and what it costs."""

import re

import oracle
import pytest
import torch
from cases import Largest, agree, error, qkv, results, some_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softmax
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import tsla.ops.fourier
import tsla.ops.sinc
from tsla.ops import fourier_attention
from tsla.ops.sinc import GAP

CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
LENGTHS = (1, 2, 3, 63, 64, 65)


def inputs(radius=(0.7, 1.0, 1.6), **sizes):
    return {**qkv(**sizes), "radius": torch.tensor(radius, dtype=sizes.get("dtype", torch.float64))}


def plain(q, k, v, radius, power=4):
    """The formula of logarithms, straight through autograd in the type of what comes in."""
    sinc = torch.sinc(radius * (q[:, :, :, None] - k[:, :, None]) / torch.pi)
    return softmax((sinc.square() + 1e-12).log().sum(-1) * (power / 2), dim=-1) @ v


def products(q, k, power=4):
    """Weights as products of sinc, without an addition and without logarithms."""
    return torch.sinc((q[:, :, :, None] - k[:, :, None]) / torch.pi).prod(-1) ** power


# --- the formula ---


@CAUSAL
@pytest.mark.parametrize("power", [2, 4, 6])
@pytest.mark.parametrize("radius", [(1.3,), (0.7, 1.0, 1.6)], ids=["one radius", "radii"])
def test_loops(radius, power, causal):
    for mask in (None, some_mask(3, 6)):
        options = {"power": power, "causal": causal, "key_mask": mask}
        x = inputs(radius, b=3, n=4, m=6, h=2, g=1)
        agree(
            lambda options=options, **y: fourier_attention(**y, **options),
            lambda options=options, **y: oracle.fourier(**y, **options), x, 1e-8,
        )  # fmt: skip
        assert_close(oracle.dense_fourier(**x, **options), oracle.fourier(**x, **options), rtol=1e-10, atol=1e-10)


@CAUSAL
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_in_tiles_of_every_size(n, masked, causal, monkeypatch):
    x, mask = inputs(b=3, n=n), some_mask(3, n) if masked else None
    for pairs in (5 * n, 7 * n * n):
        monkeypatch.setattr(tsla.ops.fourier, "CPU_TILE", pairs)
        options = {"causal": causal, "key_mask": mask}
        agree(
            lambda options=options, **y: fourier_attention(**y, **options),
            lambda options=options, **y: oracle.dense_fourier(**y, **options), x, 1e-8,
        )  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_arguments(data):
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    g, r, b, n, more, d = (
        draw(st.integers(low, high)) for low, high in ((1, 2), (1, 3), (1, 3), (1, 40), (0, 9), (1, 30))
    )
    radius = tuple(torch.rand(draw(st.sampled_from([1, d]))) * 2)
    x = inputs(radius, b=b, h=g * r, g=g, n=n, m=n + more, d=d, e=draw(st.integers(1, 5)))
    options = {
        "power": draw(st.sampled_from([2, 4, 8])), "causal": draw(st.booleans()),
        "key_mask": some_mask(b, n + more) if draw(st.booleans()) else None,
    }  # fmt: skip
    agree(lambda **y: fourier_attention(**y, **options), lambda **y: oracle.dense_fourier(**y, **options), x, 1e-7)


def test_the_product_of_sinc_is_what_the_logarithms_add_up_to():
    """Up to what they add to zeros of sinc, near which no pair is."""
    x = {name: y / 2 for name, y in qkv(g=4, n=30, d=8).items()}
    weights = products(x["q"], x["k"])
    got = fourier_attention(**x, radius=torch.ones((), dtype=torch.float64))
    assert_close(got, weights / weights.sum(-1, keepdim=True) @ x["v"], rtol=1e-8, atol=1e-8)


@CAUSAL
def test_gradcheck(causal):
    x = [t.requires_grad_() for t in inputs(b=1, h=2, g=1, n=4, m=5, d=3, e=2).values()]
    mask = torch.tensor([[False, True, True, False, True]])
    assert torch.autograd.gradcheck(
        lambda q, k, v, r: fourier_attention(q, k, v, radius=r, causal=causal, key_mask=mask), x
    )


def test_a_second_derivative_is_refused():
    x = {name: y.requires_grad_() for name, y in inputs().items()}
    with pytest.raises(RuntimeError, match=r"^fourier_attention has no second derivative$"):
        torch.autograd.grad(fourier_attention(**x).sum(), x["q"], create_graph=True)


@CAUSAL
def test_packed_rows(causal):
    x, bounds = inputs(b=1, n=12), torch.tensor([0, 5, 5, 6, 12])
    mask = some_mask(1, 12)

    def apart(radius, **y):
        parts = [
            fourier_attention(
                **{name: t[:, :, a:b] for name, t in y.items()}, radius=radius, causal=causal, key_mask=mask[:, a:b]
            )
            for a, b in ((0, 5), (5, 6), (6, 12))
        ]
        return torch.cat(parts, dim=2)

    agree(lambda **y: fourier_attention(**y, causal=causal, key_mask=mask, cu_seqlens=bounds), apart, x)


# --- masks and order ---


@CAUSAL
def test_masked_keys_are_as_good_as_absent(causal):
    """Whatever they hold; in outputs and in the gradients of all else."""
    x, mask = inputs(b=2, n=20), torch.arange(20) < 13
    for name in "kv":
        x[name][:, :, 13:] = torch.nan
        x[name][:, :, 14] = torch.inf
    x["q"] = x["q"][:, :, :13] if causal else x["q"]
    cut_short = {**x, "k": x["k"][:, :, :13], "v": x["v"][:, :, :13]}
    if causal:  # the masked keys first: queries are the last
        x |= {name: x[name].roll(7, 2) for name in "kv"}
        mask = mask.roll(7)
    got, gradients = results(lambda **y: fourier_attention(**y, causal=causal, key_mask=mask.expand(2, 20)), x)
    expected, others = results(lambda **y: fourier_attention(**y, causal=causal), cut_short)
    assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for name in "kv":
        real, hidden = gradients[name][:, :, mask], gradients[name][:, :, ~mask]
        assert_close(real, others[name], rtol=1e-10, atol=1e-10)
        assert (hidden == 0).all()
    for name in ("q", "radius"):
        assert_close(gradients[name], others[name], rtol=1e-10, atol=1e-10)


def test_a_row_without_keys_is_zero_and_has_finite_gradients():
    x, mask = inputs(b=2, n=6, dtype=torch.float32), torch.tensor([[False] * 6, [False] * 3 + [True] * 3])
    got, gradients = results(lambda **y: fourier_attention(**y, causal=True, key_mask=mask), x)
    assert (got["0"][0] == 0).all() and (got["0"][1, :, :3] == 0).all() and (got["0"][1, :, 3:] != 0).all()
    assert all(y.isfinite().all() for y in gradients.values())
    assert (gradients["q"][0] == 0).all() and (gradients["v"][0] == 0).all()


@pytest.mark.parametrize("pairs", [300, tsla.ops.fourier.CPU_TILE])
def test_later_keys_do_not_reach_earlier_outputs(pairs, monkeypatch):
    monkeypatch.setattr(tsla.ops.fourier, "CPU_TILE", pairs)
    x = inputs(n=60, m=70, dtype=torch.float32)
    before = fourier_attention(**x, causal=True)
    for name in "kv":
        x[name][:, :, 40:] = torch.randn_like(x[name][:, :, 40:])
    after = fourier_attention(**x, causal=True)
    assert torch.equal(after[:, :, :30], before[:, :, :30])  # the last of these is the 40th key
    assert (after[:, :, 31:] != before[:, :, 31:]).any(-1).all()


# --- numerics ---


@pytest.mark.parametrize("d", [1, 4, 16, 64])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("form", ["native", "torch"])
def test_float32_is_as_exact_as_the_plain_formula(d, offset, form, monkeypatch):
    """Errors of outputs and gradients are at most twice the plain formula's in float32, wherever queries and keys are.

    Of several draws together, since that of a single number, the radius, may be small by chance.
    """
    if form == "torch":
        monkeypatch.setattr(tsla.ops.sinc, "available", lambda name: False)
    found = {"ours": [], "theirs": [], "exact": []}
    for _ in range(8):
        x = inputs((1.7,), h=2, g=2, n=40, d=d, dtype=torch.float32)
        x |= {name: x[name] + offset for name in "qk"}
        wide = {name: y.double() for name, y in x.items()}
        for name, run in (("ours", fourier_attention), ("theirs", plain), ("exact", oracle.dense_fourier)):
            outputs, gradients = results(run, wide if name == "exact" else x)
            found[name].append(outputs | gradients)
    for name in found["exact"][0]:
        ours, theirs, exact = (torch.stack([draw[name] for draw in draws]) for draws in found.values())
        assert error(ours, exact) <= 2 * error(theirs, exact) + 1e-6, name


def test_equal_queries_and_keys_and_zeros_of_sinc_have_finite_gradients():
    for dtype in (torch.float32, torch.float64):
        x = inputs((1.0,), h=1, g=1, b=1, n=6, d=2, dtype=dtype)
        x["k"] = x["q"].clone()
        x["k"][0, 0, 1] += torch.pi
        x["k"][0, 0, 2] += torch.pi * torch.arange(1, 3)
        x["k"][0, 0, 3] = 1e12
        x["k"][0, 0, 4] = x["q"][0, 0, 4] + 1e-30
        got, gradients = results(fourier_attention, x)
        assert got["0"].isfinite().all() and all(y.isfinite().all() for y in gradients.values())
    same, v = torch.ones(1, 1, 5, 3), torch.randn(1, 1, 5, 2)
    _, gradients = results(fourier_attention, {"q": same, "k": same, "v": v, "radius": torch.ones(())})
    assert all((gradients[name] == 0).all() for name in ("q", "k", "radius"))


def test_a_key_at_the_floor_in_every_channel_is_still_a_key():
    """One logarithm serves several channels: their product must not come to 0."""
    for dtype, d in ((torch.float32, 16), (torch.float64, 70)):
        x = inputs((1.0,), b=1, h=1, g=1, n=3, m=1, d=d, dtype=dtype)
        x["k"] += 1e9
        assert_close(fourier_attention(**x), x["v"].expand(1, 1, 3, -1))


def wide(n, d):
    """Queries and keys of size 1, whose weights at R = 2 are far below what float32 holds if channels are many."""
    return inputs((2.0,), b=1, h=1, g=1, n=n, d=d, e=4, dtype=torch.float32)


def test_where_products_underflow_logarithms_do_not():
    x = wide(200, 64)
    assert (products(2 * x["q"], 2 * x["k"]).sum(-1) == 0).double().mean() > 0.9  # the trap
    exact = results(oracle.dense_fourier, {name: y.double() for name, y in x.items()})
    for got, true in zip(results(fourier_attention, x), exact, strict=True):
        for name, y in true.items():
            assert y.abs().max() > 1e-2 and error(got[name], y) < 1e-3, name


@pytest.mark.parametrize("d", [4, pytest.param(64, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_long_inputs_are_finite(d):
    x = wide(4096, d)
    got, gradients = results(fourier_attention, x)
    for y in (*got.values(), *gradients.values()):
        assert y.isfinite().all() and (y != 0).any(-1).double().mean() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    x = {name: y.to(dtype) for name, y in inputs(n=40).items()}
    got = fourier_attention(**x)
    assert got.dtype == dtype
    assert torch.equal(got, fourier_attention(**{name: y.float() for name, y in x.items()}).to(dtype))
    with torch.autocast("cpu", dtype):
        assert torch.equal(fourier_attention(**x), got)


def test_nothing_is_changed_and_nothing_varies():
    x = {name: y.requires_grad_() for name, y in inputs(n=30, dtype=torch.float32).items()}
    versions, before = [y._version for y in x.values()], [y.detach().clone() for y in x.values()]
    assert torch.equal(fourier_attention(**x), fourier_attention(**x))
    fourier_attention(**x).sum().backward()
    assert versions == [y._version for y in x.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, x.values(), strict=True))


# --- cost ---


def test_memory_is_linear(monkeypatch):
    """No tensor of a tile goes beyond its size, in either pass, and none of n^2 is kept for the second."""
    monkeypatch.setattr(tsla.ops.fourier, "CPU_TILE", 5000)
    for n, m in ((400, 300), (100, 900)):
        q, k, v = (torch.randn(4, length, 3) for length in (n, m, m))
        with Largest() as made:
            out = tsla.ops.fourier.run(q, k, v, torch.ones(3), None, 4, False)
            tsla.ops.fourier.run_backward(out, q, k, v, torch.ones(3), None, out, 4, False)
        assert made.numel <= 12 * (max(n, m) + GAP) < n * m


@CAUSAL
def test_what_is_kept_for_the_backward_pass_is_linear(causal):
    def kept(n):
        sizes = []
        x = {name: y.requires_grad_() for name, y in inputs(n=n).items()}
        with torch.autograd.graph.saved_tensors_hooks(lambda y: sizes.append(y.numel()) or y, lambda y: y):
            fourier_attention(**x, causal=causal)
        return sum(sizes)

    assert kept(200) < 2.1 * kept(100)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_are_counted(device):
    """Quadratic in the length, and of every channel: no row of a table shows it for free."""

    def counted(n, d=8, e=5, *, learns=False):
        q, k, v = (torch.randn(2, 3, n, width, device=device, requires_grad=learns) for width in (d, d, e))
        with FlopCounterMode(display=False) as counter:
            out = fourier_attention(q, k, v, radius=torch.ones((), device=device))
            if learns:
                out.sum().backward()
        return counter.get_total_flops()

    assert counted(64) == 2 * 3 * 64**2 * (10 * 8 + 2 * 5)
    assert counted(64, learns=True) == 2 * 3 * 64**2 * (10 * 8 + 2 * 5 + 47 * 8 + 4 * 5)
    assert counted(128, learns=True) == 4 * counted(64, learns=True)


@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
def test_the_operator_is_as_torch_wants_it():
    for mask in (None, some_mask(2, 7)):
        q, k, v = (torch.randn(4, n, 3, requires_grad=True) for n in (5, 7, 7))
        radius = torch.ones(3, requires_grad=True)
        found = torch.library.opcheck(torch.ops.tsla.fourier.default, (q, k, v, radius, mask, 4, True))
        assert set(found.values()) == {"SUCCESS"}


# --- arguments ---


@CAUSAL
def test_no_tokens_rows_or_heads(causal):
    for empty in ("n", "b", "h", "e"):
        x = inputs(**{"b": 2, "h": 4, "e": 5, "n": 7} | {empty: 0})
        got, gradients = results(lambda **y: fourier_attention(**y, causal=causal), x)
        assert got["0"].shape == (*x["q"].shape[:3], x["v"].shape[-1]) and got["0"].dtype == torch.float64
        assert all(y.isfinite().all() for y in gradients.values())
    assert (fourier_attention(**inputs(m=0)) == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power": 3}, "power (3) must be an even number of at least 2: odd ones give negative weights"),
        ({"power": 0}, "power (0) must be an even number of at least 2: odd ones give negative weights"),
        ({"power": 4.0}, "power (4.0) must be an even number of at least 2: odd ones give negative weights"),
        (
            {"radius": torch.ones(2)},
            "radius must be floating-point of shape (), (1,) or (3,), got torch.float32 of shape (2,)",
        ),
        (
            {"radius": torch.ones(3, dtype=torch.long)},
            "radius must be floating-point of shape (), (1,) or (3,), got torch.int64 of shape (3,)",
        ),
        ({"causal": True, "m": 8}, "causal attention needs as many keys (8) as queries (9), or more"),
        ({"g": 3}, "key/value heads (3) must divide query heads (4)"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(changes, message):
    sizes = {name: changes[name] for name in changes if name in "gm"}
    options = {name: changes[name] for name in changes if name not in "gm"}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fourier_attention(**{**inputs(**sizes), **options})
