"""What became of a delivery and why, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.admin import wording
from core.failures import ErrorKind
from core.models import Attempt, Delivery
from core.states import DeadReason, DiscardReason, PendingReason, State


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text`, and after it a moment: what is to come, if `is_ahead`, or when it ended."""

    text: str
    moment: datetime | None = None
    is_ahead: bool = False


_NUMBERS = ("no times", "once", "twice", "three times", "four times", "five times", "six times", "seven times")
_PENDING = {
    PendingReason.NEW: "Not tried yet; its first attempt is due",
    PendingReason.REPLAY: "To be sent again, by a replay; due",
    PendingReason.RATE_LIMITED: "Waits for room: its subscription is slow or at its limits; was due",
    PendingReason.BREAKER_OPEN: "Waits for its subscription's circuit breaker, since the receiver fails; was due",
    PendingReason.PAUSED: "Held while its subscription is paused; sent when that is resumed",
}
_DEAD = {
    DeadReason.EXHAUSTED: "given up",
    DeadReason.GONE: "so its subscription was disabled",
    DeadReason.ABORTED: "and asked not to be sent it again; given up",
    DeadReason.REJECTED: "which is not tried again; given up",
}
_DISCARDED = {
    DiscardReason.REQUESTED: "Discarded: somebody took it out",
    DiscardReason.SUBSCRIPTION_DELETED: "Discarded when its subscription was deleted",
    DiscardReason.EVENT_REDACTED: "Discarded when its event was redacted: there is nothing left to send",
}


def sentence(delivery: Delivery, attempts: Sequence[Attempt], max_attempts: int) -> Sentence:
    """`attempts`: the latest, in order. `max_attempts`: of its subscription's policy."""
    series = [one for one in attempts if one.series == delivery.series]
    match State(delivery.state):
        case State.PENDING:
            return _pending(delivery, series, max_attempts)
        case State.SENDING:
            return Sentence(
                f"A worker is sending it now: attempt {delivery.attempt_count + 1}, begun", delivery.updated_at
            )
        case State.DELIVERED:
            return Sentence(_delivered(delivery, series), delivery.updated_at)
        case State.DEAD:
            return Sentence(_dead(delivery, series), delivery.updated_at)
        case State.DISCARDED:
            return Sentence(f"{_DISCARDED[DiscardReason(delivery.reason or '')]},", delivery.updated_at)


def _pending(delivery: Delivery, series: Sequence[Attempt], max_attempts: int) -> Sentence:
    reason = PendingReason(delivery.reason or "")
    if reason is PendingReason.PAUSED:
        return Sentence(_PENDING[reason])
    is_ahead = reason not in (PendingReason.RATE_LIMITED, PendingReason.BREAKER_OPEN)
    if reason is not PendingReason.RETRY:
        return Sentence(_PENDING[reason], delivery.due_at, is_ahead)
    said = f"Attempt {delivery.attempt_count} of {max_attempts} failed: {_outcome(series[-1])}. " if series else ""
    return Sentence(f"{said}Next attempt", delivery.due_at, is_ahead)


def _delivered(delivery: Delivery, series: Sequence[Attempt]) -> str:
    if not series:
        return "Delivered"
    last = series[-1]
    took = f"within {wording.duration(last.duration_ms)}"
    tries = "" if last.number == 1 else f" at attempt {last.number}"
    return f"Delivered{tries}: the receiver answered {last.status_code} {took},"


def _dead(delivery: Delivery, series: Sequence[Attempt]) -> str:
    reason = DeadReason(delivery.reason or "")
    if reason is DeadReason.SUBSCRIPTION_DISABLED:
        return "Dead: it came due while its subscription was disabled,"
    return f"Dead: {_outcomes(delivery, series)}; {_DEAD[reason]}"


def _outcomes(delivery: Delivery, series: Sequence[Attempt]) -> str:
    count = delivery.attempt_count
    if not series:
        return f"failed {times(count)}"
    alike = len(series) == count and len({(one.status_code, one.error_kind) for one in series}) == 1
    said = _outcome(series[-1])
    if count <= 1:
        return said
    return f"{said} {times(count)}" if alike else f"it failed {times(count)}, at last because {said}"


def _outcome(attempt: Attempt) -> str:
    """Of a failed attempt, as part of a sentence."""
    if attempt.error_kind == ErrorKind.STATUS:
        return f"the receiver answered {attempt.status_code}"
    return _FAILED[ErrorKind(attempt.error_kind or "")]


_FAILED = {
    ErrorKind.DNS: "no address was found for the host",
    ErrorKind.REFUSED: "no connection could be made",
    ErrorKind.BLOCKED_ADDRESS: "egress policy forbids the address",
    ErrorKind.TLS: "no TLS connection could be made",
    ErrorKind.TIMEOUT: "the receiver did not answer in time",
    ErrorKind.RESET: "the connection broke before an answer",
    ErrorKind.PROTOCOL: "what came back was no HTTP answer",
    ErrorKind.STATUS: "the receiver answered with an error",
    ErrorKind.TOO_LARGE_HEADER: "the head of the answer was too large",
}


def times(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else f"{count} times"
