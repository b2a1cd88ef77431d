"""How a receiver is doing, in one word."""

from __future__ import annotations

import pytest

from core.health import Health, judge
from core.limiting.breaker import BLANK, Breaker, BreakerSettings
from core.stats import Figures

NOW = 1_800_000_000_000
SETTINGS = BreakerSettings()
FAILED_ONCE = BLANK.after(SETTINGS, False, NOW)
OPENED = FAILED_ONCE
for _ in range(4):
    OPENED = OPENED.after(SETTINGS, False, NOW)


def percent(succeeded: int) -> Figures:
    """An hour in which so many of a hundred attempts succeeded."""
    return Figures(100, succeeded, 0, 0, 0, 0, None, None)


NOTHING = Figures(0, 0, 0, 0, 0, 0, None, None)


@pytest.mark.parametrize(
    ("breaker", "hour", "expected"),
    [
        (BLANK, NOTHING, Health.HEALTHY),
        (BLANK, percent(100), Health.HEALTHY),
        (BLANK, percent(95), Health.HEALTHY),
        (FAILED_ONCE, percent(99), Health.HEALTHY),
        (BLANK, percent(94), Health.DEGRADED),
        (FAILED_ONCE, percent(50), Health.DEGRADED),
        (FAILED_ONCE, percent(49), Health.FAILING),
        (BLANK, percent(5), Health.DEGRADED),  # it answers again
        (None, percent(49), Health.FAILING),  # whether it answers again is not known
        (None, percent(94), Health.DEGRADED),
        (None, NOTHING, Health.HEALTHY),
        (OPENED, percent(100), Health.FAILING),
        (OPENED, NOTHING, Health.FAILING),
        (BLANK.reset(NOW), percent(100), Health.DEGRADED),
        (OPENED.reset(NOW), percent(5), Health.FAILING),
    ],
)
def test_an_active_one_is_judged_by_its_breaker_and_its_last_hour(
    breaker: Breaker | None, hour: Figures, expected: Health
) -> None:
    assert judge("active", breaker, SETTINGS, hour, NOW) is expected


def test_an_open_breaker_whose_time_is_up_is_being_tried() -> None:
    assert judge("active", OPENED, SETTINGS, NOTHING, NOW + 59_999) is Health.FAILING
    assert judge("active", OPENED, SETTINGS, NOTHING, NOW + 60_000) is Health.DEGRADED


@pytest.mark.parametrize("status", ["paused", "disabled"])
@pytest.mark.parametrize("breaker", [None, BLANK, OPENED])
def test_one_that_is_sent_nothing_is_not_judged(status: str, breaker: Breaker | None) -> None:
    assert judge(status, breaker, SETTINGS, percent(5), NOW) == status
