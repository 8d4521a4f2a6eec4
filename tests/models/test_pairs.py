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


@pytest.mark.parametrize("pairs", ["concat", "nli", "normed"])
def test_the_head_is_its_formula(pairs):
    head, a, b = PairHead(DIM, 3, pairs).double(), torch.randn(5, DIM).double(), torch.randn(5, DIM).double()
    given = torch.cat([a, b])
    if pairs == "normed":
        normed = (given - given.mean(0)) / (given.var(0, correction=0) + 1e-5).sqrt()
        a, b = normed[:5], normed[5:]
    vectors = torch.cat([a, b] if pairs == "concat" else [a, b, a - b, a * b], dim=1)
    hidden = (vectors @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    assert_close(head(given), hidden @ head.out.weight.T + head.out.bias)


def test_vectors_that_hardly_differ_are_told_apart_by_a_head_that_norms_them():
    """Pairs whose vectors share a large mean: what sets them apart is lost on one head, and not on the other."""
    torch.manual_seed(0)
    a, b, other = (torch.randn(256, DIM) for _ in range(3))
    a, b = torch.cat([a, b]), torch.cat([a, other])  # the second is the first, or another one
    labels = torch.arange(2).repeat_interleave(256)
    found = {}
    for pairs in ("nli", "normed"):
        head = PairHead(DIM, 2, pairs)
        optimiser = torch.optim.AdamW(head.parameters(), 3e-3)
        for _ in range(300):
            loss = torch.nn.functional.cross_entropy(head(1 + 0.02 * torch.cat([a, b])), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        found[pairs] = float(loss.detach())
    assert found["nli"] > 0.6 and found["normed"] < 0.2


def test_an_answer_depends_on_no_other_pair_once_trained():
    made, first, second = model("normed").train(), rows(4, 5), rows(4, 5).flip(0)
    stacked = torch.cat([first, second])
    moved = made(stacked)
    made.eval()
    assert not torch.allclose(made(stacked), moved)
    alone = made(torch.cat([first[:1], second[:1]]))
    assert_close(alone, made(stacked)[:1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "cls", "attention"])
@pytest.mark.parametrize("pairs", ["concat", "nli", "normed"])
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
    with pytest.raises(ValueError, match=r"^pairs \('sum'\) must be one of '', concat, nli, normed$"):
        model("sum")


def test_costs_of_a_token_are_those_of_one_sequence():
    """Of two sequences, but for the head, which is one more."""
    two = account(model(), 40)
    head = 2 * (4 * DIM * DIM + 3 * DIM) / 80
    assert two.flops_per_token == pytest.approx(account(model(""), 40).flops_per_token - 2 * 3 * DIM / 40 + head)
    assert two.state_bytes == account(model(""), 40).state_bytes
