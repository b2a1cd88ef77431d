"""The history of circuit breakers: a row for each change of state that stood.

Redis holds what is so now; the history is for people who ask since when, and how often. A worker writes what it changed
itself (`worker.breaker_changes`); the web writes what a person did. A trial that fails is no change: OPEN goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.limiting.breaker import BreakerState
from core.models import BreakerChange

PRUNE_BATCH = 10_000


class Change(NamedTuple):
    id: UUID  # its time is in it
    subscription_id: UUID
    state: BreakerState
    failures: int  # in a row, when it happened


async def store(driver: Any, changes: Sequence[Change]) -> None:
    """Not those of subscriptions that are deleted: nothing new comes to what is being erased. Nor those that are there
    already: whoever lost the answer to its first call calls again."""
    await driver.execute(
        _STORE,
        [one.id for one in changes],
        [one.subscription_id for one in changes],
        [str(one.state) for one in changes],
        [one.failures for one in changes],
    )


async def close(driver: Any, subscription_id: UUID) -> None:
    """What was known of its receiver is forgotten. A row only where the history says that it was not CLOSED."""
    await driver.execute(_CLOSE, ids.new_id(), subscription_id)


async def latest(session: AsyncSession, subscription_id: UUID, most: int) -> Sequence[BreakerChange]:
    """The newest first."""
    query = select(BreakerChange).where(BreakerChange.subscription_id == subscription_id)
    return (await session.exec(query.order_by(col(BreakerChange.id).desc()).limit(most))).all()


async def open_since(session: AsyncSession, subscription_id: UUID) -> datetime | None:
    """When it opened for the first time since it was last CLOSED; None if that was before the history begins."""
    changes = select(BreakerChange.id).where(BreakerChange.subscription_id == subscription_id).limit(1)
    key, state = col(BreakerChange.id), col(BreakerChange.state)
    closed = (await session.exec(changes.where(state == BreakerState.CLOSED).order_by(key.desc()))).one_or_none()
    opened = changes.where(state == BreakerState.OPEN).order_by(key)
    first = (await session.exec(opened if closed is None else opened.where(key > closed))).one_or_none()
    return None if first is None else ids.time_of(first)


async def prune(driver: Any, retention_days: int) -> None:
    """Drops what is older than `retention_days`, by the database's clock, `PRUNE_BATCH` rows a statement."""
    now = await driver.fetchval("SELECT now() - make_interval(days => $1)", retention_days)
    while await driver.fetchval(_PRUNE, ids.lowest_at(now), PRUNE_BATCH) == PRUNE_BATCH:
        pass


_STORE = """
INSERT INTO breaker_changes (id, organization_id, subscription_id, state, failures)
SELECT given.id, s.organization_id, s.id, given.state, given.failures
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[]) AS given(id, subscription_id, state, failures)
JOIN subscriptions s ON s.id = given.subscription_id AND s.status <> 'deleted'
ON CONFLICT (id) DO NOTHING
"""
_CLOSE = """
INSERT INTO breaker_changes (id, organization_id, subscription_id, state, failures)
SELECT $1, last.organization_id, last.subscription_id, 'CLOSED', 0
FROM (SELECT * FROM breaker_changes WHERE subscription_id = $2 ORDER BY id DESC LIMIT 1) AS last
WHERE last.state <> 'CLOSED'
"""
_PRUNE = """
WITH gone AS (
    DELETE FROM breaker_changes WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM breaker_changes WHERE id < $1 LIMIT $2
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
