"""Luna: its second sequence goes from layer to layer, is one for a model, and tells nothing of later tokens."""

import pytest
import torch
from cases import agree
from luna_oracle import two_way as luna
from mechanisms import DIM, build, padding
from torch.testing import assert_close
from train_runs import spec

from tsla import build as builder
from tsla.build_mixer import Place, build_mixer
from tsla.config.mixers import LunaConfig
from tsla.config.schema import EncoderConfig
from tsla.mixers import LunaAttention, TaylorAttention
from tsla.mixers.luna import LunaStream
from tsla.models import Encoder

EXACT = {"rtol": 1e-9, "atol": 1e-9}
NAMES = pytest.mark.parametrize("name", ["luna", "luna, untied"])


def tokens(b=2, n=11, dtype=torch.float64):
    return torch.randn(b, n, DIM, dtype=dtype)


@NAMES
@pytest.mark.parametrize("given", [False, True], ids=["its own", "given"])
def test_the_stream_equals_the_formula(name, given):
    mixer, x, mask = build(name), tokens(3), padding(11, 7, 0, total=11)
    side = torch.randn(3, mixer.slots, DIM, dtype=torch.float64) if given else None
    for real in (None, mask):
        mixed = mixer.mix(x, mask=real, side=side)
        output, stream = luna(mixer, x, None, real, side)
        assert_close(mixed.output, output, **EXACT)
        assert_close(mixed.side, stream, **EXACT)
    context = tokens(3, 20)
    assert_close(mixer.mix(x, context, side=side).side, luna(mixer, x, context, None, side)[1], **EXACT)


@NAMES
def test_gradients_through_the_stream(name):
    mixer, mask = build(name), padding(11, 7, total=11)
    inputs = {"x": tokens(), "side": torch.randn(2, mixer.slots, DIM, dtype=torch.float64)}
    agree(lambda x, side: mixer.mix(x, mask=mask, side=side).side, lambda x, side: luna(mixer, x, None, mask, side)[1],
          inputs, 1e-8)  # fmt: skip


def test_packed_sequences_have_streams_of_their_own():
    mixer, x = build("luna"), tokens(1, 12)
    side = torch.randn(3, mixer.slots, DIM, dtype=torch.float64)
    mixed = mixer.mix(x, side=side, cu_seqlens=torch.tensor([0, 5, 5, 12]))
    for row, (start, stop) in enumerate(((0, 5), (5, 5), (5, 12))):
        alone = mixer.mix(x[:, start:stop], side=side[row : row + 1])
        assert_close(mixed.output[:, start:stop], alone.output, **EXACT)
        assert_close(mixed.side[row : row + 1], alone.side, **EXACT)


def test_the_causal_form_leaves_a_stream_alone():
    """What the stream has packed would tell of later tokens."""
    mixer, x = build("luna", causal=True), tokens()
    side = torch.randn(2, mixer.slots, DIM, dtype=torch.float64)
    assert torch.equal(mixer.mix(x, side=side).output, mixer(x)) and mixer.mix(x, side=side).side is None


def test_the_causal_form_is_no_average():
    """Values that are all the same do not come out the same, as they would of an average."""
    mixer = build("luna, untied", causal=True)
    with torch.no_grad():
        mixer.to_v.weight.zero_()
        mixer.to_v.bias = torch.nn.Parameter(torch.ones(DIM, dtype=torch.float64))
        mixer.to_out.weight.copy_(torch.eye(DIM))
    out = mixer(tokens())
    assert out.min() < 0.95 and out.max() > 1.05


def test_a_constant_value_is_its_own_average():
    mixer = build("luna, untied")
    with torch.no_grad():
        for layer in (mixer.to_pv, mixer.to_v, mixer.to_out):
            layer.weight.copy_(torch.eye(DIM))
    x = tokens()
    mixer.to_pv.weight.data.zero_()
    mixer.to_pv.bias = torch.nn.Parameter(torch.linspace(-1, 1, DIM).double())
    assert_close(mixer(x), mixer.to_pv.bias.expand_as(x), **EXACT)


def test_keys_have_no_order():
    mixer, x = build("luna"), tokens()
    order = torch.randperm(11)
    assert_close(mixer(x[:, order]), mixer(x)[:, order], **EXACT)


def test_longer_inputs_than_slots_and_shorter_ones_use_all_slots():
    for n in (1, 4, 300):
        mixed = build("luna").mix(tokens(2, n))
        assert mixed.side.shape == (2, 5, DIM)


def test_a_model_has_one_stream():
    config = EncoderConfig(dim=DIM, depth=3)
    model = builder.build_model(config, LunaConfig(heads=4, slots=6), spec()).double()
    mixers = [block.mixer for block in model.encoder.blocks]
    assert all(m.stream is mixers[0].stream for m in mixers) and mixers[0].stream.rows.shape == (6, DIM)
    got = []
    for m in mixers:
        inner = m.mix
        m.mix = lambda x, inner=inner, **options: got.append(options["side"]) or inner(x, **options)
    model(torch.randint(9, (2, 7)))
    assert got[0] is None and all(side.shape == (2, 6, DIM) for side in got[1:]) and not torch.equal(got[1], got[2])


def test_the_stream_passes_by_layers_of_another_kind():
    made = {layer: LunaAttention(DIM, heads=2, slots=3) if layer != 1 else TaylorAttention(DIM, heads=2)
            for layer in range(3)}  # fmt: skip
    model = Encoder(vocab_size=9, dim=DIM, depth=3, mixer=made.__getitem__)
    model(torch.arange(8)[None]).square().sum().backward()
    assert made[2].stream.rows.grad is None and (made[0].stream.rows.grad != 0).all()


def test_layers_of_one_place_share_and_others_do_not():
    model, shared = EncoderConfig(dim=DIM), {}
    first, second, other = (
        build_mixer(LunaConfig(), model, Place(layer, 2, 64, own)) for layer, own in ((0, shared), (1, shared), (0, {}))
    )
    assert first.stream is second.stream and other.stream is not first.stream


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"^heads \(3\) must divide dim \(16\)$"),
        ({"heads": 0}, r"^heads \(0\) must be at least 1$"),
        ({"slots": 0}, r"^slots \(0\) must be at least 1$"),
        ({"stream": LunaStream(5, DIM)}, r"^stream must have shape \(16, 16\), got \(5, 16\)$"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        LunaAttention(DIM, **options)


def test_a_stream_of_another_size_is_refused():
    mixer = LunaAttention(DIM, slots=4)
    for shape in ((2, 5, DIM), (1, 4, DIM), (2, 4)):
        with pytest.raises(ValueError, match=r"^side must have shape \(2, 4, 16\), got "):
            mixer.mix(tokens(dtype=torch.float32), side=torch.zeros(shape))


def test_large_scores_stay_finite():
    """Scores far beyond what exp could hold, of the causal form's weights above all."""
    for causal in (False, True):
        mixer = build("luna", causal=causal, dtype=torch.float32)
        x = (tokens(dtype=torch.float32) * 300).requires_grad_()
        out = mixer(x)
        out.sum().backward()
        assert out.isfinite().all() and x.grad.isfinite().all()
