"""How a subscription's receiver is doing, in one word."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from core.limiting.breaker import Breaker, BreakerSettings, BreakerState
from core.models import SubscriptionStatus
from core.stats import Figures

HEALTHY_PERCENT: Final = 95
FAILING_PERCENT: Final = 50


class Health(StrEnum):
    HEALTHY = "healthy"  # or nothing was sent
    DEGRADED = "degraded"  # some attempts fail, or it is being tried whether it is back
    FAILING = "failing"  # deliveries wait because its circuit breaker is open, or most attempts fail
    PAUSED = "paused"  # by a person
    DISABLED = "disabled"  # by the receiver


def judge(status: str, breaker: Breaker | None, settings: BreakerSettings, last_hour: Figures, now_ms: int) -> Health:
    """`breaker` is None where it is not known. A receiver that failed for most of the hour and now answers again is
    degraded, no longer failing."""
    if status == SubscriptionStatus.PAUSED:
        return Health.PAUSED
    if status == SubscriptionStatus.DISABLED:
        return Health.DISABLED
    state = BreakerState.CLOSED if breaker is None else breaker.state_at(settings, now_ms)
    rate = last_hour.attempt_success_rate
    percent = 100.0 if rate is None else rate
    fails_now = breaker is None or breaker.failures > 0
    if state is BreakerState.OPEN or (percent < FAILING_PERCENT and fails_now):
        return Health.FAILING
    if state is BreakerState.HALF_OPEN or percent < HEALTHY_PERCENT:
        return Health.DEGRADED
    return Health.HEALTHY
