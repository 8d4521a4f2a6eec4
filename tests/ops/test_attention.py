"""Every form of `taylor_attention` and `linear_attention` against the oracle: outputs, states and all gradients."""

import oracle
import pytest
import torch
from cases import agree, close, qkv, results, some_decay, some_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from tsla.ops import KernelState, linear_attention, taylor_attention, taylor_feature_dim

LENGTHS = (1, 2, 3, 63, 64, 65, 111, 257)
FORMS = {
    "direct": {"impl": "direct"},
    "linear, chunk 1": {"impl": "linear", "chunk_size": 1},
    "linear, chunk 16": {"impl": "linear", "chunk_size": 16},
    "linear, chunk 64": {"impl": "linear", "chunk_size": 64},
    "linear, chunk 1000": {"impl": "linear", "chunk_size": 1000},
    "linear": {"impl": "linear"},
    "auto": {},
}
PASSED = ("order", "scale", "coefficients", "center", "normalize")
KINDS = {
    "plain": {},
    "mask": {"mask": True},
    "decay per head": {"rates": "head"},
    "decay per token, mask": {"rates": "token", "mask": True},
    "order 4, scale": {"order": 4, "scale": 0.4},
    "coefficients": {"coefficients": (2.0, -1.0, 0.7)},
    "sums": {"normalize": False},
    "centre": {"center": "mean"},
    "centre, order 4, coefficients": {"center": "mean", "order": 4, "coefficients": (1.0, 0.5, 0.25, 0.1, 0.5)},
    "centre, decay per token, mask": {"center": "mean", "rates": "token", "mask": True},
    "centre, decay per token, mask, sums": {"center": "mean", "rates": "token", "mask": True, "normalize": False},
}


def arguments(b, h, n, kind):
    """Tensor arguments and the others of a kind of call."""
    rates = {"head": (h,), "token": (b, h, n)}.get(kind.get("rates"))
    inputs = qkv(b=b, h=h, n=n) | ({"log_decay": some_decay(*rates)} if rates else {})
    options = {name: value for name, value in kind.items() if name in PASSED}
    return inputs, options | {"key_mask": some_mask(b, n) if kind.get("mask") else None}


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("n", LENGTHS)
def test_all_forms_equal_the_formula(n, kind, causal):
    inputs, options = arguments(2, 4, n, kind)
    for name, form in FORMS.items():
        if name == "linear, chunk 1" and n > 65:
            continue  # slow, and no different
        agree(
            lambda form=form, **x: taylor_attention(**x, causal=causal, **options, **form),
            lambda **x: taylor_reference(x, causal, options),
            inputs,
        )


def taylor_reference(x, causal, options):
    out, kv, z = oracle.dense(**x, causal=causal, **options)
    return (out, kv, z) if causal else out


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(
    "kind",
    ["plain", "decay per token, mask", "coefficients", "sums", "centre, decay per token, mask",
     "centre, decay per token, mask, sums"],
)  # fmt: skip
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_loops(form, kind, causal):
    """A few cases against the loops themselves, with nothing between."""
    inputs, options = arguments(2, 4, 7, KINDS[kind])
    loops = {"causal": causal, **options}
    agree(
        lambda **x: taylor_attention(**x, causal=causal, return_state=False, **options, **form),
        lambda **x: oracle.attention(**x, **loops),
        inputs,
    )


POLYNOMIALS = {"order 2": {}, "order 4": {"order": 4}, "coefficients": {"coefficients": (2.0, -1.0, 0.7)}}
combinations = [
    pytest.mark.parametrize("normalize", [True, False], ids=["averages", "sums"]),
    pytest.mark.parametrize("center", ["zero", "mean"]),
    pytest.mark.parametrize("rates", [None, "head", "token"]),
    pytest.mark.parametrize("polynomial", POLYNOMIALS.values(), ids=POLYNOMIALS.keys()),
]


def every_combination(test):
    """All options together, of grouped heads under a mask."""
    for mark in combinations:
        test = mark(test)
    return test


