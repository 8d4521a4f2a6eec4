"""What impl="native" and "auto" take, what is refused or left to torch, and that torch's own tools see one operator."""

import subprocess
import sys
import warnings
from functools import partial

import pytest
import torch
from cases import error, qkv, results
from native_form_cases import FORMS, KINDS, call, no_worse
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from tsla import native
from tsla.mixers import TaylorAttention
from tsla.ops import taylor_attention
from tsla.ops.native import fits

pytestmark = pytest.mark.skipif(not native.available("attention"), reason="no C++ compiler")


def test_auto_is_native_where_it_can_be():
    inputs, options = call((2, 2, 70, 70, 8, 8), {}, True)
    fast, left = (taylor_attention(**inputs, **options, impl=impl).output for impl in ("native", "auto"))
    assert torch.equal(fast, left)
    in_torch = taylor_attention(**inputs, **options, impl="linear").output
    assert not torch.equal(fast, in_torch)
    assert torch.equal(taylor_attention(**inputs, **options, chunk_size=64).output, in_torch)


def test_without_native_code_auto_is_torch_and_native_is_refused(no_native):
    inputs, options = call((2, 2, 70, 70, 8, 8), {}, True)
    in_torch = taylor_attention(**inputs, **options, impl="linear").output
    assert torch.equal(taylor_attention(**inputs, **options).output, in_torch)
    with pytest.raises(native.NativeError, match="TSLA_NATIVE=0"):
        taylor_attention(**inputs, **options, impl="native")


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
    # Its backward pass alone is mapped, too late to choose. Torch says so at the pointer, or at a view before that: it
    # depends on what else this process has done with torch.
    with pytest.raises(RuntimeError, match=r"data pointer|Batching rule not implemented"):
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
    from tsla.kernels import taylor as kernels

    assert kernels.taylor
    inputs = [x.requires_grad_() for x in qkv(n=20, dtype=torch.float32).values()]
    chosen = {"causal": False, "direct": False, "normalize": True, "keep_state": True, "exact": False} | options
    extra = (None, None, None, None, None, 0.5, [1.0, 1.0, 1.0])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.tsla.taylor.default, (*inputs, *extra, *chosen.values()), test_utils=tests)


def test_all_that_the_library_is_asked_for_fits():
    assert fits(64, 2) and not fits(65, 2) and not fits(16, 4)
