"""Event types: the catalogue of what a producer may post. It describes; it does not refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.errors import Conflict, NotFound, ValidationFailed
from core.limiting.quotas import MAX_EVENT_TYPES, check_room
from core.listing.lists import REACH, Walk
from core.matching.patterns import PatternSet, validate_event_type
from core.models import EventType, Subscription
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


def walk(organization_id: UUID | None = None, text: str = "") -> Walk:
    """The catalogue of one organization or of all; of types whose name holds `text`, in whatever case."""
    of = [] if organization_id is None else [col(EventType.organization_id) == organization_id]
    named = [col(EventType.name).icontains(text, autoescape=True)] if text else []
    return Walk(EventType, of, named, REACH)


class Subscriber(NamedTuple):
    """A subscription whose patterns match an event type; what its filters say is not looked at."""

    id: UUID
    url: str
    status: str
    patterns: Sequence[str]


@dataclass(frozen=True, slots=True)
class Subscribers:
    found: Sequence[Subscriber]
    all_were_seen: bool  # of the organization's subscriptions, the first `MOST_LOOKED_AT`


async def subscribers(session: AsyncSession, organization_id: UUID, name: str) -> Subscribers:
    """Who is asked about an event of this type."""
    query = select(Subscription.id, Subscription.url, Subscription.status, Subscription.events)
    query = query.where(Subscription.organization_id == organization_id, KEPT).order_by(col(Subscription.id))
    rows = (await session.exec(query.limit(MOST_LOOKED_AT + 1))).all()
    seen = [Subscriber(*row) for row in rows[:MOST_LOOKED_AT]]
    return Subscribers([one for one in seen if PatternSet(one.patterns).matches(name)], len(rows) <= MOST_LOOKED_AT)
