"""Primal-Attention (arXiv 2305.19798): attention's kernel by its singular vectors, without pairs and without values."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from tsla.mixers.base import MODES, Mixed, Mixer, State
from tsla.ops import ksvd_objective
from tsla.ops.checks import check_choice
from tsla.ops.norm import unit
from tsla.ops.packing import groups, put_back, take
from tsla.ops.types import accumulation_dtype, full_precision

TRACES = ("parameters", "weights")


class PrimalState(NamedTuple):
    """Sums of the real queries and keys seen, ``(b, h, d)`` each, in float32 at least; and how many, ``(b,)``."""

    queries: Tensor
    keys: Tensor
    length: Tensor


class Scores(NamedTuple):
    """[e; r] of each token, ``(b, h, n, 2 s)``, and the trace of J, ``(h,)`` or ``(b, h)``."""

    both: Tensor
    trace: Tensor


class PrimalAttention(Mixer):
    """o_i = W [e_i; r_i] + b, e_i = W_e^T q_i / |q_i|, r_i = W_r^T k_i / |k_i|, for each head; W and b for all of them.

    Tokens meet in two ways, by direction:

    bidirectional   W_e = X^T A_e and W_r = X^T A_r of `rank * rank_multi` tokens x of the input, the head's own part of
                    their channels, evenly spread over the real ones: number floor(i (n - 1) / (rank * rank_multi - 1))
                    of n for i = 0, 1, .... Where there are fewer, some come more than once.
    causal          W_e and W_r are parameters, and in the place of q_i and k_i stand their means over the tokens up to
                    i. (Without means no token would see another, so there is no such form.)

    There are no values: heads are as wide as their part of x, dim / heads. The scores e and r are meant to be the
    singular vectors of the kernel of pairs, by a loss beside the model's own, `ksvd` times J^2, see
    `tsla.ops.ksvd_objective`. J is a mean over heads, real tokens, and rows or packed sequences that have any. It is
    given in training and evaluation alike.

    >>> layer = PrimalAttention(dim=256, heads=8)

    Args:
        dim: model width.
        heads: a divisor of it.
        rank: s, numbers in a score.
        rank_multi: tokens that W_e and W_r are made of, over rank; bidirectional only. None = 10.
        causal: see above; needed by `extend`.
        bias: on all projections; W has one always.
        dropout: on the output.
        ksvd: weight of J^2; 0: no loss. The paper takes the mean over layers: give each its part of the weight.
        trace: of J, that of A_e^T A_r (``"parameters"``, as in the published code) or that of W_e^T W_r
            (``"weights"``, as in the paper); bidirectional only.

    Raises:
        ValueError: sizes below 1, heads that do not divide dim, a negative ksvd, or an option that the direction, or
            ksvd=0, has no use for.
    """

    supports = MODES - {"cross"}
    state_type = PrimalState
    undecayed = ("scale",)

    def __init__(
        self, dim: int, *, heads: int = 8, rank: int = 20, rank_multi: int | None = None, causal: bool = False,
        bias: bool = False, dropout: float = 0.0, ksvd: float = 0.05, trace: str = "parameters",
    ) -> None:  # fmt: skip
        for name, size in (("dim", dim), ("heads", heads), ("rank", rank), ("rank_multi", rank_multi)):
            if size is not None and size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1")
        if dim % heads:
            raise ValueError(f"heads ({heads}) must divide dim ({dim})")
        if not 0 <= ksvd < float("inf"):
            raise ValueError(f"ksvd ({ksvd}) must be finite and at least 0")
        check_choice("trace", trace, TRACES)
        if causal and rank_multi is not None:
            raise ValueError(f"rank_multi ({rank_multi}) needs causal=False: W_e and W_r are parameters otherwise")
        if trace == "weights" and (causal or not ksvd):
            raise ValueError("trace='weights' needs causal=False and a ksvd above 0: it would change nothing")
        super().__init__(dim, width=dim, causal=causal)
        self.heads, self.rank, self.ksvd, self.trace = heads, rank, ksvd, trace
        self.rows = dim // heads if causal else rank * (rank_multi or 10)
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(dim, dim, bias=bias)
        self.to_e = nn.Parameter(torch.empty(heads, self.rows, rank))  # A_e, or W_e itself
        self.to_r = nn.Parameter(torch.empty(heads, self.rows, rank))
        for head in (*self.to_e.data, *self.to_r.data):
            nn.init.orthogonal_(head)
        self.scale = nn.Parameter(torch.rand(heads, rank)) if ksvd else None
        self.to_heads = nn.Linear(2 * rank, dim // heads)
        self.to_out = nn.Linear(dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        self.check_input(x, context, mask, cu_seqlens)
        x, q, k = self._project(x, mask)
        masks: list[Tensor | None]
        if cu_seqlens is None:
            masks, parts = [mask], [self._scores(x, q, k, mask)]
            return Mixed(self._merge(parts[0].both, mask), aux=self._loss(parts, masks))
        found = groups(cu_seqlens)
        masks = [group.masked(mask) for group in found]
        parts = [self._scores(take(x, group, 1), take(q, group, 2), take(k, group, 2), real)
                 for group, real in zip(found, masks, strict=True)]  # fmt: skip
        both = put_back([part.both for part in parts], found, 2)
        return Mixed(self._merge(both, mask), aux=self._loss(parts, masks))

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        x, q, k = self._project(x, mask)
        past = None if state is None else PrimalState(*state)
        new = x.new_full((x.shape[0],), x.shape[1], dtype=torch.long) if mask is None else mask.sum(-1)
        out = self._merge(self._scores(x, q, k, mask, past).both, mask)
        if past is None:
            return out, PrimalState(q.sum(2), k.sum(2), new)
        return out, PrimalState(past.queries + q.sum(2), past.keys + k.sum(2), past.length + new)

    def state_bytes(self, length: int) -> int:
        """W_e and W_r, or the sums of queries and keys if causal, in float32 at least, whatever the length."""
        size = accumulation_dtype(self.to_q.weight.dtype).itemsize
        return size * 2 * self.dim * (1 if self.causal else self.rank)

    def _project(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens, 0 where they are masked, and their queries and keys, ``(b, h, n, d)``, likewise."""
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        q, k = (self._heads(y) for y in (self.to_q(x), self.to_k(x)))
        if mask is None:
            return x, q, k
        hidden = ~mask[:, None, :, None]  # of a masked token a projection makes its bias
        return x, q.masked_fill(hidden, 0.0), k.masked_fill(hidden, 0.0)

    def _heads(self, x: Tensor) -> Tensor:
        """Each head's part of the channels, ``(b, n, dim) -> (b, h, n, d)``, in float32 at least."""
        return rearrange(x.to(accumulation_dtype(x.dtype)), "b n (h d) -> b h n d", h=self.heads)

    def _scores(
        self, x: Tensor, q: Tensor, k: Tensor, mask: Tensor | None, past: PrimalState | None = None
    ) -> Scores:  # fmt: skip
        """Scores of queries q and keys k of the tokens x, after those in `past` if causal."""
        with full_precision(x.device):
            to_e, to_r = (weight.to(q.dtype) for weight in (self.to_e, self.to_r))
            if self.causal:  # sums: a mean is one over a number, which a vector of length 1 does not tell
                q, k = q.cumsum(2), k.cumsum(2)
                if past is not None:
                    q, k = q + past.queries[:, :, None], k + past.keys[:, :, None]
            trace = (to_e * to_r).sum((-2, -1))
            if not self.causal:
                sample = self._heads(self._sample(x, mask)).mT
                to_e, to_r = sample @ to_e, sample @ to_r
                trace = (to_e * to_r).sum((-2, -1)) if self.trace == "weights" else trace
            return Scores(torch.cat([unit(q) @ to_e, unit(k) @ to_r], dim=-1), trace)

    def _sample(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`rows` of the real tokens of x ``(b, n, dim)``, evenly spread; zeros where there are none."""
        steps = torch.arange(self.rows, device=x.device)
        if x.shape[1] == 0:
            return x.new_zeros(x.shape[0], self.rows, self.dim)
        if mask is None:
            return x.index_select(1, steps * (x.shape[1] - 1) // max(self.rows - 1, 1))
        last = (mask.sum(-1, keepdim=True) - 1).clamp(min=0)
        places = torch.argsort(~mask, dim=1, stable=True).gather(1, steps * last // max(self.rows - 1, 1))
        return x.gather(1, places[..., None].expand(-1, -1, self.dim))

    def _merge(self, both: Tensor, mask: Tensor | None) -> Tensor:
        heads = self.to_heads(both.to(self.to_heads.weight.dtype))
        out: Tensor = self.dropout(self.to_out(rearrange(heads, "b h n d -> b n (h d)")))
        return out if mask is None else out.masked_fill(~mask[..., None], 0.0)

    def _loss(self, parts: list[Scores], masks: list[Tensor | None]) -> Tensor | None:
        """The weighted square of J, a mean over the rows of all parts that have real tokens."""
        if self.scale is None:
            return None
        scale, s = self.scale.to(parts[0].both.dtype), self.rank
        each = [ksvd_objective(part.both[..., :s], part.both[..., s:], scale, part.trace, mask=mask)
                for part, mask in zip(parts, masks, strict=True)]  # fmt: skip
        seen = [torch.ones_like(row, dtype=torch.bool) if mask is None else mask.any(-1)
                for row, mask in zip(each, masks, strict=True)]  # fmt: skip
        return self.ksvd * (torch.cat(each).sum() / torch.cat(seen).sum().clamp(min=1)).square()
