"""LoRA starts as nothing, learns in its two factors alone, and ends as plain weights."""

import pytest
import torch
from torch import nn

from tsla.mixers import HedgehogAttention
from tsla.models import Encoder, SequenceClassifier
from tsla.models.lora import LoraLinear, add_lora, merge_lora


def model(**options: object) -> SequenceClassifier:
    make = lambda layer: HedgehogAttention(16, heads=4, kv_heads=2, bias=True, **options)  # noqa: E731
    return SequenceClassifier(Encoder(vocab_size=7, dim=16, depth=2, mixer=make), num_classes=3)


def train(made: nn.Module, steps: int = 5) -> None:
    """Weight decay too, which must not reach what is frozen."""
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        made(torch.randint(7, (4, 9))).square().sum().backward()
        optimizer.step()


def test_nothing_changes_at_the_start():
    made, ids = model(), torch.randint(7, (4, 9))
    before = made(ids)
    count = add_lora(made, 3)
    assert torch.equal(made(ids), before)
    assert count == 2 * 3 * ((16 + 16) + (16 + 8) + (16 + 8) + (16 + 16))


def test_only_the_factors_learn():
    made = model()
    add_lora(made, 2)
    before = {name: x.clone() for name, x in made.state_dict().items()}
    train(made)
    changed = {name for name, x in made.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {name for name in before if name.endswith((".a", ".b"))} and len(changed) == 2 * 4 * 2


def test_the_formula():
    layer = LoraLinear(nn.Linear(5, 4), 2, alpha=3.0)
    nn.init.normal_(layer.b)
    x = torch.randn(7, 5)
    expected = x @ layer.base.weight.T + layer.base.bias + 3.0 / 2 * (x @ layer.a.T @ layer.b.T)
    torch.testing.assert_close(layer(x), expected)
    assert LoraLinear(nn.Linear(5, 4), 2).scale == 2.0  # alpha = 2 * rank


def test_merging_is_exact_and_leaves_a_plain_model():
    """In float64, where rounding is far below what a wrong factor would do."""
    made = model().double()
    plain = set(made.state_dict())
    add_lora(made, 2)
    train(made)
    ids = torch.randint(7, (4, 9))
    before = made(ids)
    merge_lora(made)
    torch.testing.assert_close(made(ids), before, atol=1e-12, rtol=1e-12)
    assert set(made.state_dict()) == plain and all(p.requires_grad for p in made.parameters())
    assert not any(isinstance(module, LoraLinear) for module in made.modules())


def test_heads_without_an_output_projection():
    made = model(output_projection=False)
    add_lora(made, 2)
    assert isinstance(made.encoder.blocks[0].mixer.to_out, nn.Identity)
    merge_lora(made)
    assert made(torch.randint(7, (1, 3))).shape == (1, 3)


@pytest.mark.parametrize(("rank", "most"), [(0, 16), (9, 8)])
def test_ranks_that_are_none(rank, most):
    with pytest.raises(ValueError, match=rf"rank \({rank}\) must be 1 to {most}, the smaller side of the weights"):
        add_lora(model(), rank)
