"""The clock: how far a training is, by steps, epochs or minutes."""

import pytest

from tsla.training.clock import Clock, Limits


@pytest.mark.parametrize(
    ("limits", "total"),
    [
        (Limits(100, None, None), 100),
        (Limits(None, 3, None), 21),
        (Limits(100, 3, None), 21),
        (Limits(10, 3, 5.0), 10),
        (Limits(None, None, 5.0), None),
    ],
)
def test_the_first_limit_in_steps_is_the_end(limits, total):
    assert Clock(limits, 7).total_steps == total


def test_progress_follows_the_steps_where_they_are_known():
    clock = Clock(Limits(100, None, 1.0), 7)
    clock.step, clock.elapsed = 25, 59.0
    assert clock.progress() == 0.25
    timed = Clock(Limits(None, None, 2.0), 7)
    timed.step, timed.elapsed = 25, 30.0
    assert timed.progress() == 0.25


def test_the_time_left_is_that_of_the_nearer_limit():
    clock = Clock(Limits(100, None, None), 7)
    assert clock.seconds_left() is None
    clock.step, clock.earlier_seconds = 25, 30.0
    assert clock.seconds_left() == pytest.approx(90.0)
    both = Clock(Limits(100, None, 1.0), 7)
    both.step, both.earlier_seconds = 25, 30.0
    assert both.seconds_left() == pytest.approx(30.0)


def test_seconds_go_on_through_a_resume():
    first, second = Clock(Limits(100, None, None), 7), Clock(Limits(100, None, None), 7)
    first.earlier_seconds = 12.5
    second.load_state_dict(first.state_dict())
    assert second.seconds == 12.5
