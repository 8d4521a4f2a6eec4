"""Poly-attention, the op and the layer: formula, the field's package, low precision, masks and memory."""

import oracle
import pytest
import torch
from cases import Largest, agree, error, results, some_mask
from mechanisms import build, padding
from torch.testing import assert_close

from tsla.mixers import TaylorPolyAttention
from tsla.ops import taylor_attention, taylor_poly_attention

DIM, TINY, EXACT = 32, 1e-300, {"rtol": 1e-12, "atol": 1e-12}
NORMALIZE = pytest.mark.parametrize("normalize_first", [False, True])


def heads(n=9, g=4, d=3, e=5, m=None):
    m = n if m is None else m
    shapes = {"q1": (2, 4, n, d), "q2": (2, g, m, d), "q3": (2, g, m, d), "v": (2, g, m, e)}
    return {name: torch.randn(*shape, dtype=torch.float64) for name, shape in shapes.items()}


def theirs_of(package, *, include_pass1_mass, mask=None):
    """The package's function, only keys masked, as ours are; its `eps` is off, or next to it where it saves 0 / 0."""
    return lambda q1, q2, q3, v: package.taylor_series_poly_attention(
        q1, q2, q3, v, include_pass1_mass=include_pass1_mass, context_mask=mask, eps=0.0 if mask is None else TINY
    )


@NORMALIZE
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("order", [0, 2, 4])
def test_the_matrices_of_the_oracle_equal_its_loops(order, masked, normalize_first):
    x = heads(n=5, g=2)
    options = {"order": order, "normalize_first": normalize_first, "key_mask": some_mask(2, 5) if masked else None}
    agree(lambda **y: oracle.dense_poly(**y, **options), lambda **y: oracle.poly(**y, **options), x)


def test_the_loops_of_the_oracle_by_hand():
    """Scores 1 and 2 to the middle tokens (weights 2.5 and 5), from there 1, 0 and 2, 0 (2.5, 1 and 5, 1)."""
    q1, q2, q3, v = (torch.tensor([[[[float(a)] for a in x]]]).double() for x in ([1], [1, 2], [1, 0], [3, 4]))
    assert oracle.poly(q1, q2, q3, v).item() == pytest.approx((2.5 * 11.5 + 5 * 19) / (2.5 * 3.5 + 5 * 6))
    first = oracle.poly(q1, q2, q3, v, normalize_first=True).item()
    assert first == pytest.approx((2.5 * 11.5 / 3.5 + 5 * 19 / 6) / 7.5)


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear", "auto"])
@pytest.mark.parametrize("n", [1, 2, 63, 65, 257])
def test_both_attentions_are_the_formula(n, impl, normalize_first):
    mask = some_mask(2, n)
    for g, key_mask in ((4, None), (2, mask), (1, mask)):
        options = {"normalize_first": normalize_first, "key_mask": key_mask}
        agree(
            lambda options=options, **y: taylor_poly_attention(**y, impl=impl, **options),
            lambda options=options, **y: oracle.dense_poly(**y, **options), heads(n, g), 1e-9,
        )  # fmt: skip


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear", "auto"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 4), (5, 2), (4, 0), (0, 4), (0, 0)])
def test_loops_over_two_lengths(n, m, impl, normalize_first):
    formula = oracle.poly if n and m else oracle.dense_poly  # nothing to loop over
    for order, key_mask in ((2, None), (4, some_mask(2, m))):
        options = {"order": order, "normalize_first": normalize_first, "key_mask": key_mask}
        agree(
            lambda options=options, **y: taylor_poly_attention(**y, impl=impl, **options),
            lambda options=options, **y: formula(**y, **options), heads(n, 2, d=2, e=3, m=m),
        )  # fmt: skip


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear"])
def test_any_strides(impl, normalize_first):
    """Transposed, expanded and sliced inputs give what contiguous ones give, gradients too, and are left alone."""
    x = heads(n=20, g=2)
    strange = {
        "q1": x["q1"].transpose(1, 2).contiguous().transpose(1, 2),
        "q2": x["q2"][:1].expand(2, -1, -1, -1),
        "q3": x["q3"][:, :1].expand(-1, 2, -1, -1),
        "v": torch.stack([x["v"], x["v"]], dim=-1)[..., 0],
    }
    assert not any(tensor.is_contiguous() for tensor in strange.values())
    before = {name: tensor.clone() for name, tensor in strange.items()}
    gradients = []
    for inputs in (strange, before):
        leaves = [tensor.requires_grad_() for tensor in inputs.values()]
        out = taylor_poly_attention(*leaves, impl=impl, normalize_first=normalize_first)
        gradients.append(torch.autograd.grad(out.square().sum(), leaves))
    assert all(torch.equal(strange[name], tensor) and not strange[name]._version for name, tensor in before.items())
    for got, expected in zip(*gradients, strict=True):
        assert_close(got, expected, **EXACT)


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear"])
def test_rows_of_a_batch_do_not_meet(impl, normalize_first):
    x, mask = {name: tensor.float() for name, tensor in heads(n=20, g=2).items()}, some_mask(2, 20)
    options = {"impl": impl, "normalize_first": normalize_first}
    out = taylor_poly_attention(**x, **options, key_mask=mask)
    for tensor in x.values():
        tensor[0] = 50 * torch.randn(tensor.shape[1:])
    assert torch.equal(taylor_poly_attention(**x, **options, key_mask=mask)[1], out[1])


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear"])
def test_autocast_changes_nothing(impl, normalize_first):
    x = {name: tensor.float() for name, tensor in heads(n=100, d=16).items()}
    options = {"impl": impl, "normalize_first": normalize_first}
    expected = taylor_poly_attention(**x, **options)
    with torch.autocast("cpu", torch.bfloat16):
        got = taylor_poly_attention(**x, **options)
    assert torch.equal(got, expected) and got.dtype == torch.float32


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_error_is_at_most_twice_that_of_a_plain_implementation(dtype, impl, normalize_first):
    """Plain: the matrices of the oracle in the type of the inputs, scores as those of RMS-normalised vectors."""
    x = {name: tensor.to(dtype) for name, tensor in heads(n=100, d=16).items()}
    x = {name: tensor if name == "v" else tensor / 4 for name, tensor in x.items()}
    options = {"normalize_first": normalize_first, "key_mask": torch.ones(2, 100, dtype=torch.bool)}
    truth = results(lambda **y: oracle.dense_poly(**y, **options), {name: y.double() for name, y in x.items()})
    reference = results(lambda **y: oracle.dense_poly(**y, **options), x)
    got = results(lambda **y: taylor_poly_attention(**y, impl=impl, **options), x)
    for ours, theirs, exact in zip(got, reference, truth, strict=True):
        for name, values in exact.items():
            assert ours[name].dtype == dtype
            assert error(ours[name], values) <= 2 * (error(theirs[name], values) + torch.finfo(dtype).eps), name
    assert error(got[0]["0"], truth[0]["0"]) <= 0.6 * torch.finfo(dtype).eps  # rounded once, at the end


