"""What happened over time, as points of a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Point:
    """What came of deliveries from `at` on, up to the next point."""

    at: datetime
    delivered: int = 0  # attempts that succeeded
    failed: int = 0  # attempts that did not
    dead: int = 0  # deliveries given up, most of them with the last of the failed attempts
    accepted: int = 0  # events; not told by subscription


async def sparklines(
    driver: Any, subscriptions: Sequence[tuple[UUID, UUID]], since: datetime
) -> dict[UUID, list[Point]]:
    """A point an hour, from the first full hour after `since` to the present one, of each subscription: pairs of its
    organization's id and its own. One statement for all of them; it reads a range of the primary key for each."""
    first = _next_hour(since)
    if not subscriptions:
        return {}
    now, *_ = rows = await driver.fetch(_SPARKLINES, *zip(*subscriptions, strict=True), first)
    hours = int((now["at"] - first) / HOUR) + 1
    points = {one: [Point(first + n * HOUR) for n in range(hours)] for _, one in subscriptions}
    for row in rows:
        if row["subscription_id"] is not None:
            place = int((row["at"] - first) / HOUR)
            points[row["subscription_id"]][place] = Point(row["at"], row["delivered"], row["failed"], row["dead"])
    return points


def _next_hour(moment: datetime) -> datetime:
    begun = moment.replace(minute=0, second=0, microsecond=0)
    return begun if begun == moment else begun + HOUR


# The first row says what time it is by the database's clock, which is the one that the rows were made by.
_SPARKLINES = """
SELECT NULL::uuid AS subscription_id, now() AS at, 0 AS delivered, 0 AS failed, 0 AS dead
UNION ALL
SELECT asked.subscription_id, part.*
FROM unnest($1::uuid[], $2::uuid[]) AS asked(organization_id, subscription_id)
CROSS JOIN LATERAL (
    SELECT date_trunc('hour', minute, 'UTC'), coalesce(sum(attempts) FILTER (WHERE error_kind = ''), 0),
        coalesce(sum(attempts) FILTER (WHERE error_kind <> ''), 0), sum(dead)
    FROM delivery_stats kept
    WHERE kept.organization_id = asked.organization_id AND kept.subscription_id = asked.subscription_id
        AND minute >= $3
    GROUP BY 1
) AS part(at, delivered, failed, dead)
"""
