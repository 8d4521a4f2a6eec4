"""Orders of pixels: each a permutation, and what its name says."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tsla.tasks.pixel_orders import ORDERS, hilbert_curve, pixel_order, shuffled


def steps(order, side):
    """How far apart pixels are that follow each other, in rows plus columns."""
    rows, columns = np.divmod(order, side)
    return np.abs(np.diff(rows)) + np.abs(np.diff(columns))


@pytest.mark.parametrize("side", [14, 28, 32])
@pytest.mark.parametrize("name", ORDERS)
def test_every_pixel_stands_once(name, side):
    assert sorted(pixel_order(name, side).tolist()) == list(range(side * side))


def test_rows_and_snakes():
    assert pixel_order("row", 3).tolist() == list(range(9))
    assert pixel_order("snake", 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]


@pytest.mark.parametrize("name", ["snake", "hilbert"])
@pytest.mark.parametrize("side", range(2, 34, 2))
def test_neighbours_stay_neighbours(name, side):
    assert steps(pixel_order(name, side), side).tolist() == [1] * (side * side - 1)


def test_of_a_power_of_two_the_curve_is_hilberts():
    """His construction: a curve of four, each replaced by a smaller one; the first and last are turned."""

    def curve(level):
        if not level:
            return [(0, 0)]
        inner, half = curve(level - 1), 2 ** (level - 1)
        return [
            *((y, x) for x, y in inner), *((x, y + half) for x, y in inner),
            *((x + half, y + half) for x, y in inner), *((2 * half - 1 - y, half - 1 - x) for x, y in inner),
        ]  # fmt: skip

    for level in range(1, 6):
        assert list(map(tuple, hilbert_curve(2**level, 2**level).tolist())) == curve(level)


@pytest.mark.parametrize("side", [14, 28, 32])
def test_the_curve_keeps_near_what_is_near(side):
    """Along it, 16 pixels lie within few rows and columns; row by row, they lie within one row."""
    rows, columns = np.divmod(pixel_order("hilbert", side), side)
    spans = [np.ptp(x[at : at + 16]) for x in (rows, columns) for at in range(side * side - 16)]
    assert max(spans) <= 9 and np.mean(spans) < 5


def test_one_permutation_of_a_seed():
    first = pixel_order("permuted", 28, 3)
    assert np.array_equal(first, pixel_order("permuted", 28, 3))
    assert not np.array_equal(first, pixel_order("permuted", 28, 4))
    assert np.mean(steps(first, 28)) > 15 and abs(spearmanr(first, np.arange(784)).statistic) < 0.12
    assert shuffled(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]  # on every machine


def test_an_unknown_order():
    with pytest.raises(ValueError, match=r"^order \('column'\) must be one of row, snake, hilbert, permuted$"):
        pixel_order("column", 4)
