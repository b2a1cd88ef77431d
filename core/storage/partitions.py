"""Daily partitions of events, deliveries and attempts: made ahead, dropped by retention.

Both are done by functions in the database (migration 0003), which have the rights for it: the application's role owns
no table (`core.storage.roles`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from core import ids
from core.storage.database import Database

TABLES = ("events", "deliveries", "attempts")
DAYS_AHEAD = 7
_LOCK = 0x686F6F6B  # "hook": one process at a time changes partitions

log = structlog.get_logger(__name__)


def name_of(table: str, day: date) -> str:
    """`deliveries_p20260128`"""
    return f"{table}_p{day:%Y%m%d}"


def day_in(name: str) -> date | None:
    """The day in a partition's name; None when the name is not one of ours."""
    try:
        return datetime.strptime(name.rpartition("_p")[2], "%Y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        return None


def is_missing(error: asyncpg.CheckViolationError) -> bool:
    """Whether a row had no partition to go to. PostgreSQL has no code of its own for that, and its words depend on
    `lc_messages`; but of a constraint that was violated it gives the name, and here there is none."""
    return not error.constraint_name


async def ensure(driver: Any, days: Iterable[date]) -> None:
    """Creates the partitions of `days` that are missing, while everybody else goes on reading and writing.

    Made alone and then attached: CREATE TABLE … PARTITION OF would wait for every transaction that has so much as
    looked at the table, and all others would wait behind it.
    """
    async with driver.transaction():
        await driver.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        present = {row["relname"] for row in await driver.fetch(_PARTITIONS, list(TABLES))}
        for day in sorted(set(days)):
            for table in TABLES:
                if name_of(table, day) not in present:
                    await driver.execute("SELECT make_partition($1, $2)", table, day)


async def oldest(driver: Any, table: str) -> date | None:
    """The first day that `table` has a partition for."""
    found = [day_in(row["relname"]) for row in await driver.fetch(_PARTITIONS, [table])]
    return min((day for day in found if day is not None), default=None)


async def sizes(driver: Any) -> dict[tuple[str, date], int]:
    """The bytes that each partition takes with its indexes, by table and day."""
    found = {}
    for row in await driver.fetch(_SIZES, list(TABLES)):
        if (day := day_in(row["relname"])) is not None:
            found[row["relname"].rpartition("_p")[0], day] = row["size"]
    return found


def days_ahead(today: date) -> list[date]:
    """Yesterday (for clocks that lag) up to a week ahead."""
    return [today + timedelta(days=n) for n in range(-1, DAYS_AHEAD + 1)]


async def ensure_ahead(database: Database, today: date) -> None:
    """What the hourly cron job and the migration command do."""
    async with database.driver() as driver:
        await ensure(driver, days_ahead(today))


async def drop_expired(database: Database, today: date, retention_days: int) -> list[date]:
    """Drops every day older than `retention_days` that holds no unfinished delivery. Returns the days dropped.

    A delivery lives in the partition of its event's day, so one look at the deliveries of a day answers for its
    events too. Attempts are partitioned by their own day and drop with it.
    """
    dropped: list[date] = []
    kept: list[date] = []
    end = today - timedelta(days=retention_days)
    async with database.driver() as driver:
        names = [row["relname"] for row in await driver.fetch(_PARTITIONS, list(TABLES))]
        for day in sorted({day for day in map(day_in, names) if day is not None and day < end}):
            (dropped if await _drop_day(driver, day) else kept).append(day)
        oldest = min([*kept, end])
        await _forget(driver, UUID(int=0), ids.day_bounds(oldest)[0])  # what a day dropped before has left
    return dropped


async def _drop_day(driver: Any, day: date) -> bool:
    low, high = ids.day_bounds(day)
    try:
        if await driver.fetchval(_UNFINISHED.format(low, high)):
            log.warning("partition kept past retention: it holds unfinished deliveries", day=str(day))
            return False
        # Before the drop, and without its locks: once an `event_id` is forgotten, it may come again as a new event.
        await _forget(driver, low, high)
        async with driver.transaction():
            await driver.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            dropped: bool = await driver.fetchval("SELECT drop_partitions($1)", day)
            return dropped
    except asyncpg.LockNotAvailableError:
        log.warning("partition kept for now: its table is busy", day=str(day))
        return False


async def _forget(driver: Any, low: UUID, high: UUID) -> None:
    """Deletes what refers to events and deliveries from `low` up to `high`, `BULK` rows a statement."""
    for statement in (_FORGET_KEYS, _FORGET_ITEMS):
        while await driver.fetchval(statement, low, high, BULK) == BULK:
            pass


_PARTITIONS = """
SELECT child.relname
FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid JOIN pg_class parent ON parent.oid = inhparent
WHERE parent.relname = ANY($1) AND parent.relnamespace = current_schema()::regnamespace
"""
_SIZES = _PARTITIONS.replace("SELECT child.relname", "SELECT child.relname, pg_total_relation_size(child.oid) AS size")
# The bounds as literals, so that PostgreSQL sees at once that they are a whole partition; the states as partial indexes
# have them (`drop_partitions` asks the same), so that it is not read. What is being sent has no reason.
_UNFINISHED = """
SELECT EXISTS (SELECT FROM deliveries WHERE id >= '{0}' AND id < '{1}' AND state = 'pending')
    OR EXISTS (SELECT FROM deliveries WHERE id >= '{0}' AND id < '{1}' AND state = 'sending' AND reason IS NULL)
"""

BULK = 10_000
_FORGET_KEYS = """
WITH gone AS (
    DELETE FROM event_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM event_keys WHERE event_id >= $1 AND event_id < $2 LIMIT $3
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
# What a replay that goes on has not sent yet stays: its next step finds no delivery and counts it as skipped.
_FORGET_ITEMS = """
WITH gone AS (
    DELETE FROM replay_items WHERE ctid = ANY(ARRAY(
        SELECT item.ctid FROM replay_items item JOIN replays replay ON replay.id = item.replay_id
        WHERE item.delivery_id >= $1 AND item.delivery_id < $2
          AND (item.outcome NOT IN ('waiting', 'sent') OR replay.status IN ('completed', 'cancelled'))
        LIMIT $3
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
