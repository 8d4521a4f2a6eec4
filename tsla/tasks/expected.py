"""Numbers of a data set beside what they should be."""

import math
from typing import NamedTuple, SupportsFloat


class Statistic(NamedTuple):
    """A number of a data set, and the range that it should lie in."""

    name: str
    found: float
    low: float
    high: float

    @property
    def right(self) -> bool:
        return self.low <= self.found <= self.high


def near(name: str, found: SupportsFloat, value: float, tolerance: float) -> Statistic:
    """A number that should be `value`, give or take `tolerance`."""
    return Statistic(name, float(found), value - tolerance, value + tolerance)


def exactly(name: str, found: SupportsFloat, value: float) -> Statistic:
    """A number that should be `value`."""
    return near(name, found, value, 0.0)


def widened(rows: int, usual: int) -> float:
    """By what tolerances that are those of `usual` rows grow where there are fewer: as chance does."""
    return math.sqrt(max(1.0, usual / rows))
