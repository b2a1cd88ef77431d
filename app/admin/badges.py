"""States as pages show them: a word, and a tone of colour that says the same once more.

The one map from a state to its badge. A state that is not in it fails loudly: a new one is to be given its word here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from core.failures import ErrorKind
from core.health import Health
from core.limiting.breaker import BreakerState
from core.models import ItemOutcome, ReplayStatus, SubscriptionStatus
from core.states import DeadReason, DiscardReason, PendingReason, State


class Tone(StrEnum):
    """A class of the style sheet."""

    GOOD = "good"
    BUSY = "busy"  # on its way, without anybody's doing
    WARN = "warn"  # waits for something, or is not as it should be
    BAD = "bad"  # somebody has to look
    IDLE = "idle"  # over, or taken out


class Badge(NamedTuple):
    label: str
    tone: Tone
    means: str  # shown where the pointer rests


class AttemptResult(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class UserState(StrEnum):
    ACTIVE = "active"
    INVITED = "invited"
    DISABLED = "disabled"


GOOD, BUSY, WARN, BAD, IDLE = Tone

BADGES: Mapping[str, Mapping[str, Badge]] = {
    "delivery": {
        State.PENDING: Badge("pending", BUSY, "Waits to be sent"),
        State.SENDING: Badge("sending", BUSY, "A worker is sending it"),
        State.DELIVERED: Badge("delivered", GOOD, "The receiver took it"),
        State.DEAD: Badge("dead", BAD, "Given up: replay or discard it"),
        State.DISCARDED: Badge("discarded", IDLE, "Taken out without being delivered"),
    },
    "reason": {
        PendingReason.NEW: Badge("not tried yet", BUSY, "Its first attempt is due"),
        PendingReason.RETRY: Badge("retrying", WARN, "An attempt failed, and the next is planned"),
        PendingReason.REPLAY: Badge("replayed", BUSY, "A replay asked for it"),
        PendingReason.RATE_LIMITED: Badge("waiting for room", WARN, "The subscription is slow or over its limits"),
        PendingReason.BREAKER_OPEN: Badge("breaker open", WARN, "The receiver fails, so nothing is sent to it for now"),
        PendingReason.PAUSED: Badge("held", WARN, "The subscription is paused"),
        DeadReason.EXHAUSTED: Badge("retries exhausted", BAD, "The retry policy allows no further attempt"),
        DeadReason.GONE: Badge("gone", BAD, "The receiver answered 410, or asked to be disabled"),
        DeadReason.ABORTED: Badge("aborted by receiver", BAD, "The receiver asked not to be sent it again"),
        DeadReason.REJECTED: Badge("address not allowed", BAD, "Egress policy forbids the address or the URL"),
        DeadReason.SUBSCRIPTION_DISABLED: Badge(
            "subscription disabled", BAD, "It came due while its subscription was disabled"
        ),
        DiscardReason.REQUESTED: Badge("discarded by a person", IDLE, "Somebody took it out"),
        DiscardReason.SUBSCRIPTION_DELETED: Badge("subscription deleted", IDLE, "Its subscription was deleted"),
        DiscardReason.EVENT_REDACTED: Badge("event redacted", IDLE, "Its payload was removed"),
    },
    "error": {
        ErrorKind.DNS: Badge("name not found", BAD, "The host name has no address"),
        ErrorKind.REFUSED: Badge("no connection", BAD, "The connection was refused, or the host can't be reached"),
        ErrorKind.BLOCKED_ADDRESS: Badge("address not allowed", BAD, "Egress policy does not call this address"),
        ErrorKind.TLS: Badge("TLS failed", BAD, "No trusted, sufficiently new TLS with this host name"),
        ErrorKind.TIMEOUT: Badge("timeout", BAD, "No complete answer came in time"),
        ErrorKind.RESET: Badge("connection broke", BAD, "It broke before an answer was complete"),
        ErrorKind.PROTOCOL: Badge("no HTTP answer", BAD, "What came back is no HTTP/1.1 answer"),
        ErrorKind.STATUS: Badge("error status", BAD, "The receiver answered, and not with 2xx"),
        ErrorKind.TOO_LARGE_HEADER: Badge("answer's head too large", BAD, "The head of the answer exceeds its bounds"),
    },
    "subscription": {
        SubscriptionStatus.ACTIVE: Badge("active", GOOD, "Gets what it subscribed to"),
        SubscriptionStatus.PAUSED: Badge("paused", WARN, "Deliveries are held until it is resumed"),
        SubscriptionStatus.DISABLED: Badge("disabled", BAD, "Ended by the receiver (410) until somebody resumes it"),
        SubscriptionStatus.DELETED: Badge("deleted", IDLE, "Kept for the history that refers to it"),
    },
    "replay": {
        ReplayStatus.QUEUED: Badge("queued", BUSY, "Starts within a second or two"),
        ReplayStatus.RUNNING: Badge("running", BUSY, "Sends at its rate"),
        ReplayStatus.PAUSED: Badge("paused", WARN, "Sends nothing until it is resumed"),
        ReplayStatus.COMPLETED: Badge("completed", GOOD, "Every delivery in it has its outcome"),
        ReplayStatus.CANCELLED: Badge("cancelled", IDLE, "Ended before its end; what was sent stays sent"),
    },
    "item": {
        ItemOutcome.WAITING: Badge("waiting", BUSY, "Not sent yet"),
        ItemOutcome.SENT: Badge("sent", BUSY, "With the workers; no attempt has ended yet"),
        ItemOutcome.SUCCEEDED: Badge("succeeded", GOOD, "The receiver took it"),
        ItemOutcome.FAILED: Badge("failed", BAD, "Its last attempt failed; a later retry may still succeed"),
        ItemOutcome.SKIPPED: Badge("skipped", IDLE, "Its state or its subscription did not allow it"),
    },
    "health": {
        Health.HEALTHY: Badge("healthy", GOOD, "Attempts succeed, or nothing was sent"),
        Health.DEGRADED: Badge("degraded", WARN, "Some attempts fail, or it is being tried whether it is back"),
        Health.FAILING: Badge("failing", BAD, "Most attempts fail, or its circuit breaker is open"),
        Health.PAUSED: Badge("paused", WARN, "Somebody paused it"),
        Health.DISABLED: Badge("disabled", BAD, "The receiver ended it (410)"),
    },
    "breaker": {
        BreakerState.CLOSED: Badge("closed", GOOD, "Deliveries are sent"),
        BreakerState.OPEN: Badge("open", BAD, "Deliveries wait, without spending attempts"),
        BreakerState.HALF_OPEN: Badge("half open", WARN, "A few are sent, to see whether the receiver is back"),
    },
    "attempt": {
        AttemptResult.SUCCEEDED: Badge("succeeded", GOOD, "The receiver answered 2xx"),
        AttemptResult.FAILED: Badge("failed", BAD, "No answer, or another than 2xx"),
    },
    "user": {
        UserState.ACTIVE: Badge("active", GOOD, "Can sign in"),
        UserState.INVITED: Badge("invited", BUSY, "Has not chosen a password yet"),
        UserState.DISABLED: Badge("disabled", BAD, "Can't sign in"),
    },
}


def of(noun: str, state: str) -> Badge:
    """Raises LookupError for a noun or a state that is not in the map."""
    try:
        return BADGES[noun][state]
    except KeyError:
        raise LookupError(f"no badge for the {noun} {state!r}; give it its word in app/admin/badges.py") from None
