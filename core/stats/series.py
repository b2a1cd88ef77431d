"""What happened over time, as points of a chart and the figures of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from core.stats.durations import trimmed
from core.stats.tally import WHOLE
from core.stats.totals import HISTOGRAM, Figures

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Point:
    """What came of deliveries from `at` on, up to the next point."""

    at: datetime
    delivered: int = 0  # attempts that succeeded
    failed: int = 0  # attempts that did not
    dead: int = 0  # deliveries given up, most of them with the last of the failed attempts
    accepted: int = 0  # events; not told by subscription


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time up to now, cut into points. A point begins at a multiple of `step`."""

    points: int
    step: timedelta

    def since(self, now: datetime) -> datetime:
        """Where the first point begins; the last one holds `now`."""
        return self.begin_of(now) - (self.points - 1) * self.step

    def begin_of(self, moment: datetime) -> datetime:
        """Where the point begins that holds `moment`."""
        return EPOCH + (moment - EPOCH) // self.step * self.step


EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # a Saturday; only whole steps since then matter
LAST_HOUR = Span(60, timedelta(minutes=1))
LAST_DAY = Span(96, timedelta(minutes=15))
LAST_WEEK = Span(168, HOUR)


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed attempts of one kind."""

    error_kind: str
    attempts: int
    dead: int  # deliveries given up after one
    last_at: datetime  # the minute of the last one


@dataclass(frozen=True, slots=True)
class History:
    """What happened over a span."""

    points: Sequence[Point]
    figures: Figures
    errors: Sequence[Failures]  # the most frequent first


async def history(
    driver: Any, organization_id: UUID, span: Span, now: datetime, subscription_id: UUID | None = None
) -> History:
    """Of an organization, of the installation where that is `INSTALLATION`, or of one subscription. Reads one range of
    the primary key, as `figures` does: one row a minute and kind of error."""
    since = span.since(now)
    return _history(await _read(driver, (organization_id, subscription_id or WHOLE, span.step), since), span, since)


_Key = tuple[UUID, UUID, timedelta]  # organization, subscription, step
SETTLED_AFTER = timedelta(minutes=5)  # more than clocks differ


@dataclass(slots=True)
class _Known:
    """Rows of the steps from `since` on that ended before `until`."""

    since: datetime
    until: datetime
    rows: list[Any]


class Histories:
    """Histories for a page that asks for them every few seconds. Rows are added to in their own minute and never after,
    so what was read of a step that is over need not be read again.

    `most`: of so many it remembers what it read; a week of one with failures of all kinds takes about 1 MB.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._known: dict[_Key, _Known] = {}  # the one that was asked for last comes last

    async def of(
        self, driver: Any, organization_id: UUID, span: Span, now: datetime, subscription_id: UUID | None = None
    ) -> History:
        """The same as `history`."""
        key = (organization_id, subscription_id or WHOLE, span.step)
        since, settled = span.since(now), span.begin_of(now - SETTLED_AFTER)
        known = self._known.pop(key, None)
        if known is None or known.since > since or known.until < since:
            known = _Known(since, since, [])
        rows = [row for row in known.rows if row["at"] >= since]
        rows += await _read(driver, key, known.until)
        kept = [row for row in rows if row["at"] < settled]
        self._known[key] = _Known(since, max(since, settled), kept)
        for oldest in list(self._known)[: -self._most]:
            del self._known[oldest]
        return _history(rows, span, since)


async def _read(driver: Any, key: _Key, since: datetime) -> list[Any]:
    organization_id, subscription_id, step = key
    rows: list[Any] = await driver.fetch(_HISTORY, organization_id, subscription_id, since, step, EPOCH)
    return rows


def _history(rows: Sequence[Any], span: Span, since: datetime) -> History:
    points = [Point(since + n * span.step) for n in range(span.points)]
    for row in rows:
        place = min(int((row["at"] - since) / span.step), span.points - 1)  # a clock ahead of ours
        points[place] = _plus(points[place], row)
    return History(points, _figures(rows), _failures(rows))


def _plus(point: Point, row: Any) -> Point:
    succeeded = row["error_kind"] == ""
    return Point(
        point.at,
        point.delivered + (row["attempts"] if succeeded else 0),
        point.failed + (0 if succeeded else row["attempts"]),
        point.dead + row["dead"],
        point.accepted + row["accepted"],
    )


def _figures(rows: Sequence[Any]) -> Figures:
    fine = [row for row in rows if row["error_kind"] == ""]
    return Figures(
        attempts=sum(row["attempts"] for row in rows),
        delivered=sum(row["attempts"] for row in fine),
        delivered_retried=sum(row["retries"] for row in fine),
        dead=sum(row["dead"] for row in rows),
        dead_retried=sum(row["dead_retried"] for row in rows),
        delivered_ms=sum(row["duration_ms"] for row in fine),
        delivered_at=max((row["last_at"] for row in fine if row["last_at"]), default=None),
        failed_at=max((row["last_at"] for row in rows if row["error_kind"] and row["last_at"]), default=None),
        durations=tuple(trimmed([sum(bucket) for bucket in zip(*(row["durations"] for row in fine), strict=True)])),
        accepted=sum(row["accepted"] for row in rows),
    )


def _failures(rows: Sequence[Any]) -> list[Failures]:
    found: dict[str, Failures] = {}
    for row in rows:
        if row["error_kind"] and row["last_at"]:
            known = found.get(row["error_kind"], Failures(row["error_kind"], 0, 0, row["last_at"]))
            found[row["error_kind"]] = Failures(
                row["error_kind"],
                known.attempts + row["attempts"],
                known.dead + row["dead"],
                max(known.last_at, row["last_at"]),
            )
    return sorted(found.values(), key=lambda one: (-one.attempts, one.error_kind))


_HISTORY = f"""
SELECT date_bin($4, minute, $5) AS at, error_kind, sum(attempts) AS attempts, sum(retries) AS retries,
    sum(dead) AS dead, sum(dead_retried) AS dead_retried, sum(duration_ms)::bigint AS duration_ms,
    sum(accepted) AS accepted, max(minute) FILTER (WHERE attempts > 0) AS last_at, {HISTOGRAM} AS durations
FROM delivery_stats
WHERE organization_id = $1 AND subscription_id = $2 AND minute >= $3
GROUP BY 1, 2
"""


# --- many at once --------------------------------------------------------------------------------------------------


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
