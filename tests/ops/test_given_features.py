"""`linear_attention` of features as they come: of either sign, with floors, in spans of chunks, exact and small."""

import oracle
import pytest
import torch
from cases import Largest, agree, flat, qkv, results, some_decay, some_mask
from torch.testing import assert_close

import tsla.ops.scan
from tsla.ops import KernelState, linear_attention

FORMS = ("direct", "linear")
EACH_FORM = pytest.mark.parametrize("form", FORMS)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
DECAYS = pytest.mark.parametrize("rates", [None, "head", "token"])
DIVIDED = {
    "floor": {"floor": 0.7},
    "floor and eps": {"floor": 0.7, "eps": 0.3},
    "low floor": {"floor": 0.05, "eps": 0.0},
    "sums": {"normalize": False},
}
CHUNK = 4


def inputs_of(n, rates, g=2, **shape):
    """Features of either sign, values and decays of four heads in two rows."""
    decay = {"head": (4,), "token": (2, 4, n)}.get(rates)
    return qkv(n=n, g=g, d=6, **shape) | ({"log_decay": some_decay(*decay)} if decay else {})


def some_state(inputs):
    """Sums that some keys could have left."""
    heads = 4 if "log_decay" in inputs else inputs["k"].shape[1]
    kv, z = oracle.state(*(torch.randn(2, heads, 3, width, dtype=torch.float64) for width in (6, 5)), order=None)
    return {"kv": kv, "z": z}


def run(q, k, v, kv=None, z=None, **options):
    state = None if kv is None else KernelState(kv, z, torch.zeros(2, dtype=torch.long))
    return linear_attention(q, k, v, state=state, **options)


def reference(kv=None, z=None, **options):
    out, *sums = oracle.dense(**options, order=None, start=None if kv is None else (kv, z))
    return (out, *sums) if options["causal"] else out


def of_span(monkeypatch, chunks, inputs, chunk=CHUNK):
    """Let a step of the scan take so many chunks of these inputs."""
    b, h, _, f = inputs["q"].shape
    monkeypatch.setattr(tsla.ops.scan, "SPAN", b * h * chunks * max(chunk**2, f * (inputs["v"].shape[-1] + 1)))


@CAUSAL
@DECAYS
@EACH_FORM
@pytest.mark.parametrize("divided", DIVIDED.values(), ids=DIVIDED.keys())
@pytest.mark.parametrize("n", [1, 5, 19])
def test_features_of_either_sign(n, divided, form, rates, causal):
    x = inputs_of(n, rates)
    options = {"key_mask": some_mask(2, n), "causal": causal, "eps": 1e-6} | divided
    agree(
        lambda **y: run(**y, **options, impl=form, chunk_size=CHUNK, return_state=causal),
        lambda **y: reference(**y, **options),
        x,
        tolerance=1e-8,
    )


@CAUSAL
@DECAYS
@EACH_FORM
def test_floors_by_the_loops(form, rates, causal):
    x, options = inputs_of(7, rates), {"key_mask": some_mask(2, 7), "causal": causal, "floor": 0.7}
    agree(
        lambda **y: run(**y, **options, eps=0.1, impl=form, chunk_size=CHUNK).output,
        lambda **y: oracle.attention(**y, **options, eps=0.1, order=None),
        x,
    )


@EACH_FORM
def test_a_floor_is_a_constant_that_keeps_the_sign(form):
    """Denominators -2, -0.5, 0, 0.5 and 2, the numerator 3 throughout."""
    q = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0])[None, None, :, None].requires_grad_()
    ones = torch.tensor([[[[1.0]]]])
    q2 = torch.cat([q, torch.ones_like(q)], dim=-1)  # the numerator: 0 q + 3
    k, v = torch.tensor([[[[1.0, 0.0], [0.0, 3.0], [0.0, -3.0]]]]), torch.tensor([[[[0.0], [1.0], [0.0]]]])
    out = linear_attention(q2, k, v, eps=0.0, floor=1.0, impl=form).output
    assert_close(out.flatten(), torch.tensor([-1.5, -3.0, 3.0, 3.0, 1.5]))
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert_close(gradient.flatten(), torch.tensor([-0.75, 0.0, 0.0, 0.0, -0.75]))  # of 3 / q, or none
    assert linear_attention(-ones, ones, ones, eps=0.75, floor=1.0, impl=form).output.item() == 1.0  # -0.25: eps first


