"""Delivery statistics: a row per minute, subscription and kind of error, kept by the workers as they record outcomes.

So what a page or the API shows costs the same whether the minute saw one delivery or a million. A worker gathers what
it records in a `Tally`, and adds that to the table every few seconds. Each outcome counts for its subscription and once
more for its organization as a whole, whose rows have `WHOLE` for the subscription: ten thousand subscriptions need
not be added up to show one figure.

Statistics are not the truth about any delivery: an outcome recorded by a worker that is killed before its next flush
is missing here, and one whose flush was answered by a broken connection may count twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from core.deliveries import Finish
from core.models import OFF_PATH
from core.states import State

WHOLE: Final = UUID(int=0)  # instead of a subscription: the whole organization

# In the order of the table's columns.
_ATTEMPTS, _RETRIES, _DEAD, _DEAD_RETRIED, _DURATION_MS = range(5)
_NOTHING: Final = (0, 0, 0, 0, 0)

Key = tuple[UUID, UUID, str]  # organization, subscription, kind of error


class Tally:
    """One worker's outcomes since the last flush."""

    def __init__(self) -> None:
        self._counts: dict[Key, list[int]] = {}

    def add(self, finish: Finish) -> None:
        """Counts one recorded outcome. Only for a finish whose delivery moved: one that had lost its lease is counted
        by the worker that took over."""
        claimed, tried, state = finish.claimed, finish.tried, finish.verdict.state
        dead = state is State.DEAD
        if tried is None and not dead:
            return  # handed back or dropped: nothing came of it
        key = (claimed.organization_id, claimed.subscription_id, (tried and tried.error_kind) or "")
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [*_NOTHING]
        if tried is not None:
            counts[_ATTEMPTS] += 1
            counts[_DURATION_MS] += tried.duration_ms
            if claimed.attempt_count:
                counts[_RETRIES] += 1
        if dead:
            counts[_DEAD] += 1
            made = claimed.attempt_count + (tried is not None)  # it may die untried
            if made > 1:
                counts[_DEAD_RETRIED] += 1

    async def flush(self, driver: Any) -> None:
        """Adds what was counted to the table, in one statement. When that fails, nothing is lost from the tally.

        The minute is the database's at this moment, so flush several times a minute.
        """
        taken, self._counts = self._counts, {}
        if not taken:
            return
        rows = sorted(_with_organizations(taken).items())
        try:
            await driver.execute(
                _ADD,
                *([key[at] for key, _ in rows] for at in range(3)),
                *([counts[at] for _, counts in rows] for at in range(len(_NOTHING))),
            )
        except BaseException:  # a cancellation too
            for key, counts in taken.items():
                _add(self._counts, key, counts)
            raise


def _with_organizations(counted: dict[Key, list[int]]) -> dict[Key, list[int]]:
    rows = dict(counted)
    for (organization_id, _, kind), counts in counted.items():
        _add(rows, (organization_id, WHOLE, kind), counts)
    return rows


def _add(rows: dict[Key, list[int]], key: Key, counts: list[int]) -> None:
    rows[key] = [a + b for a, b in zip(rows.get(key, _NOTHING), counts, strict=True)]


# In the order of the keys, like every statement that touches many rows, so that no two workers wait crosswise.
_ADD = """
INSERT INTO delivery_stats AS kept (
    organization_id, subscription_id, minute, error_kind, attempts, retries, dead, dead_retried, duration_ms
)
SELECT organization_id, subscription_id, date_trunc('minute', now()), error_kind, attempts, retries, dead,
    dead_retried, duration_ms
FROM unnest(
    $1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[], $8::bigint[]
) AS given(organization_id, subscription_id, error_kind, attempts, retries, dead, dead_retried, duration_ms)
WHERE EXISTS (SELECT FROM organizations WHERE id = organization_id AND deleted_at IS NULL)
ORDER BY organization_id, subscription_id, error_kind
ON CONFLICT (organization_id, subscription_id, minute, error_kind) DO UPDATE
SET attempts = kept.attempts + excluded.attempts, retries = kept.retries + excluded.retries,
    dead = kept.dead + excluded.dead, dead_retried = kept.dead_retried + excluded.dead_retried,
    duration_ms = kept.duration_ms + excluded.duration_ms
"""


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figures:
    """One subscription, or one organization, over some time. Shares are percentages; None where nothing happened."""

    attempts: int
    delivered: int  # attempts that succeeded, each of which ended its delivery
    delivered_retried: int  # of these, by a second or later attempt
    dead: int  # deliveries given up
    dead_retried: int  # of these, after more than one attempt
    delivered_ms: int  # what the successful attempts took, together
    delivered_at: datetime | None  # the minute of the last successful attempt
    failed_at: datetime | None  # and of the last failed one

    @property
    def delivery_success_rate(self) -> float | None:
        """Of the deliveries that came to an end, how many were delivered."""
        return _percentage(self.delivered, self.delivered + self.dead)

    @property
    def retry_success_rate(self) -> float | None:
        """Of the deliveries that came to an end after more than one attempt, how many were delivered."""
        return _percentage(self.delivered_retried, self.delivered_retried + self.dead_retried)

    @property
    def attempt_success_rate(self) -> float | None:
        """Of the attempts, how many succeeded. Unlike deliveries, which may be retried for days, they tell at once."""
        return _percentage(self.delivered, self.attempts)

    @property
    def average_ms(self) -> int | None:
        """What a successful attempt took."""
        return round(self.delivered_ms / self.delivered) if self.delivered else None


def _percentage(part: int, whole: int) -> float | None:
    """To one decimal, and 100 or 0 only where it is exactly that: 12 failures in a million are not none."""
    if not whole:
        return None
    if part in (0, whole):
        return 100.0 * part / whole
    return min(99.9, max(0.1, round(100 * part / whole, 1)))


async def figures(driver: Any, organization_id: UUID, subscription_id: UUID | None, since: datetime) -> Figures:
    """What happened in the minutes from `since` on. Reads one range of the primary key: at most as many rows as
    minutes times kinds of error, however many deliveries or subscriptions there were."""
    return Figures(**await driver.fetchrow(_FIGURES, organization_id, subscription_id or WHOLE, since))


_FIGURES = """
SELECT coalesce(sum(attempts), 0)::bigint AS attempts,
    coalesce(sum(attempts) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered,
    coalesce(sum(retries) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered_retried,
    coalesce(sum(dead), 0)::bigint AS dead,
    coalesce(sum(dead_retried), 0)::bigint AS dead_retried,
    coalesce(sum(duration_ms) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered_ms,
    max(minute) FILTER (WHERE error_kind = '' AND attempts > 0) AS delivered_at,
    max(minute) FILTER (WHERE error_kind <> '') AS failed_at
FROM delivery_stats
WHERE organization_id = $1 AND subscription_id = $2 AND minute >= $3
"""


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


# --- retention -----------------------------------------------------------------------------------------------------


async def prune(driver: Any, retention_days: int) -> None:
    """Drops what is older than `retention_days`, by the database's clock, `PRUNE_BATCH` rows a statement."""
    while await driver.fetchval(_PRUNE, retention_days, PRUNE_BATCH) == PRUNE_BATCH:
        pass


PRUNE_BATCH = 10_000
_PRUNE = """
WITH gone AS (
    DELETE FROM delivery_stats WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM delivery_stats WHERE minute < now() - make_interval(days => $1) LIMIT $2
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
