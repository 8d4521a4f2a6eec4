"""Channels first: the mixer on the places row by row, whatever the number of axes."""

import itertools

import mechanisms
import pytest
import torch
from cases import agree
from mechanisms import DIM, NAMES, build
from torch import Tensor, nn
from torch.testing import assert_close

from tsla.mixers import ChannelFirst, Mixed, Mixer

SPACES = ((7,), (3, 5), (2, 3, 4), (1, 1), (2, 1, 2, 3))
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def image(*space: int, b: int = 2) -> Tensor:
    return torch.randn(b, DIM, *space, dtype=torch.float64)


def by_loops(mixer: Mixer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each place is copied to its token and back: the last axis runs fastest."""
    places = list(itertools.product(*map(range, x.shape[2:])))
    tokens = torch.stack([x[(slice(None), slice(None), *place)] for place in places], 1)
    real = None if mask is None else torch.stack([mask[(slice(None), *place)] for place in places], 1)
    out = mixer(tokens, mask=real)
    result = x.new_full((x.shape[0], out.shape[-1], *x.shape[2:]), torch.nan)
    for at, place in enumerate(places):
        result[(slice(None), slice(None), *place)] = out[:, at]
    return result


@pytest.mark.parametrize("name", NAMES)
@CAUSAL
def test_equals_the_mixer_on_the_places_in_order(name, causal):
    if causal not in mechanisms.directions(name):
        return
    mixer = build(name, causal=causal)
    layer = ChannelFirst(mixer)
    for space in SPACES:
        x = image(*space)
        out = layer.mix(x).output
        assert out.shape == x.shape and out.dtype == x.dtype
        assert_close(out, by_loops(mixer, x), **EXACT)
        mask = torch.rand(2, *space) < 0.6
        mask[0] = False
        assert_close(layer.mix(x, mask=mask).output, by_loops(mixer, x, mask), **EXACT)


def test_places_that_are_not_real_change_nothing():
    layer, x, mask = ChannelFirst(build("taylor")), image(3, 5), torch.rand(2, 3, 5) < 0.6
    mask[:, 0, 0] = True
    other = x.masked_fill(~mask[:, None], 1e3)
    real = mask[:, None].expand_as(x)
    assert torch.equal(layer(x, mask=mask)[real], layer(other, mask=mask)[real])
    assert not torch.isclose(layer(x)[real], layer(other)[real]).all()


def test_a_causal_place_sees_the_rows_above_and_its_own_so_far():
    layer, x = ChannelFirst(build("taylor", "rotary", causal=True)), image(3, 4)
    for row, column in itertools.product(range(3), range(4)):
        other = x.clone()
        other[:, :, row, column] += 1.0
        changed = (layer(other) != layer(x)).any(1).any(0).flatten()
        assert changed.tolist() == [at >= 4 * row + column for at in range(12)]


def test_inputs_that_are_views():
    layer, x = ChannelFirst(build("taylor")), image(4, 6)
    expected = layer(x)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([x, x], -1)[..., 0]
    for view in (channels_last, strided, x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert not view.is_contiguous()
        before = view.clone()
        assert_close(layer(view), expected, **EXACT)
        assert torch.equal(view, before)
    assert_close(layer(x[:1].expand(3, -1, -1, -1)), expected[:1].expand(3, -1, -1, -1), **EXACT)


@CAUSAL
def test_gradients(causal):
    layer, mask = ChannelFirst(build("taylor", "all", causal=causal)), torch.rand(2, 2, 3) < 0.7
    agree(lambda x: layer(x, mask=mask), lambda x: by_loops(layer.mixer, x, mask), {"x": image(2, 3)}, 1e-11)
    layer(image(2, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_without_a_projection_the_channels_are_the_mixers_width():
    mixer = build("taylor", "no projection", value_dim=5)
    layer, x = ChannelFirst(mixer), image(3, 5)
    assert mixer.width == 20 and layer(x).shape == (2, 20, 3, 5)
    assert_close(layer(x), by_loops(mixer, x), **EXACT)


class Giving(Mixer):
    """The mean of the places, and beside it a stream made of the one it got, a loss, or both."""

    supports = frozenset({"bidirectional"})

    def __init__(self, *, stream: bool, loss: bool) -> None:
        super().__init__(DIM, width=DIM, causal=False)
        self.stream, self.loss = stream, loss

    def mix(self, x, context=None, *, mask=None, side=None, cu_seqlens=None):
        made = (x[:, :2] if side is None else side * 2) if self.stream else None
        return Mixed(x.mean(1, keepdim=True).expand_as(x), made, x.square().mean() if self.loss else None)


def test_mix_returns_what_a_mixer_gives_beside_its_output():
    x = image(3, 5)
    first = ChannelFirst(Giving(stream=True, loss=True)).mix(x)
    assert torch.equal(first.side, x.flatten(2).transpose(1, 2)[:, :2]) and first.aux == x.square().mean()
    second = ChannelFirst(Giving(stream=True, loss=False)).mix(x, side=first.side)
    assert torch.equal(second.side, 2 * first.side) and second.aux is None
    assert_close(second.output, x.mean((2, 3), keepdim=True).expand_as(x), **EXACT)
    plain = ChannelFirst(build("taylor")).mix(x)
    assert plain.side is None is plain.aux


@pytest.mark.parametrize(("given", "message"), [("stream", "a second stream (side)"), ("loss", "a loss (aux)")])
def test_forward_loses_nothing_in_silence(given, message):
    layer = ChannelFirst(Giving(**{"stream": False, "loss": False} | {given: True}))
    with pytest.raises(ValueError) as caught:
        layer(image(3, 5))
    assert str(caught.value) == f"Giving gives {message} beside its output: call mix instead"
    assert ChannelFirst(Giving(stream=False, loss=False))(image(3, 5)).shape == (2, DIM, 3, 5)


@pytest.mark.parametrize(
    ("shape", "mask", "message"),
    [
        ((2, DIM), None, "x must have shape (batch, 16, *space), got (2, 16)"),
        ((2, 3, 5, DIM), None, "x must have shape (batch, 16, *space), got (2, 3, 5, 16)"),
        ((DIM, 3, 5), None, "x must have shape (batch, 16, *space), got (16, 3, 5)"),
        ((2, DIM, 3, 5), torch.ones(2, 15, dtype=torch.bool), "mask must be torch.bool of shape (2, 3, 5)"),
        ((2, DIM, 3, 5), torch.ones(2, 5, 3, dtype=torch.bool), "got torch.bool of shape (2, 5, 3)"),
        ((2, DIM, 3, 5), torch.ones(2, 3, 5), "got torch.float32 of shape (2, 3, 5)"),
    ],
)
def test_what_is_refused(shape, mask, message):
    with pytest.raises(ValueError) as caught:
        ChannelFirst(build("taylor"))(torch.randn(shape, dtype=torch.float64), mask=mask)
    assert message in str(caught.value)


def test_it_stands_in_a_network_of_images():
    layer = ChannelFirst(build("taylor", dtype=torch.float32))
    network = nn.Sequential(nn.Conv2d(3, DIM, 3, padding=1), layer, nn.Conv2d(DIM, 4, 1))
    assert network(torch.randn(2, 3, 8, 6)).shape == (2, 4, 8, 6)
