"""What must hold of attention whatever its values: order of time, masks, batches, inputs left alone."""

import pytest
import torch
from cases import close, flat, qkv, results, some_decay, some_mask
from torch.testing import assert_close

from tsla.ops import linear_attention, taylor_attention, window_attention

EXACT = {"rtol": 1e-11, "atol": 1e-11}
RUNS = {
    "direct": lambda **x: taylor_attention(**x, impl="direct"),
    "linear": lambda **x: taylor_attention(**x, impl="linear", chunk_size=8),
    "centre, direct": lambda **x: taylor_attention(**x, center="mean", coefficients=(1, 0.5, 0.3), impl="direct"),
    "centre, linear": lambda **x: taylor_attention(**x, center="mean", order=4, impl="linear", chunk_size=8),
    "features, direct": lambda q, k, v, **x: linear_attention(q, k, v, **x, eps=99, impl="direct"),
    "features, linear": lambda q, k, v, **x: linear_attention(q, k, v, **x, eps=99, impl="linear", chunk_size=8),
    "window": lambda **x: window_attention(**x, window=5),
}
KERNELS = {name: run for name, run in RUNS.items() if name != "window"}


def runs(which=RUNS):
    return pytest.mark.parametrize("run", which.values(), ids=which.keys())


def output(result):
    return next(flat(result))


def with_decay(x, decayed):
    b, h, n = x["q"].shape[:3]
    return x | ({"log_decay": some_decay(b, h, n, dtype=x["q"].dtype)} if decayed else {})


@runs()
@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 19])
def test_later_tokens_do_not_reach_earlier_outputs(run, place):
    x = qkv(n=20, dtype=torch.float32)
    before = output(run(**x, causal=True))
    for tensor in x.values():
        tensor[:, :, place:] += 100
    after = output(run(**x, causal=True))
    assert torch.equal(after[:, :, :place], before[:, :, :place])
    assert not torch.isclose(after[:, :, place], before[:, :, place]).any(-1).all()


@runs(KERNELS)
@pytest.mark.parametrize("place", [0, 8, 19])
def test_later_decays_do_not_reach_earlier_outputs(run, place):
    x = with_decay(qkv(n=20, dtype=torch.float32), True)
    before = output(run(**x, causal=True))
    x["log_decay"][:, :, place:] -= 1
    after = output(run(**x, causal=True))
    assert torch.equal(after[:, :, :place], before[:, :, :place])
    assert place == 0 or not torch.equal(after[:, :, place], before[:, :, place])


@runs(KERNELS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("end", ["left", "right"])
def test_padding_is_truncation(run, decayed, causal, end):
    """Outputs, state and all gradients: what stands at masked places is as if it did not exist."""
    real = slice(6, 20) if end == "left" else slice(0, 14)
    x = with_decay(qkv(n=20), decayed)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, real] = True
    (whole, gradients), (short, short_gradients) = (
        results(lambda **y: only(run(**y, causal=causal, key_mask=mask), real), x),
        results(lambda **y: run(**y, causal=causal), {name: tensor[:, :, real] for name, tensor in x.items()}),
    )
    close(whole, short, 1e-11)
    close({name: gradient[:, :, real] for name, gradient in gradients.items()}, short_gradients, 1e-11)
    for gradient in gradients.values():
        outside = gradient.clone()
        outside[:, :, real] = 0
        assert (outside == 0).all()


def only(attended, real):
    return attended.output[:, :, real], *flat(attended.state)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("real", [slice(6, 20), slice(0, 14)], ids=["left", "right"])
def test_padding_of_a_window_is_truncation(causal, real):
    x = qkv(n=20)
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, real] = True
    whole = window_attention(**x, window=5, causal=causal, key_mask=mask)
    short = window_attention(**{name: t[:, :, real] for name, t in x.items()}, window=5, causal=causal)
    assert_close(whole[:, :, real], short, **EXACT)


