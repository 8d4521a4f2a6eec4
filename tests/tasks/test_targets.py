"""Numbers to learn: which cells are taken for how many, and what scales them."""

import re

import numpy as np
import pytest

from tsla.tasks.base import SPLITS
from tsla.tasks.targets import make_targets, moments, parse_cells

EVEN = dict(zip(SPLITS, np.arange(12).reshape(3, 4), strict=True))


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("1118", [1118]), (" -3.5e2 ", [-350]), ("[1,118]", [1, 118]), (" [3,5] ", [3, 5]), ("3.5 2.7", [3.5, 2.7]),
        ("3, 5", [3, 5]), ("3;5", [3, 5]), ("3.5; 7\n8", [3.5, 7, 8]), (1118, [1118]), ([3, 5], [3, 5]),
    ],
)  # fmt: skip
def test_cells_of_numbers(cell, found):
    assert parse_cells("numbers", {"y": [cell]}, "a.csv") == [found]


@pytest.mark.parametrize("cell", ["1,118", "3,5", "1,118.50", "1,118,000", "3,5 2,7", "3,5; 2,7", ",5", "5,", "1 ,2"])
def test_a_comma_may_stand_within_one_number(cell):
    told = rf"^a\.csv, column 'y', row 2: value \({re.escape(repr(cell))}\) .* 1118 or 3\.5, .*\[1, 118\]"
    with pytest.raises(ValueError, match=told) as caught:
        parse_cells("numbers", {"y": ["1", cell]}, "a.csv")
    assert "\n" not in str(caught.value)


def test_numbers_far_from_0_keep_their_differences():
    cells = [[1_700_000_000 + 7 * i, -i] for i in range(12)]
    made = make_targets("numbers", cells, EVEN, ["a", "b"])
    assert made.values.dtype == np.float64 and made.values.tolist() == cells
    assert made.std[0] == pytest.approx(np.std([0, 7, 14, 21]))
    assert made.mean[0] == 1_700_000_010.5


@pytest.mark.parametrize(
    ("column", "std"),
    [
        ([5, 5, 5], 1), ([0.1] * 1000, 1), ([0, 0], 1), ([-1, 1], 1), ([-2, 2], 2),
        ([1e12 - 2000, 1e12 + 2000], 2000), ([1e12 - 500, 1e12 + 500], 1), ([-1e12 - 500, -1e12 + 500], 1),
        ([0, 1e-30], 5e-31), (np.array([1, 3], np.float32), 1), (np.array([1, 7], np.float32), 3),
    ],
)  # fmt: skip
def test_a_spread_that_rounding_could_have_made_is_none(column, std):
    assert moments(np.array(column)[:, None])[1] == (pytest.approx(std),)
