"""Where one form overtakes another: a bisection over lengths that measures as few of them as it can."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

OCTAVE = 4  # neighbouring lengths to an octave


class Crossing(NamedTuple):
    """Between which lengths the second form overtakes the first.

    first: the longest tried at which the first form was faster; 0 if there was none.  second: the shortest above it at
    which the second was; None if there was none.  length: where they would be equal; None if one of them is missing.
    """

    first: int
    second: int | None
    length: float | None

    @property
    def about(self) -> float:
        """One length for all cases."""
        return self.length or float(self.second or self.first)


def lengths_between(shortest: int, longest: int) -> list[int]:
    """Lengths `OCTAVE` to an octave, about, both ends included."""
    count = max(round(math.log2(longest / shortest) * OCTAVE), 1)
    return sorted({round(shortest * (longest / shortest) ** (at / count)) for at in range(count + 1)})


def settled(search: Callable[[float], Crossing], guess: float) -> Crossing:
    """What `search` from a guess finds twice, each time from new measurements; else the middle of three.

    One measurement that something else disturbed can lead a bisection astray.
    """
    found = [search(guess)]
    found.append(search(found[0].about))
    if max(one.about for one in found) > 1.3 * min(one.about for one in found):
        found.append(search(found[1].about))
    return sorted(found, key=lambda one: one.about)[1]


def crossing(ratio: Callable[[int], float], lengths: Sequence[int], guess: float) -> Crossing:
    """Where `ratio` (time of the second form over that of the first, falling with the length) passes 1.

    It is asked near the guess first, then ever farther away until the crossing is between two lengths, which are then
    brought together: the costly long lengths are only tried where they must be.
    """
    place = min(range(len(lengths)), key=lambda at: abs(math.log(lengths[at] / guess)))
    known: dict[int, float] = {}

    def above(at: int) -> bool:
        known[at] = ratio(lengths[at])
        return known[at] > 1

    low, high, stride = -1, len(lengths), 2
    if above(place):
        low = place
        while low < len(lengths) - 1 and above(at := min(low + stride, len(lengths) - 1)):
            low, stride = at, min(2 * stride, OCTAVE)
        high = at if low < len(lengths) - 1 else high
    else:
        high = place
        while high > 0 and not above(at := max(high - stride, 0)):
            high, stride = at, min(2 * stride, OCTAVE)
        low = at if high > 0 else low
    while low >= 0 and high < len(lengths) and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if above(middle) else (low, middle)
    if low < 0 or high == len(lengths):
        return Crossing(lengths[low] if low >= 0 else 0, lengths[high] if high < len(lengths) else None, None)
    (x0, y0), (x1, y1) = ((math.log(lengths[at]), math.log(known[at])) for at in (low, high))
    return Crossing(lengths[low], lengths[high], math.exp(x0 + (x1 - x0) * y0 / (y0 - y1)))
