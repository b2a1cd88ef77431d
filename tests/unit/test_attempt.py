"""What an attempt's result means for its delivery."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from core.attempt import Result, judge
from core.deliveries import Verdict
from core.failures import ErrorKind
from core.retry import RetryPolicy
from core.states import DeadReason, PendingReason, State

NOW = datetime(2026, 1, 28, 10, 15, tzinfo=UTC)
POLICY = RetryPolicy.parse({"backoff_strategy": "fixed", "base_delay_ms": 4000, "max_attempts": 3, "jitter": 0})


def after(
    status: int | None = 500, kind: ErrorKind | None = ErrorKind.STATUS, attempt: int = 1, **headers: str
) -> Verdict:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return judge(Result(status, kind, named), POLICY, attempt, now=NOW, rng=lambda: 0.5)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_any_2xx_is_success(status: int) -> None:
    assert after(status, None) == Verdict(State.DELIVERED)


@pytest.mark.parametrize("status", [100, 199, 300, 301, 302, 304, 307, 308, 400, 401, 404, 429, 500, 503, 599, 999])
def test_every_other_status_is_a_failure_that_is_tried_again(status: int) -> None:
    assert after(status) == Verdict(State.PENDING, PendingReason.RETRY, 4.0)


@pytest.mark.parametrize("kind", [kind for kind in ErrorKind if kind is not ErrorKind.BLOCKED_ADDRESS])
def test_every_kind_of_error_but_one_is_tried_again(kind: ErrorKind) -> None:
    assert after(None, kind) == Verdict(State.PENDING, PendingReason.RETRY, 4.0)


def test_an_address_that_policy_forbids_is_not_tried_again() -> None:
    assert after(None, ErrorKind.BLOCKED_ADDRESS) == Verdict(State.DEAD, DeadReason.REJECTED)


def test_the_last_attempt_ends_it() -> None:
    assert after(attempt=2).state is State.PENDING
    assert after(attempt=3) == Verdict(State.DEAD, DeadReason.EXHAUSTED)
    assert after(attempt=4) == Verdict(State.DEAD, DeadReason.EXHAUSTED)  # the policy was shortened meanwhile


def test_410_ends_it_and_disables_the_subscription() -> None:
    assert after(410) == Verdict(State.DEAD, DeadReason.GONE, disables=True)


@pytest.mark.parametrize("value", ["disable", " Disable ", "DISABLE"])
def test_a_receiver_may_ask_to_be_disabled(value: str) -> None:
    assert after(500, webhook_delivery=value) == Verdict(State.DEAD, DeadReason.GONE, disables=True)


def test_a_success_that_asks_to_be_disabled_counts_and_disables() -> None:
    assert after(200, None, webhook_delivery="disable") == Verdict(State.DELIVERED, disables=True)


def test_a_receiver_may_refuse_one_message() -> None:
    assert after(500, webhook_delivery="abort-message") == Verdict(State.DEAD, DeadReason.ABORTED)


def test_a_success_that_refuses_the_message_is_still_a_success() -> None:
    assert after(200, None, webhook_delivery="abort-message") == Verdict(State.DELIVERED)


@pytest.mark.parametrize("value", ["", "retry", "disable-all", "abort", "disable, abort-message"])
def test_a_directive_that_there_is_not_changes_nothing(value: str) -> None:
    assert after(500, webhook_delivery=value) == Verdict(State.PENDING, PendingReason.RETRY, 4.0)


@pytest.mark.parametrize(
    ("asked", "delay_s"),
    [("60", 60.0), ("1", 4.0), ("-5", 4.0), ("soon", 4.0), ("", 4.0), ("999999999999", 86_400.0)],
)
def test_retry_after_in_seconds_may_delay_but_not_hurry(asked: str, delay_s: float) -> None:
    assert after(503, retry_after=asked).delay_s == delay_s


def test_retry_after_as_a_date_counts_from_now() -> None:
    date = format_datetime(NOW + timedelta(seconds=90), usegmt=True)
    assert after(429, retry_after=date).delay_s == 90.0
    past = format_datetime(NOW - timedelta(days=1), usegmt=True)
    assert after(429, retry_after=past).delay_s == 4.0


def test_retry_after_adds_no_attempts() -> None:
    assert after(503, attempt=3, retry_after="60") == Verdict(State.DEAD, DeadReason.EXHAUSTED)


def test_jitter_comes_from_the_randomness_that_is_given() -> None:
    policy = RetryPolicy.parse({"backoff_strategy": "fixed", "base_delay_ms": 1000, "jitter": 0.5})
    delays = [
        judge(Result(500, ErrorKind.STATUS, {}), policy, 1, now=NOW, rng=lambda at=at: at).delay_s  # type: ignore[misc]
        for at in (0.0, 0.5, 1.0)
    ]
    assert delays == pytest.approx([0.5, 1.0, 1.5])
