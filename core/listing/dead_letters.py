"""Dead letters by cause: how many of which subscription died of which error, of one organization or of all.

Counted exactly, in an index that holds nothing but dead letters (`ix_deliveries_dead`): 300,000 of them take about
0.2 s. Where there are so many that it takes longer than `COUNT_TIMEOUT_MS`, the same groups are found by leaping from
one subscription to the next in that index, and each is counted no further than `MOST_COUNTED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import Boolean, literal_column
from sqlmodel import col

from core import ids
from core.failures import ErrorKind
from core.listing import lists
from core.listing.lists import Walk
from core.listing.selection import NO_ERROR
from core.models import Delivery

PAGE_SIZE = 50
COUNT_TIMEOUT_MS = 1_000
LEAP_TIMEOUT_MS = 2_000
MOST_COUNTED = 10_000
_DEAD = literal_column("(deliveries.state = 'dead')", Boolean)  # as a literal, so that the index is seen to serve


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters of one subscription and one kind of error. Times are those of their acceptance."""

    organization_id: UUID
    subscription_id: UUID
    error_kind: str | None
    count: int
    is_exact: bool  # or there are more than `count`
    first_at: datetime
    last_at: datetime
    last_status_code: int | None  # what was answered to the latest of them
    last_error_message: str | None

    @property
    def error(self) -> str:
        """As a filter names it."""
        return self.error_kind or NO_ERROR


@dataclass(frozen=True, slots=True)
class Groups:
    """One page. `groups` and `letters` are those of all pages; None where they could not be counted in time."""

    rows: Sequence[Group]
    more: bool
    groups: int | None
    letters: int | None


class TooMany(Exception):
    """Not even leaping finds this page in time: it must be narrowed to one organization or subscription"""


async def groups(
    driver: Any,
    *,
    organization_id: UUID | None = None,
    subscription_id: UUID | None = None,
    error: str | None = None,
    page: int = 1,
    size: int = PAGE_SIZE,
) -> Groups:
    """The largest groups first; None chooses all. `error`: an `ErrorKind` or `NO_ERROR`. Where it can't be counted in
    time, subscriptions come in the order of their ids, `size` of them a page. Raises `TooMany`.
    """
    if subscription_id is not None:  # the index begins with whose it is
        owner = await driver.fetchval("SELECT organization_id FROM subscriptions WHERE id = $1", subscription_id)
        if owner is None or organization_id not in (None, owner):
            return Groups([], False, 0, 0)
        organization_id = owner
    asked = (organization_id, subscription_id, error, size + 1, (page - 1) * size)
    try:
        rows = await _in_time(driver, COUNT_TIMEOUT_MS, _COUNTED, *asked)
    except asyncpg.QueryCanceledError:
        try:
            rows = await _in_time(driver, LEAP_TIMEOUT_MS, _LEAPT, *asked, [*ErrorKind, None], MOST_COUNTED + 1)
        except asyncpg.QueryCanceledError:
            raise TooMany from None
        leapt = sorted({row["place"] for row in rows})
        shown = set(leapt[:size])
        return Groups([_group(row) for row in rows if row["place"] in shown], len(leapt) > size, None, None)
    found = [_group(row) for row in rows[:size]]
    whole = rows[0] if rows else {"groups": 0, "letters": 0}
    return Groups(found, len(rows) > size, int(whole["groups"]), int(whole["letters"]))


def walk(organization_id: UUID, subscription_id: UUID, error: str) -> Walk:
    """The dead letters of one group, in the order of their ids. Raises ValueError for what is no error."""
    kind = None if error == NO_ERROR else ErrorKind(error)
    return Walk(
        Delivery,
        (
            col(Delivery.organization_id) == organization_id,
            col(Delivery.subscription_id) == subscription_id,
            col(Delivery.error_kind).is_(None) if kind is None else col(Delivery.error_kind) == kind,
            _DEAD,
        ),
        (),
        lists.REACH,
    )


async def _in_time(driver: Any, timeout_ms: int, statement: str, *values: Any) -> list[Any]:
    async with driver.transaction():
        await driver.execute(
            f"SET LOCAL statement_timeout = {timeout_ms}; SET LOCAL plan_cache_mode = force_custom_plan"
        )
        rows: list[Any] = await driver.fetch(statement, *values)
        return rows


