"""Models over packed rows: sequences one after another in one row give what a padded batch of them gives."""

import pytest
import torch
from torch import nn

from tsla.mixers import TaylorAttention, WindowAttention
from tsla.models import Encoder, SequenceClassifier, TokenClassifier

DIM, LENGTHS = 8, (3, 7, 1, 20, 2, 5, 17)
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0)
MASK = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
OPTIONS = (
    {},
    {"short_conv": 4},
    {"conv_embedding": True, "gradient_checkpointing": True},
    {"embedding_scale": True, "norm": "srms", "feed_forward": "sglu"},
)


def encoder(**options):
    torch.manual_seed(0)
    causal = options.pop("causal", False)
    rotary = options.get("positions") == "rotary"
    kinds = (TaylorAttention, WindowAttention)
    made = Encoder(
        vocab_size=11, dim=DIM, depth=2, causal=causal, max_length=20, **options,
        mixer=lambda layer: kinds[layer](DIM, heads=2, head_dim=4, causal=causal, rotary=rotary),
    )  # fmt: skip
    for parameter in made.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return made.double()


def rows():
    tokens = torch.randint(11, (1, sum(LENGTHS)))
    padded = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    padded[MASK] = tokens[0]
    return tokens, padded


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal", "rotary"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_classifier(pool, options, positions, causal):
    model = SequenceClassifier(
        encoder(positions=positions, causal=causal, **options), num_classes=3, pool=pool
    ).double()
    tokens, padded = rows()
    losses = []
    for logits in (model.run(padded, MASK).logits, model.run(tokens, cu_seqlens=BOUNDS).logits):
        assert logits.shape == (len(LENGTHS), 3)
        loss = (logits * torch.linspace(-1, 1, 3 * len(LENGTHS)).reshape(-1, 3)).sum()
        losses.append((logits, torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_a_token_classifier(causal):
    model = TokenClassifier(encoder(positions="rotary", causal=causal, short_conv=3), num_classes=3).double()
    (tokens, padded), asked = rows(), torch.rand(len(LENGTHS), max(LENGTHS)) < 0.5
    expected = model.run(padded, MASK).logits
    torch.testing.assert_close(model.run(tokens, cu_seqlens=BOUNDS).logits[0], expected[MASK])
    wanted = asked[MASK].nonzero()[:, 0]
    torch.testing.assert_close(model.run(tokens, None, wanted, BOUNDS).logits, expected[MASK & asked])


def test_a_class_token_cannot_be_packed():
    model = SequenceClassifier(Encoder(vocab_size=11, dim=DIM, depth=1, heads=2), num_classes=3, pool="cls")
    with pytest.raises(ValueError, match=r"^pool 'cls' puts a token before a sequence, and these are packed: use mean"):
        model.run(torch.ones(1, 9, dtype=torch.long), cu_seqlens=torch.tensor([0, 4, 9]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bounds_and_masks_are_checked_before_tokens_are_cut_up(options):
    tokens, made = torch.randint(11, (1, 10)), encoder(**options)
    for model in (SequenceClassifier(made, num_classes=3).double(), TokenClassifier(made, num_classes=3).double()):
        for bounds in ([0, 4, 8], [0, 4, 12], [2, 10], [-2, 4, 10]):
            with pytest.raises(ValueError, match=r"^cu_seqlens must rise from 0 to the length \(10\), got"):
                model.run(tokens, cu_seqlens=torch.tensor(bounds))
        with pytest.raises(ValueError, match=r"^cu_seqlens needs a batch of one packed row, got 2$"):
            model.run(tokens.expand(2, 10), cu_seqlens=torch.tensor([0, 4, 10]))
        for mask in (torch.ones(1, 9, dtype=torch.bool), torch.ones(1, 10)):
            for bounds in (None, torch.tensor([0, 4, 10])):
                with pytest.raises(ValueError, match=r"^mask must be torch.bool of shape \(1, 10\), True"):
                    model.run(tokens, mask, cu_seqlens=bounds)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_empty_sequence_is_no_trouble(options):
    made, tokens = encoder(**options).eval(), torch.randint(11, (1, 6))
    expected = made(tokens, cu_seqlens=torch.tensor([0, 3, 6]))
    torch.testing.assert_close(made(tokens, cu_seqlens=torch.tensor([0, 3, 3, 6])), expected)
    assert made(tokens[:, :0]).shape == made(tokens[:, :0], cu_seqlens=torch.tensor([0, 0])).shape == (1, 0, DIM)