@CAUSAL
@EACH_FORM
def test_a_row_that_sees_no_key_is_0_with_a_floor(form, causal):
    x, mask = qkv(b=2, n=9, dtype=torch.float32), torch.ones(2, 9, dtype=torch.bool)
    mask[0], mask[1, :3] = False, False
    options = {"key_mask": mask, "causal": causal, "floor": 0.1, "impl": form}
    outputs, gradients = results(lambda **y: run(**y, **options).output, x)
    unseen = outputs["0"][0] if not causal else torch.cat([outputs["0"][0].flatten(), outputs["0"][1, :, :3].flatten()])
    assert torch.equal(unseen, torch.zeros_like(unseen))
    assert all(x.isfinite().all() for x in gradients.values())


@DECAYS
@pytest.mark.parametrize("chunks", [1, 2, 3, 100])
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11, 12, 13, 23, 24, 25])
def test_spans_of_chunks(monkeypatch, n, resumed, chunks, rates):
    """Below, at and above whole chunks and whole spans: outputs, sums and all gradients, those of the state too."""
    x = inputs_of(n, rates)
    x |= some_state(x) if resumed else {}
    of_span(monkeypatch, chunks, x)
    options = {"key_mask": some_mask(2, n), "causal": True, "floor": 0.5, "eps": 0.0}
    agree(
        lambda **y: run(**y, **options, impl="linear", chunk_size=CHUNK),
        lambda **y: reference(**y, **options),
        x,
        tolerance=1e-8,
    )


@pytest.mark.parametrize("g", [1, 2, 4])
@DECAYS
@CAUSAL
def test_spans_of_grouped_heads_in_both_directions(monkeypatch, causal, rates, g):
    x = inputs_of(27, rates, g=g)
    of_span(monkeypatch, 2, x)
    agree(
        lambda **y: run(**y, causal=causal, normalize=False, impl="linear", chunk_size=CHUNK, return_state=causal),
        lambda **y: reference(**y, causal=causal, normalize=False),
        x,
    )


