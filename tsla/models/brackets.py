"""What brackets say of a token: how many are open around it, and which pair it is in."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tsla.models.embedding import token_table

DEEPEST = 32  # levels beyond are as this one
WAVES = (2.5, 32.0)  # brackets: the shortest and the longest wave of a code


class BracketDepth(nn.Module):
    """A learned vector for how many brackets are open at a token, its own included: a pair and its content are alike.

    Args:
        steps: of each token id, 1 where it opens a bracket, -1 where it closes one, else 0.
        dim: width of the vectors.
        deepest: depths beyond it share its vector, as those below 0 share that of 0.
    """

    steps: Tensor

    def __init__(self, steps: Sequence[int], dim: int, deepest: int = DEEPEST) -> None:
        super().__init__()
        self.register_buffer("steps", checked(steps, deepest), persistent=False)
        self.deepest = deepest
        self.table = token_table(deepest + 1, dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """``(b, n, dim)`` of ids ``(b, n)``; mask ``(b, n)`` bool, True = real.

        cu_seqlens: ``(sequences + 1,)`` int; each of the sequences packed into the one row begins with no bracket open.
        """
        return self.table(depth_of(steps_of(self.steps, tokens, mask), cu_seqlens).clamp(0, self.deepest))


class BracketTree(nn.Module):
    """A code of the pair that a token stands in, and one of the pair that it makes, through a learned linear map.

    A pair's code is sines and cosines of its number, as its bracket is the first, second, ... to be opened. A digit has
    that of the pair around it twice; a bracket that of the pair around its own, and that of its own. So the content of
    a pair has one code in common, whatever stands between: attention need not find out which brackets belong together.
    No wave is longer than a short row has brackets, so that longer rows bring none that was not trained.

    Args:
        steps: of each token id, 1 where it opens a bracket, -1 where it closes one, else 0.
        dim: width of the vectors.
        deepest: pairs that are deeper are taken for each other.
    """

    steps: Tensor

    def __init__(self, steps: Sequence[int], dim: int, deepest: int = DEEPEST) -> None:
        super().__init__()
        self.register_buffer("steps", checked(steps, deepest), persistent=False)
        self.deepest, self.count = deepest, max(dim // 4, 1)
        self.project = nn.Linear(4 * self.count, dim, bias=False)
        nn.init.normal_(self.project.weight, std=(2 * self.count * dim) ** -0.5)  # about as long as a token's own one

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """``(b, n, dim)`` of ids ``(b, n)``; mask ``(b, n)`` bool, True = real.

        cu_seqlens: ``(sequences + 1,)`` int; pairs of each of the sequences packed into the one row count from 1.
        """
        steps = steps_of(self.steps, tokens, mask)
        pairs = torch.stack(pairs_of(steps, self.deepest, cu_seqlens), -1)
        return self.project(self.codes(pairs).flatten(2).to(self.project.weight.dtype))

    def codes(self, pairs: Tensor) -> Tensor:
        """Waves ``(..., 2 count)`` of numbers ``(...)``, in fp32 whatever the model's dtype: phases must be sharp."""
        low, high = map(math.log2, WAVES)
        lengths = torch.logspace(low, high, self.count, 2.0, device=pairs.device, dtype=torch.float32)
        phases = 2 * torch.pi * pairs[..., None] / lengths
        return torch.cat([phases.sin(), phases.cos()], -1)


def checked(steps: Sequence[int], deepest: int) -> Tensor:
    """The steps as a tensor, if they are some."""
    if not {-1, 1} <= {*steps} <= {-1, 0, 1}:
        raise ValueError(f"steps ({sorted({*steps})}) must be 1 of what opens, -1 of what closes, and else 0")
    if deepest < 1:
        raise ValueError(f"deepest ({deepest}) must be at least 1")
    return torch.tensor(steps)


def steps_of(steps: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """What each token does to the number of open brackets; masked ones do nothing."""
    return steps[tokens] if mask is None else steps[tokens].masked_fill(~mask, 0)


def depth_of(steps: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """How many brackets are open at each token, its own included."""
    open_ = steps.cumsum(1)
    return open_ - _before(open_, cu_seqlens) + (steps < 0)


def pairs_of(steps: Tensor, deepest: int, cu_seqlens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of each token the number of the pair around it, and of the pair that is its own, or else again of that around it.

    Pairs are counted from 1 as they open; 0 is none.
    """
    depth, opens = depth_of(steps, cu_seqlens).clamp(0, deepest), steps > 0
    numbers = opens.cumsum(1)
    levels = torch.arange(deepest + 1, device=steps.device)
    latest = torch.where(opens[..., None] & (depth[..., None] == levels), numbers[..., None], 0).cummax(1).values
    latest = (latest - _before(numbers, cu_seqlens)[..., None]).clamp(min=0)
    own, outer = (latest.gather(2, level[..., None])[..., 0] for level in (depth, (depth - 1).clamp(0)))
    return torch.where(steps == 0, own, outer), own


def _before(sums: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Of sums along a row, what each token's sequence began with: 0 unless several are packed into the row."""
    if cu_seqlens is None:
        return torch.zeros_like(sums)
    places = torch.arange(sums.shape[1], device=sums.device)
    sequence = torch.searchsorted(cu_seqlens, places, right=True) - 1
    return torch.cat([sums.new_zeros(1, 1), sums], 1)[:, cu_seqlens][:, sequence]
