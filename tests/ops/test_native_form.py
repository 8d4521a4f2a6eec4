"""impl="native" against the formula in fp64: no more than twice the error of the same form in torch in fp32."""

import subprocess
import sys
import warnings
from functools import partial

import oracle
import pytest
import torch
from cases import error, flat, qkv, results, some_decay, some_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tsla import native
from tsla.mixers import TaylorAttention
from tsla.ops import KernelState, taylor_attention
from tsla.ops.native import fits

pytestmark = pytest.mark.skipif(not native.available("attention"), reason="no C++ compiler")

FORMS = {"direct": torch.inf, "linear": 0}  # by the crossover
KINDS = {
    "plain": {},
    "mask": {"mask": True},
    "scale, sums": {"scale": 0.4, "normalize": False},
    "decay per head": {"rates": "head"},
    "decay per token, mask": {"rates": "token", "mask": True},
    "coefficients": {"coefficients": (2.0, -1.0, 0.7)},
    "centre": {"center": "mean"},
    "centre, coefficients, mask": {"center": "mean", "coefficients": (2.0, -1.0, 0.7), "mask": True},
    "centre, decay per token, mask, sums": {"center": "mean", "rates": "token", "mask": True, "normalize": False},
}
SHAPES = [  # h, g, n, m, d, e
    (2, 2, 1, 1, 16, 16), (4, 2, 33, 33, 8, 40), (3, 1, 64, 64, 12, 64), (2, 2, 97, 97, 20, 8), (4, 4, 111, 111, 5, 3),
    (2, 1, 257, 257, 16, 96), (2, 2, 50, 200, 24, 16), (4, 1, 200, 3, 48, 17), (1, 1, 130, 130, 64, 64),
]  # fmt: skip
FLOOR = 2e-6  # below it errors are those of single roundings, which differ by luck


def call(shape, kind, causal, dtype=torch.float32, b=2):
    """Inputs in `dtype`, and the options of a kind of call."""
    h, g, n, m, d, e = shape
    rates = {"head": (h,), "token": (b, h, n)}.get(kind.get("rates"))
    inputs = qkv(b=b, h=h, g=g, n=n, m=m, d=d, e=e, dtype=dtype)
    inputs |= {"log_decay": some_decay(*rates, dtype=dtype)} if rates else {}
    options = {name: value for name, value in kind.items() if name in ("scale", "coefficients", "center", "normalize")}
    return inputs, options | {"causal": causal, "key_mask": some_mask(b, m) if kind.get("mask") else None}


def worst(found, exact):
    """Of each output and gradient, the largest error over its largest value (or over 1: a gradient may be all zero)."""
    return {
        (place, name): (
            (x.double() - exact[place][name]).abs().max() / exact[place][name].abs().max().clamp(min=1)
        ).item()
        for place in (0, 1)
        for name, x in found[place].items()
    }


def no_worse(fast, plain, slow, inputs):
    """`fast` has at most twice the error of `plain`, both held against `slow` on the same numbers in fp64."""
    exact = results(slow, {name: x.double() for name, x in inputs.items()})
    own, other = worst(results(fast, inputs), exact), worst(results(plain, inputs), exact)
    for key, value in own.items():
        times = 4 if key[1] == "log_decay" else 2  # the difference of two sums, in all forms but torch's direct one
        assert value <= times * max(other[key], max(other.values()) / 4, FLOOR), (key, value, other[key])


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


def test_auto_is_native_where_it_can_be():
    inputs, options = call((2, 2, 70, 70, 8, 8), {}, True)
    fast, left = (taylor_attention(**inputs, **options, impl=impl).output for impl in ("native", "auto"))
    assert torch.equal(fast, left)
    in_torch = taylor_attention(**inputs, **options, impl="linear").output
    assert not torch.equal(fast, in_torch)
    assert torch.equal(taylor_attention(**inputs, **options, chunk_size=64).output, in_torch)


def test_without_native_code_auto_is_torch_and_native_is_refused(monkeypatch):
    monkeypatch.setenv("TSLA_NATIVE", "0")
    native.forget()
    try:
        inputs, options = call((2, 2, 70, 70, 8, 8), {}, True)
        in_torch = taylor_attention(**inputs, **options, impl="linear").output
        assert torch.equal(taylor_attention(**inputs, **options).output, in_torch)
        with pytest.raises(native.NativeError, match="TSLA_NATIVE=0"):
            taylor_attention(**inputs, **options, impl="native")
    finally:
        monkeypatch.undo()
        native.forget()


