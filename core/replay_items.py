"""What came of each delivery in a replay, and the replay's counters, which change together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core.listing import lists
from core.listing.lists import Page, Paging
from core.models import Delivery, ItemOutcome, ReplayItem


class ItemResult(NamedTuple):
    replay_id: UUID
    delivery_id: UUID
    outcome: ItemOutcome


@dataclass(frozen=True, slots=True)
class Item:
    """One delivery of a replay, under its delivery's id. `delivery`: None where retention has dropped it since."""

    id: UUID
    replay_id: UUID
    outcome: ItemOutcome
    delivery: Delivery | None


async def page(session: AsyncSession, replay_id: UUID, outcome: ItemOutcome | None, paging: Paging) -> Page:
    """`Item`s of a replay, in the order of their deliveries. The items of one replay are few enough to look at each."""
    key = col(ReplayItem.delivery_id)
    query = select(ReplayItem).where(ReplayItem.replay_id == replay_id)
    if outcome is not None:
        query = query.where(ReplayItem.outcome == outcome)
    if paging.after is not None:
        query = query.where(key < paging.after if paging.descending else key > paging.after)
    found = await lists.take(session, paging, query.order_by(paging.order(key)), None)
    rows = found.rows
    known: dict[UUID, Delivery] = {}
    if rows:
        delivery_ids = [row.delivery_id for row in rows]
        within = col(Delivery.id).between(min(delivery_ids), max(delivery_ids))  # spares other days' partitions
        deliveries = await session.exec(select(Delivery).where(col(Delivery.id).in_(delivery_ids), within))
        known = {one.id: one for one in deliveries.all()}
    items = [Item(row.delivery_id, replay_id, ItemOutcome(row.outcome), known.get(row.delivery_id)) for row in rows]
    return replace(found, rows=items)


async def record(driver: Any, results: Sequence[ItemResult]) -> None:
    """Stores outcomes within the caller's transaction. An outcome may change: failed, then succeeded on a retry."""
    if results:
        ordered = sorted(set(results))
        await driver.execute(
            _RECORD,
            [result.replay_id for result in ordered],
            [result.delivery_id for result in ordered],
            [str(result.outcome) for result in ordered],
        )


async def supersede(driver: Any, pairs: Sequence[tuple[UUID, UUID]]) -> None:
    """Ends the wait of items (replay id, delivery id) whose delivery was taken out."""
    await record(driver, await unanswered(driver, pairs))


async def unanswered(driver: Any, pairs: Sequence[tuple[UUID, UUID]]) -> list[ItemResult]:
    """Those items (replay id, delivery id) of which no attempt ended. When their delivery is replayed anew or taken
    out, they will get no answer and count as skipped: the results to record."""
    if not pairs:
        return []
    rows = await driver.fetch(_UNANSWERED, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return [ItemResult(row["replay_id"], row["delivery_id"], ItemOutcome.SKIPPED) for row in rows]


_UNANSWERED = """
SELECT replay_id, delivery_id FROM replay_items
JOIN unnest($1::uuid[], $2::uuid[]) AS given(replay_id, delivery_id) USING (replay_id, delivery_id)
WHERE outcome = 'sent'
"""

# Everybody locks deliveries first, then items, then replays, each in the order of their ids, so that two processes
# never wait for each other crosswise. Once a transaction, therefore: a second call would start over with items.
_RECORD = """
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS given(replay_id, delivery_id, outcome)
), before AS (
    SELECT item.replay_id, item.delivery_id, item.outcome AS was, given.outcome AS now_is
    FROM replay_items item JOIN given USING (replay_id, delivery_id)
    WHERE item.outcome <> given.outcome
    ORDER BY item.replay_id, item.delivery_id
    FOR UPDATE OF item
), changed AS (
    UPDATE replay_items item SET outcome = before.now_is FROM before
    WHERE item.replay_id = before.replay_id AND item.delivery_id = before.delivery_id
), counted AS (
    SELECT replay_id,
        count(*) FILTER (WHERE now_is IN ('sent', 'succeeded', 'failed'))
            - count(*) FILTER (WHERE was IN ('sent', 'succeeded', 'failed')) AS sent,
        count(*) FILTER (WHERE now_is = 'succeeded') - count(*) FILTER (WHERE was = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE now_is = 'failed') - count(*) FILTER (WHERE was = 'failed') AS failed,
        count(*) FILTER (WHERE now_is = 'skipped') - count(*) FILTER (WHERE was = 'skipped') AS skipped
    FROM before GROUP BY replay_id
), locked AS (
    SELECT id FROM replays WHERE id IN (SELECT replay_id FROM counted) ORDER BY id FOR NO KEY UPDATE
)
UPDATE replays SET
    sent = replays.sent + counted.sent,
    succeeded = replays.succeeded + counted.succeeded,
    failed = replays.failed + counted.failed,
    skipped = replays.skipped + counted.skipped
FROM counted JOIN locked ON locked.id = counted.replay_id
WHERE replays.id = locked.id
"""
