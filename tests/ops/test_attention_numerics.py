"""Types, precision, memory and odd corners of autograd."""

from typing import NamedTuple

import oracle
import pytest
import torch
from cases import Largest, error, flat, qkv, results, some_decay, some_mask

from tsla.ops import linear_attention, taylor_attention, taylor_feature_dim, window_attention

FORMS = ("direct", "linear", "auto")
LOW = (torch.bfloat16, torch.float16)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [*LOW, torch.float32, torch.float64])
@CAUSAL
def test_output_in_the_input_type_and_state_in_float32_at_least(dtype, form, causal):
    x = qkv(n=20, dtype=dtype)
    rates = {"log_decay": some_decay(4, dtype=dtype)} if causal else {}
    for out, state in (
        taylor_attention(**x, causal=causal, return_state=True, impl=form, **rates),
        linear_attention(*x.values(), causal=causal, return_state=True, impl=form, **rates),
    ):
        assert out.dtype == dtype
        assert state.kv.dtype == state.z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        again = taylor_attention if state.kv.shape[2] == 10 else linear_attention
        assert again(*x.values(), causal=causal, state=state, impl=form, **rates).output.dtype == dtype


def plain(q, k, v, causal, by_features=False):
    """Taylor attention as one would write it, in the type of its inputs."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    if by_features:
        phi_q, phi_k = oracle.features(q * q.shape[-1] ** -0.5, 2), oracle.features(k, 2).transpose(-1, -2)
        if not causal:
            return phi_q @ (phi_k @ v) / (phi_q @ phi_k.sum(-1, keepdim=True))
        weights = phi_q @ phi_k
    else:
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = 1 + scores + scores.square() / 2
    weights = weights.tril() if causal else weights
    return weights @ v / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [*LOW, torch.float32])
@pytest.mark.parametrize("n", [5, 200])
@CAUSAL
def test_error_is_at_most_twice_that_of_a_plain_implementation(n, dtype, form, causal):
    """In float32, where nothing is promoted, what is plain for the linear form are features."""
    x = qkv(n=n, d=16, e=8, dtype=dtype)
    truth = results(lambda **y: oracle.dense(**y, causal=causal)[0], {name: t.double() for name, t in x.items()})
    got = results(lambda **y: taylor_attention(**y, causal=causal, impl=form).output, x)
    by_features = form == "linear" and dtype == torch.float32
    reference = results(lambda **y: plain(**y, causal=causal, by_features=by_features), x)
    for ours, theirs, exact in zip(got, reference, truth, strict=True):
        for name, values in exact.items():
            assert error(ours[name], values) <= 2 * (error(theirs[name], values) + torch.finfo(dtype).eps), name


@pytest.mark.parametrize("dtype", LOW)
@CAUSAL
def test_error_of_a_window_is_at_most_twice_that_of_a_plain_implementation(dtype, causal):
    x = qkv(n=100, d=16, e=8, dtype=dtype)
    reference = oracle.dense_window(**x, window=9, causal=causal)
    truth = oracle.dense_window(**{name: tensor.double() for name, tensor in x.items()}, window=9, causal=causal)
    got = window_attention(**x, window=9, causal=causal)
    assert got.dtype == dtype
    assert error(got, truth) <= 2 * (error(reference, truth) + torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("form", FORMS)
def test_long_low_precision_sums_do_not_stall(form, dtype):
    """A count kept in bf16 stops at 256: the average of 3000 ones and then 3000 zeros would stay near 1."""
    q = k = torch.zeros(1, 1, 6000, 1, dtype=dtype)
    v = torch.cat([torch.ones(1, 1, 3000, 1), torch.zeros(1, 1, 3000, 1)], dim=2).to(dtype)
    out, state = taylor_attention(q[:, :, :1], k, v, impl=form, return_state=True)
    assert out.item() == 0.5
    assert (state.kv[0, 0, 0].item(), state.z[0, 0, 0].item()) == (3000, 6000)


@pytest.mark.parametrize("form", FORMS)
@CAUSAL
def test_autocast_changes_nothing(form, causal):
    x = qkv(n=200, d=16, dtype=torch.float32)
    options = {"causal": causal, "impl": form, "return_state": True}
    expected = list(flat(taylor_attention(**x, **options)))
    with torch.autocast("cpu", torch.bfloat16):
        got = list(flat(taylor_attention(**x, **options)))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, expected, strict=True))


def cast(run, **x):
    """The forward pass alone under autocast, as torch asks for."""
    with torch.autocast("cpu", torch.bfloat16):
        return run(**x)


@pytest.mark.parametrize("options", [{}, {"center": "mean"}, {"order": 4}, {"normalize": False}], ids=str)
@CAUSAL
def test_autocast_changes_no_option_and_no_gradient(options, causal):
    x = qkv(n=100, d=8, dtype=torch.float32) | {"log_decay": some_decay(4, dtype=torch.float32)}
    runs = [lambda f=form, **y: taylor_attention(**y, causal=causal, impl=f, **options) for form in FORMS]
    if not options:
        runs += [lambda q, k, v, f=form, **y: linear_attention(q.abs(), k.abs(), v, causal=causal, impl=f, **y)
                 for form in FORMS]  # fmt: skip
    for run in runs:
        expected, got = results(run, x), results(lambda f=run, **y: cast(f, **y), x)
        for ours, theirs in zip(got, expected, strict=True):
            assert all(torch.equal(ours[name], y) and ours[name].dtype == y.dtype for name, y in theirs.items())


@CAUSAL
@pytest.mark.parametrize("options", [{}, {"center": "mean"}], ids=str)
def test_a_backward_pass_under_autocast_is_exact_in_the_linear_form(options, causal):
    """Gates get the difference of two large sums, of which bfloat16 would leave little."""
    x = qkv(n=100, d=8, dtype=torch.float32) | {"log_decay": some_decay(4, dtype=torch.float32)}
    run = lambda **y: taylor_attention(**y, causal=causal, impl="linear", chunk_size=16, **options)  # noqa: E731
    expected = results(run, x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        got = results(run, x)[1]
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= (1e-4 if options else 1e-6) * gradient.norm(), name


@CAUSAL
def test_autocast_of_a_window_is_that_of_torch(causal):
    """Softmax needs no sums of long sequences: it runs in the low type, as torch's own does, and returns ours."""
    x = qkv(n=100, d=16, e=8, dtype=torch.float32)
    truth = oracle.dense_window(**{name: tensor.double() for name, tensor in x.items()}, window=9, causal=causal)
    low = {name: tensor.bfloat16() for name, tensor in x.items()}
    plain_error = error(oracle.dense_window(**low, window=9, causal=causal), truth)
    with torch.autocast("cpu", torch.bfloat16):
        got = window_attention(**x, window=9, causal=causal)
    assert got.dtype == torch.float32
    assert error(got, truth) <= 2 * (plain_error + torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("dtype", [*LOW, torch.float32])
@pytest.mark.parametrize("options", [{}, {"center": "mean"}, {"order": 4}, {"coefficients": (1.0, 0.5, 0.3)}], ids=str)
@CAUSAL
def test_rows_of_zeros_are_averages(options, dtype, causal):
    """A query of zeros has equal weights; and keys, values or all three of zeros have finite gradients."""
    x = qkv(n=30, dtype=dtype)
    for form in FORMS:
        zeroed = x | {"q": torch.zeros_like(x["q"])}
        out, gradients = results(
            lambda f=form, **y: taylor_attention(**y, causal=causal, impl=f, **options).output, zeroed
        )
        v = x["v"].double().repeat_interleave(2, dim=1)
        count = torch.arange(1, 31).double()[:, None]
        expected = v.cumsum(2) / count if causal else v.mean(2, keepdim=True).expand_as(v)
        assert error(out["0"], expected) <= torch.finfo(dtype).eps
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        for names in ("k", "v", "qkv"):
            zeroed = x | {name: torch.zeros_like(x[name]) for name in names}
            out, gradients = results(
                lambda f=form, **y: taylor_attention(**y, causal=causal, impl=f, **options).output, zeroed
            )  # fmt: skip
            assert (out["0"] == 0).all() == ("v" in names)
            assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", [*LOW, torch.float32])
@pytest.mark.parametrize("form", FORMS)
@CAUSAL
def test_huge_scores_stay_finite(form, dtype, causal):
    """|q.k| of 1000: its square is not a number in fp16."""
    x = qkv(n=100, d=4, dtype=torch.float32)
    for name in "qk":
        x[name] = 1000**0.5 * x[name] / x[name].norm(dim=-1, keepdim=True)
    x = {name: tensor.to(dtype) for name, tensor in x.items()}
    runs = (
        lambda **y: taylor_attention(**y, scale=1.0, causal=causal, impl=form).output,
        lambda **y: taylor_attention(**y, scale=1.0, causal=causal, impl=form, order=4).output,
        lambda **y: window_attention(**y, scale=1.0, causal=causal, window=10),
    )
    for run in runs:
        outputs, gradients = results(run, x)
        assert all(tensor.isfinite().all() for tensor in (outputs | gradients).values())


@pytest.mark.parametrize("form", FORMS)
def test_strong_decay_underflows_to_nothing(form):
    """A gate of exp(-200) forgets: each token sees itself, and no gradient is NaN."""
    x = qkv(n=70, dtype=torch.float32) | {"log_decay": torch.full((4,), -200.0)}
    for causal in (False, True):
        outputs, gradients = results(lambda c=causal, **y: taylor_attention(**y, causal=c, impl=form).output, x)
        torch.testing.assert_close(outputs["0"].float(), x["v"].repeat_interleave(2, dim=1), rtol=1e-5, atol=1e-5)
        assert all(gradient.isfinite().all() for gradient in gradients.values())


class Kept(NamedTuple):
    saved: int
    made: int


def tensors_of(run, inputs) -> Kept:
    """numel of the largest tensor kept for the backward pass, and of the largest made at all."""
    saved = [0]
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    with Largest() as made:
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            out = run(**leaves)
            loss = sum(x.square().sum() for x in flat(out) if x.is_floating_point())
        loss.backward()
    return Kept(max(saved), made.numel)


@pytest.mark.parametrize("decayed", [False, True])
@CAUSAL
def test_linear_form_keeps_and_makes_no_tensor_of_features(causal, decayed):
    """n x f and n x n are 20 times what it keeps, and 5 times the largest it makes."""
    n, d, chunk = 1024, 16, 64
    x = qkv(b=1, h=1, g=1, n=n, d=d, e=8, dtype=torch.float32)
    x |= {"log_decay": some_decay(1, dtype=torch.float32)} if decayed else {}
    f = taylor_feature_dim(d)
    options = {"causal": causal, "key_mask": some_mask(1, n), "impl": "linear", "chunk_size": chunk}
    kept = tensors_of(lambda **y: taylor_attention(**y, **options), x)
    assert n * d <= kept.saved <= n * (d + 1) < n * f / 8
    assert kept.made <= max(2 * n * d, 2 * chunk * f) < n * f / 4


def test_direct_form_makes_the_matrix():
    """The measure of the test above can fail."""
    kept = tensors_of(lambda **y: taylor_attention(**y, impl="direct"), qkv(b=1, h=1, g=1, n=300, dtype=torch.float32))
    assert kept.saved >= 300 * 300 and kept.made >= 300 * 300


@CAUSAL
def test_window_keeps_and_makes_no_matrix(causal):
    n, window, d = 2048, 16, 4
    x = qkv(b=1, h=1, g=1, n=n, d=d, e=d, dtype=torch.float32)
    kept = tensors_of(lambda **y: window_attention(**y, window=window, causal=causal), x)
    assert max(kept) <= n * 3 * window * 2 < n * n / 16


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", [[], ["q"], ["k"], ["v"], ["log_decay"], ["kv"], ["z"], ["q", "z"]], ids=str)
def test_any_input_may_be_the_only_one_with_a_gradient(wanted, form):
    x = qkv(n=20) | {"log_decay": some_decay(2, 4, 20)}
    state = taylor_attention(**qkv(n=3), log_decay=some_decay(4), causal=True).state
    everything = x | {"kv": state.kv.clone(), "z": state.z.clone()}

    def run(kv, z, **y):
        return taylor_attention(**y, state=state._replace(kv=kv, z=z), causal=True, impl=form).output

    expected = results(run, everything)[1]
    leaves = {name: tensor.clone().requires_grad_(name in wanted) for name, tensor in everything.items()}
    out = run(**leaves)
    assert out.requires_grad == bool(wanted)
    generator = torch.Generator().manual_seed(1)
    if wanted:
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in wanted)
        if name in wanted:
            torch.testing.assert_close(leaf.grad, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [["output"], ["kv"], ["z"], ["output", "z"]], ids=str)