@pytest.mark.parametrize(("n", "chunk"), [(0, 4), (1, 4), (4, 4), (23, 4), (24, 4), (25, 4), (25, 1), (25, 30)])
@pytest.mark.parametrize("chunks", [1, 2, 100])
def test_spans_are_every_token_once_in_order(monkeypatch, chunks, n, chunk):
    x = inputs_of(n, None)
    of_span(monkeypatch, chunks, x, chunk)
    q, v = x["q"][:, :, None], torch.cat([x["v"], x["v"][..., :1]], dim=-1)
    spans = list(tsla.ops.scan._spans(q, v, chunk, None))
    assert [i for part, _ in spans for i in range(n)[part]] == list(range(n))
    assert all(part.stop - part.start == t * c and t <= chunks and c <= chunk for part, (t, c) in spans)
    assert all(c == chunk for _, (_, c) in spans[:-1])
    assert len(spans) == max(1, -(-(n // chunk) // chunks) + (n % chunk > 0))


@DECAYS
@CAUSAL
def test_chunk_size_changes_nothing(causal, rates):
    x = inputs_of(70, rates)
    expected = results(lambda **y: run(**y, causal=causal, floor=0.5, impl="direct", return_state=causal), x)
    for chunk in (None, 1, 7, 64, 70, 1000):
        got = results(
            lambda c=chunk, **y: run(
                **y, causal=causal, floor=0.5, impl="linear", chunk_size=c, return_state=causal
            ),
            x,
        )  # fmt: skip
        for ours, theirs in zip(got, expected, strict=True):
            for name, tensor in theirs.items():
                assert_close(ours[name], tensor, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 100])
@EACH_FORM
def test_powers_of_the_decay(monkeypatch, form, chunk):
    """With q = k = 1 and v_j the unit vector of j, what is read is 2^-(i - j), wherever chunks and calls begin."""
    n, first = 16, 6
    ones, eye = torch.ones(1, 1, n, 1), torch.eye(n)[None, None]
    distance = torch.arange(n)[:, None] - torch.arange(n)
    powers = torch.exp2(-distance.float())
    options = {"log_decay": torch.tensor([0.5]).log(), "normalize": False, "impl": form, "chunk_size": chunk}
    both = linear_attention(ones, ones, eye, **options).output[0, 0]
    assert_close(both, torch.exp2(-distance.abs().float()))
    for chunks in (1, 2, 100):
        of_span(monkeypatch, chunks, {"q": ones, "v": eye}, chunk)
        whole = linear_attention(ones, ones, eye, **options, causal=True)
        assert_close(whole.output[0, 0], powers.tril())
        assert_close(whole.state.kv[0, 0, 0], powers[-1])
        state = linear_attention(
            ones[:, :, :first], ones[:, :, :first], eye[:, :, :first], **options, causal=True
        ).state
        rest = linear_attention(ones[:, :, first:], ones[:, :, first:], eye[:, :, first:], **options, causal=True,
                                state=state)  # fmt: skip
        assert_close(rest.output[0, 0], powers.tril()[first:])
        assert_close(rest.state.kv, whole.state.kv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EACH_FORM
@CAUSAL
def test_low_precision_features_are_summed_in_float32(causal, form, dtype):
    """A sum of ones kept in bfloat16 stops at 256, in float16 at 2048."""
    ones = torch.ones(1, 1, 3000, 1, dtype=dtype)
    v = torch.cat([torch.ones(1, 1, 1500, 1), torch.zeros(1, 1, 1500, 1)], dim=2).to(dtype)
    for rates in (None, torch.zeros(1, 1, 3000, dtype=dtype)) if causal else (None,):
        out, state = linear_attention(
            ones, ones, v, causal=causal, impl=form, eps=0.0, log_decay=rates, return_state=True
        )
        assert out.dtype == dtype and out[0, 0, -1].item() == 0.5
        assert (state.kv.item(), state.z.item()) == (1500, 3000) and state.kv.dtype == torch.float32


@CAUSAL
@pytest.mark.parametrize("chunk", [None, 1, 64])
@pytest.mark.parametrize("rates", [None, "token"])
@pytest.mark.parametrize(("h", "f", "e"), [(1, 64, 64), (8, 16, 8), (2, 96, 24)])
def test_no_tensor_of_pairs_or_states_of_every_token(h, f, e, rates, chunk, causal):
    """Nothing that grows with the length is larger than the inputs, nor a step than what is stated."""
    n = 4096 if chunk is None or not causal else 2048
    x = qkv(b=1, h=h, g=h, n=n, d=f, e=e, dtype=torch.float32)
    x |= {"log_decay": some_decay(1, h, n, dtype=torch.float32)} if rates else {}
    leaves = {name: tensor.requires_grad_() for name, tensor in x.items()}
    with Largest() as made:
        out = run(**leaves, causal=causal, impl="linear", chunk_size=chunk)
        sum(tensor.square().sum() for tensor in flat(out) if tensor.is_floating_point()).backward()
    assert made.numel <= max(h * n * (max(f, e) + 1), tsla.ops.scan.SPAN) < h * n * min(n, f * e) / 4


def test_the_direct_form_makes_all_pairs():
    """The measure of the test above can fail."""
    with Largest() as made:
        run(**qkv(b=1, h=1, g=1, n=600, dtype=torch.float32), impl="direct")
    assert made.numel >= 600 * 600
