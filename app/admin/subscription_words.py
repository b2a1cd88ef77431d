"""What pages say about a subscription, in words: how its receiver is doing, and what its settings mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from urllib.parse import urlsplit

from app.admin import wording
from core import ids
from core.access.models import AuditEntry
from core.health import Health
from core.limiting.breaker import Breaker, BreakerSettings, BreakerState
from core.limiting.limits import Limits
from core.models import Subscription
from core.retry import RetryPolicy
from core.stats import Figures

MOST_DELAYS = 12  # that are spelled out of a schedule


def host_and_path(url: str) -> tuple[str, str]:
    """A URL as lists show it: the host, which people look for, and the rest."""
    parts = urlsplit(url)
    rest = parts.path if parts.path != "/" else ""
    return parts.netloc, f"{rest}?{parts.query}" if parts.query else rest


def delay(seconds: float) -> str:
    """`5 s`, `5 min`, `2 h`, `1 d 4 h`"""
    return wording.duration(seconds * 1000)


def retries(policy: RetryPolicy) -> str:
    """`10 attempts over 3 days: at once, then after 5 s, 5 min, …`"""
    if policy.max_attempts == 1:
        return "One attempt, no retries."
    delays = [policy.nominal_delay_s(attempt) for attempt in range(1, policy.max_attempts)]
    # 1 min, 1 min, 1 min: said once, with how often.
    runs = [(delay(one), len(list(same))) for one, same in groupby(delays)]
    told = [text if count == 1 else f"{text} ({count} times)" for text, count in runs[:MOST_DELAYS]]
    told += ["and so on"] if len(runs) > MOST_DELAYS else []
    jitter = f", ±{policy.jitter * 100:.0f} %" if policy.jitter else ""
    return f"{policy.max_attempts} attempts over {_span(sum(delays))}: at once, then after {', '.join(told)}{jitter}."


def _span(seconds: float) -> str:
    """Roughly: `40 s`, `12 min`, `5 h`, `3 days`."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * unit:
            return f"{round(seconds / unit)} {name}"
    return f"{seconds:.0f} s"


def limits(chosen: Limits) -> str:
    rate = "any number a second" if chosen.per_second is None else f"{chosen.per_second:g} a second"
    return f"At most {chosen.max_in_flight:,} requests at once, {rate}."


def breaker_settings(chosen: BreakerSettings) -> str:
    return (
        f"Opens after {chosen.failure_threshold} failures in a row, or when {chosen.failure_rate_threshold * 100:g} %"
        f" of at least {chosen.failure_threshold * 2} calls within {wording.duration(chosen.monitoring_window_ms)}"
        f" fail. Stays open for {wording.duration(chosen.timeout_ms)}; then tries {chosen.half_open_max_calls} at a"
        f" time, and closes after {chosen.half_open_success_threshold} successes."
    )


def sentence(
    subscription: Subscription,
    health: Health,
    breaker: Breaker | None,
    day: Figures,
    now: datetime,
    *,
    open_since: datetime | None,
    paused: AuditEntry | None,
) -> str:
    """How the receiver is doing, and since when or by whom."""
    match health:
        case Health.PAUSED:
            who = f" by {paused.actor_name or paused.actor}" if paused is not None else ""
            since = f" {ago(ids.time_of(paused.id), now)}" if paused is not None else ""
            return f"Paused{who}{since}. What comes meanwhile is held, and sent when it is resumed."
        case Health.DISABLED:
            why = subscription.status_reason or "the receiver wants no more"
            return f"Disabled: {why.rstrip('.')}. Nothing is created or sent for it until somebody resumes it."
        case Health.FAILING:
            return f"Failing{_failing_since(breaker, day, now, open_since)}"
        case Health.DEGRADED:
            state = breaker and breaker.state_at(
                BreakerSettings.of(subscription.circuit_breaker), int(now.timestamp() * 1000)
            )
            if state is BreakerState.HALF_OPEN:
                return (
                    "Its circuit breaker is half open: a few deliveries are sent, to see whether the receiver is back."
                )
            return "Some attempts of the last hour failed."
        case Health.HEALTHY:
            if not day.attempts:
                return "Nothing was sent to it in the last 24 hours."
            if day.delivered == day.attempts:
                return "Healthy: every attempt of the last 24 hours succeeded."
            return "Healthy: attempts succeed."


def _failing_since(breaker: Breaker | None, day: Figures, now: datetime, open_since: datetime | None) -> str:
    last = (
        f" The last success was {ago(day.delivered_at, now)}."
        if day.delivered_at is not None
        else " No attempt succeeded in the last 24 hours."
    )
    if breaker is None or breaker.state is BreakerState.CLOSED or open_since is None:
        return f": most attempts of the last hour failed.{last}"
    return f" since {wording.time(open_since)} ({ago(open_since, now)}), when its circuit breaker opened.{last}"


def ago(moment: datetime, now: datetime) -> str:
    """`just now`, `4 min ago`, `3 h ago`, `2 d ago`"""
    past = now - moment
    if past < timedelta(minutes=1):
        return "just now"
    for unit, name in ((timedelta(days=2), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "min")):
        if past >= unit:
            return f"{past // _UNIT[name]} {name} ago"
    raise AssertionError("unreachable")


_UNIT = {"d": timedelta(days=1), "h": timedelta(hours=1), "min": timedelta(minutes=1)}


def plural(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def found(values: Sequence[str]) -> str:
    """What an event has where a condition looked."""
    return ", ".join(values) if values else "nothing"
