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
        b, n, w = q.shape[0], q.shape[2], self.window
        real = torch.ones(b, n, dtype=torch.bool, device=q.device) if mask is None else mask
        k, v = (x.masked_fill(~real[:, None, :, None], 0.0) for x in (k, v))
        if state is None:
            seen = real.new_zeros(b, dtype=torch.long)
            past = WindowState(k.new_zeros(b, k.shape[1], w, k.shape[3]), v.new_zeros(b, v.shape[1], w, v.shape[3]),
                               real.new_zeros(b, w), seen)  # fmt: skip
        else:
            past = WindowState(*state)
        # Real tokens to the left, so that the ring and they are one run and index distance is distance in real tokens.
        order = torch.argsort(~real, dim=1, stable=True)
        q, k, v = (_take(x, order) for x in (q, k, v))
        k, v = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2)
        filled = torch.cat([past.real, real.gather(1, order)], 1)
        out = window_attention(pad(q, (0, 0, w, 0)), k, v, window=w, causal=True, key_mask=filled)[:, :, w:]
        count = real.sum(-1)
        last = count[:, None] + torch.arange(w, device=q.device)
        after = WindowState(_take(k, last), _take(v, last), filled.gather(1, last), past.length + count)
        return _take(out, torch.argsort(order, dim=1)), after

    def state_bytes(self, length: int) -> int:
        """The last `window` keys and values, in the parameters' type."""
        return self.to_k.weight.element_size() * self.kv_heads * self.window * (self.head_dim + self.value_dim)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` ``(b, n)`` of x ``(b, g, m, .)``, for all heads alike."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
