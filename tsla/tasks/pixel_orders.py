"""The orders in which the pixels of a square image can be read, as indices into its rows."""

import numpy as np
from numpy.typing import NDArray

ORDERS = ("row", "snake", "hilbert", "permuted")


def pixel_order(name: str, side: int, seed: int = 0) -> NDArray[np.int64]:
    """Which pixel stands at each place, ``(side * side,)``, counted row by row.

    ``row``: row by row. ``snake``: every other row backwards, so that neighbours in the sequence are neighbours in the
    image. ``hilbert``: along `hilbert_curve`. ``permuted``: one permutation of `seed`, the same on every machine.
    """
    rows = np.arange(side * side).reshape(side, side)
    match name:
        case "row":
            return rows.reshape(-1)
        case "snake":
            rows[1::2] = rows[1::2, ::-1]
            return rows.reshape(-1)
        case "hilbert":
            x, y = hilbert_curve(side, side).T
            return rows[y, x]
        case "permuted":
            return shuffled(side * side, seed)
        case _:
            raise ValueError(f"order ({name!r}) must be one of {', '.join(ORDERS)}")


def shuffled(count: int, seed: int) -> NDArray[np.int64]:
    """The numbers below `count` in an order of `seed`: that of the raw draws of a PCG64, which no numpy changes."""
    return np.argsort(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count), kind="stable")


def hilbert_curve(width: int, height: int) -> NDArray[np.int64]:
    """Cells (x, y) along a curve that visits each once, from (0, 0) to the other end of row 0, ``(w * h, 2)``.

    Neighbours are one step apart if `width` is even. A square is made of three curves: through the quarter where it
    begins, turned by a right angle, through the half behind that, and back through the last quarter. A long rectangle
    is made of two, one after the other. Where the side is a power of two, this is Hilbert's own curve.
    """
    if height == 1 or width == 1:
        steps = np.arange(width * height)
        return np.stack([steps, 0 * steps] if height == 1 else [0 * steps, steps], axis=1)
    if 2 * width > 3 * height:
        half = _even(width // 2, width)
        return np.concatenate([hilbert_curve(half, height), hilbert_curve(width - half, height) + np.array([half, 0])])
    left, low = width // 2, _even(height // 2, height)
    up = hilbert_curve(low, left)[:, ::-1]
    across = hilbert_curve(width, height - low) + np.array([0, low])
    down = np.array([width - 1, low - 1]) - hilbert_curve(low, width - left)[:, ::-1]
    return np.concatenate([up, across, down])


def _even(part: int, whole: int) -> int:
    """`part`, or one more if it is odd: a curve over an odd width would end in the wrong corner."""
    return part + part % 2 if whole > 2 else part
