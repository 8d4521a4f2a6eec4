"""The state as the GPU kernels keep it: tiles of 16 x 16 products, and the way to the packed state of `KernelState`.

The head is cut into tiles of 16 numbers. For each pair I <= J of them all 16 x 16 products x_i x_j are features, plain
ones without the 1 / sqrt 2 of packed features, so that the matrix units get whole fragments x_i (x_J). Then come the
linear features, and the constant. Rows of a state: `16 i + j` of each pair of tiles, x (16 for each tile), 1. What is
beyond the head's width is zero.
"""

from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor

TILE = 16


def tiles_of(head_dim: int) -> int:
    """How many tiles a head has."""
    return -(-head_dim // TILE)


def pairs_of(head_dim: int) -> int:
    """How many pairs I <= J of them there are."""
    tiles = tiles_of(head_dim)
    return tiles * (tiles + 1) // 2


def rows_of(head_dim: int) -> int:
    """Rows of a state in tiles."""
    return pairs_of(head_dim) * TILE**2 + tiles_of(head_dim) * TILE + 1


def from_packed(packed: Tensor, head_dim: int) -> Tensor:
    """``(b, s, f, e)`` of packed features as ``(b s, rows, e)`` of tiles; the same for ``(b, s, f)``."""
    places, factors, _, _ = _maps(head_dim, packed.device)
    factors = factors[:, None] if packed.dim() == 4 else factors
    return packed.flatten(0, 1).index_select(1, places) * factors


def to_packed(tiles: Tensor, like: Tensor, head_dim: int) -> Tensor:
    """The way back, into `like`."""
    _, _, rows, factors = _maps(head_dim, tiles.device)
    factors = factors[:, None] if like.dim() == 4 else factors
    return like.copy_((tiles.index_select(1, rows) * factors).view_as(like))


@lru_cache(maxsize=32)
def _maps(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each row of tiles its packed feature and what to multiply it by, and the other way round."""
    d, tiles = head_dim, tiles_of(head_dim)
    number = {(i, j): 1 + d + i * d - i * (i - 1) // 2 + j - i for i in range(d) for j in range(i, d)}
    places: list[int] = []
    factors: list[float] = []
    rows, back = [0] * (1 + d + d * (d + 1) // 2), [1.0] * (1 + d + d * (d + 1) // 2)

    def put(feature: int | None, factor: float) -> None:
        if feature is not None:
            rows[feature], back[feature] = len(places), 1 / factor
        places.append(0 if feature is None else feature)
        factors.append(0.0 if feature is None else factor)

    for left in range(tiles):
        for right in range(left, tiles):
            for i in range(left * TILE, (left + 1) * TILE):
                for j in range(right * TILE, (right + 1) * TILE):
                    put(number.get((min(i, j), max(i, j))), sqrt(2) if i == j else 1.0)
    for j in range(tiles * TILE):
        put(1 + j if j < d else None, 1.0)
    put(0, 1.0)
    return tuple(torch.tensor(values, device=device) for values in (places, factors, rows, back))  # type: ignore[return-value]
