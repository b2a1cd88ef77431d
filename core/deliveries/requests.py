"""What people ask for: send a delivery again, take it out, make the ones that were missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from core import ids, replay_items
from core.deliveries.conditions import in_states
from core.errors import Conflict, NotFound
from core.hints import Hint
from core.models import ItemOutcome, Subscription
from core.replay_items import ItemResult
from core.states import TRANSITIONS, DiscardReason


async def replay(driver: Any, delivery_ids: Sequence[UUID], replay_id: UUID) -> list[Hint]:
    """Starts a fresh series of attempts, due at once, for those of `delivery_ids` whose state and subscription allow
    it; the others are skipped. A retry that was pending is superseded. Records what became of each with the replay.

    Returns those that moved. The caller holds a transaction."""
    rows = await driver.fetch(_REPLAY, sorted(delivery_ids), min(delivery_ids), max(delivery_ids), replay_id)
    moved = [Hint(row["organization_id"], row["subscription_id"], row["id"]) for row in rows]
    sent = {one.delivery_id for one in moved}
    superseded = await replay_items.unanswered(driver, [(row["was_of"], row["id"]) for row in rows if row["was_of"]])
    results = [
        ItemResult(replay_id, one, ItemOutcome.SENT if one in sent else ItemOutcome.SKIPPED) for one in delivery_ids
    ]
    await replay_items.record(driver, superseded + results)
    return moved


MAX_SERIES = 32_767  # what the column holds; a delivery replayed more often goes on in its last series
_REPLAYABLE = ", ".join(f"'{state}'" for state in sorted(TRANSITIONS["replay"].before))
_REPLAY = f"""
WITH before AS (
    SELECT id, replay_id FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND state IN ({_REPLAYABLE}) AND redacted_at IS NULL
    ORDER BY id FOR UPDATE
)
UPDATE deliveries d
SET state = 'pending', reason = 'replay', due_at = now(), series = least(d.series + 1, {MAX_SERIES}), attempt_count = 0,
    replay_id = $4, updated_at = now()
FROM before, subscriptions s
WHERE d.id = before.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3
  AND s.id = d.subscription_id AND s.status IN ('active', 'paused')
RETURNING d.id, d.organization_id, d.subscription_id, before.replay_id AS was_of
"""


async def create_missing(
    driver: Any, subscription: Subscription, rows: Sequence[Mapping[str, Any]], *, first: bool
) -> list[UUID]:
    """A new delivery to `subscription` for each of these events (id, event_type) that has none. Returns their ids."""
    if not rows:
        return []
    event_ids = [row["id"] for row in rows]
    created = await driver.fetch(
        _CREATE_MISSING,
        [ids.new_id.within(event_id) for event_id in event_ids],
        event_ids,
        [row["event_type"] for row in rows],
        [ids.time_of(event_id) if first else None for event_id in event_ids],
        subscription.id,
        subscription.organization_id,
        ids.family_bounds(min(event_ids))[0],
        ids.family_bounds(max(event_ids))[1],
    )
    return [row["id"] for row in created]


# The share lock settles the race with a redaction: where that came first, there is nothing to send; else it waits for
# us and then finds what we made.
_CREATE_MISSING = """
WITH whole AS (
    SELECT id FROM events WHERE id = ANY($2::uuid[]) AND id BETWEEN $7 AND $8 AND redacted_at IS NULL
    ORDER BY id FOR SHARE
)
INSERT INTO deliveries (id, organization_id, subscription_id, event_id, event_type, state, reason, due_at)
SELECT new.id, $6, $5, new.event_id, new.event_type, 'pending', 'new', coalesce(new.due_at, now())
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::timestamptz[]) AS new(id, event_id, event_type, due_at)
JOIN whole ON whole.id = new.event_id
WHERE NOT EXISTS (
    SELECT FROM deliveries d
    WHERE d.subscription_id = $5 AND d.event_id = new.event_id AND d.id BETWEEN $7 AND $8
)
ORDER BY new.event_id
RETURNING id
"""


async def redact(driver: Any, event_id: UUID, *, after: UUID | None = None, most: int = 1_000) -> list[UUID]:
    """Marks deliveries of an event that was redacted, so that none is sent again, and takes out what is pending. One
    that is being sent is let finish; whatever comes of it, it is not tried again. Returns which, up to `most` of those
    that were not marked yet, beginning `after` one. The caller holds a transaction."""
    low, high = ids.family_bounds(event_id)
    chosen = [row["id"] for row in await driver.fetch(_LOCK_FAMILY, event_id, after or low, high, most)]
    if chosen:
        rows = await driver.fetch(_REDACT, chosen, chosen[0], chosen[-1])
        await replay_items.supersede(driver, [(row["replay_id"], row["id"]) for row in rows if row["replay_id"]])
    return chosen


_LOCK_FAMILY = """
SELECT id FROM deliveries WHERE id BETWEEN $2 AND $3 AND event_id = $1 AND redacted_at IS NULL
ORDER BY id LIMIT $4 FOR UPDATE
"""
# A statement of its own, with a view of its own, so that it sees what the locks were waited for.
_REDACT = """
UPDATE deliveries SET
    redacted_at = now(),
    updated_at = now(),
    state = CASE state WHEN 'pending' THEN 'discarded' ELSE state END,
    reason = CASE state WHEN 'pending' THEN 'event_redacted' ELSE reason END,
    due_at = CASE state WHEN 'pending' THEN NULL ELSE due_at END
WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3
RETURNING id, CASE WHEN state = 'discarded' THEN replay_id END AS replay_id
"""


async def discard(driver: Any, organization_id: UUID, delivery_id: UUID) -> None:
    """Takes one delivery out. Raises `NotFound`, or `Conflict` when its state does not allow it."""
    async with driver.transaction():
        moved = await driver.fetchrow(_DISCARD, delivery_id, organization_id, str(DiscardReason.REQUESTED))
        if moved is None:
            raise await refusal(driver, "discard", organization_id, delivery_id)
        if moved["replay_id"]:
            await replay_items.supersede(driver, [(moved["replay_id"], delivery_id)])


async def discard_many(driver: Any, delivery_ids: Sequence[UUID], replay_id: UUID) -> None:
    """Takes out those of `delivery_ids` whose state allows it; the others are skipped. Records what became of each with
    the job, and with an earlier replay that waited for an answer. The caller holds a transaction."""
    rows = await driver.fetch(
        _DISCARD_MANY, sorted(delivery_ids), min(delivery_ids), max(delivery_ids), str(DiscardReason.REQUESTED)
    )
    gone = {row["id"] for row in rows}
    superseded = await replay_items.unanswered(
        driver, [(row["replay_id"], row["id"]) for row in rows if row["replay_id"]]
    )
    results = [
        ItemResult(replay_id, one, ItemOutcome.SUCCEEDED if one in gone else ItemOutcome.SKIPPED)
        for one in delivery_ids
    ]
    await replay_items.record(driver, superseded + results)


async def refusal(driver: Any, operation: str, organization_id: UUID, delivery_id: UUID) -> NotFound | Conflict:
    """Why `operation` did not apply to this delivery, in words."""
    state = await driver.fetchval(
        "SELECT state FROM deliveries WHERE id = $1 AND organization_id = $2", delivery_id, organization_id
    )
    if state is None:
        return NotFound(f"There is no delivery {ids.show(ids.DELIVERY, delivery_id)}")
    allowed = ", ".join(sorted(TRANSITIONS[operation].before))
    return Conflict(
        f"Can't {operation} a delivery that is {state}; it must be one of: {allowed}",
        details={"status": state, "allowed": sorted(TRANSITIONS[operation].before)},
    )


_DISCARDABLE = ", ".join(f"'{state}'" for state in sorted(TRANSITIONS["discard"].before))
_DISCARD = f"""
UPDATE deliveries SET state = 'discarded', reason = $3, due_at = NULL, updated_at = now()
WHERE id = $1 AND organization_id = $2 AND state IN ({_DISCARDABLE})
RETURNING id, replay_id
"""
_DISCARD_MANY = f"""
WITH before AS (
    SELECT id FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND {in_states(*TRANSITIONS["discard"].before)}
    ORDER BY id FOR UPDATE
)
UPDATE deliveries d SET state = 'discarded', reason = $4, due_at = NULL, updated_at = now()
FROM before WHERE d.id = before.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3
RETURNING d.id, d.replay_id
"""
