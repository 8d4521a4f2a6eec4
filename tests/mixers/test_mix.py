"""Mixing: every mechanism with every option against the oracle, and what must hold of all of them."""

import copy
import pickle

import pytest
import torch
from cases import agree, flat
from mechanisms import (
    BARE,
    BIDIRECTIONAL,
    CAUSAL_WITH_OPTIONS,
    CROSS,
    DIM,
    EVERY_WAY,
    HEADS,
    LOSSES,
    NAMES,
    NEW,
    OPTIONS,
    STREAMS,
    WITH_OPTIONS,
    build,
    directions,
    expected,
    padding,
)
from torch.testing import assert_close

import tsla.mixers.taylor
from tsla.mixers import HeadMixer, Mixed

LEARNT = (
    "taylor", "luna", "linformer", "primal", "poly", "window", "split", "performer", "rfa_gate", "hedgehog",
    "transnormer", "linear, rebased", "fourier", "fourier, channels",
    "scatterbrain", "scatterbrain, lsh", "scatterbrain, hedgehog",
)  # fmt: skip
EXACT = {"rtol": 1e-9, "atol": 1e-9}
BOTH_WAYS = pytest.mark.parametrize(("name", "kind", "causal"), EVERY_WAY)
WITH_TIME = pytest.mark.parametrize(("name", "kind"), CAUSAL_WITH_OPTIONS)
EVERYTHING = pytest.mark.parametrize(("name", "kind"), WITH_OPTIONS)
EVERYONE = pytest.mark.parametrize("name", NAMES)


def tokens(b=2, n=11, dtype=torch.float64):
    return torch.randn(b, n, DIM, dtype=dtype)


@pytest.mark.parametrize(("name", "kind", "causal"), [case for case in EVERY_WAY if case[0] not in NEW])
def test_equals_the_formula(name, kind, causal):
    mixer, x = build(name, kind, causal=causal), tokens(3)
    holes = torch.rand(3, 11) < 0.6
    holes[0] = False
    for mask in (None, padding(11, 7, 1, total=11), padding(11, 7, 1, total=11, left=True), holes):
        assert_close(mixer(x, mask=mask), expected(mixer, x, mask=mask), **EXACT)


@pytest.mark.parametrize(("name", "kind", "causal"), [case for case in EVERY_WAY if case[0] in LEARNT])
def test_gradients_equal_those_of_the_formula(name, kind, causal):
    mixer, mask = build(name, kind, causal=causal), padding(11, 7, total=11)
    agree(lambda x: mixer(x, mask=mask), lambda x: expected(mixer, x, mask=mask), {"x": tokens()}, 1e-8)


@BOTH_WAYS
def test_shape(name, kind, causal):
    mixer = build(name, kind, causal=causal)
    width = DIM if kind != "no projection" else 2 * DIM if name == "split" else mixer.width
    assert mixer.width == (2 if name == "split" else 1) * (20 if kind == "all" else 12 if kind == "widths" else DIM)
    for b, n in ((2, 11), (2, 1), (1, 300), (2, 0), (0, 3)):
        mixed = mixer.mix(tokens(b, n))
        assert isinstance(mixed, Mixed)
        assert (mixed.side is not None) == (name.startswith(STREAMS) and not causal)
        assert (mixed.aux is not None) == name.startswith(LOSSES)
        assert mixed.output.shape == (b, n, width)
        assert torch.equal(mixer(tokens(b, n) * 0), mixer.mix(tokens(b, n) * 0).output)


@BOTH_WAYS
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_padding_is_truncation(name, kind, causal, left):
    mixer, x, lengths = build(name, kind, causal=causal), tokens(3), (11, 7, 1)
    out = mixer(x, mask=padding(*lengths, total=11, left=left))
    for row, n in enumerate(lengths):
        real = slice(11 - n, 11) if left else slice(0, n)
        assert_close(out[row : row + 1, real], mixer(x[row : row + 1, real]), **EXACT)


@EVERYTHING
def test_what_padding_holds_does_not_matter(name, kind):
    for causal in directions(name):
        mixer, x, mask = build(name, kind, causal=causal), tokens(), padding(11, 7, total=11)
        clean = mixer(x, mask=mask)
        x[~mask] = torch.nan
        assert torch.equal(mixer(x, mask=mask)[mask], clean[mask])