def _group(row: Any) -> Group:
    return Group(
        row["organization_id"],
        row["subscription_id"],
        row["error_kind"],
        min(row["count"], MOST_COUNTED) if "place" in row else row["count"],
        "place" not in row or row["count"] <= MOST_COUNTED,
        ids.time_of(row["first"]),
        ids.time_of(row["last"]),
        row["status_code"],
        row["error_message"],
    )


# One that an organization was deleted with is nobody's any more (core.erasure).
_CHOSEN = """
state = 'dead'
    AND ($1::uuid IS NULL OR organization_id = $1)
    AND ($2::uuid IS NULL OR subscription_id = $2)
    AND ($3::text IS NULL OR error_kind = $3 OR ($3 = 'none' AND error_kind IS NULL))
"""


def _edge(order: str) -> str:
    """A group's first or last delivery. Said twice, for PostgreSQL looks up what is NULL in an index, or what equals
    something, and not what is either."""
    one = (
        "SELECT id, status_code, error_message FROM deliveries d WHERE state = 'dead'"
        " AND d.organization_id = page.organization_id AND d.subscription_id = page.subscription_id AND {error}"
        f" ORDER BY id {order} LIMIT 1"
    )
    equal, null = "d.error_kind = page.error_kind", "d.error_kind IS NULL AND page.error_kind IS NULL"
    return f"(({one.format(error=equal)}) UNION ALL ({one.format(error=null)}))"


_COUNTED = f"""
WITH counted AS MATERIALIZED (
    SELECT organization_id, subscription_id, error_kind, count(*) AS count FROM deliveries WHERE {_CHOSEN}
    GROUP BY 1, 2, 3
), whole AS (
    SELECT counted.*, count(*) OVER () AS groups, sum(count) OVER () AS letters
    FROM counted JOIN organizations o ON o.id = counted.organization_id AND o.deleted_at IS NULL
), page AS (
    SELECT * FROM whole ORDER BY count DESC, organization_id, subscription_id, error_kind LIMIT $4::int OFFSET $5::int
)
SELECT page.*, oldest.id AS first, latest.id AS last, latest.status_code, latest.error_message
FROM page CROSS JOIN LATERAL {_edge("ASC")} oldest CROSS JOIN LATERAL {_edge("DESC")} latest
ORDER BY count DESC, organization_id, subscription_id, error_kind
"""

_NEXT = f"""
SELECT organization_id, subscription_id FROM deliveries WHERE {_CHOSEN} {{behind}}
ORDER BY organization_id, subscription_id LIMIT 1
"""
_LEAPT = f"""
WITH RECURSIVE leap AS (
    SELECT 1 AS place, one.* FROM ({_NEXT.format(behind="")}) one
    UNION ALL
    SELECT leap.place + 1, one.* FROM leap CROSS JOIN LATERAL (
        {_NEXT.format(behind="AND (organization_id, subscription_id) > (leap.organization_id, leap.subscription_id)")}
    ) one WHERE leap.place < $5::int + $4::int
), page AS (
    SELECT leap.*, kind.error_kind, found.count
    FROM leap JOIN organizations o ON o.id = leap.organization_id AND o.deleted_at IS NULL
    CROSS JOIN unnest($6::text[]) AS kind(error_kind)
    CROSS JOIN LATERAL (
        SELECT (
            SELECT count(*) FROM (
                SELECT FROM deliveries d WHERE state = 'dead' AND d.organization_id = leap.organization_id
                    AND d.subscription_id = leap.subscription_id AND d.error_kind = kind.error_kind LIMIT $7::int
            ) some_of_them
        ) + (
            SELECT count(*) FROM (
                SELECT FROM deliveries d WHERE kind.error_kind IS NULL AND state = 'dead'
                    AND d.organization_id = leap.organization_id AND d.subscription_id = leap.subscription_id
                    AND d.error_kind IS NULL LIMIT $7::int
            ) some_of_them
        ) AS count
    ) found
    WHERE leap.place > $5::int AND found.count > 0 AND ($3::text IS NULL OR coalesce(kind.error_kind, 'none') = $3)
)
SELECT page.*, oldest.id AS first, latest.id AS last, latest.status_code, latest.error_message
FROM page CROSS JOIN LATERAL {_edge("ASC")} oldest CROSS JOIN LATERAL {_edge("DESC")} latest
ORDER BY place, count DESC, error_kind
"""
