"""Many subscriptions at a glance, of one organization or of all: a list, and how each on a page of it is doing.

Judging costs a few statements a page, whatever stands behind: only what is shown is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, func, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import health, ids, stats
from core.health import Health
from core.limiting.breaker import Breaker, BreakerSettings
from core.listing.lists import REACH, Paging, Walk
from core.models import Attempt, Delivery, Subscription
from core.stats import COUNT_TIMEOUT_MS, Figures, Point
from core.subscriptions import KEPT

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MOST_WAITING: Final = 10_000  # pending deliveries that are looked at, of all organizations on a page together
MOST_DEAD: Final = 1_000  # counted of each
MOST_HELD: Final = 100_000


def walk(
    organization_id: UUID | None = None,
    *,
    statuses: Collection[str] = (),
    text: str = "",
    only: Collection[UUID] | None = None,
) -> Walk:
    """The kept subscriptions whose status is among `statuses`, or which are among `only`, where either is given; with
    `text` in URL or description, upper and lower case being the same."""
    walked: list[ColumnElement[bool]] = [KEPT]
    if organization_id is not None:
        walked.append(col(Subscription.organization_id) == organization_id)
    checked: list[ColumnElement[bool]] = []
    wanted: list[ColumnElement[bool]] = []
    if statuses:
        wanted.append(col(Subscription.status).in_(statuses))
    if only is not None:
        wanted.append(col(Subscription.id).in_(only))
    if wanted:
        checked.append(or_(*wanted))
    if text:
        inside = [
            func.strpos(func.lower(col(one)), func.lower(text)) > 0
            for one in (Subscription.url, Subscription.description)
        ]
        checked.append(or_(*inside))
    return Walk(Subscription, walked, checked, REACH)


class Count(NamedTuple):
    """`is_all`: False where there are more than were counted."""

    number: int
    is_all: bool = True


@dataclass(frozen=True, slots=True)
class Glance:
    """How one subscription is doing. A count is None where counting took too long."""

    health: Health
    points: Sequence[Point]  # an hour each, of the last 24
    waiting: Count | None
    dead: Count | None

    @property
    def success_rate(self) -> float | None:
        """Of the attempts of the last 24 hours, in percent."""
        return _figures(
            sum(one.delivered for one in self.points), sum(one.failed for one in self.points)
        ).attempt_success_rate


async def glance(
    driver: Any, rows: Sequence[Subscription], breakers: Mapping[UUID, Breaker] | None, now: datetime
) -> dict[UUID, Glance]:
    """`breakers`: those that are not blank, None while Redis is away."""
    pairs = [(row.organization_id, row.id) for row in rows]
    if not pairs:
        return {}
    points = await stats.sparklines(driver, pairs, now - DAY)
    hour = await _last_hour(driver, pairs, now - HOUR)
    waiting, dead = await _waiting(driver, rows), await _dead(driver, pairs)
    now_ms = int(now.timestamp() * 1000)
    return {
        row.id: Glance(
            health.judge(
                row.status,
                None if breakers is None else breakers.get(row.id, Breaker()),
                BreakerSettings.of(row.circuit_breaker),
                hour.get(row.id, _figures(0, 0)),
                now_ms,
            ),
            points[row.id],
            None if waiting is None else waiting[row.id],
            None if dead is None else dead[row.id],
        )
        for row in rows
    }


async def latest_deliveries(session: AsyncSession, row: Subscription, most: int) -> Sequence[Delivery]:
    """The newest first."""
    page = await Walk(Delivery, _of(row), (), REACH).page(session, Paging(most))
    return page.rows


async def delivery_of(
    session: AsyncSession, row: Subscription, delivery_id: UUID
) -> tuple[Delivery | None, Attempt | None]:
    """One of its deliveries, if it is that, with the latest attempt."""
    found = (await session.exec(select(Delivery).where(*_of(row), Delivery.id == delivery_id))).one_or_none()
    if found is None:
        return None, None
    # No attempt is older than its delivery, but for clocks that differ: partitions of other days are left out.
    query = select(Attempt).where(
        Attempt.delivery_id == delivery_id, col(Attempt.id) >= ids.lowest_at(ids.time_of(delivery_id) - DAY)
    )
    return found, (await session.exec(query.order_by(col(Attempt.id).desc()).limit(1))).one_or_none()


def _of(row: Subscription) -> list[ColumnElement[bool]]:
    return [col(Delivery.organization_id) == row.organization_id, col(Delivery.subscription_id) == row.id]


async def count_held(driver: Any, subscription_id: UUID) -> int | None:
    """Deliveries that its resumption sends, up to `MOST_HELD`; None when counting takes too long."""
    found = await _soon(driver, _HELD, subscription_id, MOST_HELD)
    return None if found is None else found[0]["number"]


def _figures(delivered: int, failed: int) -> Figures:
    return Figures(delivered + failed, delivered, 0, 0, 0, 0, None, None)


async def _last_hour(driver: Any, pairs: Sequence[tuple[UUID, UUID]], since: datetime) -> dict[UUID, Figures]:
    rows = await driver.fetch(_HOUR, *zip(*pairs, strict=True), since)
    return {row["id"]: _figures(row["delivered"], row["failed"]) for row in rows}


async def _waiting(driver: Any, rows: Sequence[Subscription]) -> dict[UUID, Count] | None:
    """Of each organization the latest pending deliveries are looked at, and said whose they are."""
    organizations = list({row.organization_id for row in rows})
    most = MOST_WAITING // len(organizations)
    found = await _soon(driver, _PENDING, organizations, most)
    if found is None:
        return None
    counts = {row["subscription_id"]: row["number"] for row in found}
    looked_at: Counter[UUID] = Counter()
    for row in found:
        looked_at[row["organization_id"]] += row["number"]
    return {row.id: Count(counts.get(row.id, 0), looked_at[row.organization_id] < most) for row in rows}


async def _dead(driver: Any, pairs: Sequence[tuple[UUID, UUID]]) -> dict[UUID, Count] | None:
    found = await _soon(driver, _DEAD, *zip(*pairs, strict=True), MOST_DEAD + 1)
    if found is None:
        return None
    return {row["id"]: Count(min(row["number"], MOST_DEAD), row["number"] <= MOST_DEAD) for row in found}


async def _soon(driver: Any, statement: str, *values: Any) -> Sequence[Any] | None:
    """None when it takes longer than `COUNT_TIMEOUT_MS`."""
    try:
        async with driver.transaction():
            await driver.execute(
                f"SET LOCAL statement_timeout = '{COUNT_TIMEOUT_MS}ms'; SET LOCAL plan_cache_mode = force_custom_plan"
            )
            rows: Sequence[Any] = await driver.fetch(statement, *values)
            return rows
    except asyncpg.QueryCanceledError:
        return None


_HOUR = """
SELECT asked.id, part.*
FROM unnest($1::uuid[], $2::uuid[]) AS asked(organization_id, id)
CROSS JOIN LATERAL (
    SELECT coalesce(sum(attempts) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered,
        coalesce(sum(attempts) FILTER (WHERE error_kind <> ''), 0)::bigint AS failed
    FROM delivery_stats kept
    WHERE kept.organization_id = asked.organization_id AND kept.subscription_id = asked.id AND minute >= $3
) AS part
"""
# The states are written out, so that PostgreSQL sees which partial indexes serve.
_PENDING = """
SELECT asked.id AS organization_id, latest.subscription_id, count(*) AS number
FROM unnest($1::uuid[]) AS asked(id)
CROSS JOIN LATERAL (
    SELECT subscription_id FROM deliveries d
    WHERE d.organization_id = asked.id AND state = 'pending' ORDER BY d.id DESC LIMIT $2
) AS latest
GROUP BY 1, 2
"""
_HELD = """
SELECT count(*) AS number FROM (
    SELECT FROM deliveries WHERE subscription_id = $1 AND state = 'pending' AND reason = 'paused' LIMIT $2
) AS found
"""
_DEAD = """
SELECT asked.id, (
    SELECT count(*) FROM (
        SELECT FROM deliveries d
        WHERE d.organization_id = asked.organization_id AND d.subscription_id = asked.id AND state = 'dead' LIMIT $3
    ) AS found
) AS number
FROM unnest($1::uuid[], $2::uuid[]) AS asked(organization_id, id)
"""
