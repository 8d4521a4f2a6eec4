"""Exact softmax attention in a sliding window (Longformer, arXiv 2004.05150)."""

from typing import NamedTuple, Unpack

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.mixers.base import MODES, HeadMixer, HeadOptions, State
from tsla.ops import window_attention


class WindowState(NamedTuple):
    """The last `window` real keys ``(b, g, window, d)`` and values, rightmost; which slots are filled; tokens seen."""

    keys: Tensor
    values: Tensor
    real: Tensor
    length: Tensor


class Run(NamedTuple):
    """Real tokens in one run after those of the ring: the distance of two in it is their distance in real tokens.

    queries ``(b, h, n, d)``, any masked ones last; keys ``(b, g, window + n, d)`` and values, those of the ring first;
    which of them are `filled` ``(b, window + n)``; how many of the new tokens are `real` ``(b,)``, and in which `order`
    ``(b, n)`` they have been taken; and how many were `seen` before.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    filled: Tensor
    real: Tensor
    order: Tensor
    seen: Tensor

    def put_back(self, out: Tensor) -> Tensor:
        """What was made of the queries, in the places they came from."""
        return _take(out, torch.argsort(self.order, dim=1))

    def ring(self) -> WindowState:
        """The last of the run, as many as it began with."""
        window = self.keys.shape[2] - self.order.shape[1]
        last = self.real[:, None] + torch.arange(window, device=self.order.device)
        return WindowState(
            _take(self.keys, last), _take(self.values, last), self.filled.gather(1, last), self.seen + self.real
        )

    def left(self) -> Tensor:
        """Which keys ``(b, window + n)`` the ring after it no longer has."""
        return self.filled & (torch.arange(self.keys.shape[2], device=self.order.device) < self.real[:, None])


def run_of(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, past: WindowState | None, window: int) -> Run:
    """New tokens after those of a ring of `window`; None is an empty one."""
    b, n = q.shape[0], q.shape[2]
    real = torch.ones(b, n, dtype=torch.bool, device=q.device) if mask is None else mask
    k, v = (x.masked_fill(~real[:, None, :, None], 0.0) for x in (k, v))
    if past is None:
        seen = real.new_zeros(b, dtype=torch.long)
        keys, values = (x.new_zeros(b, x.shape[1], window, x.shape[3]) for x in (k, v))
        past = WindowState(keys, values, real.new_zeros(b, window), seen)
    order = torch.argsort(~real, dim=1, stable=True)  # real tokens to the left
    q, k, v = (_take(x, order) for x in (q, k, v))
    k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
    return Run(q, k, v, torch.cat([past.real, real.gather(1, order)], 1), real.sum(-1), order, past.length)


class WindowAttention(HeadMixer):
    """Softmax attention over the `window` tokens before each token, and as many after it unless causal.

    Distances are counted in positions of the input, so `mask` is meant for padding at either end.

    Args:
        dim: model width.
        window: how far a token sees; 0 is itself only.
        options: as in `HeadMixer`.
    """

    supports = MODES - {"cross"}
    state_type = WindowState

    def __init__(self, dim: int, *, window: int = 64, **options: Unpack[HeadOptions]) -> None:
        if window < 0:
            raise ValueError(f"window ({window}) must not be negative")
        super().__init__(dim, **options)
        self.window = window

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return window_attention(q, k, v, window=self.window, causal=self.causal, key_mask=mask)

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        run, w = run_of(q, k, v, mask, None if state is None else WindowState(*state), self.window), self.window
        queries = pad(run.queries, (0, 0, w, 0))
        out = window_attention(queries, run.keys, run.values, window=w, causal=True, key_mask=run.filled)[:, :, w:]
        return run.put_back(out), run.ring()

    def state_bytes(self, length: int) -> int:
        """The last `window` keys and values."""
        return self.key_value_bytes(self.window)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` ``(b, n)`` of x ``(b, g, m, .)``, for all heads alike."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
