"""Classes of two sequences: what the head does with their vectors, and that neither sees the other before it."""

import pytest
import torch
from torch.testing import assert_close

from tsla.mixers import TaylorAttention
from tsla.models import Encoder, SequenceClassifier
from tsla.models.account import account
from tsla.models.classifier import PairHead

DIM = 8


def model(pairs="nli", pool="mean"):
    torch.manual_seed(0)
    encoder = Encoder(vocab_size=11, dim=DIM, depth=2, mixer=lambda layer: TaylorAttention(DIM, heads=2, head_dim=4))
    return SequenceClassifier(encoder, num_classes=3, pool=pool, pairs=pairs).double().eval()


def rows(count, length):
    return torch.randint(1, 11, (count, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("pairs", ["concat", "nli"])
def test_the_head_is_its_formula(pairs):
    head, a, b = PairHead(DIM, 3, pairs).double(), torch.randn(5, DIM).double(), torch.randn(5, DIM).double()
    vectors = torch.cat([a, b] if pairs == "concat" else [a, b, a - b, a * b], dim=1)
    hidden = (vectors @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    assert_close(head(torch.cat([a, b])), hidden @ head.out.weight.T + head.out.bias)


@pytest.mark.parametrize("pool", ["mean", "cls", "attention"])
@pytest.mark.parametrize("pairs", ["concat", "nli"])
def test_both_go_through_the_encoder_alone(pairs, pool):
    """Padded to one length, the pair has the logits of its two vectors, each made without the other."""
    made, first, second = model(pairs, pool), rows(4, 5), rows(4, 9)
    stacked = torch.cat([torch.nn.functional.pad(first, (0, 4)), second])
    mask = torch.arange(9) < torch.tensor([5] * 4 + [9] * 4)[:, None]
    vectors, head = [], made.head
    made.head = torch.nn.Identity()
    for one in (first, second):
        vectors.append(made(one))
    made.head = head
    assert_close(made(stacked, mask), head(torch.cat(vectors)), rtol=1e-10, atol=1e-12)
    assert made(stacked, mask).shape == (4, 3)


def test_packed_pairs_are_padded_pairs():
    made, first, second = model(), rows(2, 5), rows(2, 9)
    mask = torch.arange(9) < torch.tensor([5, 5, 9, 9])[:, None]
    stacked = torch.cat([torch.nn.functional.pad(first, (0, 4)), second])
    bounds = torch.tensor([0, 5, 10, 19, 28])
    packed = made.run(stacked[mask][None], None, cu_seqlens=bounds).logits
    assert_close(packed, made(stacked, mask), rtol=1e-10, atol=1e-12)


def test_other_pairs_are_refused():
    with pytest.raises(ValueError, match=r"^pairs \('sum'\) must be one of '', concat, nli$"):
        model("sum")


def test_costs_of_a_token_are_those_of_one_sequence():
    """Of two sequences, but for the head, which is one more."""
    two = account(model(), 40)
    head = 2 * (4 * DIM * DIM + 3 * DIM) / 80
    assert two.flops_per_token == pytest.approx(account(model(""), 40).flops_per_token - 2 * 3 * DIM / 40 + head)
    assert two.state_bytes == account(model(""), 40).state_bytes
