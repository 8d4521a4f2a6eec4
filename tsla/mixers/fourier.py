"""FourierFormer (arXiv 2206.00206): attention by the generalized Fourier integral estimator. It is quadratic."""

from math import expm1, log
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tsla.mixers.base import MODES, HeadMixer, HeadOptions, State
from tsla.mixers.cache import KeyValueCache, extended
from tsla.ops import fourier_attention
from tsla.ops.fourier import check_power
from tsla.ops.types import accumulation_dtype

RADII = (1e-6, 1e6)  # from an average of all keys to the nearest alone; float32 holds its parameter, and R (q - k)


class FourierAttention(HeadMixer):
    """Weights prod_c |sin(R_c (q_c - k_c)) / (R_c (q_c - k_c))|^power, R learned; see `tsla.ops.fourier_attention`.

    No linear attention: a layer takes O(n^2 head_dim) time, a sine for every pair of tokens and channel, which is many
    times what softmax takes, though O(n) memory. Its state grows with every token.

    >>> layer = FourierAttention(dim=256, heads=8, causal=True)

    Args:
        dim: model width.
        power: an even number; 4 in the paper.
        radius: R at the start; 2 in the paper's language models, 1 in its vision model. Larger ones look closer.
        per_channel: a radius for each channel of a head, shared by the heads; else one for the layer.
        options: as in `HeadMixer`.

    Raises:
        ValueError: as in `HeadMixer`; an odd power; a radius that is not of 1e-6 to 1e6.
    """

    supports = MODES
    state_type = KeyValueCache

    def __init__(
        self, dim: int, *, power: int = 4, radius: float = 1.0, per_channel: bool = False,
        **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        check_power(power)
        if not RADII[0] <= radius <= RADII[1]:
            raise ValueError(f"radius ({radius}) must be {RADII[0]:g} to {RADII[1]:g}")
        super().__init__(dim, **options)
        self.power = power
        start = radius + log(-expm1(-radius))  # of which softplus is the radius
        self.raw_radius = nn.Parameter(torch.full((self.head_dim if per_channel else 1,), start))

    @property
    def radius(self) -> Tensor:
        """R ``(head_dim,)`` or ``(1,)``, above 0, in float32 at least."""
        return softplus(self.raw_radius.to(accumulation_dtype(self.raw_radius.dtype)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return fourier_attention(q, k, v, radius=self.radius, power=self.power, causal=self.causal, key_mask=mask)

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        cache = extended(state, k, v, mask)
        out = fourier_attention(
            q, cache.keys, cache.values, radius=self.radius, power=self.power, causal=True, key_mask=cache.real
        )
        return out, cache

    def state_bytes(self, length: int) -> int:
        """Every key and value."""
        return self.key_value_bytes(length)
