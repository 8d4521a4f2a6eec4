"""impl="native" against the formula in fp64: no more than twice the error of the same form in torch in fp32."""

from functools import partial

import oracle
import pytest
import torch
from cases import error, flat, results
from hypothesis import given, settings
from hypothesis import strategies as st
from native_form_cases import FORMS, KINDS, call, no_worse, worst

from tsla import native
from tsla.ops import KernelState, taylor_attention

pytestmark = pytest.mark.skipif(not native.available("attention"), reason="no C++ compiler")

SHAPES = [  # h, g, n, m, d, e
    (2, 2, 1, 1, 16, 16), (4, 2, 33, 33, 8, 40), (3, 1, 64, 64, 12, 64), (2, 2, 97, 97, 20, 8), (4, 4, 111, 111, 5, 3),
    (2, 1, 257, 257, 16, 96), (2, 2, 50, 200, 24, 16), (4, 1, 200, 3, 48, 17), (1, 1, 130, 130, 64, 64),
]  # fmt: skip


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_forms_equal_the_formula(shape, kind, causal):
    if shape[2] != shape[3] and (causal or "rates" in kind):
        pytest.skip("needs as many keys as queries")
    inputs, options = call(shape, kind, causal)
    torch.set_num_threads(2)  # one head's sequence is then cut into parts
    for form, crossover in FORMS.items():
        if form == "linear" and shape[4] > 48 and kind:
            continue  # slow in the reference
        keep = False if form == "direct" else causal
        no_worse(
            partial(taylor_attention, **options, impl="native", crossover=crossover, return_state=keep),
            partial(taylor_attention, **options, impl=form, return_state=keep),
            partial(taylor_attention, **options, impl="direct", return_state=keep),
            inputs,
        )  # fmt: skip


def test_the_formula_itself():
    """The reference of the test above, torch's direct form in fp64, is held against the loops; so is this form."""
    inputs, options = call((4, 2, 9, 9, 3, 5), KINDS["decay per token, mask"], True)
    exact = oracle.attention(**{name: x.double() for name, x in inputs.items()}, **options)
    for crossover in FORMS.values():
        out = taylor_attention(**inputs, **options, impl="native", crossover=crossover, return_state=False).output
        assert error(out, exact) < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 400), d=st.integers(1, 20), e=st.integers(1, 40), heads=st.sampled_from([(1, 1), (2, 1), (3, 3)]),
    causal=st.booleans(), masked=st.booleans(), crossover=st.sampled_from([0, torch.inf]), threads=st.integers(1, 3),
)  # fmt: skip
def test_any_shape(n, d, e, heads, causal, masked, crossover, threads):
    inputs, options = call((*heads, n, n, d, e), {"mask": masked}, causal, b=1)
    torch.set_num_threads(threads)
    out = taylor_attention(**inputs, **options, impl="native", crossover=crossover, return_state=False).output
    exact = taylor_attention(**{x: y.double() for x, y in inputs.items()}, **options, impl="direct", return_state=False)
    assert ((out - exact.output).abs() <= 1e-5 * (1 + exact.output.abs())).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_one_head_is_cut_into_parts(causal, threads):
    """Few heads and many tokens: parts of the sequence go to the threads, and the result stays what it is."""
    torch.set_num_threads(threads)
    kinds = [{}, {"mask": True, "rates": "token"}] if causal else [{}, {"mask": True}]
    for kind in kinds:
        inputs, options = call((2, 1, 2500, 2500, 4, 6), kind, causal, b=1)
        options |= {"impl": "native", "crossover": 0, "return_state": True}
        exact = results(
            partial(taylor_attention, **options | {"impl": "linear", "crossover": None}),
            {name: x.double() for name, x in inputs.items()},
        )
        for value in worst(results(partial(taylor_attention, **options), inputs), exact).values():
            assert value < 1e-5


