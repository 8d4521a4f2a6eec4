"""impl="triton" against the formula in fp64: no more than twice the error of torch in fp32.

Triton's interpreter runs the kernels on the CPU, slowly; where there is a GPU, that compiles and runs them.
"""

from functools import partial

import oracle
import pytest
import torch
from cases import error, flat, qkv, results
from native_form_cases import KINDS, call, no_worse, worst

from tsla import TaylorAttention
from tsla.ops import KernelState, gpu, taylor_attention

CARD = torch.cuda.is_available()
DEVICE = "cuda" if CARD else "cpu"
pytestmark = [
    pytest.mark.cuda if CARD else pytest.mark.slow,
    pytest.mark.skipif(not gpu.ready(), reason="Triton is not installed"),
]
interpreted = pytest.mark.skipif(CARD, reason="looks into Triton's interpreter")

MANY = (2, 1, 70, 70, 12, 20)  # h, g, n, m, d, e: two chunks, one key head, padding in all directions
SHAPES = [
    (1, 1, 1, 1, 16, 16), (4, 2, 33, 33, 8, 40), (1, 1, 64, 64, 16, 64), (1, 1, 129, 129, 5, 3), (1, 1, 40, 40, 20, 70),
    (2, 1, 20, 20, 33, 8), (1, 1, 17, 17, 64, 16),
]  # fmt: skip
ACROSS = [(2, 2, 20, 70, 12, 16), (2, 1, 40, 3, 24, 17)]  # as many keys as they like


@pytest.fixture(autouse=True)
def device():
    """All that a test makes is on the GPU, if there is one."""
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 64 tokens, so that short sequences have several, and as many programs as they like."""
    from tsla.kernels.triton import plan

    monkeypatch.setattr(plan, "CHUNK", 64)


def held_against_torch(shape, kind, causal):
    inputs, options = call(shape, kind, causal, b=1)
    no_worse(
        partial(taylor_attention, **options, impl="triton", return_state=causal),
        partial(taylor_attention, **options, impl="linear", return_state=causal),
        partial(taylor_attention, **options, impl="direct", return_state=causal),
        inputs,
    )  # fmt: skip


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_option_equals_the_formula(kind, causal):
    held_against_torch(MANY, kind, causal)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_equals_the_formula(shape, causal):
    held_against_torch(shape, {"mask": True}, causal)


@pytest.mark.parametrize("shape", ACROSS, ids=str)
def test_cross_attention(shape):
    held_against_torch(shape, {"mask": True, "center": "mean"}, False)


def test_batches_of_strided_rows():
    """As a layer hands them over: heads cut out of rows; and packed rows of different lengths."""
    layer = TaylorAttention(12, heads=2, head_dim=6, kv_heads=1, causal=True, impl="triton").to(DEVICE)
    x, mask = torch.randn(2, 40, 12), torch.arange(40) < torch.tensor([[40], [23]])
    found = layer(x, mask=mask)
    layer.impl = "linear"
    torch.testing.assert_close(found[mask], layer(x, mask=mask)[mask], rtol=1e-5, atol=1e-5)
    bounds = torch.tensor([0, 15, 40])
    inputs = qkv(b=1, h=2, g=1, n=40, d=6, e=10, dtype=torch.float32)
    one, two = (taylor_attention(**inputs, causal=True, cu_seqlens=bounds, impl=impl) for impl in ("triton", "linear"))
    for x, y in zip(flat(one), flat(two), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_the_formula_itself():
    inputs, options = call((4, 2, 9, 9, 3, 5), KINDS["decay per token, mask"], True)
    exact = oracle.attention(**{name: x.double() for name, x in inputs.items()}, **options)
    out = taylor_attention(**inputs, **options, impl="triton", return_state=False).output
    assert error(out, exact) < 1e-6


@pytest.mark.parametrize("kind", ["plain", "decay per token, mask", "centre"])
@pytest.mark.parametrize("cut", [1, 3, 65])
def test_what_is_split_and_resumed_equals_the_whole(cut, kind):
    """A state carries over, with its gradient; one token more is decoded by a kernel of its own."""
    inputs, options = call((4, 2, 70, 70, 6, 10), KINDS[kind], True, b=1)

    def split(impl, **x):
        parts, state = [], None
        for place in (slice(0, 70 - cut), slice(70 - cut, None)):
            own = {name: y[:, :, place] for name, y in x.items()}
            mask = None if options["key_mask"] is None else options["key_mask"][:, place]
            out = taylor_attention(**own, **options | {"key_mask": mask}, impl=impl, state=state)
            parts.append(out.output)
            state = out.state
        return torch.cat(parts, dim=2), state

    whole = partial(taylor_attention, **options, impl="linear")
    no_worse(partial(split, "triton"), partial(split, "linear"), whole, inputs)


@pytest.mark.parametrize("kind", ["plain", "decay per token, mask", "centre, coefficients, mask", "scale, sums"])
@pytest.mark.parametrize("heads", [(1, 1), (6, 2)], ids=str)
def test_decoding_token_by_token_goes_on_from_torch(kind, heads):
    inputs, options = call((*heads, 12, 12, 17, 20), KINDS[kind], True)
    whole = taylor_attention(**{name: x.double() for name, x in inputs.items()}, **options, impl="linear")
    mask = options.pop("key_mask")
    state = None
    for t in range(12):
        own = {name: x[:, :, t : t + 1] for name, x in inputs.items()}
        seen = None if mask is None else mask[:, t : t + 1]
        impl = "linear" if t < 5 else "triton"
        out = taylor_attention(**own, **options, key_mask=seen, state=state, impl=impl)
        state = out.state
        torch.testing.assert_close(out.output.double(), whole.output[:, :, t : t + 1], rtol=2e-6, atol=5e-6)
    assert isinstance(state, KernelState)
    for x, y in zip(flat((state,)), flat((whole.state,)), strict=True):
        assert error(x, y.double()) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_low_precision(causal, dtype):
    """At most twice the error of the same sums by torch on numbers of that type."""
    inputs, options = call((2, 1, 140, 140, 16, 24), {"mask": True}, causal, dtype, b=1)
    run = partial(taylor_attention, **options, return_state=False)
    exact = results(partial(run, impl="direct"), {name: x.double() for name, x in inputs.items()})
    found, plain = results(partial(run, impl="triton"), inputs), results(partial(low, **options), inputs)
    assert found[0]["0"].dtype == dtype and found[1]["k"].dtype == dtype
    own, other = worst(found, exact), worst(plain, exact)
    for key, value in own.items():
        assert value <= 2 * max(other[key], torch.finfo(dtype).eps), (key, value, other[key])


def low(q, k, v, key_mask, causal):
    """The formula with every result rounded to the inputs' type."""
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * q.shape[-1] ** -0.5
    weights = (1 + scores + scores**2 / 2) * key_mask[:, None, None].to(q.dtype)
    weights = weights.tril() if causal else weights
    sums = weights.sum(-1, keepdim=True)
    return (weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1) / torch.where(sums == 0, 1.0, sums),)


