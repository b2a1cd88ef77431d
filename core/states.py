"""The delivery state machine: states, reasons, and which operation moves a delivery from where to where.

```
            ┌────────────── replay ───────────────┐
            ▼                                     │
 pending ─claim─▶ sending ─2xx─▶ delivered ───────┤
    ▲               │ │                           │
    │               │ └─give up─▶ dead ───────────┤
    └──reschedule───┘                             │
 pending/dead ─discard─▶ discarded ───────────────┘
```

`core.deliveries` is the only module that writes these states; docs/states.md draws the same table, and a test holds
the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class State(StrEnum):
    PENDING = "pending"  # waits for `due_at`; the sweep or a hint claims it
    SENDING = "sending"  # a worker holds it under a lease that ends at `due_at`
    DELIVERED = "delivered"  # the receiver answered 2xx; only a replay moves it on
    DEAD = "dead"  # given up; a person replays or discards it
    DISCARDED = "discarded"  # a person, or the end of its subscription, took it out; only a replay moves it on


STATE_OF: Final[Mapping[str, State]] = {str(state): state for state in State}  # a third of what State(…) takes


class PendingReason(StrEnum):
    """Why a pending delivery has not been sent yet."""

    NEW = "new"  # not tried yet
    RETRY = "retry"  # an attempt failed, or its worker was lost; tried again at `due_at`
    REPLAY = "replay"  # a replay asked for it
    RATE_LIMITED = "rate_limited"  # due, but its subscription is slow or over its limits
    BREAKER_OPEN = "breaker_open"  # due, but its subscription's circuit breaker is open
    PAUSED = "paused"  # held, without a due time, until its subscription is resumed


# Due, and parked until its subscription has room again.
PARKING = frozenset({PendingReason.RATE_LIMITED, PendingReason.BREAKER_OPEN})


class DeadReason(StrEnum):
    """Why a delivery was given up."""

    EXHAUSTED = "exhausted"  # the retry policy allows no further attempt
    GONE = "gone"  # the receiver answered 410 or asked to be disabled
    ABORTED = "aborted"  # the receiver answered `webhook-delivery: abort-message`
    REJECTED = "rejected"  # egress policy forbids the address or the URL
    SUBSCRIPTION_DISABLED = "subscription_disabled"  # it came due while its subscription was disabled


class DiscardReason(StrEnum):
    """Why a delivery was taken out without being delivered."""

    REQUESTED = "requested"
    SUBSCRIPTION_DELETED = "subscription_deleted"
    EVENT_REDACTED = "event_redacted"  # its payload was removed, so there is nothing left to send


class Transition(NamedTuple):
    """`before`: the states an operation accepts. `after`: the states it may leave behind."""

    before: frozenset[State]
    after: frozenset[State]


def _transition(before: str, after: str) -> Transition:
    return Transition(frozenset(map(State, before.split())), frozenset(map(State, after.split())))


TRANSITIONS: Mapping[str, Transition] = {
    "claim": _transition("pending", "sending"),
    "succeed": _transition("sending", "delivered"),
    "reschedule": _transition("sending", "pending"),
    "give_up": _transition("sending", "dead"),
    "reclaim": _transition("sending", "sending"),  # the lease ended without an outcome: another worker takes over
    "park": _transition("pending sending", "pending"),  # due, or its lease ended, but its subscription has no room
    "hold": _transition("sending", "pending"),  # claimed, but its subscription is paused
    "drop": _transition("sending", "discarded"),  # claimed, but its subscription is deleted
    "discard": _transition("pending dead", "discarded"),
    "replay": _transition("pending delivered dead discarded", "pending"),
}
