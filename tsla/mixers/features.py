"""Feature maps, and attention by one: weights phi(q).phi(k), so that sums of phi(k) v^T serve all queries."""

from typing import NamedTuple

from torch import Tensor, nn

from tsla.mixers.base import MODES, HeadMixer, State, positions
from tsla.ops import linear_attention
from tsla.ops.types import Attended, KernelState, accumulation_dtype, full_precision

TINY = 1e-30  # beside sums of any size but what float32 could not divide by


class FeatureMap(nn.Module):
    """phi of queries and of keys, ``(b, heads, n, d) -> (b, heads, n, dim_out)``, in float32 at least.

    Rotary positions turn what comes in; a map that lets positions act on what goes out (`placed`) is given them. A map
    with random numbers keeps them in buffers, the same for queries and keys, and has

        resample(generator)     draws them anew
        redraw_every            optimiser steps after which training does so; None: never

    Args:
        dim_out: features of a head.
    """

    positive: bool = True  # no weight phi(q).phi(k) is below 0
    placed: bool = False  # `forward` takes the position of each token
    eps: float = 1e-6  # added to the sum of weights; `TINY` where features have no size of their own
    exponential: bool = False  # weights are near exp(q.k / sqrt(d)), but for a factor of the query's own: `log_scale`

    def __init__(self, dim_out: int) -> None:
        super().__init__()
        self.dim_out = dim_out

    def forward(self, x: Tensor, *, is_query: bool, places: Tensor | None = None) -> Tensor:
        """Features of queries or keys x.

        Args:
            x: ``(b, heads, n, d)``, float32 or float64.
            is_query: which of the two x are.
            places: ``(n,)`` or ``(b, n)``, positions, for a map that is `placed`.
        """
        raise TypeError(f"{type(self).__name__} must define forward()")

    def log_scale(self, q: Tensor) -> Tensor:
        """``(b, heads, n)``: phi(q).phi(k) exp(log_scale(q)) is near exp(q.k / sqrt(d)), if the map is `exponential`.

        Args:
            q: as in `forward`.
        """
        raise TypeError(f"{type(self).__name__} must define log_scale(), if its weights are near exp")


class Weighed(NamedTuple):
    """What gives the weights: features, of keys per key/value or per query head, and log decays.

    log_decay: ``(h,)`` or ``(b, h, n)``; None: nothing decays.
    """

    queries: Tensor
    keys: Tensor
    log_decay: Tensor | None = None


class FeatureAttention(HeadMixer):
    """The mixer around a `FeatureMap`: o_i = sum_j w_ij v_j / sum_j w_ij, w_ij = phi(q_i).phi(k_j) (arXiv 2006.16236).

    A mechanism is a subclass that sets `feature_map` and the attributes below, and may redefine `weigh` and `finish`.
    Where a map is not `positive`, a sum of weights may be near 0: it is kept `floor` away, on its side.
    """

    supports = MODES
    state_type = KernelState
    normalize: bool = True  # divide by the sum of weights
    floor: float = 1e-3
    feature_map: FeatureMap
    decays: bool = False  # so that every query head has a state of its own

    def weigh(self, q: Tensor, k: Tensor, x: Tensor, places: Tensor | None) -> Weighed:
        """Features of q ``(b, h, n, d)`` and k ``(b, g, m, d)``, float32 at least; x ``(b, n, dim)`` as in `attend`."""
        queries = self.feature_map(q, is_query=True, places=places)
        return Weighed(queries, self.feature_map(k, is_query=False, places=places))

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """What is still done to the heads ``(b, h, n, e)``, float32 at least, of the tokens x ``(b, n, dim)``."""
        return out

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        out = self._attended(q, k, v, x, mask, None, keep=False).output
        return self.finish(out, x).to(v.dtype)

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        before = None if state is None else KernelState(*state)
        out, after = self._attended(q, k, v, x, mask, before, keep=True)
        assert after is not None
        return self.finish(out, x).to(v.dtype), after

    def state_bytes(self, length: int) -> int:
        """kv and z in float32 at least, whatever the length."""
        size = accumulation_dtype(self.to_k.weight.dtype).itemsize
        heads = self.heads if self.decays else self.kv_heads
        return size * heads * self.feature_map.dim_out * (self.value_dim + 1)

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: KernelState | None, *, keep: bool
    ) -> Attended:  # fmt: skip
        places = None
        if self.feature_map.placed:
            places = positions(mask, x, None if state is None else state.length)
        with full_precision(x.device):
            q, k = (y.to(accumulation_dtype(y.dtype)) for y in (q, k))
            weighed = self.weigh(q, k, x, places)
        v = v.repeat_interleave(weighed.keys.shape[1] // v.shape[1], dim=1)
        floored = self.normalize and not self.feature_map.positive
        return linear_attention(
            weighed.queries, weighed.keys, v, causal=self.causal, key_mask=mask, log_decay=weighed.log_decay,
            normalize=self.normalize, eps=0.0 if floored else self.feature_map.eps,
            floor=self.floor if floored else 0.0, state=state, return_state=keep,
        )  # fmt: skip


def per_query_head(x: Tensor, heads: int) -> Tensor:
    """What stands per key/value head ``(g, ...)``, for the heads of queries or keys: head i has that of i * g // h."""
    return x if x.shape[0] == heads else x.repeat_interleave(heads // x.shape[0], dim=0)