@runs(KERNELS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
def test_a_hole_is_no_token(run, decayed, causal):
    x, kept = with_decay(qkv(n=20), decayed), torch.tensor([i not in (3, 7, 8, 9, 15) for i in range(20)])
    whole = run(**x, causal=causal, key_mask=kept.expand(2, -1))
    short = run(**{name: tensor[:, :, kept] for name, tensor in x.items()}, causal=causal)
    assert_close(whole.output[:, :, kept], short.output, **EXACT)


@runs()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
def test_rows_without_a_key_are_zero_with_finite_gradients(run, decayed, causal):
    x = qkv(b=3, n=20, dtype=torch.float32)
    x = with_decay(x, decayed and run is not RUNS["window"])
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[0], mask[1, :4] = False, False
    outputs, gradients = results(lambda **y: output(run(**y, causal=causal, key_mask=mask)), x)
    assert (outputs["0"][0] == 0).all()
    assert not causal or (outputs["0"][1, :, :4] == 0).all()
    assert (outputs["0"][2] != 0).any()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all((gradients[name][0] == 0).all() for name in gradients)


@runs()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_masked_keys_hold_does_not_matter(run, poison, decayed, causal):
    x = qkv(n=20)
    x = with_decay(x, decayed and run is not RUNS["window"])
    mask = some_mask(2, 20)
    clean, clean_gradients = results(lambda **y: run(**y, causal=causal, key_mask=mask), x)
    for name in x.keys() - {"q"}:
        x[name].transpose(1, 2)[~mask] = poison
    dirty, dirty_gradients = results(lambda **y: run(**y, causal=causal, key_mask=mask), x)
    for name, tensor in (clean | clean_gradients).items():
        assert tensor.isfinite().all()
        assert torch.equal((dirty | dirty_gradients)[name], tensor), name


@runs()
def test_a_full_mask_is_no_mask(run):
    x = qkv(n=20)
    for causal in (False, True):
        masked = run(**x, causal=causal, key_mask=torch.ones(2, 20, dtype=torch.bool))
        assert all(torch.equal(a, b) for a, b in zip(flat(masked), flat(run(**x, causal=causal)), strict=True))


@runs(KERNELS)
def test_order_of_tokens_does_not_matter_in_both_directions(run):
    x, order, mask = qkv(n=20), torch.randperm(20), some_mask(2, 20)
    out = output(run(**x, key_mask=mask))
    moved = output(run(**{name: tensor[:, :, order] for name, tensor in x.items()}, key_mask=mask[:, order]))
    assert_close(moved, out[:, :, order], **EXACT)


@runs()
@pytest.mark.parametrize("decayed", [False, True])
def test_backwards_in_time_is_the_same_in_both_directions(run, decayed):
    """With decay, exp(-|c_i - c_j|): the gate between two tokens is the later one's, so it moves by one."""
    x, mask = qkv(n=20), some_mask(2, 20)
    if decayed and run is not RUNS["window"]:
        x, mask = with_decay(x, True), torch.ones(2, 20, dtype=torch.bool)
    out = output(run(**x, key_mask=mask))
    back = {name: tensor.flip(2) for name, tensor in x.items()}
    if "log_decay" in x:
        back["log_decay"] = back["log_decay"].roll(1, dims=2)
    assert_close(output(run(**back, key_mask=mask.flip(1))).flip(2), out, **EXACT)


@runs()
@pytest.mark.parametrize("causal", [False, True])
def test_rows_of_a_batch_do_not_meet(run, causal):
    x, mask = qkv(b=3, n=20, dtype=torch.float32), some_mask(3, 20)
    out = output(run(**x, causal=causal, key_mask=mask))
    for tensor in x.values():
        tensor[0], tensor[2] = torch.randn(tensor.shape[1:]) * 50, 0
    assert torch.equal(output(run(**x, causal=causal, key_mask=mask))[1], out[1])
    alone = output(run(**{name: tensor[1:2] for name, tensor in x.items()}, causal=causal, key_mask=mask[1:2]))
    assert_close(alone, out[1:2], rtol=1e-5, atol=1e-6)


@runs()
@pytest.mark.parametrize("causal", [False, True])
def test_query_head_i_reads_key_head_i_g_over_h(run, causal):
    x = qkv(n=20, h=6, g=3)
    out = output(run(**x, causal=causal))
    every = x | {name: x[name].repeat_interleave(2, dim=1) for name in "kv"}
    assert_close(output(run(**every, causal=causal)), out, **EXACT)


@runs()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("decayed", [False, True])
def test_inputs_are_left_alone(run, decayed, causal):
    kernel = run is not RUNS["window"]
    x = with_decay(qkv(n=20), decayed and kernel) | {"key_mask": some_mask(2, 20)}
    if kernel and causal:
        x["state"] = run(**x, causal=True).state
    tensors = list(flat(x.values()))
    before = [(tensor.clone(), tensor._version) for tensor in tensors]
    for tensor in tensors:
        tensor.requires_grad_(tensor.is_floating_point())
    result = run(**x, causal=causal)
    versions = [tensor._version for tensor in flat(result)]
    torch.stack([part.double().square().sum() for part in flat(result)]).sum().backward()
    for tensor, (copy, version) in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy) and tensor._version == version
    assert [tensor._version for tensor in flat(result)] == versions


@runs()
@pytest.mark.parametrize("causal", [False, True])
def test_any_strides(run, causal):
    """Transposed, expanded and sliced inputs give what contiguous ones give, gradients too."""
    x = qkv(n=20)
    strange = {
        "q": x["q"].transpose(1, 2).contiguous().transpose(1, 2),
        "k": x["k"][:1].expand(2, -1, -1, -1),
        "v": torch.stack([x["v"], x["v"]], dim=-1)[..., 0],
    }
    assert not any(tensor.is_contiguous() for tensor in strange.values())
    leaves = {name: tensor.requires_grad_() for name, tensor in strange.items()}
    got = torch.autograd.grad(output(run(**leaves, causal=causal)).square().sum(), leaves.values())
    plain = {name: tensor.detach().contiguous().requires_grad_() for name, tensor in strange.items()}
    expected = torch.autograd.grad(output(run(**plain, causal=causal)).square().sum(), plain.values())
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, **EXACT)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 7, 19, 21, 10**9])
def test_chunk_sizes_agree(chunk, causal):
    x = with_decay(qkv(n=20), True) | {"key_mask": some_mask(2, 20)}
    for run in (taylor_attention, lambda q, k, v, **y: linear_attention(q, k, v, **y, eps=99)):
        got, expected = (run(**x, causal=causal, impl="linear", chunk_size=size) for size in (chunk, 20))
        for a, b in zip(flat(got), flat(expected), strict=True):
            assert_close(a, b, **EXACT)