@NORMALIZE
@pytest.mark.parametrize("n", [1, 40, 100])
def test_the_function_of_the_package(n, normalize_first):
    package = pytest.importorskip("taylor_series_linear_attention")
    x, partly = heads(n), torch.rand(2, n) < 0.6
    partly[1] = True
    for mask in (None, partly, padding(n, 0, total=n)):
        agree(
            lambda mask=mask, **y: taylor_poly_attention(**y, normalize_first=normalize_first, key_mask=mask),
            theirs_of(package, include_pass1_mass=not normalize_first, mask=mask), x, 1e-12,
        )  # fmt: skip


LAYERS = {
    "plain": ({}, {}),
    "averages": ({"include_pass1_mass": False}, {"normalize_first": True}),
    "packed": ({"remove_even_power_dups": True}, {}),
    "root value": ({"multiply_root_value": True, "use_root_value_as_attn_gate": False}, {"root": "value"}),
    "sigmoid of the root": ({"multiply_root_value": True}, {"root": "sigmoid"}),
    "attention gate": ({"attn_gate": True}, {"root": "sigmoid"}),
    "no rotary": ({"use_rotary_embed": False}, {"rotary": False}),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_layer_of_the_package(kind):
    package = pytest.importorskip("taylor_series_linear_attention")
    theirs_options, ours_options = LAYERS[kind]
    theirs = package.TaylorSeriesPolyAttention(DIM, heads=4, dim_head=8, eps=TINY, **theirs_options).double()
    options = {"heads": 4, "head_dim": 8, "value_dim": 8, "rotary": True} | ours_options
    ours = TaylorPolyAttention(DIM, **options).double()
    for norm in theirs.q_norms:
        torch.nn.init.normal_(norm.gamma, mean=1.0)
    theirs.to_out.bias.data.zero_()
    if theirs.rotary_emb is not None:  # made in float32
        theirs.rotary_emb.freqs.data = 10_000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    q, *gate = theirs.to_q.weight.data.split(DIM)
    middle, *root = theirs.to_kvs[0].weight.data.split(DIM)
    k, v = theirs.to_kvs[1].weight.data.split(DIM)
    names = {"to_q": q, "to_middle": middle, "to_k": k, "to_v": v, "to_out": theirs.to_out.weight.data}
    if ours.to_root is not None:
        names["to_root"] = (gate or root)[0]
    norms = dict(zip(("q_norm", "middle_norm", "k_norm"), (norm.gamma.data for norm in theirs.q_norms), strict=True))
    ours.load_state_dict({f"{name}.weight": weight for name, weight in (names | norms).items()})
    for n in (1, 40, 200):
        x = {"x": torch.randn(2, n, DIM, dtype=torch.float64)}
        agree(ours, theirs, x, 1e-12)
        mask = padding(n, 1, total=n)  # on the right, where counting real tokens and counting places are the same
        got, expected = ours(x["x"], mask=mask), theirs(x["x"], mask=mask)
        assert_close(got[mask], expected[mask], **EXACT)


@NORMALIZE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_beyond_low_precision(dtype, normalize_first):
    """The weights of a row sum to 6 million pairs and more here; float16 ends at 65504."""
    layer = TaylorPolyAttention(DIM, heads=4, normalize_first=normalize_first)
    x = torch.randn(1, 2500, DIM)
    exact, low = layer(x), layer.to(dtype)(x.to(dtype))
    assert low.dtype == dtype and low.isfinite().all()
    assert (low - exact).norm() <= 16 * torch.finfo(dtype).eps * exact.norm()
    low.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["poly", "poly, averages", "poly, order 4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_without_keys_is_zero_and_its_gradient_finite(name, dtype):
    mixer, x = build(name, dtype=dtype), torch.randn(2, 11, 16).to(dtype).requires_grad_()
    out = mixer(x, mask=padding(11, 0, total=11))
    assert (out[1] == 0).all() and (out[0] != 0).any()
    out.sum().backward()
    assert x.grad.isfinite().all() and (x.grad[1] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@NORMALIZE
@pytest.mark.parametrize("impl", ["direct", "linear"])
def test_padding_may_hold_anything(impl, normalize_first):
    """NaN in masked rows changes no output and no gradient of the others."""
    x, mask = heads(n=20), some_mask(2, 20)
    dirty = {name: y if name == "q1" else y.masked_fill(~mask[:, None, :, None], torch.nan) for name, y in x.items()}
    options = {"impl": impl, "normalize_first": normalize_first, "key_mask": mask}
    clean, got = (results(lambda **y: taylor_poly_attention(**y, **options), inputs) for inputs in (x, dirty))
    assert_close(got, clean, rtol=0, atol=0)


def test_nothing_of_length_times_features_is_made_or_kept():
    """Neither forward nor backward; `head_dim` 16 has 153 features."""
    layer, x = TaylorPolyAttention(DIM, heads=4, impl="linear"), torch.randn(1, 4000, DIM, requires_grad=True)
    with Largest() as made:
        layer(x).square().sum().backward()
    assert made.numel < 4 * 4000 * 153 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_state_bytes_are_those_of_the_sums_a_query_reads(dtype):
    layer = TaylorPolyAttention(DIM, heads=4, value_dim=5, kv_heads=2).to(dtype)
    size = 8 if dtype == torch.float64 else 4
    assert layer.state_bytes(1) == layer.state_bytes(10_000) == size * 2 * 153 * (5 + 1)
    x = torch.randn(1, 2, 3, 16, dtype=dtype)
    state = taylor_attention(x, x, torch.randn(1, 2, 3, 5), return_state=True).state
    assert layer.state_bytes(1) == sum(part[0].numel() * part.element_size() for part in (state.kv, state.z))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"^TaylorPolyAttention does not support 'causal', only bidir"):
        TaylorPolyAttention(DIM, causal=True)
    with pytest.raises(ValueError, match=r"^root \('gate'\) must be one of none, value, sigmoid$"):
        TaylorPolyAttention(DIM, root="gate")
    with pytest.raises(ValueError, match=r"^order \(3\) must be even and not negative"):
        TaylorPolyAttention(DIM, order=3)
    with pytest.raises(ValueError, match=r"^impl \('fast'\) must be one of auto, direct, linear, native, triton$"):
        TaylorPolyAttention(DIM, impl="fast")
    x = torch.zeros(1, 3, DIM)
    with pytest.raises(ValueError, match=r"does not support 'cross', only bidirectional, packed$"):
        TaylorPolyAttention(DIM)(x, x)
    with pytest.raises(ValueError, match=r"does not support 'decode', only bidirectional, packed$"):
        TaylorPolyAttention(DIM).extend(x)
