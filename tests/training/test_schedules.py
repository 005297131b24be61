import math

import pytest

from limelight.errors import ArgumentError
from limelight.training.schedules import SCHEDULES, rate_factor


def factor(schedule, update, warmup=10, total=110):
    return rate_factor(schedule, update, warmup=warmup, total=total)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_rises_to_its_peak(schedule):
    assert [factor(schedule, update) for update in (0, 1, 5, 7.5, 10)] == [0.0, 0.1, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # At a quarter, the middle, three quarters, the end and beyond it.
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [0.75, 0.5, 0.25, 0.01, 0.01]),
        ("cosine", [(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.01, 0.01]),
        ("inverse-sqrt", [math.sqrt(10 / 35), math.sqrt(10 / 60), math.sqrt(10 / 85), math.sqrt(10 / 110), 0.1]),
    ],
)
def test_and_falls_from_there(schedule, expected):
    assert [factor(schedule, update) for update in (35, 60, 85, 110, 1000)] == pytest.approx(expected)


def test_the_last_updates_still_move():
    assert factor("linear", 109.5) == 0.01
    assert factor("cosine", 109.5) == 0.01
    assert factor("cosine", 90) > 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warmup_the_first_update_has_the_peak(schedule):
    assert rate_factor(schedule, 0, warmup=0, total=100) == 1.0
    assert rate_factor(schedule, 1, warmup=0, total=100) == pytest.approx(1.0, abs=0.02)
    assert rate_factor("inverse-sqrt", 4, warmup=0, total=100) == 0.5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_that_is_shorter_than_its_warmup(schedule):
    assert rate_factor(schedule, 7, warmup=10, total=7) == 0.7
    assert 0 < rate_factor(schedule, 10, warmup=10, total=10) <= 1


def test_an_unknown_schedule():
    with pytest.raises(
        ArgumentError, match="schedule: must be one of constant, linear, cosine, inverse-sqrt, got 'step'"
    ):
        rate_factor("step", 1, warmup=1, total=2)  # pyright: ignore[reportArgumentType]
