"""How many deliveries stand somewhere now: counted, not kept, and therefore bounded in rows and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from core.deliveries.conditions import DUE, HELD, PARKED, RANK
from core.models import OFF_PATH
from core.states import State

MOST_COUNTED = 10_000
COUNT_TIMEOUT_MS = 250
BUDGET_MS = 250  # to count for several subscriptions one by one


async def count(driver: Any, subscription_id: UUID, state: State) -> int | None:
    """How many deliveries of a subscription are in `state` now. It counts no further than `MOST_COUNTED`, and says None
    when even that takes longer than `COUNT_TIMEOUT_MS`, as it may where those are few among very many others."""
    found: int | None = await _bounded(driver, COUNT_TIMEOUT_MS, _COUNT[state], subscription_id, MOST_COUNTED)
    return found


async def _bounded(driver: Any, timeout_ms: float, statement: str, *values: Any) -> Any:
    """The one value that `statement` answers; None when it takes longer than `timeout_ms`."""
    rows = await _rows(driver, timeout_ms, statement, *values)
    return rows[0][0] if rows else None


async def _rows(driver: Any, timeout_ms: float, statement: str, *values: Any) -> list[Any] | None:
    """None when it takes longer than `timeout_ms`."""
    try:
        async with driver.transaction():
            await driver.execute(
                f"SET LOCAL statement_timeout = '{max(1, round(timeout_ms))}ms';"
                " SET LOCAL plan_cache_mode = force_custom_plan"
            )
            rows: list[Any] = await driver.fetch(statement, *values)
            return rows
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
    """What waits for each subscription: pairs of its organization's id and its own."""
    pending = await _counted(driver, subscriptions, _UNFINISHED)
    dead = await _counted(driver, subscriptions, _DEAD)
    return {one: Waiting(pending.get(one), dead.get(one)) for _, one in subscriptions}


async def _counted(driver: Any, subscriptions: Sequence[tuple[UUID, UUID]], statement: str) -> dict[UUID, int]:
    """All at once; where that takes too long one by one, until `BUDGET_MS` are spent. What was not counted by then is
    left out."""
    found = await _rows(driver, COUNT_TIMEOUT_MS, statement, *_columns(subscriptions), MOST_COUNTED)
    if found is not None:
        return dict(found)
    clock = asyncio.get_running_loop().time
    until = clock() + BUDGET_MS / 1000
    counted: dict[UUID, int] = {}
    for one in subscriptions:
        left_ms = (until - clock()) * 1000
        if left_ms <= 0:
            break
        share_ms = max(left_ms / 2, BUDGET_MS / 20)  # one that is hopeless leaves time for others
        counted |= await _rows(driver, share_ms, statement, *_columns([one]), MOST_COUNTED) or []
    return counted


def _columns(subscriptions: Sequence[tuple[UUID, UUID]]) -> tuple[list[UUID], list[UUID]]:
    return [whose for whose, _ in subscriptions], [one for _, one in subscriptions]


_EACH = """
SELECT asked.id, found.count FROM unnest($1::uuid[], $2::uuid[]) AS asked(organization_id, id)
CROSS JOIN LATERAL ({}) AS found(count)
"""
_DEAD = _EACH.format("""
    SELECT count(*) FROM (
        SELECT FROM deliveries d
        WHERE d.organization_id = asked.organization_id AND d.subscription_id = asked.id AND state = 'dead' LIMIT $3
    ) AS dead
""")
# Each part by an index that holds little else.
_UNFINISHED = _EACH.format(f"""
    SELECT least($3, (
        SELECT count(*) FROM (
            SELECT FROM deliveries d WHERE {PARKED} AND d.subscription_id = asked.id LIMIT $3
        ) AS parked
    ) + (
        SELECT count(*) FROM (
            SELECT FROM deliveries d WHERE {HELD} AND d.subscription_id = asked.id LIMIT $3
        ) AS held
    ) + (
        SELECT count(*) FROM (
            SELECT FROM deliveries d
            WHERE d.organization_id = asked.organization_id AND d.subscription_id = asked.id AND ({OFF_PATH})
                AND state = 'pending' AND reason IN ('retry', 'replay')
            LIMIT $3
        ) AS later
    ))
""")


# --- of all --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits to be sent, and what was given up. Counted up to `MOST_COUNTED`; None where that takes too long."""

    pending: int | None  # for whatever reason
    dead: int | None
    oldest_due_at: datetime | None  # of what should have been sent by now: workers lag behind by as much


async def queue(driver: Any, organization_id: UUID | None = None) -> Queue:
    """Of one organization, or of all. What is due is always of all: workers take it whosever it is."""
    whose = "" if organization_id is None else " AND organization_id = $2"
    values = (MOST_COUNTED,) if organization_id is None else (MOST_COUNTED, organization_id)
    pending, dead = [
        await _bounded(driver, COUNT_TIMEOUT_MS, _IN_STATE.format(state=state, whose=whose), *values)
        for state in (State.PENDING, State.DEAD)
    ]
    return Queue(pending, dead, await _bounded(driver, COUNT_TIMEOUT_MS, _OLDEST_DUE))


_IN_STATE = "SELECT count(*) FROM (SELECT FROM deliveries WHERE state = '{state}'{whose} LIMIT $1) AS found"
# The index of what is due begins with the rank, so the first of each rank is looked at.
_OLDEST_DUE = f"""
SELECT min(due_at) FROM (VALUES (0), (1), (2)) AS queue(rank)
CROSS JOIN LATERAL (
    SELECT due_at FROM deliveries
    WHERE {DUE} AND {RANK} = queue.rank AND due_at <= now() AND state = 'pending'
    ORDER BY due_at LIMIT 1
) AS first
"""