@pytest.mark.parametrize("crossover", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_results_are_bit_identical_from_run_to_run(causal, crossover):
    torch.set_num_threads(2)
    inputs, options = call((3, 3, 700, 700, 8, 16), {}, causal, b=1)
    run = partial(taylor_attention, **options, impl="native", crossover=crossover, return_state=False)
    first, *others = [results(run, inputs) for _ in range(4)]
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert all(torch.equal(x, two[name]) for name, x in one.items())


@pytest.mark.parametrize("kind", ["plain", "decay per token, mask", "centre"])
@pytest.mark.parametrize("cut", [1, 2, 5, 16, 17, 60])
def test_what_is_split_and_resumed_equals_the_whole(cut, kind):
    """A state carries over, with its gradient, whether few tokens follow or many."""
    inputs, options = call((4, 2, 77, 77, 6, 10), KINDS[kind], True)

    def split(impl, **x):
        parts, state = [], None
        for place in (slice(0, 77 - cut), slice(77 - cut, None)):
            own = {name: y[:, :, place] for name, y in x.items()}
            mask = None if options["key_mask"] is None else options["key_mask"][:, place]
            out = taylor_attention(**own, **options | {"key_mask": mask}, impl=impl, state=state)
            parts.append(out.output)
            state = out.state
        return torch.cat(parts, dim=2), state

    whole = partial(taylor_attention, **options, impl="linear")
    no_worse(partial(split, "native"), partial(split, "linear"), whole, inputs)


def test_decoding_goes_on_from_torch_and_back():
    """States are torch's own: one form may begin and the other go on."""
    inputs, options = call((4, 2, 20, 20, 6, 10), {}, True)
    begun = {name: x[:, :, :15] for name, x in inputs.items()}
    rest = {name: x[:, :, 15:] for name, x in inputs.items()}
    exact = taylor_attention(**{name: x.double() for name, x in inputs.items()}, **options, impl="linear")
    for first, second in (("linear", "native"), ("native", "linear")):
        state = taylor_attention(**begun, **options, impl=first).state
        assert isinstance(state, KernelState)
        out = taylor_attention(**rest, **options, impl=second, state=state)
        for x, y in zip(flat(out), flat((exact.output[:, :, 15:], exact.state)), strict=True):
            assert error(x, y.double()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("crossover", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_low_precision(causal, crossover, dtype):
    """Sums in fp32: an output is off by one rounding of its own type."""
    inputs, options = call((2, 1, 300, 300, 16, 24), {"mask": True}, causal, dtype)
    run = partial(taylor_attention, **options, return_state=False)
    exact = results(partial(run, impl="direct"), {name: x.double() for name, x in inputs.items()})
    found = results(partial(run, impl="native", crossover=crossover), inputs)
    assert found[0]["0"].dtype == dtype and found[1]["k"].dtype == dtype
    for value in worst(found, exact).values():
        assert value <= 2 * torch.finfo(dtype).eps


def test_inputs_may_lie_in_any_way_and_are_not_changed():
    x = torch.randn(2, 50, 3, 4, 8)  # b, n, (q, k, v), h, d: a projection's output
    q, k, v = (part.transpose(1, 2) for part in x.unbind(2))
    wide = torch.randn(2, 4, 8, 50).transpose(-1, -2)
    shared = v[:, :1].expand(2, 4, 50, 8)
    before = x.clone()
    for a, b, c in ((q, k, v), (q, wide, v), (q, k, shared)):
        for causal in (False, True):
            out = taylor_attention(a, b, c, impl="native", causal=causal).output
            expected = taylor_attention(*(y.contiguous() for y in (a, b, c)), impl="native", causal=causal).output
            assert torch.equal(out, expected)
    assert torch.equal(x, before)


@pytest.mark.parametrize("crossover", FORMS.values(), ids=FORMS.keys())
def test_later_tokens_change_no_earlier_output(crossover):
    inputs, options = call((2, 2, 130, 130, 8, 8), {}, True)
    run = partial(taylor_attention, **options, impl="native", crossover=crossover, return_state=False)
    first = run(**inputs).output
    for at in (0, 15, 16, 47, 48, 95, 96, 129):
        changed = {name: torch.cat([x[:, :, :at], torch.full_like(x[:, :, at:], 9.0)], 2) for name, x in inputs.items()}
        assert torch.equal(run(**changed).output[:, :, :at], first[:, :, :at])


def test_a_row_that_sees_no_key_is_zero_with_a_finite_gradient():
    for crossover in FORMS.values():
        inputs, options = call((2, 2, 40, 40, 4, 4), {}, False)
        options["key_mask"] = torch.zeros(2, 40, dtype=torch.bool)
        outputs, gradients = results(
            partial(taylor_attention, **options, impl="native", crossover=crossover, return_state=False), inputs
        )
        assert (outputs["0"] == 0).all()
        assert all((x == 0).all() for x in gradients.values())
