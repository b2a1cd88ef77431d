"""All that waits for one subscription, after it was resumed or deleted (`core.settling`)."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from core import replay_items
from core.deliveries.conditions import DUE, HELD, PARKED, in_states
from core.states import State

BULK = 5_000  # rows a statement of a bulk change touches, so that none holds its locks for long


async def discard_pending(driver: Any, subscription_id: UUID) -> int:
    """Takes out what waits for a deleted subscription, `BULK` at a time. Returns how many."""
    return await _in_bulk(driver, subscription_id, _PENDING, _DISCARD_PENDING)


async def release_held(driver: Any, subscription_id: UUID) -> int:
    """Makes due what was held while the subscription was paused, `BULK` at a time. Returns how many."""
    return await _in_bulk(driver, subscription_id, _HELD, _RELEASE_HELD)


async def _in_bulk(driver: Any, subscription_id: UUID, look: str, change: str) -> int:
    """Ends when `look` finds no more, not when `change` does: another process may be changing the same rows, and
    should it fail, they are still to be changed."""
    total = 0
    while True:
        found = [row["id"] for row in await driver.fetch(look, subscription_id, BULK)]
        if found:
            async with driver.transaction():
                rows = await driver.fetch(change, found, found[0], found[-1])
                await replay_items.supersede(driver, [(row["ended"], row["id"]) for row in rows if row["ended"]])
            total += len(rows)
        if len(found) < BULK:
            return total


# MATERIALIZED makes PostgreSQL look among what is unfinished, in indexes that stay small, and not in the order of
# the ids through the subscription's whole history.
_PENDING = f"""
WITH pending AS MATERIALIZED (
    SELECT id FROM deliveries WHERE subscription_id = $1 AND state = 'pending' AND {DUE}
    UNION ALL
    SELECT id FROM deliveries WHERE subscription_id = $1 AND {PARKED}
    UNION ALL
    SELECT id FROM deliveries WHERE subscription_id = $1 AND {HELD}
)
SELECT id FROM pending ORDER BY id LIMIT $2
"""

_DISCARD_PENDING = f"""
WITH waiting AS (
    SELECT id FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND {in_states(State.PENDING)}
    ORDER BY id FOR UPDATE
)
UPDATE deliveries d SET state = 'discarded', reason = 'subscription_deleted', due_at = NULL, updated_at = now()
FROM waiting WHERE d.id = waiting.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3
RETURNING d.id, d.replay_id AS ended
"""

_HELD = f"SELECT id FROM deliveries WHERE subscription_id = $1 AND {HELD} ORDER BY id LIMIT $2"

_RELEASE_HELD = f"""
WITH held AS (
    SELECT id FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND {in_states(State.PENDING)} AND reason = 'paused'
    ORDER BY id FOR UPDATE
)
UPDATE deliveries d
SET reason = CASE WHEN attempt_count > 0 THEN 'retry' WHEN series > 0 THEN 'replay' ELSE 'new' END,
    due_at = now(), updated_at = now()
FROM held WHERE d.id = held.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3
RETURNING d.id, NULL::uuid AS ended
"""
