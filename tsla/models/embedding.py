"""How tokens become vectors: a table of ids, a linear map of numbers, and convolutions over neighbours on top."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad


def token_table(count: int, dim: int) -> nn.Embedding:
    """Vectors of about unit length: the norms of the blocks, not the embedding, then set the scale of the stream."""
    table = nn.Embedding(count, dim)
    nn.init.normal_(table.weight, std=dim**-0.5)
    return table


class BracketDepth(nn.Module):
    """A learned vector for how many brackets are open at a token, its own included: a pair and its content are alike.

    Args:
        steps: of each token id, 1 where it opens a bracket, -1 where it closes one, else 0.
        dim: width of the vectors.
        deepest: depths beyond it share its vector, as those below 0 share that of 0.
    """

    steps: Tensor

    def __init__(self, steps: Sequence[int], dim: int, deepest: int = 32) -> None:
        super().__init__()
        if not {-1, 1} <= {*steps} <= {-1, 0, 1}:
            raise ValueError(f"steps ({sorted({*steps})}) must be 1 of what opens, -1 of what closes, and else 0")
        if deepest < 1:
            raise ValueError(f"deepest ({deepest}) must be at least 1")
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        self.deepest = deepest
        self.table = token_table(deepest + 1, dim)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """``(b, n, dim)`` of ids ``(b, n)``; mask ``(b, n)`` bool, True = real.

        cu_seqlens: ``(sequences + 1,)`` int; each of the sequences packed into the one row begins with no bracket open.
        """
        steps = self.steps[tokens] if mask is None else self.steps[tokens].masked_fill(~mask, 0)
        depth = steps.cumsum(1)
        if cu_seqlens is not None:
            places = torch.arange(tokens.shape[1], device=tokens.device)
            sequence = torch.searchsorted(cu_seqlens, places, right=True) - 1
            before = torch.cat([depth.new_zeros(1, 1), depth], 1)[:, cu_seqlens]
            depth = depth - before[:, sequence]
        return self.table((depth + (steps < 0)).clamp(0, self.deepest))


class ConvEmbedding(nn.Module):
    """Three convolutions over 3 tokens with norms and GELU, from width dim / 4 to dim (TaylorShift, arXiv 2403.02920).

    The original normalises over all tokens together and so lets padding and the future into every one of them. Here a
    norm is of one token, masked tokens are zero before each convolution, and a causal one looks back only.

    Args:
        dim: width of the result, at least 4; that of the input is `dim // 4`.
        causal: a token sees itself and 2 before it in each convolution; else one on either side.
    """

    def __init__(self, dim: int, *, causal: bool) -> None:
        super().__init__()
        if dim < 4:
            raise ValueError(f"dim ({dim}) must be at least 4 for a convolutional embedding")
        self.dim = dim
        widths = (dim // 4, dim // 4, dim // 2, dim)
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 3, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.reach = (2, 0) if causal else (1, 1)
        self.scale = dim**-0.5  # about unit length, as a table's vectors have

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(b, n, dim)`` of x ``(b, n, dim // 4)``; mask ``(b, n)`` bool, True = real."""
        if x.shape[1] == 0:  # torch's convolution refuses inputs shorter than its kernel
            return x.new_zeros(x.shape[0], 0, self.dim)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
            x = gelu(norm(conv(pad(x.transpose(1, 2), self.reach)).transpose(1, 2)))
        return x * self.scale