@WITH_TIME
@pytest.mark.parametrize("place", [0, 5, 10])
def test_later_tokens_do_not_reach_earlier_outputs(name, kind, place):
    mixer, x, mask = build(name, kind, causal=True, dtype=torch.float32), tokens(dtype=torch.float32), None
    for mask in (None, padding(11, 9, total=11), padding(11, 9, total=11, left=True)):
        before, changed = mixer(x, mask=mask), x.clone()
        changed[:, place:] = torch.randn(2, 11 - place, DIM) * 9
        after = mixer(changed, mask=mask)
        assert torch.equal(after[:, :place], before[:, :place])
        assert name == "none" or not torch.equal(after[:, place:], before[:, place:])


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_tokens_meet_in_both_directions(name):
    """A bidirectional mixer sees what is ahead; the control row sees nothing."""
    mixer, x = build(name), tokens()
    before = mixer(x)
    x[:, 3] += 5
    seen = (mixer(x) != before).any(-1).any(0)
    reach = {"none": 0, "window 0": 1, "conv": 3, "conv, wide": 6, "window": 8}.get(name, 11)
    assert seen.sum() == reach and (reach < 2 or seen[2])


@BOTH_WAYS
def test_rows_of_a_batch_do_not_meet(name, kind, causal):
    mixer, x, mask = build(name, kind, causal=causal), tokens(3), padding(11, 7, 9, total=11)
    out = mixer(x, mask=mask)
    x[0], x[2] = 50, torch.randn(11, DIM)
    assert torch.equal(mixer(x, mask=mask)[1], out[1])
    assert_close(mixer(x[1:2], mask=mask[1:2]), out[1:2], **EXACT)


@BOTH_WAYS
def test_every_parameter_learns(name, kind, causal):
    mixer, x = build(name, kind, causal=causal).train(), tokens().requires_grad_()
    mixed = mixer.mix(x)
    loss = (mixed.output * torch.randn(mixed.output.shape)).sum() + (0 if mixed.aux is None else mixed.aux)
    if name == "none":
        assert not loss.requires_grad and list(mixer.parameters()) == []
        return
    loss.backward()
    alone = ("to_q", "to_k", "q_norm", "k_norm") if name == "window 0" else ()  # one key: its weight is always 1
    for path, parameter in mixer.named_parameters():
        assert parameter.grad.isfinite().all(), path
        used = parameter.grad[..., :11, :] if path.startswith("projection") else parameter.grad  # a row for each token
        assert path.startswith(alone) or (used != 0).any(dim=-1).all(), path
    unread = DIM // 2 if name == "shift" else 0  # of the last token, which comes before none
    assert (x.grad[:, :-1] != 0).all() and (x.grad[:, -1, : DIM - unread] != 0).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in CROSS
        for kind in (("plain",) if name in BARE else [kind for kind in OPTIONS if kind not in ("rotary", "all")])
    ],
)
@pytest.mark.parametrize("m", [5, 11, 20])
def test_cross_attention(name, kind, m):
    mixer, x, context = build(name, kind), tokens(), tokens(2, m)
    bias = None if name == "none" else getattr(getattr(mixer, "inner", mixer).to_out, "bias", None)
    nothing = 0 if bias is None else bias
    for mask in (None, padding(m, m - 2, total=m), padding(m, 0, total=m)):
        out = mixer(x, context, mask=mask)
        if name not in NEW:
            assert_close(out, expected(mixer, x, context, mask), **EXACT)
        assert mask is None or mask.any(-1).all() or (out[1] == nothing).all()
    assert (mixer(x, tokens(2, 0)) == nothing).all()


@EVERYTHING
def test_dropout_only_in_training(name, kind):
    if name == "none":
        assert "dropout" not in build("none").__dict__
        return
    mixer, x = build(name, kind, dropout=0.5), tokens(2, 50)
    assert torch.equal(mixer(x), mixer(x)) and (mixer(x) != 0).all()
    mixer.train()
    out, again = mixer(x), mixer(x)
    assert not torch.equal(out, again)
    dropped = (out == 0).double().mean().item()
    assert 0.4 < dropped < 0.6
    kept = out != 0
    assert_close(out[kept], 2 * mixer.eval()(x)[kept], **EXACT)