@every_combination
def test_every_combination_of_options_equals_the_loops(polynomial, rates, center, normalize):
    """Outputs, and gradients of q, k, v and the decays, of every form."""
    inputs, options = arguments(2, 2, 5, {"rates": rates, "mask": True})
    inputs |= {name: inputs[name][:, :1] for name in "kv"}
    options |= {**polynomial, "center": center, "normalize": normalize}
    for causal in (False, True):
        expected = results(lambda c=causal, **x: oracle.attention(**x, causal=c, **options), inputs)
        for form in ({"impl": "direct"}, {"impl": "linear", "chunk_size": 2}, {"impl": "linear"}):
            got = results(
                lambda c=causal, f=form, **x: taylor_attention(**x, causal=c, **options, **f).output, inputs
            )  # fmt: skip
            for ours, theirs in zip(got, expected, strict=True):
                close(ours, theirs, 1e-10)


@every_combination
def test_every_combination_of_options_from_a_state(polynomial, rates, center, normalize):
    """Outputs, returned sums, and gradients of the given sums beside those of the others."""
    inputs, options = arguments(2, 4, 7, {"rates": rates, "mask": True})
    inputs |= some_state(inputs, polynomial.get("order", 2))
    options |= {**polynomial, "center": center, "normalize": normalize, "causal": True}
    for form in ({"impl": "direct"}, {"impl": "linear", "chunk_size": 3}):
        agree(
            lambda kv, z, f=form, **x: taylor_attention(**x, state=as_state(kv, z), **options, **f),
            lambda kv, z, **x: oracle.dense(**x, start=(kv, z), **options),
            inputs,
        )
    if rates is None:
        agree(
            lambda kv, z, **x: taylor_attention(
                **x, state=as_state(kv, z), return_state=True, impl="linear", **(options | {"causal": False})
            ),
            lambda kv, z, **x: oracle.dense(**x, start=(kv, z), **(options | {"causal": False})),
            inputs,
        )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("center", ["zero", "mean"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 5), (1, 70), (70, 1), (4, 0), (0, 4), (0, 0)])
