"""What an attempt's result means for its delivery. Pure: the clock and the randomness are arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from core.deliveries import Verdict
from core.failures import ErrorKind
from core.retry import RetryPolicy, parse_retry_after, with_retry_after
from core.states import DeadReason, PendingReason, State

# The receiver may steer the sender in these response headers.
DIRECTIVE_HEADER = "webhook-delivery"
RETRY_AFTER_HEADER = "retry-after"
STEERING_HEADERS = (DIRECTIVE_HEADER, RETRY_AFTER_HEADER)


class Result(NamedTuple):
    """How one HTTP try ended: with a status, or with a kind of error (`ErrorKind.STATUS` stands beside a status)."""

    status_code: int | None
    error_kind: ErrorKind | None
    headers: Mapping[str, str]  # those of STEERING_HEADERS that came; names in lower case


def judge(result: Result, policy: RetryPolicy, attempt: int, *, now: datetime, rng: Callable[[], float]) -> Verdict:
    """Where the delivery goes after attempt number `attempt` (from 1) of its series.

    Only 2xx is success. 410, or the header `webhook-delivery: disable`, ends the delivery and disables its
    subscription; `abort-message` ends this delivery alone. An address that policy forbids is not tried again: a
    person looks at it first. Everything else follows the retry policy; `Retry-After` can delay it further.
    """
    status = result.status_code
    directive = result.headers.get(DIRECTIVE_HEADER, "").strip().lower()
    disables = status == 410 or directive == "disable"
    if status is not None and 200 <= status < 300:
        return Verdict(State.DELIVERED, disables=disables)
    if disables:
        return Verdict(State.DEAD, DeadReason.GONE, disables=True)
    if directive == "abort-message":
        return Verdict(State.DEAD, DeadReason.ABORTED)
    if result.error_kind is ErrorKind.BLOCKED_ADDRESS:
        return Verdict(State.DEAD, DeadReason.REJECTED)
    delay_s = policy.delay_after(attempt, rng)
    if delay_s is None:
        return Verdict(State.DEAD, DeadReason.EXHAUSTED)
    asked_s = parse_retry_after(result.headers.get(RETRY_AFTER_HEADER, ""), now)
    return Verdict(State.PENDING, PendingReason.RETRY, with_retry_after(delay_s, asked_s))
