"""Token shift: half of what a mixer reads of a token belongs to the token before it (RWKV, arXiv 2305.13048)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.mixers.base import Mixed, Mixer, State
from tsla.ops.packing import each_sequence


class ShiftState(NamedTuple):
    """State of the mixer inside, what goes on of the last real token ``(b, dim // 2)``, and tokens seen ``(b,)``."""

    inner: State
    last: Tensor
    length: Tensor


class TokenShift(Mixer):
    """A mixer whose input has the second half of its channels delayed by one token; zeros come before the first.

    The token before is the last real one, so that padding changes nothing. A context is left as it is.

    >>> layer = TokenShift(TaylorAttention(dim=256, causal=True))

    Args:
        inner: the mixer that reads the shifted tokens: any.
    """

    state_type = ShiftState

    def __init__(self, inner: Mixer) -> None:
        self.supports = inner.supports
        super().__init__(inner.dim, width=inner.width, causal=inner.causal)
        self.inner = inner

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        self.check_input(x, context, mask, cu_seqlens)
        own = mask if context is None else None
        if cu_seqlens is None:
            x, _ = shift(x, self._nothing(x), own)
        else:
            x = each_sequence(lambda y, real: shift(y, self._nothing(y), real)[0], x, cu_seqlens, own)
        return self.inner.mix(x, context, mask=mask, side=side, cu_seqlens=cu_seqlens)

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        past = None if state is None else ShiftState(*state)
        x, last = shift(x, self._nothing(x) if past is None else past.last, mask)
        out, inner = self.inner.extend(x, past and past.inner, mask=mask)
        return out, ShiftState(inner, last, inner.length)

    def state_bytes(self, length: int) -> int:
        size = next((p.element_size() for p in self.parameters()), torch.get_default_dtype().itemsize)
        return self.inner.state_bytes(length) + size * (self.dim // 2)

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.dim // 2)


def shift(x: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """x ``(b, n, dim)`` with the last ``dim // 2`` channels one real token late, and those of the last real token.

    before: ``(b, dim // 2)``, what the first token gets.
    """
    half = before.shape[-1]
    late = torch.cat([before[:, None], x[..., x.shape[-1] - half :]], dim=1)
    if mask is not None:  # at each place, and after the end, the last real token so far
        places = torch.arange(1, late.shape[1], device=x.device) * mask
        newest = pad(places.cummax(dim=1).values, (1, 0))
        late = late.gather(1, newest[..., None].expand(-1, -1, half))
    return torch.cat([x[..., : x.shape[-1] - half], late[:, :-1]], dim=-1), late[:, -1].clone()
