"""How many deliveries stand somewhere now: counted, not kept, and therefore bounded in rows and in time."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg

from core.models import OFF_PATH
from core.states import State

MOST_COUNTED = 10_000
COUNT_TIMEOUT_MS = 250


async def count(driver: Any, subscription_id: UUID, state: State) -> int | None:
    """How many deliveries of a subscription are in `state` now. It counts no further than `MOST_COUNTED`, and says None
    when even that takes longer than `COUNT_TIMEOUT_MS`, as it may where those are few among very many others."""
    try:
        async with driver.transaction():
            await driver.execute(
                f"SET LOCAL statement_timeout = '{COUNT_TIMEOUT_MS}ms'; SET LOCAL plan_cache_mode = force_custom_plan"
            )
            found: int = await driver.fetchval(_COUNT[state], subscription_id, MOST_COUNTED)
            return found
    except asyncpg.QueryCanceledError:
        return None


def _counting(state: State) -> str:
    """The state is written out, so that PostgreSQL sees which partial index serves."""
    condition = f"state = '{state}'"
    if state is State.DEAD:  # which is true of each that is dead, and leads to the index of what went wrong
        condition += f" AND ({OFF_PATH})"
    return f"SELECT count(*) FROM (SELECT FROM deliveries WHERE subscription_id = $1 AND {condition} LIMIT $2) AS found"


_COUNT = {state: _counting(state) for state in State}