@pytest.mark.parametrize("change, message", [
    ({"order": 4}, "order (4) 2"), ({"chunk_size": 16}, "chunk_size (16) must be None"),
    ({"dtype": torch.float64}, "dtype (torch.float64) must be float32, bfloat16 or float16"),
    ({"d": 65}, "head dim (65) must be at most 64"), ({"n": 0}, "shape (2, 4, 0, 3) must not be empty"),
    ({"device": "meta"}, "device (meta) must be cpu"),
])  # fmt: skip
def test_what_native_cannot_do_is_refused_and_auto_does_it_in_torch(change, message):
    shape = {name: change[name] for name in ("dtype", "d", "n") if name in change}
    inputs = {name: x.to(change.get("device", "cpu")) for name, x in qkv(**{"dtype": torch.float32} | shape).items()}
    options = {name: change[name] for name in ("order", "chunk_size") if name in change}
    with pytest.raises(ValueError, match=r"impl='native' cannot do this") as caught:
        taylor_attention(**inputs, **options, impl="native")
    assert message in str(caught.value)
    assert taylor_attention(**inputs, **options).output.shape == inputs["q"].shape[:3] + inputs["v"].shape[3:]


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("part", ["kv", "z"])
def test_a_loss_of_one_part_of_the_state(part, causal):
    """The gradient of the other is not given, which is 0."""
    inputs, options = call((2, 1, 70, 70, 4, 6), {}, causal)

    def run(impl, **x):
        return getattr(taylor_attention(**x, **options, impl=impl, return_state=True).state, part)

    no_worse(partial(run, "native"), partial(run, "linear"), partial(run, "linear"), inputs)
    found = results(torch.compile(partial(run, "native"), backend="aot_eager", fullgraph=True), inputs)
    for one, two in zip(found, results(partial(run, "native"), inputs), strict=True):
        assert all(torch.equal(x, two[name]) for name, x in one.items())


def test_a_compiled_layer_learns():
    """Its keys and values are views, whose gradients are not."""
    layer = TaylorAttention(32, heads=2, kv_heads=1)
    x = torch.randn(2, 100, 32)
    layer(x).sum().backward()
    expected = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x).sum().backward()
    for p, own in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, own)


def without_address(q, k, v):
    """Inputs that a kernel must not touch, by name."""
    yield "a negative view", (torch._neg_view(q), k, v), {}
    yield "zeros without memory", (torch._efficientzerotensor(q.shape), k, v), {}
    yield "a mask elsewhere", (q, k, v), {"key_mask": torch.ones(2, 30, dtype=torch.bool, device="meta")}
    yield "gates elsewhere", (q, k, v), {"log_decay": torch.zeros(2, device="meta"), "causal": True}
    yield "a scale to learn", (q, k, v), {"scale": torch.tensor(0.5, requires_grad=True)}


@pytest.mark.parametrize("at", range(5))
def test_what_has_no_address_is_refused(at):
    *_, tensors, options = list(without_address(*qkv(n=30, h=2, dtype=torch.float32).values()))[at]
    with pytest.raises(ValueError, match="impl='native' cannot do this"):
        taylor_attention(*tensors, **options, impl="native")


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_what_torch_transforms_goes_to_torch():
    q, k, v = qkv(n=30, dtype=torch.float32).values()

    def run(x, impl="auto"):
        return taylor_attention(x, k, v, impl=impl).output

    plain = run(q, "direct")
    with pytest.raises(RuntimeError, match="functorch"):  # as torch's forms: an error, no address that is none
        torch.func.functionalize(run)(q)
    with warnings.catch_warnings():  # that it is deprecated, and that sizes become constants
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(run, (q,), check_trace=False)
    torch.testing.assert_close(traced(q), plain)
    with pytest.raises(RuntimeError, match="data pointer"):  # its backward pass alone is mapped, too late to choose
        torch.autograd.functional.jacobian(run, q, vectorize=True)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        run(forward_ad.make_dual(q, q), "linear")
    with forward_ad.dual_level(), pytest.raises(ValueError, match="cannot do this"):
        run(forward_ad.make_dual(q, q), "native")