def test_long_sums_do_not_overflow_in_float16():
    q, k, v = (torch.full((1, 1, 600, 16), 6.0, dtype=torch.float16) for _ in range(3))
    out = taylor_attention(q, k, v, impl="triton", return_state=False).output
    assert ((out - 6).abs() < 0.01).all()


def test_what_has_decayed_away_is_zero_and_nothing_overflows():
    """Sums of log gates of -3000 in a chunk; that a warning is an error tells of infinities on the way."""
    inputs = qkv(b=1, h=2, g=2, n=20, d=6, e=4, dtype=torch.float32)
    inputs["log_decay"] = torch.full((1, 2, 20), -150.0)
    run = partial(taylor_attention, causal=True, return_state=True)
    found = results(partial(run, impl="triton"), inputs)
    exact = results(partial(run, impl="direct"), {name: x.double() for name, x in inputs.items()})
    assert all(value < 1e-5 for value in worst(found, exact).values())


@interpreted
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_results_are_the_same_in_every_run_and_written_once(causal, monkeypatch):
    """No element is stored twice in one launch: there are no races, whatever the order of the programs."""
    from triton.runtime import interpreter

    stored, launch, store = [], interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder.create_masked_store

    def counting_launch(self, *args, **kwargs):
        stored.clear()
        launch(self, *args, **kwargs)
        places = torch.cat(stored)
        assert len(places) and len(places.unique()) == len(places), self.fn.__name__
        launches.append(self.fn.__name__)

    def counting_store(self, ptrs, value, mask, *rest):
        stored.append(torch.from_numpy(ptrs.data[mask.data].astype("int64")))
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counting_launch)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_store", counting_store)
    launches: list[str] = []
    inputs, options = call((1, 1, 66, 66, 17, 33), KINDS["decay per token, mask"] if causal else {}, causal, b=1)
    run = partial(taylor_attention, **options, impl="triton", return_state=causal)
    first, again = results(run, inputs), results(run, inputs)
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(x, two[name]) for name, x in one.items())
    state = run(**inputs).state if causal else None
    if causal:
        one = {name: x[:, :, :1] for name, x in inputs.items()}
        taylor_attention(**one, causal=True, state=state, impl="triton")
    names = {"key_sums", "query_sums", "running", "read_queries", "read_keys", "pull_queries", "pull_keys"}
    assert set(launches) == names | ({"decays", "step"} if causal else set())


@pytest.mark.parametrize(("changed", "message"), [
    ({"q": torch.zeros(1, 1, 4, 65), "k": torch.zeros(1, 1, 4, 65)}, "head dim (65) must be at most 64"),
    ({"q": torch.zeros(1, 1, 4, 4).double()}, "dtype (torch.float64) must be float32, bfloat16 or float16"),
    ({"order": 4}, "and order (4) 2"),
    ({"chunk_size": 64}, "chunk_size (64) must be None"),
])  # fmt: skip
def test_what_it_cannot_do_it_says(changed, message):
    x = {"q": torch.zeros(1, 1, 4, 4), "k": torch.zeros(1, 1, 4, 4), "v": torch.zeros(1, 1, 4, 4)} | changed
    x = {name: y.to(DEVICE) if isinstance(y, torch.Tensor) else y for name, y in x.items()}
    with pytest.raises(ValueError) as told:
        taylor_attention(**x, impl="triton")
    assert "impl='triton' cannot do this" in str(told.value) and message in str(told.value)
