"""What brackets say of a token, beside a stack that one keeps going along."""

import pytest
import torch
from torch import Tensor

from tsla.models import Encoder
from tsla.models.brackets import BracketDepth, BracketTree, pairs_of

DIM = 16
STEPS = [0, 0, 1, 1, -1]  # of ids: 2 and 3 open, 4 closes
ROWS = [[2, 1, 3, 1, 1, 4, 1, 4], [2, 3, 2, 4, 1, 3, 4, 4, 1, 4], [1, 2, 1, 4, 3, 1, 4], [1]]
BOUNDS = torch.tensor([0, *map(len, ROWS)]).cumsum(0)
PACKED = torch.tensor([[token for row in ROWS for token in row]])


def depths(ids: list[int]) -> list[int]:
    """How many brackets are open at each token; a closing one counts itself."""
    stack, out = 0, []
    for token in ids:
        stack += STEPS[token] > 0
        out.append(stack)
        stack -= STEPS[token] < 0
    return out


def pairs(ids: list[int]) -> tuple[list[int], list[int]]:
    """The pair around each token, and its own or else again that around it."""
    stack, count, around, own = [0], 0, [], []
    for token in ids:
        if STEPS[token] > 0:
            count += 1
            stack.append(count)
        own.append(stack[-1])
        around.append(stack[-2] if STEPS[token] else stack[-1])
        if STEPS[token] < 0:
            stack.pop()
    return around, own


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Beside tokens that would open or close something, and are not real."""
    ids, mask = torch.full((len(rows), 12), 4), torch.zeros(len(rows), 12, dtype=torch.bool)
    ids[:, 0] = 2
    for at, row in enumerate(rows):
        ids[at, 1 : len(row) + 1], mask[at, 1 : len(row) + 1] = torch.tensor(row), True
    return ids, mask


def test_depth_is_what_one_counts_going_along():
    layer = BracketDepth(STEPS, DIM, deepest=3)
    rows = [*ROWS, [2, 3, 2, 3, 2, 4, 4, 4, 4, 4], [4, 4, 1]]
    assert depths(rows[0]) == [1, 1, 2, 2, 2, 2, 1, 1]
    expected = [layer.table.weight[torch.tensor(depths(row)).clamp(0, 3)] for row in rows]
    ids, mask = padded(rows)
    out = layer(ids, mask)
    assert all(torch.equal(out[at, 1 : len(row) + 1], row) for at, row in enumerate(expected))
    assert torch.equal(layer(PACKED, None, BOUNDS)[0], torch.cat(expected[: len(ROWS)]))


def test_pairs_are_those_of_a_stack():
    assert pairs(ROWS[0]) == ([0, 1, 1, 2, 2, 1, 1, 0], [1, 1, 2, 2, 2, 2, 1, 1])
    ids, mask = padded(ROWS)
    steps = torch.tensor(STEPS)
    batch = pairs_of(steps[ids].masked_fill(~mask, 0), 9)
    packed = pairs_of(steps[PACKED], 9, BOUNDS)
    for at, row in enumerate(ROWS):
        for found, together, expected in zip(batch, packed, pairs(row), strict=True):
            assert found[at, 1 : len(row) + 1].tolist() == expected
            assert together[0, BOUNDS[at] : BOUNDS[at + 1]].tolist() == expected
    broken = pairs_of(steps[torch.tensor([[4, 4, 2, 1, 4, 3]])], 9)  # not to be told rightly, but without harm
    assert all(0 <= number <= 2 for part in broken for number in part.flatten().tolist())


def test_the_codes_are_waves_of_the_numbers_of_pairs():
    layer = BracketTree(STEPS, DIM)
    around, own = (torch.tensor(numbers) for numbers in pairs(ROWS[1]))
    waves = torch.tensor([2.5 * (32 / 2.5) ** (i / 3) for i in range(4)])
    phases = [2 * torch.pi * numbers[:, None] / waves for numbers in (around, own)]
    codes = torch.cat([wave for phase in phases for wave in (phase.sin(), phase.cos())], 1)
    expected = codes @ layer.project.weight.T
    ids, mask = padded([ROWS[1]])
    torch.testing.assert_close(layer(ids, mask)[0, 1:11], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(torch.tensor([ROWS[1]]))[0], expected, rtol=1e-4, atol=1e-5)
    packed = layer(PACKED, None, BOUNDS)[0, BOUNDS[1] : BOUNDS[2]]
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)


def test_of_many_pairs_no_two_have_nearly_the_same_code():
    """Of as many as there are in 2,000 tokens, at the width of the experiments."""
    layer = BracketTree(STEPS, 64)
    codes = layer.codes(torch.arange(1, 800)) / 16**0.5
    alike = codes @ codes.T
    assert alike.fill_diagonal_(0).max() < 0.95
    norm = layer(torch.tensor([[2, 3, 1, 4, 1, 4]])).norm(dim=-1)
    assert norm.min() > 0.4 and norm.max() < 2.5, "about as long as a token's own vector"


@pytest.mark.parametrize("kind", [BracketDepth, BracketTree])
def test_what_is_refused(kind):
    for steps in ([0, 1], [0, -1], [0, 2, -1]):
        with pytest.raises(ValueError, match="must be 1 of what opens, -1 of what closes, and else 0"):
            kind(steps, DIM)
    with pytest.raises(ValueError, match=r"deepest \(0\) must be at least 1"):
        kind(STEPS, DIM, deepest=0)


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
@pytest.mark.parametrize("parts", [("bracket_depth",), ("bracket_tree",), ("bracket_depth", "bracket_tree")])
def test_an_encoder_adds_the_vectors(positions, parts):
    options = {"vocab_size": 5, "dim": DIM, "depth": 1, "heads": 2, "positions": positions, "max_length": 9}
    encoder = Encoder(**options, brackets=STEPS, **dict.fromkeys(parts, True))
    plain = Encoder(**options)
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("bracket_")})
    ids, mask = torch.randint(5, (3, 9)), torch.arange(9) < torch.tensor([[9], [4], [1]])
    told = sum(getattr(encoder, part)(ids, mask) for part in parts)
    torch.testing.assert_close(encoder.embed(ids, mask), plain.embed(ids, mask) + told)
    encoder(ids, mask).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for part in parts for p in getattr(encoder, part).parameters())


def test_an_encoder_needs_to_know_what_is_a_bracket():
    for options in ({"vocab_size": 7}, {"input_dim": 5}):
        with pytest.raises(ValueError, match=r"brackets \(5\) must say of each token id .* vocab_size \((7|None)\)"):
            Encoder(**options, dim=DIM, depth=1, brackets=STEPS, bracket_depth=True)
    for options in ({"bracket_depth": True}, {"bracket_tree": True}, {"brackets": STEPS}):
        with pytest.raises(ValueError, match=r"bracket_depth .* need brackets \(.*\), which are for nothing else"):
            Encoder(vocab_size=5, dim=DIM, depth=1, **options)