def test_another_default_type_changes_nothing():
    inputs, options = call((2, 1, 60, 60, 4, 6), KINDS["centre"], True)
    expected = taylor_attention(**inputs, **options, impl="native").output
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(taylor_attention(**inputs, **options, impl="native").output, expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_gradients_of_low_precision_are_as_exact_as_torchs(causal):
    """Values with a mean: what comes back to a weight is a small difference of output and value."""
    inputs, options = call((2, 1, 400, 400, 16, 32), {"rates": "head"} if causal else {}, causal, torch.bfloat16)
    inputs |= {name: inputs[name] + 1 for name in "kv"}
    run = partial(taylor_attention, **options, return_state=False)
    exact = results(partial(run, impl="direct"), {name: x.double() for name, x in inputs.items()})[1]
    own, other = (results(partial(run, **form), inputs)[1]
                  for form in ({"impl": "native", "crossover": 0}, {"impl": "linear"}))  # fmt: skip
    for name, x in exact.items():
        assert error(own[name], x) <= 2 * error(other[name], x) + torch.finfo(torch.bfloat16).eps / 2, name


def test_denominators_too_small_for_their_inverse():
    inputs, options = call((1, 1, 8, 8, 2, 2), {"coefficients": (1e-40, 0.0, 1e-40)}, False, b=1)
    exact = taylor_attention(**{name: x.double() for name, x in inputs.items()}, **options, impl="direct").output
    for crossover in FORMS.values():
        out = taylor_attention(**inputs, **options, impl="native", crossover=crossover).output
        assert error(out, exact) < 1e-3  # of a denormal number there are few digits


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_memory_that_runs_out_leaves_a_process_that_works():
    code = """
import resource, torch
from tsla.ops import taylor_attention as attend
torch.set_num_threads(1)
def call(n, d, e):
    return attend(torch.ones(1, 1, n, d), torch.ones(1, 1, n, d), torch.ones(1, 1, n, e), impl="native", crossover=1)
call(20, 4, 5)
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + 1_500_000, -1))
try:
    call(64, 16, 4000)
    print("enough")
except (MemoryError, RuntimeError):
    print("short")
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(call(64, 16, 4000).output.mean().item())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0 and out.stdout.split()[1:] == ["1.0"], out


def test_second_derivatives_are_refused():
    inputs, _ = call((2, 2, 9, 9, 3, 3), {}, False)
    q = inputs.pop("q").requires_grad_()
    (first,) = torch.autograd.grad(taylor_attention(q, **inputs, impl="native").output.sum(), q)
    assert first.shape == q.shape
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(taylor_attention(q, **inputs, impl="native").output.sum(), q, create_graph=True)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_compiled_checkpointed_and_under_autocast_it_is_the_same(causal):
    inputs, options = call((2, 1, 60, 60, 4, 6), {"mask": True}, causal)

    def run(**x):
        return taylor_attention(**x, **options, impl="native").output

    plain = results(run, inputs)
    compiled = results(torch.compile(run, backend="aot_eager", fullgraph=True), inputs)
    again = results(lambda **x: checkpoint(run, use_reentrant=False, **x), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = results(run, inputs)
    for other in (compiled, again, automatic):
        for one, two in zip(plain, other, strict=True):
            assert all(torch.equal(x, two[name]) for name, x in one.items())


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"direct": True, "keep_state": False}], ids=str)
def test_the_operators_keep_torchs_rules(options):
    from tsla.kernels.cpu import taylor as kernels

    assert kernels.taylor
    inputs = [x.requires_grad_() for x in qkv(n=20, dtype=torch.float32).values()]
    chosen = {"causal": False, "direct": False, "normalize": True, "keep_state": True, "exact": False} | options
    extra = (None, None, None, None, None, 0.5, [1.0, 1.0, 1.0])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.tsla.taylor.default, (*inputs, *extra, *chosen.values()), test_utils=tests)


def test_all_that_the_library_is_asked_for_fits():
    assert fits(64, 2) and not fits(65, 2) and not fits(16, 4)
