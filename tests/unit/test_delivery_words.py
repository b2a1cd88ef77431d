"""Each state and reason of a delivery has its sentence."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.admin import attempts, delivery_words
from core import ids
from core.failures import ErrorKind
from core.models import Attempt, Delivery
from core.states import DeadReason, DiscardReason, PendingReason, State

NOW = datetime(2026, 1, 28, 10, 15, tzinfo=UTC)
LATER = datetime(2026, 1, 28, 10, 20, tzinfo=UTC)


def tried(*outcomes: int | ErrorKind, series: int = 0) -> list[Attempt]:
    """One attempt a minute: a status, or what kept it from coming."""
    return [
        Attempt(
            id=ids.new_id(),
            delivery_id=ids.new_id(),
            organization_id=ids.new_id(),
            series=series,
            number=number,
            started_at=NOW.replace(minute=number),
            duration_ms=1200,
            status_code=outcome if isinstance(outcome, int) else None,
            error_kind=(None if outcome == 200 else ErrorKind.STATUS) if isinstance(outcome, int) else outcome,
            url="https://example.com",
            request_headers="[]",
        )
        for number, outcome in enumerate(outcomes, 1)
    ]


def delivery(state: State, reason: str | None = None, count: int = 0, series: int = 0) -> Delivery:
    return Delivery(
        id=ids.new_id(),
        organization_id=ids.new_id(),
        subscription_id=ids.new_id(),
        event_id=ids.new_id(),
        event_type="a.b",
        state=state,
        reason=reason,
        due_at=LATER if state in (State.PENDING, State.SENDING) and reason != PendingReason.PAUSED else None,
        attempt_count=count,
        series=series,
        updated_at=NOW,
    )


@pytest.mark.parametrize(
    ("of", "made", "text", "moment"),
    [
        (delivery(State.PENDING, "new"), [], "Not tried yet; its first attempt is due", LATER),
        (delivery(State.PENDING, "replay", series=1), tried(500), "To be sent again, by a replay; due", LATER),
        (
            delivery(State.PENDING, "retry", 2),
            tried(500, ErrorKind.TIMEOUT),
            "Attempt 2 of 10 failed: the receiver did not answer in time. Next attempt",
            LATER,
        ),
        (
            delivery(State.PENDING, "paused"),
            [],
            "Held while its subscription is paused; sent when that is resumed",
            None,
        ),
        (delivery(State.SENDING, count=2), tried(500, 500), "A worker is sending it now: attempt 3, begun", NOW),
        (delivery(State.DELIVERED, count=1), tried(200), "Delivered: the receiver answered 200 within 1.2 s,", NOW),
        (
            delivery(State.DELIVERED, count=3),
            tried(500, 500, 200),
            "Delivered at attempt 3: the receiver answered 200 within 1.2 s,",
            NOW,
        ),
        (delivery(State.DELIVERED, count=1), [], "Delivered", NOW),
        (
            delivery(State.DEAD, "exhausted", 3),
            tried(500, 500, 500),
            "Dead: the receiver answered 500 three times; given up",
            NOW,
        ),
        (
            delivery(State.DEAD, "exhausted", 10),
            tried(*[500] * 10),
            "Dead: the receiver answered 500 10 times; given up",
            NOW,
        ),
        (
            delivery(State.DEAD, "exhausted", 2),
            tried(500, ErrorKind.DNS),
            "Dead: it failed twice, at last because no address was found for the host; given up",
            NOW,
        ),
        (
            delivery(State.DEAD, "exhausted", 1, series=1),
            [*tried(500, 500), *tried(ErrorKind.TLS, series=1)],
            "Dead: no TLS connection could be made; given up",
            NOW,
        ),
        (
            delivery(State.DEAD, "gone", 1),
            tried(410),
            "Dead: the receiver answered 410; so its subscription was disabled",
            NOW,
        ),
        (
            delivery(State.DEAD, "rejected", 1),
            tried(ErrorKind.BLOCKED_ADDRESS),
            "Dead: egress policy forbids the address; which is not tried again; given up",
            NOW,
        ),
    ],
)
def test_a_sentence_says_what_became_of_it(of: Delivery, made: list[Attempt], text: str, moment: datetime) -> None:
    said = delivery_words.sentence(of, made, 10)
    assert (said.text, said.moment) == (text, moment)


def test_every_state_and_reason_has_one() -> None:
    every: list[tuple[State, str | None]] = [
        *((State.PENDING, one) for one in PendingReason),
        (State.SENDING, None),
        (State.DELIVERED, None),
        *((State.DEAD, one) for one in DeadReason),
        *((State.DISCARDED, one) for one in DiscardReason),
    ]
    said = [delivery_words.sentence(delivery(state, reason, 1), tried(503), 10) for state, reason in every]
    assert len({one.text for one in said}) == len(every), "and no two the same"
    for kind in ErrorKind:
        assert delivery_words.sentence(delivery(State.DEAD, "exhausted", 1), tried(kind), 10).text.startswith("Dead: ")
    with pytest.raises(ValueError, match="unheard of"):
        delivery_words.sentence(delivery(State.PENDING, "unheard of"), [], 10)


def test_bars_stand_where_the_attempts_were() -> None:
    of = delivery(State.PENDING, "retry", 2)
    made = tried(500, 500)  # 10:01 and 10:02; the next at 10:20
    for one in made:
        one.started_at = one.started_at.replace(hour=10)
    of.id = ids.lowest_at(NOW.replace(minute=0))
    bars = attempts.timeline(of, made)
    assert [(bar.left, bar.width) for bar in bars] == [(5.0, 0.7), (10.0, 0.7)]
    made[1].duration_ms = 18 * 60_000
    assert [(bar.left, bar.width) for bar in attempts.timeline(of, made)] == [(5.0, 0.7), (10.0, 90.0)]
    assert attempts.timeline(of, []) == []
    made[0].started_at = made[1].started_at = NOW.replace(minute=0)
    made[0].duration_ms = made[1].duration_ms = 0
    of.due_at = None
    assert all(bar.left >= 0 and bar.left + bar.width <= 100 for bar in attempts.timeline(of, made))
