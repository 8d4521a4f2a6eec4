"""A class for each token: all of them, or those that are asked for."""

import pytest
import torch

from tsla.models import Encoder, SequenceClassifier, TokenClassifier
from tsla.models.account import example_input
from tsla.models.summary import summarise


def made(**options) -> TokenClassifier:
    encoder = Encoder(vocab_size=11, dim=8, depth=1, heads=2, causal=True, **options)
    return TokenClassifier(encoder, num_classes=5).eval()


def test_the_logits_of_some_tokens_are_those_of_all():
    model, ids = made(), torch.randint(1, 11, (3, 7))
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    asked = (torch.rand(3, 7) < 0.5) & mask
    wanted = asked.flatten().nonzero()[:, 0]
    every = model(ids, mask)
    assert every.shape == (3, 7, 5)
    torch.testing.assert_close(model.run(ids, mask, wanted).logits, every[asked])
    assert model.run(ids, mask, wanted[:0]).logits.shape == (0, 5)


def test_a_causal_one_sees_nothing_of_later_tokens():
    model, ids = made(), torch.randint(1, 11, (1, 7))
    other = ids.clone()
    other[0, 5:] = 1 + other[0, 5:] % 10
    assert torch.equal(model(ids)[:, :5], model(other)[:, :5])


def test_no_classes():
    with pytest.raises(ValueError, match=r"num_classes \(0\) must be at least 1"):
        TokenClassifier(Encoder(vocab_size=11, dim=8, depth=1, heads=2), num_classes=0)


@pytest.mark.parametrize("channels", [None, 3])
def test_the_summary_names_all_parameters_and_shapes(channels):
    inputs = {"vocab_size": 11} if channels is None else {"input_dim": channels}
    model = SequenceClassifier(Encoder(**inputs, dim=8, depth=2, heads=2, short_conv=3), num_classes=5)
    parts = {part.name: part for part in summarise(model, example_input(9, channels))}
    assert parts["head"].shape == (1, 5) and parts["encoder.norm"].shape == (1, 9, 8)
    for name, part in parts.items():
        module = model.get_submodule(name)
        assert part.parameters == sum(p.numel() for p in module.parameters()) > 0
        assert part.kind == type(module).__name__
    top = ("encoder.embedding", "encoder.blocks.0", "encoder.blocks.1", "encoder.norm", "head")
    assert sum(parts[name].parameters for name in top) == sum(p.numel() for p in model.parameters())
    assert "encoder.blocks.1.mixer" in parts
