"""How many deliveries stand somewhere now: counted, not kept, and therefore bounded in rows and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from core.deliveries.conditions import DUE, HELD, PARKED
from core.deliveries.queues import RANK
from core.models import OFF_PATH
from core.states import State

MOST_COUNTED = 10_000
COUNT_TIMEOUT_MS = 250
BUDGET_MS = 400  # of `waiting`, however many subscriptions


async def count(driver: Any, subscription_id: UUID, state: State) -> int | None:
    """How many deliveries of a subscription are in `state` now. It counts no further than `MOST_COUNTED`, and says None
    when even that takes longer than `COUNT_TIMEOUT_MS`, as it may where those are few among very many others."""
    found: int | None = await _bounded(driver, COUNT_TIMEOUT_MS, _COUNT[state], subscription_id, MOST_COUNTED)
    return found


async def _bounded(driver: Any, timeout_ms: float, statement: str, *values: Any) -> Any:
    """The one value that `statement` answers; None when it takes longer than `timeout_ms`."""
    try:
        async with driver.transaction():
            await driver.execute(
                f"SET LOCAL statement_timeout = '{max(1, round(timeout_ms))}ms';"
                " SET LOCAL plan_cache_mode = force_custom_plan"
            )
            return await driver.fetchval(statement, *values)
    except asyncpg.QueryCanceledError:
        return None


def _counting(state: State) -> str:
    """The state is written out, so that PostgreSQL sees which partial index serves."""
    condition = f"state = '{state}'"
    if state is State.DEAD:  # which is true of each that is dead, and leads to the index of what went wrong
        condition += f" AND ({OFF_PATH})"
    return f"SELECT count(*) FROM (SELECT FROM deliveries WHERE subscription_id = $1 AND {condition} LIMIT $2) AS found"


_COUNT = {state: _counting(state) for state in State}


# --- of subscriptions that are not well ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """Counted up to `MOST_COUNTED`; None where that takes too long."""

    pending: int | None  # will be tried again, or when there is room; not those that are new and due
    dead: int | None


async def waiting(driver: Any, subscriptions: Sequence[tuple[UUID, UUID]]) -> dict[UUID, Waiting]:
    """What waits for each subscription: pairs of its organization's id and its own. Takes `BUDGET_MS` at most: what
    can't be counted by then is None."""
    clock = asyncio.get_running_loop().time
    until = clock() + BUDGET_MS / 1000
    found = {}
    for pair in subscriptions:
        counted: list[int | None] = []
        for statement in (_UNFINISHED, _DEAD):
            left_ms = (until - clock()) * 1000
            counted.append(
                await _bounded(driver, min(left_ms, COUNT_TIMEOUT_MS), statement, *pair, MOST_COUNTED)
                if left_ms > 0
                else None
            )
        found[pair[1]] = Waiting(*counted)
    return found


_DEAD = """
SELECT count(*) FROM (
    SELECT FROM deliveries WHERE organization_id = $1 AND subscription_id = $2 AND state = 'dead' LIMIT $3
) AS found
"""
# Each part by an index that holds little else.
_UNFINISHED = f"""
SELECT least($3, (
    SELECT count(*) FROM (SELECT FROM deliveries WHERE {PARKED} AND subscription_id = $2 LIMIT $3) AS parked
) + (
    SELECT count(*) FROM (SELECT FROM deliveries WHERE {HELD} AND subscription_id = $2 LIMIT $3) AS held
) + (
    SELECT count(*) FROM (
        SELECT FROM deliveries
        WHERE organization_id = $1 AND subscription_id = $2 AND ({OFF_PATH}) AND state = 'pending'
            AND reason IN ('retry', 'replay')
        LIMIT $3
    ) AS later
))
"""


# --- of all --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits to be sent."""

    pending: int | None  # for whatever reason, up to `MOST_COUNTED`; None where counting takes too long
    oldest_due_at: datetime | None  # of what should be sent by now: workers lag behind by as much


async def queue(driver: Any, organization_id: UUID | None = None) -> Queue:
    """Of one organization, or of all. What is due is always of all: workers take it whosever it is."""
    pending = (
        await _bounded(driver, COUNT_TIMEOUT_MS, _PENDING, MOST_COUNTED)
        if organization_id is None
        else await _bounded(driver, COUNT_TIMEOUT_MS, _PENDING_OF, MOST_COUNTED, organization_id)
    )
    return Queue(pending, await _bounded(driver, COUNT_TIMEOUT_MS, _OLDEST_DUE))


_PENDING = "SELECT count(*) FROM (SELECT FROM deliveries WHERE state = 'pending' LIMIT $1) AS found"
_PENDING_OF = """
SELECT count(*) FROM (SELECT FROM deliveries WHERE state = 'pending' AND organization_id = $2 LIMIT $1) AS found
"""
# The index of what is due begins with the rank, so the first of each rank is looked at.
_OLDEST_DUE = f"""
SELECT min(due_at) FROM (VALUES (0), (1), (2)) AS queue(rank)
CROSS JOIN LATERAL (
    SELECT due_at FROM deliveries
    WHERE {DUE} AND {RANK} = queue.rank AND due_at <= now() AND state = 'pending'
    ORDER BY due_at LIMIT 1
) AS first
"""
