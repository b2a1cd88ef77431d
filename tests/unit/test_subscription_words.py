"""What pages say about a subscription, in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.admin import subscription_words as words
from core import ids
from core.access.models import AuditEntry
from core.health import Health
from core.limiting.breaker import BLANK, Breaker, BreakerSettings, BreakerState
from core.limiting.limits import Limits
from core.models import Subscription
from core.retry import RetryPolicy
from core.stats import Figures

NOW = datetime(2026, 1, 28, 10, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            None,
            "10 attempts over 3 days: at once, then after 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 1 d, ±10 %.",
        ),
        (
            {"backoff_strategy": "exponential", "jitter": 0},
            "5 attempts over 15 s: at once, then after 1 s, 2 s, 4 s, 8 s.",
        ),
        (
            {"backoff_strategy": "fixed", "base_delay_ms": 60_000, "max_attempts": 100, "jitter": 0},
            "100 attempts over 2 h: at once, then after 1 min (99 times).",
        ),
        (
            {"backoff_strategy": "linear", "max_attempts": 100, "jitter": 0, "max_delay_ms": 100_000},
            "100 attempts over 82 min: at once, then after 1 s, 2 s, 3 s, 4 s, 5 s, 6 s, 7 s, 8 s, 9 s, 10 s, 11 s,"
            " 12 s, and so on.",
        ),
        ({"max_attempts": 1}, "One attempt, no retries."),
    ],
)
def test_a_retry_policy(spec: Any, said: str) -> None:
    assert words.retries(RetryPolicy.parse(spec)) == said


def test_limits_and_settings() -> None:
    assert words.limits(Limits()) == "At most 200 requests at once, any number a second."
    assert words.limits(Limits(1000, 0.5)) == "At most 1,000 requests at once, 0.5 a second."
    assert words.breaker_settings(BreakerSettings()) == (
        "Opens after 5 failures in a row, or when 50 % of at least 10 calls within 5 min fail. Stays open for 1 min;"
        " then tries 3 at a time, and closes after 2 successes."
    )


@pytest.mark.parametrize(
    ("url", "host", "rest"),
    [
        ("https://a.example.com/", "a.example.com", ""),
        ("https://a.example.com:8443/hook?a=b", "a.example.com:8443", "/hook?a=b"),
        ("https://[2606:4700::1111]/x", "[2606:4700::1111]", "/x"),
    ],
)
def test_a_url_begins_with_what_people_look_for(url: str, host: str, rest: str) -> None:
    assert words.host_and_path(url) == (host, rest)


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        ({"seconds": 59}, "just now"),
        ({"minutes": 1}, "1 min ago"),
        ({"minutes": 59}, "59 min ago"),
        ({"hours": 47}, "47 h ago"),
        ({"days": 3}, "3 d ago"),
        ({"seconds": -5}, "just now"),
    ],
)
def test_how_long_ago(ago: dict[str, int], said: str) -> None:
    assert words.ago(NOW - timedelta(**ago), NOW) == said


def figures(attempts: int = 0, delivered: int = 0, delivered_at: datetime | None = None) -> Figures:
    return Figures(attempts, delivered, 0, 0, 0, 0, delivered_at, None)


def sentence(health: Health, day: Figures, breaker: Breaker | None = BLANK, **more: Any) -> str:
    row = Subscription(id=ids.new_id(), organization_id=ids.new_id(), url="https://a.example.com", events=["*"])
    row.status_reason = more.pop("reason", None)
    return words.sentence(row, health, breaker, day, NOW, **({"open_since": None, "paused": None} | more))


def test_one_sentence_says_how_it_is_doing() -> None:
    assert sentence(Health.HEALTHY, figures()) == "Nothing was sent to it in the last 24 hours."
    assert sentence(Health.HEALTHY, figures(5, 5)) == "Healthy: every attempt of the last 24 hours succeeded."
    assert sentence(Health.HEALTHY, figures(5, 4)) == "Healthy: attempts succeed."
    assert sentence(Health.DEGRADED, figures(5, 4)) == "Some attempts of the last hour failed."
    half_open = Breaker(BreakerState.HALF_OPEN)
    assert "half open: a few deliveries are sent" in sentence(Health.DEGRADED, figures(5, 4), half_open)
    opened = Breaker(BreakerState.OPEN, 5)
    hour = timedelta(hours=1)
    assert sentence(Health.FAILING, figures(5, 1, NOW - 2 * hour), opened, open_since=NOW - hour) == (
        "Failing since 2026-01-28 09:15 UTC (1 h ago), when its circuit breaker opened. The last success was 2 h ago."
    )
    assert sentence(Health.FAILING, figures(5), None) == (
        "Failing: most attempts of the last hour failed. No attempt succeeded in the last 24 hours."
    )
    assert sentence(Health.DISABLED, figures(), reason="the receiver answered 410").startswith(
        "Disabled: the receiver answered 410. Nothing is created"
    )
    entry = AuditEntry(id=ids.lowest_at(NOW - 3 * hour), actor="usr_1", actor_name="Ada", action="subscription.paused")
    assert sentence(Health.PAUSED, figures(), paused=entry).startswith("Paused by Ada 3 h ago. What comes meanwhile")
    assert sentence(Health.PAUSED, figures()).startswith("Paused. What comes")
