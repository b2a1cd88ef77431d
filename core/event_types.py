"""Event types: the catalogue of what a producer may post. It describes; it does not refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.errors import Conflict, NotFound, ValidationFailed
from core.models import EventType, Subscription
from core.patterns import PatternSet, validate_event_type
from core.quotas import MAX_EVENT_TYPES, check_room
from core.subscriptions import KEPT, check_metadata

MAX_DESCRIPTION_CHARS = 1_000
MOST_LOOKED_AT = 2_000  # subscriptions, for those whose patterns match a type


async def create(
    session: AsyncSession,
    organization_id: UUID,
    *,
    name: str,
    description: str = "",
    schema: dict[str, Any] | None = None,
    example: dict[str, Any] | None = None,
) -> EventType:
    """Adds an entry. Raises `ValidationFailed`, or `Conflict` when there is one of this name, or as many as may be."""
    row = EventType(id=ids.new_id(), organization_id=organization_id, name=validate_event_type(name, "name"))
    _fill(row, {"description": description, "schema": schema, "example": example})
    advice = "delete those that are no longer sent"
    await check_room(session, organization_id, EventType, most=MAX_EVENT_TYPES, advice=advice)
    try:
        async with session.begin_nested():
            session.add(row)
            await session.flush()
    except IntegrityError:
        raise Conflict(f"There is an event type {name} already; change it instead") from None
    return row


async def get(session: AsyncSession, organization_id: UUID, name: str, *, lock: bool = False) -> EventType:
    """Raises `NotFound`. With `lock` nobody else changes it until the transaction ends."""
    query = select(EventType).where(EventType.organization_id == organization_id, EventType.name == name)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no event type {name[:128]}")
    return found


def update(session: AsyncSession, row: EventType, given: Mapping[str, Any]) -> None:
    """Changes what is given of `description`, `schema` and `example`; None empties. Raises `ValidationFailed`."""
    _fill(row, given)
    session.add(row)


def _fill(row: EventType, given: Mapping[str, Any]) -> None:
    faults: dict[str, list[str]] = {}
    for name in ("schema", "example"):
        try:
            if name in given:
                value = given[name] and dict(check_metadata(given[name], name))
                setattr(row, "schema_" if name == "schema" else name, value)
        except ValidationFailed as error:
            faults |= error.details
    if "description" in given:
        row.description = given["description"] or ""
        if len(row.description) > MAX_DESCRIPTION_CHARS:
            faults["description"] = [f"Must be at most {MAX_DESCRIPTION_CHARS} characters"]
    if faults:
        raise ValidationFailed(details=faults)


@dataclass(frozen=True, slots=True)
class Subscribers:
    """Subscriptions whose patterns match an event type; what their filters say is not looked at."""

    rows: Sequence[Subscription]
    all_were_seen: bool  # of the organization's subscriptions, the first `MOST_LOOKED_AT`


async def subscribers(session: AsyncSession, organization_id: UUID, name: str) -> Subscribers:
    """Who would be asked about an event of this type."""
    query = select(Subscription).where(Subscription.organization_id == organization_id, KEPT)
    rows = (await session.exec(query.order_by(col(Subscription.id)).limit(MOST_LOOKED_AT + 1))).all()
    matching = [row for row in rows[:MOST_LOOKED_AT] if PatternSet(row.events).matches(name)]
    return Subscribers(matching, len(rows) <= MOST_LOOKED_AT)
