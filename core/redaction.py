"""Redaction: an event's content is removed for good, and the record of it stays: that it came, to whom it went, when.

What is removed is `data` and `metadata`, and what receivers answered, which may repeat them. Attempts that end later
store no answer either: whoever records one waits for the lock of its delivery, and then sees that it is marked
(`core.deliveries.leases`). What receivers have been sent already, and what backups hold, is beyond reach.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from sqlalchemy import func
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import deliveries, ids
from core.database import driver_of
from core.errors import NotFound
from core.models import Event

EMPTY = b"{}}"  # for `data`, which comes last, and the end of the body around it
CLOCKS_DIFFER = timedelta(days=1)  # no attempt is older than its delivery, but by another machine's clock


async def redact(session: AsyncSession, organization_id: UUID, event_id: UUID) -> tuple[Event, bool]:
    """Removes the content of an event and of what came back for it, all in the caller's transaction.

    Returns the event, and whether this call did it rather than an earlier one. Raises `NotFound`.
    """
    # First of all locks: catching up shares it (`deliveries.create_missing`), and nobody takes it after a delivery's.
    query = select(Event).where(Event.id == event_id, Event.organization_id == organization_id).with_for_update()
    event = (await session.exec(query)).one_or_none()
    if event is None:
        raise NotFound(f"There is no event {ids.show(ids.EVENT, event_id)}")
    if event.redacted_at is not None:
        return event, False
    driver = await driver_of(session)
    await deliveries.redact(driver, event_id)
    low, high = ids.family_bounds(event_id)
    await driver.execute(_FORGET_ANSWERS, event_id, low, high, ids.lowest_at(ids.time_of(event_id) - CLOCKS_DIFFER))
    event.payload = event.payload[: event.data_at] + EMPTY
    event.metadata_ = None
    event.redacted_at = func.now()  # type: ignore[assignment]  # the database's time, as everywhere
    session.add(event)
    await session.flush()
    await session.refresh(event)
    return event, True


_FORGET_ANSWERS = """
UPDATE attempts SET response_headers = NULL, response_body = NULL
WHERE id >= $4 AND delivery_id IN (SELECT id FROM deliveries WHERE id BETWEEN $2 AND $3 AND event_id = $1)
"""
