"""Erasure: a deleted organization is gone at once for everybody, and then, row by row, from the tables.

`mark` makes it invisible: its keys are revoked, its subscriptions deleted, its events refused. Workers erase the rest
in batches, each a transaction of its own, so a kill costs nothing: whoever comes next goes on with what is there. The
organization's own row goes last, `LATE_S` after the mark: by then nothing that was under way at the mark can store
anything any more. What stays is entries of the audit log, without its name: of the mark, of the end, and, by the
database's own hand (migration 0003), of each batch of its audit log.

Calls that were under way at the mark may still have stored something, so each batch looks at every table anew, from the
first on. The order matters where a later table's rows would bring an earlier one's back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import audit, ids, organizations, timestamps
from core.access.models import AuditEntry
from core.audit import Actor
from core.limiting.breakers import UNREACHABLE, Breakers
from core.models import Organization
from core.storage import partitions
from core.storage.database import Database, driver_of, spares_others

BATCH = 1_000  # rows a transaction deletes of a table at most
WORK_S = 0.5  # of each call of `advance`
LATE_S = 60.0  # more than any transaction lasts: `database.SESSION_TIMEOUT_S`, `database.COMMAND_TIMEOUT_S`
ERASURE = Actor("erasure")

log = structlog.get_logger(__name__)


async def mark(session: AsyncSession, organization_id: UUID, actor: Actor) -> Organization:
    """Deletes an organization for all that anybody can see of it. Raises `NotFound`.

    What is pending is discarded by workers, within a second (`core.settling`).
    """
    await organizations.get(session, organization_id)
    driver = await driver_of(session)
    await _end_work(driver, organization_id)
    deleted_at = await driver.fetchval(_MARK, organization_id)
    if deleted_at is None:
        raise organizations.unknown(organization_id)  # another call was first
    await driver.execute(_REVOKE, organization_id)
    audit.record(
        session,
        actor,
        "organization.deleted",
        ids.show(ids.ORGANIZATION, organization_id),
        organization_id=None,  # what is its own goes with it; this stays
        after={"deleted_at": timestamps.show(deleted_at)},
    )
    query = select(Organization).where(Organization.id == organization_id)
    return (await session.exec(query.execution_options(populate_existing=True))).one()


async def _end_work(driver: Any, organization_id: UUID) -> None:
    """In the order in which the end of a claim locks them: replays, subscriptions, and then their organization."""
    await driver.execute(_CANCEL_REPLAYS, organization_id)
    await driver.execute(_DELETE_SUBSCRIPTIONS, organization_id)


_CANCEL_REPLAYS = """
WITH unfinished AS (
    SELECT id FROM replays WHERE organization_id = $1 AND status IN ('queued', 'running', 'paused')
    ORDER BY id FOR UPDATE
)
UPDATE replays SET status = 'cancelled', finished_at = now() WHERE id IN (SELECT id FROM unfinished)
"""
_DELETE_SUBSCRIPTIONS = """
WITH live AS (
    SELECT id FROM subscriptions WHERE organization_id = $1 AND status <> 'deleted' ORDER BY id FOR UPDATE
)
UPDATE subscriptions
SET status = 'deleted', status_reason = NULL, settled = false, version = version + 1, updated_at = now()
WHERE id IN (SELECT id FROM live)
"""
_MARK = """
UPDATE organizations
SET deleted_at = now(), subscriptions_version = subscriptions_version + 1, version = version + 1, updated_at = now()
WHERE id = $1 AND deleted_at IS NULL RETURNING deleted_at
"""
_REVOKE = "UPDATE api_keys SET revoked_at = now() WHERE organization_id = $1 AND revoked_at IS NULL"


async def last_word(session: AsyncSession, organization_id: UUID) -> Mapping[str, int] | None:
    """Of an organization that has been erased: how many rows it had, by table. None for any other."""
    query = select(AuditEntry).where(
        AuditEntry.resource == ids.show(ids.ORGANIZATION, organization_id), AuditEntry.action == "organization.erased"
    )
    found = (await session.exec(query.limit(1))).first()
    return None if found is None else (found.after or {}).get("rows", {})


# --- erasing -------------------------------------------------------------------------------------------------------


async def advance(
    database: Database,
    breakers: Breakers,
    *,
    work_s: float = WORK_S,
    late_s: float = LATE_S,
    behind: UUID | None = None,
) -> UUID | None:
    """Erases for `work_s` seconds at most, resting as long after each batch as that took. One worker at a time; one
    organization that is large or can't be erased does not hold up the others, where each call begins `behind` the last
    one that the call before tried, which that returned."""
    async with database.driver() as driver:
        deleted = [row["id"] for row in await driver.fetch(_DELETED)]
    if behind in deleted:
        place = deleted.index(behind) + 1
        deleted = deleted[place:] + deleted[:place]
    clock = asyncio.get_running_loop().time
    until = clock() + work_s
    for organization_id in deleted:
        more = True
        while more and clock() < until:
            behind = organization_id
            started = clock()
            try:
                async with database.session() as session:
                    more = await _step(session, breakers, organization_id, late_s)
            except Exception as error:
                if not spares_others(error):
                    raise
                log.exception(
                    "an organization could not be erased further; it is tried again",
                    organization=ids.show(ids.ORGANIZATION, organization_id),
                )
                break
            await asyncio.sleep(min(clock() - started, work_s))
    return behind


_DELETED = "SELECT id FROM organizations WHERE deleted_at IS NOT NULL ORDER BY deleted_at"
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('hookwright erasure', 0))"


async def _step(session: AsyncSession, breakers: Breakers, organization_id: UUID, late_s: float) -> bool:
    """One batch, within the caller's transaction. Returns whether there may be more to do now."""
    driver = await driver_of(session)
    if not await driver.fetchval(_TRY_LOCK):
        return False  # another worker is at it
    query = select(Organization).where(Organization.id == organization_id, col(Organization.deleted_at).is_not(None))
    organization = (await session.exec(query)).one_or_none()
    if organization is None:
        return False
    gone = await _erase_batch(driver, breakers, organization_id)
    counts = dict(organization.erased or {})
    for table, count in gone.items():
        if count:
            counts[table] = counts.get(table, 0) + count
    if any(gone.values()):
        organization.erased = counts
        session.add(organization)
        return True
    if not await driver.fetchval(_IS_LATE, organization_id, late_s):
        return False
    audit.record(
        session,
        ERASURE,
        "organization.erased",
        ids.show(ids.ORGANIZATION, organization_id),
        organization_id=None,
        after={"rows": counts},
    )
    await session.delete(organization)
    log.info("an organization was erased", organization=ids.show(ids.ORGANIZATION, organization_id), **counts)
    return False


