"""The search for a crossing, on times that are known; and the clock that it stands on."""

import collections
import itertools
import math

import pytest

from tsla.bench.search import Crossing, crossing, lengths_between, settled
from tsla.bench.timing import FEWEST, MOST, WARM_UP, interleaved, order, timing

LENGTHS = lengths_between(16, 4096)


def test_lengths():
    assert LENGTHS[0] == 16 and LENGTHS[-1] == 4096 and len(LENGTHS) == 33
    assert all(1.1 < b / a < 1.27 for a, b in itertools.pairwise(LENGTHS))
    assert lengths_between(16, 17) == [16, 17]


@pytest.mark.parametrize("guess", [1, 16, 45, 700, 4096, 1e6])
@pytest.mark.parametrize("true", [16.5, 17, 45, 100.3, 699, 2048, 4090])
def test_a_crossing_is_found_from_anywhere(true, guess):
    asked = []
    found = crossing(lambda n: asked.append(n) or true / n, LENGTHS, guess)
    assert found.first <= true <= found.second and LENGTHS.index(found.second) == LENGTHS.index(found.first) + 1
    assert found.length == pytest.approx(true)
    assert len(asked) == len(set(asked)) <= 14
    assert max(asked) <= max(2.1 * true, 1.1 * min(guess, 4096))  # far longer ones would cost without need


@pytest.mark.parametrize("guess", [16, 300, 4096])
def test_a_crossing_beyond_the_lengths_is_not_made_up(guess):
    assert crossing(lambda n: 5000 / n, LENGTHS, guess) == Crossing(4096, None, None)
    assert crossing(lambda n: 15 / n, LENGTHS, guess) == Crossing(0, 16, None)


def test_a_search_that_was_disturbed_is_outvoted():
    answers = {100: 30.0, 30: 400.0, 400: 410.0}  # guess: what the search from there finds
    found = settled(lambda guess: Crossing(1, 5000, answers[round(guess)]), 100)
    assert found.length == 400
    calls = []
    settled(lambda guess: calls.append(guess) or Crossing(90, 108, 101.0), 100)
    assert calls == [100, 101.0]


def test_interleaved_takes_turns_and_stops():
    now, order = [0.0], []

    def call(name, seconds):
        return lambda: order.append(name) or now.__setitem__(0, now[0] + seconds)

    calls = {"a": call("a", 1.0), "b": call("b", 3.0)}
    found = interleaved(calls, seconds=0.1, clock=lambda: now[0])
    assert found["a"] == (1, 1, 1, FEWEST) and found["b"] == (3, 3, 3, FEWEST)
    assert order[:6] == ["a", "b", "b", "a", "a", "b"] and len(order) == 2 * (FEWEST + WARM_UP)
    assert interleaved(calls, seconds=math.inf, clock=lambda: now[0])["a"].rounds == MOST


def test_none_follows_the_same_one_all_the_time():
    names = list("abcdef")
    follows = collections.Counter(pair for turn in range(6) for pair in itertools.pairwise(order(names, turn)))
    assert follows == dict.fromkeys(itertools.permutations(names, 2), 1)
    assert all(sorted(order(list("abcde"), turn)) == list("abcde") for turn in range(9))


def test_timing_is_a_median_with_quartiles():
    assert timing([1.0, 2.0, 3.0, 4.0, 100.0]) == (3, 2, 4, 5)