def test_cross_attention(n, m, masked, center, form):
    options = {"key_mask": some_mask(2, m) if masked else None, "center": center}
    agree(
        lambda **x: taylor_attention(**x, return_state=True, **options, **form),
        lambda **x: oracle.dense(**x, **options),
        qkv(n=n, m=m),
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("rates", [None, (4,), (2, 4, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_no_tokens(causal, rates, form):
    """No token gives no output, and the state one gave."""
    inputs = qkv(n=0) | ({"log_decay": some_decay(*rates)} if rates else {})
    start = some_state(inputs) if causal else {}
    agree(
        lambda kv=None, z=None, **x: taylor_attention(**x, causal=causal, state=as_state(kv, z), **form),
        lambda kv=None, z=None, **x: (oracle.dense(**x, causal=causal)[0], *([kv, z] if causal else [])),
        inputs | start,
    )


def some_state(inputs, order=2):
    """Sums that some keys could have left."""
    b, h, _, d = inputs["q"].shape
    heads = h if "log_decay" in inputs else inputs["k"].shape[1]
    f = taylor_feature_dim(d, order=order)
    k, v = (torch.randn(b, heads, 4, width, dtype=torch.float64) for width in (d, inputs["v"].shape[-1]))
    kv, z = oracle.state(k, v, order=order)
    assert kv.shape[2] == f
    return {"kv": kv, "z": z}


def as_state(kv, z):
    return None if kv is None else KernelState(kv, z, torch.full((kv.shape[0],), 4))


@pytest.mark.parametrize(
    ("kind", "causal"),
    [(kind, causal) for kind in ("plain", "mask", "decay per head", "decay per token, mask") for causal in (False, True)
     if causal or "decay" not in kind],
)  # fmt: skip
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_from_a_state(form, kind, causal):
    """Given sums and returned sums take part in values and gradients, decay included."""
    inputs, options = arguments(2, 4, 20, KINDS[kind])
    agree(
        lambda kv, z, **x: taylor_attention(
            **x, causal=causal, state=as_state(kv, z), return_state=True, **options, **form
        ),
        lambda kv, z, **x: oracle.dense(**x, causal=causal, start=(kv, z), **options),
        inputs | some_state(inputs),
    )


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("normalize", [{}, {"eps": 0.0}, {"eps": 0.1}, {"normalize": False}], ids=str)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_features_of_any_kind(form, normalize, causal):
    inputs = qkv(n=19, d=6)
    inputs |= {"q": inputs["q"].abs(), "k": inputs["k"].abs(), "log_decay": some_decay(2, 4, 19)}
    options = {"key_mask": some_mask(2, 19), "causal": causal, **normalize}
    agree(
        lambda q, k, v, **x: linear_attention(q, k, v, **x, **options, **form),
        lambda **x: features_reference(x, causal, {"eps": 1e-6} | options),
        inputs,
    )
    del inputs["log_decay"]
    agree(
        lambda q, k, v, **x: linear_attention(q, k, v, **x, **options, return_state=True, **form),
        lambda **x: oracle.dense(**x, order=None, **({"eps": 1e-6} | options)),
        inputs,
    )


def features_reference(x, causal, options):
    out, kv, z = oracle.dense(**x, order=None, **options)
    return (out, kv, z) if causal else out


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 9), (9, 1), (4, 0), (0, 4), (0, 0)])
def test_features_of_two_lengths(n, m, form):
    inputs = qkv(n=n, m=m, d=6)
    inputs |= {"q": inputs["q"].abs(), "k": inputs["k"].abs()}
    agree(
        lambda q, k, v: linear_attention(q, k, v, return_state=True, **form),
        lambda **x: oracle.dense(**x, order=None, eps=1e-6),
        inputs,
    )


@pytest.mark.parametrize("n", [3, 65])
def test_taylor_attention_is_linear_attention_of_its_features(n):
    x = qkv(n=n)
    fq, fk = oracle.features(x["q"] * 3**-0.5, 2), oracle.features(x["k"], 2)
    for form in FORMS.values():
        got = linear_attention(fq, fk, x["v"], causal=True, eps=0.0, **form).output
        torch.testing.assert_close(got, taylor_attention(**x, causal=True).output, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_arguments(data):
    """Shapes, options and forms at random."""
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 99)))
    b, g, r, n = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 2), (1, 3), (1, 40)))
    causal, rates, resumed = draw(st.booleans()), draw(st.sampled_from([None, "head", "token"])), draw(st.booleans())
    m = n if causal or rates else draw(st.integers(1, 40))
    order = 2 if resumed else draw(st.sampled_from([0, 2, 4]))
    inputs = qkv(b=b, h=g * r, g=g, n=n, m=m, d=draw(st.integers(1, 4)), e=draw(st.integers(1, 5)))
    if rates:
        inputs["log_decay"] = some_decay(*{"head": (g * r,), "token": (b, g * r, n)}[rates])
    stateful = causal or not rates
    options = {
        "causal": causal, "order": order, "scale": draw(st.sampled_from([None, 0.0, -0.7, 1.5])),
        "key_mask": some_mask(b, m) if draw(st.booleans()) else None,
    }  # fmt: skip
    form = draw(st.sampled_from([{"impl": "direct"}, {"impl": "linear", "chunk_size": draw(st.integers(1, 41))}, {}]))
    if resumed and stateful:
        inputs |= some_state(inputs)
    agree(
        lambda kv=None, z=None, **x: taylor_attention(
            **x, state=as_state(kv, z), return_state=stateful, **options, **form
        ),
        lambda kv=None, z=None, **x: oracle.dense(**x, start=None if kv is None else (kv, z), **options)[
            : 3 if stateful else 1
        ],
        inputs,
        tolerance=1e-9,
    )


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("form", ["direct", "linear, chunk 1", "linear, chunk 16"])
def test_gradcheck(form, decayed, causal):
    x = qkv(b=1, h=2, g=1, n=4, d=2, e=2) | ({"log_decay": some_decay(1, 2, 4)} if decayed else {})
    leaves = [value.requires_grad_() for value in x.values()]
    options = {"causal": causal, "key_mask": torch.tensor([[True, True, False, True]]), **FORMS[form]}

    def run(*leaves):
        out, state = taylor_attention(**dict(zip(x, leaves, strict=True)), **options)
        return (out, state.kv, state.z) if causal else out

    assert gradcheck(run, leaves)
    if form == "direct":
        assert gradgradcheck(
            lambda *leaves: taylor_attention(*leaves[:3], **options, return_state=False).output, leaves
        )