_IS_LATE = "SELECT deleted_at < now() - make_interval(secs => $2) FROM organizations WHERE id = $1"


async def _erase_batch(driver: Any, breakers: Breakers, organization_id: UUID) -> dict[str, int]:
    """Deletes up to `BATCH` rows of the first tables that have any. Returns how many by table."""
    await _end_work(driver, organization_id)  # what a call created that was under way at the mark
    for erase in (
        _of("api_keys"),
        _deliveries,
        _events,
        _of("event_keys"),
        _replay_items,
        _of("replays"),
        _of("idempotency_keys"),
        _of("delivery_stats"),
        _of("breaker_changes"),
        _of("event_types"),
        _orphaned_attempts,
        lambda driver, one: _subscriptions(driver, breakers, one),
        _of("audit_log"),
    ):
        gone = await erase(driver, organization_id)
        if any(gone.values()):
            return gone
    return {}


Erase = Callable[[Any, UUID], Awaitable[dict[str, int]]]


def _of(table: str) -> Erase:
    """Of a table that is not partitioned and says itself whose its rows are."""

    async def erase(driver: Any, organization_id: UUID) -> dict[str, int]:
        statement = _WHERE_ORGANIZATION.format(table=table)
        return {table: await driver.fetchval(statement, organization_id, BATCH)}

    return erase


