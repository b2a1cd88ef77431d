"""Redaction: an event's content is removed for good, and the record of it stays: that it came, to whom it went, when.

What is removed is `data` and `metadata`, and what receivers answered, which may repeat them. The event comes first, in
one transaction that also notes that the rest is unfinished: from then on nothing sends it, whatever its deliveries
say. These follow in batches, each a transaction of its own, so that nobody waits for the locks of thousands: marked,
and then what came back for them removed. Whoever records an attempt locks its delivery, so an answer is stored before
the mark, and removed with it, or not at all (`core.deliveries.leases`). What receivers have been sent already, and what
backups hold, is beyond reach.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import func
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import deliveries, ids
from core.errors import NotFound
from core.models import Event, UnfinishedRedaction
from core.storage.database import Database, spares_others

EMPTY = b"{}}"  # for `data`, which comes last, and the end of the body around it
CLOCKS_DIFFER = timedelta(days=1)  # no attempt is older than its delivery, but by another machine's clock
BATCH = 250  # deliveries; each may have had dozens of attempts
WITHIN_S = 1.0  # then a worker goes on

log = structlog.get_logger(__name__)


async def redact(session: AsyncSession, organization_id: UUID, event_id: UUID) -> tuple[Event, bool]:
    """Removes the content of an event, in the caller's transaction; once that is committed, `finish` does the rest.

    Returns the event, and whether this call did it rather than an earlier one. Raises `NotFound`.
    """
    # Catching up shares this lock (`deliveries.create_missing`): whatever it makes is there when we go on.
    query = select(Event).where(Event.id == event_id, Event.organization_id == organization_id).with_for_update()
    event = (await session.exec(query)).one_or_none()
    if event is None:
        raise NotFound(f"There is no event {ids.show(ids.EVENT, event_id)}")
    if event.redacted_at is not None:
        return event, False
    event.payload = event.payload[: event.data_at] + EMPTY
    event.metadata_ = None
    event.redacted_at = func.now()  # type: ignore[assignment]  # the database's time, as everywhere
    session.add(event)
    session.add(UnfinishedRedaction(event_id=event_id))
    await session.flush()
    await session.refresh(event)
    return event, True


async def finish(database: Database, event_id: UUID, *, within_s: float = WITHIN_S) -> bool:
    """Marks the deliveries of an event that was redacted, and removes what came back for them. Returns whether all is
    done; a worker does what is not."""
    clock = asyncio.get_running_loop().time
    until = clock() + within_s
    after = None
    while clock() < until:
        async with database.driver() as driver, driver.transaction():
            if not await driver.fetchval(_IS_UNFINISHED, event_id):
                return True
            after = await step(driver, event_id, after)
            if after is None:
                await driver.execute(_FINISHED, event_id)
                return True
    return False


async def step(driver: Any, event_id: UUID, after: UUID | None = None) -> UUID | None:
    """One batch. Returns its last delivery, after which to go on; None when nothing is left. The caller holds a
    transaction."""
    marked = await deliveries.redact(driver, event_id, after=after, most=BATCH)
    if not marked:
        return None
    await driver.execute(_FORGET_ANSWERS, marked, ids.lowest_at(ids.time_of(event_id) - CLOCKS_DIFFER))
    return marked[-1]


async def finish_all(database: Database) -> None:
    """What nobody has finished: for each a while in turn, and one that fails does not hold up the others."""
    async with database.driver() as driver:
        unfinished = [row["event_id"] for row in await driver.fetch(_UNFINISHED)]
    for event_id in unfinished:
        try:
            await finish(database, event_id)
        except Exception as error:
            if not spares_others(error):
                raise
            log.exception(
                "a redaction could not be finished; it is tried again", redacted=ids.show(ids.EVENT, event_id)
            )


_IS_UNFINISHED = "SELECT true FROM unfinished_redactions WHERE event_id = $1"
_UNFINISHED = "SELECT event_id FROM unfinished_redactions ORDER BY event_id"
_FINISHED = "DELETE FROM unfinished_redactions WHERE event_id = $1"
# A statement after the mark: its view holds what those stored who had the locks before.
_FORGET_ANSWERS = """
UPDATE attempts SET response_headers = NULL, response_body = NULL
WHERE id >= $2 AND delivery_id = ANY($1::uuid[])
"""
