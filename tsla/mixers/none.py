"""No mixing at all: the control row of every table."""

from typing import NamedTuple

import torch
from torch import Tensor

from tsla.mixers.base import MODES, Mixed, Mixer, State


class Seen(NamedTuple):
    """Tokens seen, ``(b,)``: all that nothing needs to remember."""

    length: Tensor


class NoMixer(Mixer):
    """A mixer whose output is zero, so that tokens meet only in the rest of the model. Shows what attention adds.

    Args:
        dim: model width.
        causal: as in `Mixer`.
    """

    supports = MODES
    state_type = Seen

    def __init__(self, dim: int, *, causal: bool = False) -> None:
        super().__init__(dim, width=dim, causal=causal)

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        self.check_input(x, context, mask, cu_seqlens)
        return Mixed(torch.zeros_like(x), None)

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        new = x.new_full((x.shape[0],), x.shape[1], dtype=torch.long) if mask is None else mask.sum(-1)
        return torch.zeros_like(x), Seen(new if state is None else Seen(*state).length + new)

    def state_bytes(self, length: int) -> int:
        return 0