async def _deliveries(driver: Any, organization_id: UUID) -> dict[str, int]:
    """With their attempts, which only they lead to. While we hold their locks, nobody records another attempt; and
    afterwards nobody does, for an attempt is stored only where its delivery is."""
    chosen = await _choose(driver, _DELIVERIES, organization_id)
    if not chosen:
        return {}
    tried = [row["id"] for row in await driver.fetch(_ATTEMPTS_OF, chosen, BATCH)]
    attempts = await _delete(driver, "attempts", tried)
    if attempts >= BATCH:
        return {"attempts": attempts}  # there may be more of them
    return {"attempts": attempts, "deliveries": await _delete(driver, "deliveries", chosen)}


async def _events(driver: Any, organization_id: UUID) -> dict[str, int]:
    chosen = await _choose(driver, _EVENTS, organization_id)
    return {"events": await _delete(driver, "events", chosen)}


async def _orphaned_attempts(driver: Any, organization_id: UUID) -> dict[str, int]:
    """Attempts outlive their delivery where retention dropped its day and not yet theirs."""
    oldest = await partitions.oldest(driver, "deliveries")
    if oldest is None:
        return {}
    chosen = await driver.fetch(_ORPHANS, organization_id, ids.day_bounds(oldest)[0], BATCH)
    return {"attempts": await _delete(driver, "attempts", [row["id"] for row in chosen])}


async def _replay_items(driver: Any, organization_id: UUID) -> dict[str, int]:
    return {"replay_items": await driver.fetchval(_REPLAY_ITEMS, organization_id, BATCH)}


async def _subscriptions(driver: Any, breakers: Breakers, organization_id: UUID) -> dict[str, int]:
    """With their secrets, and what Redis knows of their receivers."""
    chosen = await _choose(driver, _SUBSCRIPTIONS, organization_id)
    if not chosen:
        return {}
    try:
        await breakers.forget(*chosen)
    except UNREACHABLE as error:  # then the hourly housekeeping does: nothing knows them any more
        log.warning("circuit breakers were left for housekeeping", error=repr(error))
    secrets = await driver.fetchval(_SECRETS_OF, chosen)
    return {"subscription_secrets": secrets, "subscriptions": await _delete(driver, "subscriptions", chosen)}


async def _choose(driver: Any, statement: str, organization_id: UUID) -> list[UUID]:
    return [row["id"] for row in await driver.fetch(statement, organization_id, BATCH)]


async def _delete(driver: Any, table: str, chosen: Sequence[UUID]) -> int:
    """By their ids, as partitioned tables must be: a ctid counts anew in each partition."""
    if not chosen:
        return 0
    count: int = await driver.fetchval(_BY_IDS.format(table=table), chosen, min(chosen), max(chosen))
    return count


_WHERE_ORGANIZATION = """
WITH gone AS (
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE organization_id = $1 LIMIT $2))
    RETURNING 1
)
SELECT count(*) FROM gone
"""
_DELIVERIES = "SELECT id FROM deliveries WHERE organization_id = $1 ORDER BY id LIMIT $2 FOR UPDATE"
_EVENTS = "SELECT id FROM events WHERE organization_id = $1 ORDER BY id LIMIT $2"
_SUBSCRIPTIONS = "SELECT id FROM subscriptions WHERE organization_id = $1 ORDER BY id LIMIT $2"
_BY_IDS = """
WITH gone AS (DELETE FROM {table} WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 RETURNING 1)
SELECT count(*) FROM gone
"""
_ATTEMPTS_OF = "SELECT id FROM attempts WHERE delivery_id = ANY($1::uuid[]) LIMIT $2"
_ORPHANS = "SELECT id FROM attempts WHERE delivery_id < $2 AND organization_id = $1 LIMIT $3"
_REPLAY_ITEMS = """
WITH gone AS (
    DELETE FROM replay_items WHERE ctid = ANY(ARRAY(
        SELECT item.ctid FROM replay_items item JOIN replays replay ON replay.id = item.replay_id
        WHERE replay.organization_id = $1 LIMIT $2
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
_SECRETS_OF = """
WITH gone AS (DELETE FROM subscription_secrets WHERE subscription_id = ANY($1::uuid[]) RETURNING 1)
SELECT count(*) FROM gone
"""
