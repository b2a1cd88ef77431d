"""Sending a subscription what it missed: deliveries for events that were accepted while it took none."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import structlog

from core import deliveries, ids
from core.errors import ValidationFailed
from core.events import envelope_of
from core.matching.filters import Budget, Undecided, compile_stored
from core.matching.matcher import Slice
from core.matching.patterns import PatternSet
from core.models import Subscription

CHUNK = 1_000  # events looked at by one statement
MAX_DELIVERIES = 50_000  # one transaction creates; whoever missed more catches up in steps

log = structlog.get_logger(__name__)


async def create_missed(driver: Any, subscription: Subscription, since: datetime, *, first: bool) -> list[UUID]:
    """Creates a delivery for every event since `since` that the subscription wants and has none of.

    `first`: they are due before everything that is due now. The caller holds a transaction. Raises
    `ValidationFailed` when there are more than `MAX_DELIVERIES`.
    """
    patterns = PatternSet(subscription.events)
    wants = compile_stored(subscription.filters) if subscription.filters else None
    after = UUID(int=max(ids.lowest_at(since).int - 1, 0))
    created: list[UUID] = []
    turn = Slice()
    while True:
        rows = await driver.fetch(_EVENTS, subscription.organization_id, after, CHUNK)
        chosen, undecided = [], 0
        for row in rows:
            if turn.is_over():
                await turn.pause()
            if not patterns.matches(row["event_type"]):
                continue
            try:
                if wants is None or wants.decide(envelope_of(row), Budget()):
                    chosen.append(row)
            except Undecided:
                undecided += 1
        if undecided:
            log.warning(
                "events hold more than a filter may look at; they are not sent to its subscription",
                subscription_id=ids.show(ids.SUBSCRIPTION, subscription.id),
                events=undecided,
            )
        created += await deliveries.create_missing(driver, subscription, chosen, first=first)
        if len(created) > MAX_DELIVERIES:
            raise ValidationFailed.of(
                "sync_from", f"More than {MAX_DELIVERIES} events were missed since then; choose a later time"
            )
        if len(rows) < CHUNK:
            return created
        after = rows[-1]["id"]


_EVENTS = """
SELECT id, organization_id, event_type, occurred_at, branch_id, metadata, payload, data_at
FROM events WHERE organization_id = $1 AND id > $2 AND only_for IS NULL  -- no test event of another subscription
  AND redacted_at IS NULL
ORDER BY id LIMIT $3
"""
