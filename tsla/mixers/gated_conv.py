"""Gated short convolution, the local layer of Based (arXiv 2402.18668) and Zoology (arXiv 2312.04927)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from tsla.mixers.base import MODES, Mixed, Mixer, State
from tsla.ops.packing import each_sequence


class ConvState(NamedTuple):
    """The last `kernel - 1` real tokens, as the convolution reads them ``(b, kernel - 1, inner)``; and tokens seen."""

    last: Tensor
    length: Tensor


class GatedConv(Mixer):
    """A depthwise convolution over a few tokens, times a gate: y = (silu(conv(x W_1)) * x W_2) W_o.

    Neighbours are counted among the real tokens: a masked one is passed over, wherever it stands, and its own output
    is zero. Beyond the first and the last token there are zeros.

    >>> layer = GatedConv(dim=256, causal=True)

    Args:
        dim: model width.
        kernel: tokens seen: the token and those before it if causal, centred on it if not.
        expand: width of the convolution over dim.
        causal: see above; needed by `extend`.
        dropout: on the output.

    Raises:
        ValueError: a size below 1.
    """

    supports = MODES - {"cross"}
    state_type = ConvState

    def __init__(
        self, dim: int, *, kernel: int = 3, expand: int = 2, causal: bool = False, dropout: float = 0.0
    ) -> None:  # fmt: skip
        for name, size in (("dim", dim), ("kernel", kernel), ("expand", expand)):
            if size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1")
        super().__init__(dim, width=dim, causal=causal)
        inner = expand * dim
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, kernel, groups=inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.reach = (kernel - 1, 0) if causal else (kernel // 2, (kernel - 1) // 2)

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        self.check_input(x, context, mask, cu_seqlens)
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        near = self._alone(u, mask) if cu_seqlens is None else each_sequence(self._alone, u, cu_seqlens, mask)
        return Mixed(self._merge(near, gate))

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        if state is None:
            past = ConvState(self._nothing(u), torch.zeros(x.shape[0], dtype=torch.long, device=x.device))
        else:
            past = ConvState(*state)
        near, run = self._convolve(u, past.last, mask)
        new = torch.full_like(past.length, x.shape[1]) if mask is None else mask.sum(-1)
        last = new[:, None] + torch.arange(self.reach[0], device=x.device)  # in the run, which began so much earlier
        return self._merge(near, gate), ConvState(_take(run, last), past.length + new)

    def state_bytes(self, length: int) -> int:
        """The last `kernel - 1` tokens at the width of the convolution, in the parameters' type."""
        channels, _, kernel = self.conv.weight.shape
        return self.conv.weight.element_size() * (kernel - 1) * channels

    def _alone(self, u: Tensor, mask: Tensor | None) -> Tensor:
        return self._convolve(u, self._nothing(u), mask)[0]

    def _nothing(self, u: Tensor) -> Tensor:
        return u.new_zeros(u.shape[0], self.reach[0], u.shape[-1])

    def _convolve(self, u: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The convolution at each token of u ``(b, n, inner)``; and the run of tokens it went over, `before` first."""
        if mask is not None:  # real tokens to the left, so that neighbours in the run are neighbours among them
            u = _take(u.masked_fill(~mask[..., None], 0.0), torch.argsort(~mask, dim=1, stable=True))
        run = torch.cat([before, u], dim=1)
        if u.shape[1] == 0:  # torch's convolution refuses inputs shorter than its kernel
            return u, run
        near = self.conv(pad(run.transpose(1, 2), (0, self.reach[1]))).transpose(1, 2)
        if mask is not None:
            near = _take(near, (mask.cumsum(1) - 1).clamp(min=0)).masked_fill(~mask[..., None], 0.0)
        return near, run

    def _merge(self, near: Tensor, gate: Tensor) -> Tensor:
        return self.dropout(self.out_proj(silu(near) * gate))


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` ``(b, n)`` of x ``(b, m, .)``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
