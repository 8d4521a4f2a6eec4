"""The cache of the quadratic mixers: every key and value so far, kept for the queries to come."""

from typing import NamedTuple

import torch
from torch import Tensor

from tsla.mixers.base import State


class KeyValueCache(NamedTuple):
    """All keys ``(b, g, m, d)`` and values ``(b, g, m, e)``, which are real ``(b, m)``, how many ``(b,)``."""

    keys: Tensor
    values: Tensor
    real: Tensor
    length: Tensor


def extended(state: State | None, k: Tensor, v: Tensor, mask: Tensor | None) -> KeyValueCache:
    """The cache with k ``(b, g, n, d)`` and v ``(b, g, n, e)`` at its end, 0 where the mask ``(b, n)`` is False."""
    real = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if mask is None else mask
    k, v = (x.masked_fill(~real[:, None, :, None], 0.0) for x in (k, v))
    if state is None:
        return KeyValueCache(k, v, real, real.sum(-1))
    past = KeyValueCache(*state)
    return KeyValueCache(
        torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2), torch.cat([past.real, real], 1),
        past.length + real.sum(-1),
    )  # fmt: skip