@BOTH_WAYS
def test_no_grad_gives_the_same(name, kind, causal):
    mixer, x = build(name, kind, causal=causal), tokens()
    with torch.no_grad():
        out = mixer(x)
    assert not out.requires_grad and torch.equal(out, mixer(x))
    with torch.inference_mode():
        assert torch.equal(mixer(x.clone()), out)


@BOTH_WAYS
def test_autocast(name, kind, causal):
    """Finite, in the type of autocast where a product comes last, close to float32, and no warning."""
    mixer, x = build(name, kind, causal=causal, dtype=torch.float32).train(), tokens(2, 60, torch.float32)
    mask = padding(60, 40, total=60)
    with torch.autocast("cpu", torch.bfloat16):
        out, _, aux = mixer.mix(x, mask=mask)
    assert out.dtype == (torch.float32 if name == "none" else torch.bfloat16)
    reference = mixer(x, mask=mask)
    assert (out - reference).norm() <= 0.03 * reference.norm()
    if name != "none":
        (out.float().square().sum() + (0 if aux is None else aux)).backward()
        assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@EVERYTHING
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types(name, kind, dtype):
    for causal in directions(name):
        mixer, x = build(name, kind, causal=causal), tokens(2, 60)
        exact, low = mixer(x), mixer.to(dtype)(x.to(dtype))
        assert low.dtype == dtype
        steps = 16 if name.endswith(("relu", "t2r", "arccos")) else 8  # a query may have next to no feature there
        assert (low - exact).norm() <= steps * torch.finfo(dtype).eps * exact.norm()


@EVERYTHING
def test_copy_pickle_and_weights(name, kind):
    causal = directions(name)[-1]
    mixer, x = build(name, kind, causal=causal), tokens()
    other = build(name, kind, causal=causal)
    other.load_state_dict(mixer.state_dict())
    for twin in (copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer)), other):
        assert twin.supports == mixer.supports
        assert torch.equal(twin(x), mixer(x))


@BOTH_WAYS
def test_input_is_left_alone(name, kind, causal):
    mixer, x, mask = build(name, kind, causal=causal), tokens(), padding(11, 7, total=11)
    before = x.clone(), mask.clone()
    mixer(x.requires_grad_(), mask=mask).sum()
    assert torch.equal(x, before[0]) and torch.equal(mask, before[1]) and x._version == mask._version == 0


@EVERYTHING
def test_meta_device(name, kind):
    causal = directions(name)[-1]
    mixer = build(name, kind, causal=causal).to("meta")
    out = mixer(tokens().to("meta"), mask=padding(11, 7, total=11).to("meta"))
    assert out.shape == build(name, kind, causal=causal)(tokens()).shape
    assert all(part.device.type == "meta" for part in flat(out))


@pytest.mark.parametrize("name", HEADS)
def test_defaults(name):
    mixer = HEADS[name](32, **({"causal": True} if name not in BIDIRECTIONAL else {}))
    assert isinstance(mixer, HeadMixer)
    assert (mixer.heads, mixer.kv_heads, mixer.causal, mixer.rotary) == (8, 8, name not in BIDIRECTIONAL, False)
    assert mixer.value_dim == 4
    assert mixer.head_dim == (4 if "order 4" in name else 16 if name.startswith(("taylor", "poly")) else 4)
    assert all(layer.bias is None for layer in (mixer.to_q, mixer.to_k, mixer.to_v, mixer.to_out))
    assert mixer.to_gate is None and mixer.dropout.p == 0


@pytest.mark.parametrize("impl", ["auto", "direct", "linear"])
def test_the_form_asked_for_is_the_one_used(impl, monkeypatch):
    used, inner = [], tsla.mixers.taylor.taylor_attention
    monkeypatch.setattr(
        tsla.mixers.taylor, "taylor_attention", lambda *args, **x: used.append(x["impl"]) or inner(*args, **x)
    )
    mixer = build("taylor", causal=True, impl=impl)
    mixer(tokens())
    mixer.extend(tokens())
    assert used == [impl, impl]