def test_the_loss_may_ignore_output_or_state(parts, form):
    x = qkv(n=20) | {"log_decay": some_decay(4)}

    def loss(out, kv, z):
        return [{"output": out, "kv": kv, "z": z}[part] for part in parts]

    def run(**y):
        out, state = taylor_attention(**y, causal=True, impl=form)
        return loss(out, state.kv, state.z)

    got, expected = results(run, x), results(lambda **y: loss(*oracle.dense(**y, causal=True)), x)
    for ours, theirs in zip(got, expected, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-10, atol=1e-10)


def test_backward_twice_through_one_graph():
    x = {name: tensor.requires_grad_() for name, tensor in (qkv(n=20) | {"log_decay": some_decay(4)}).items()}
    out = taylor_attention(**x, causal=True, impl="linear").output
    first = torch.autograd.grad(out.sum(), x.values(), retain_graph=True)
    second = torch.autograd.grad(out.sum(), x.values())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("form", FORMS)
@CAUSAL
def test_shapes_on_the_meta_device(form, causal):
    x = {name: tensor.to("meta") for name, tensor in (qkv(n=20) | {"log_decay": some_decay(4)}).items()}
    out, state = taylor_attention(**x, causal=causal, key_mask=some_mask(2, 20).to("meta"), impl=form)
    assert out.shape == (2, 4, 20, 5) and out.device.type == "meta"
    assert (state is not None) == causal
    assert window_attention(x["q"], x["k"], x["v"], window=3, causal=causal).shape == (2, 4, 20, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("empty", ["b", "h", "e"])
@CAUSAL
def test_no_rows_heads_or_values(form, empty, causal):
    x = qkv(**{"b": 2, "h": 4, "e": 5, "n": 7} | {empty: 0})
    out, state = taylor_attention(**x, causal=causal, impl=form, return_state=True)
    assert out.shape == (*x["q"].shape[:3], x["v"].shape[-1]) and out.numel() == 0
    assert state.kv.shape == (*x["v"].shape[:2], 10, x["v"].shape[-1])


@CAUSAL
def test_the_linear_form_refuses_a_second_derivative(causal):
    """It would come out as 0."""
    x = {name: tensor.requires_grad_() for name, tensor in qkv(n=20).items()}
    for form, fine in (("direct", True), ("linear", False)):
        out = taylor_attention(**x, causal=causal, impl=form, return_state=False).output.square().sum()
        if fine:
            (first,) = torch.autograd.grad(out, x["q"], create_graph=True)
            assert torch.autograd.grad(first.square().sum(), x["k"])[0].abs().max() > 0
            continue
        with pytest.raises(RuntimeError, match=r"^the linear form has no second derivative: use impl='direct'$"):
            torch.autograd.grad(out, x["q"], create_graph=True)


@pytest.mark.parametrize("form", FORMS)
@CAUSAL
def test_a_gate_of_minus_infinity_forgets_all_before(form, causal):
    x, gates = qkv(b=1, n=20), some_decay(1, 4, 20)
    gates[..., 8] = -torch.inf
    out = taylor_attention(**x, log_decay=gates, causal=causal, impl=form, return_state=False).output
    for piece in (slice(0, 8), slice(8, 20)):
        part = {name: tensor[:, :, piece] for name, tensor in x.items()}
        own = gates[..., piece].clone()
        own[..., 0] = -1.0  # of the first token, which has nothing before it
        alone = taylor_attention(**part, log_decay=own, causal=causal, impl=form, return_state=False).output
        torch.testing.assert_close(out[:, :, piece], alone)
