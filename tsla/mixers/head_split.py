"""Some heads look near, the others far: exact windowed softmax beside any mechanism."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsla.mixers.base import Mixed, Mixer, State
from tsla.mixers.window import WindowAttention


class SplitState(NamedTuple):
    """States of the two parts, and tokens seen ``(b,)``."""

    far: State
    near: State
    length: Tensor


class HeadSplit(Mixer):
    """Two mixers side by side, their heads concatenated before one output projection.

    Args:
        far: the mechanism, built with ``output_projection=False``.
        near: windowed softmax for the local heads, built likewise; of the same width and direction.
        bias: of the output projection.
        dropout: on the output.
        output_projection: False returns the concatenated heads.
    """

    state_type = SplitState

    def __init__(
        self, far: Mixer, near: WindowAttention, *, bias: bool = False, dropout: float = 0.0,
        output_projection: bool = True,
    ) -> None:  # fmt: skip
        if (far.dim, far.causal) != (near.dim, near.causal):
            raise ValueError(
                f"both parts need one dim and direction, got dim {far.dim} and {near.dim}, "
                f"causal {far.causal} and {near.causal}"
            )
        for part in (far, near):
            if not isinstance(getattr(part, "to_out", None), nn.Identity):
                raise ValueError(f"{type(part).__name__} must be built with output_projection=False")
        self.supports = far.supports & near.supports
        super().__init__(far.dim, width=far.width + near.width, causal=far.causal)
        self.far, self.near = far, near
        self.to_out = nn.Linear(self.width, far.dim, bias=bias) if output_projection else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        self.check_input(x, context, mask, cu_seqlens)
        far = self.far.mix(x, mask=mask, side=side, cu_seqlens=cu_seqlens)
        near = self.near.mix(x, mask=mask, cu_seqlens=cu_seqlens)
        return far._replace(output=self._join(far.output, near.output))

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        past = SplitState(*state) if state is not None else None
        far, far_state = self.far.extend(x, past and past.far, mask=mask)
        near, near_state = self.near.extend(x, past and past.near, mask=mask)
        return self._join(far, near), SplitState(far_state, near_state, near_state.length)

    def state_bytes(self, length: int) -> int:
        return self.far.state_bytes(length) + self.near.state_bytes(length)

    def _join(self, far: Tensor, near: Tensor) -> Tensor:
        return self.dropout(self.to_out(torch.cat([far, near], dim=-1)))
