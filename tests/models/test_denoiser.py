"""What a denoiser says of hidden inputs knows nothing of them, and tells them from zeros."""

import pytest
import torch

from tsla.models import Denoiser, Encoder

MASK = torch.arange(9) < torch.tensor([[9], [5]])
WANTED = torch.tensor([0, 3, 9, 12])


def made(**options) -> Denoiser:
    encoder = Encoder(**({"vocab_size": 11} | options), dim=8, depth=2, heads=2)
    model = Denoiser(encoder, outputs=options.get("input_dim", 11)).eval()
    torch.nn.init.normal_(model.hidden)
    return model


def inputs(channels: int | None) -> torch.Tensor:
    return torch.randint(1, 11, (2, 9)) if channels is None else torch.randn(2, 9, channels)


@pytest.mark.parametrize("conv_embedding", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
def test_nothing_of_what_is_hidden_gets_through(channels, conv_embedding):
    options = {} if channels is None else {"vocab_size": None, "input_dim": channels}
    model, x = made(**options, conv_embedding=conv_embedding), inputs(channels)
    said = model.run(x, MASK, WANTED).logits
    assert said.shape == (4, channels or 11)
    for place in range(18):
        other, before = x.clone(), x.clone()
        other.flatten(0, 1)[place] = inputs(channels)[0, 0] if channels else x.flatten()[place] % 10 + 1
        told = torch.equal(model.run(other, MASK, WANTED).logits, said)
        assert told == (place in WANTED or not MASK.flatten()[place]), place
        assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [None, 3])
def test_what_is_hidden_is_no_zero(channels):
    model = made(**({} if channels is None else {"vocab_size": None, "input_dim": channels}))
    zeros = torch.zeros_like(inputs(channels))
    first, second = (model.run(zeros, None, torch.tensor(places)).logits[0] for places in ([3], [3, 4]))
    assert not torch.allclose(first, second)


def test_packed_rows_are_as_padded_ones():
    model, x = made(), inputs(None)
    packed = x[MASK][None]
    said = model.run(packed, None, torch.tensor([0, 3, 9, 12]), torch.tensor([0, 9, 14])).logits
    torch.testing.assert_close(said, model.run(x, MASK, WANTED).logits)


def test_no_outputs():
    with pytest.raises(ValueError, match=r"outputs \(0\) must be at least 1"):
        Denoiser(Encoder(vocab_size=11, dim=8, depth=1, heads=2), outputs=0)
