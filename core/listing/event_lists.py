"""Events as lists: of one organization or of all, in the order of time, at a bounded cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import literal
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.access.models import AuditEntry
from core.errors import InvalidId, NotFound, ValidationFailed
from core.listing import delivery_lists, lists, merged, selection
from core.listing.lists import Page, Paging, Walk
from core.listing.selection import Condition
from core.models import Delivery, Event, EventKey, Organization

FILTERS = ("branch_id", "created_after", "created_before", "event_type", "external_id", "text")


@dataclass(slots=True)
class Choice:
    """`walked` in the order of the ids by an index; `checked` event by event."""

    walked: list[Condition] = field(default_factory=list)
    checked: list[Condition] = field(default_factory=list)
    by_organization: bool = False  # the index begins with the organization, also where all are meant
    reads_payloads: bool = False


def choose(organization_id: UUID | None, filters: Mapping[str, Any]) -> Choice:
    """Raises `ValidationFailed` that names an unknown filter or a wrong value."""
    choice = Choice()
    if organization_id is not None:
        choice.walked.append(col(Event.organization_id) == organization_id)
    faults: dict[str, list[str]] = {}
    for name, value in filters.items():
        try:
            _add(choice, organization_id, name, value)
        except (ValueError, ValidationFailed) as error:
            faults[f"filters.{name}"] = [error.message if isinstance(error, ValidationFailed) else str(error)]
    if faults:
        raise ValidationFailed(details=faults)
    return choice


def _add(choice: Choice, organization_id: UUID | None, name: str, value: Any) -> None:
    match name:
        case "event_type":
            choice.walked.append(col(Event.event_type) == value)
            choice.by_organization = True
        case "branch_id":
            choice.checked.append(col(Event.branch_id) == value)
        case "external_id":
            choice.walked.append(_by_external_id(organization_id, value))
        case "created_after":
            choice.walked.append(col(Event.id) >= ids.lowest_at(selection.moment(value)))
        case "created_before":
            choice.walked.append(col(Event.id) < ids.lowest_at(selection.moment(value)))
        case "text":
            named = _named(value)
            choice.reads_payloads = named is None
            (choice.checked if named is None else choice.walked).append(
                selection.holding(value) if named is None else named
            )
        case _:
            raise ValueError(f"There is no such filter; there are: {', '.join(FILTERS)}")


def _named(value: str) -> Condition | None:
    """The condition for a text that is the id of an event, or of one of its deliveries."""
    text = value.strip()
    try:
        if text.startswith(f"{ids.EVENT}_"):
            return col(Event.id) == ids.parse(ids.EVENT, text)
        if text.startswith(f"{ids.DELIVERY}_"):
            of = select(Delivery.event_id).where(Delivery.id == ids.parse(ids.DELIVERY, text))
            return col(Event.id) == of.scalar_subquery()
    except InvalidId:
        pass
    return None


def _by_external_id(organization_id: UUID | None, value: str) -> Condition:
    """Through the key, which is unique within an organization; events themselves have no index for it."""
    keys = select(EventKey.event_id).where(EventKey.external_id == value)
    if organization_id is not None:
        return col(Event.id) == keys.where(EventKey.organization_id == organization_id).scalar_subquery()
    # The key begins with the organization, so it is looked up for each.
    each = keys.where(EventKey.organization_id == Organization.id).correlate(Organization).scalar_subquery()
    return col(Event.id).in_(select(each).select_from(Organization))


@dataclass(frozen=True, slots=True)
class Events:
    """The events that `filters` choose, of one organization or, without one, of all."""

    organization_id: UUID | None
    filters: Mapping[str, Any]

    async def page(self, session: AsyncSession, paging: Paging) -> Page:
        """Raises `ValidationFailed` on a wrong filter, or where searching payloads takes too long."""
        choice = choose(self.organization_id, self.filters)
        reach = delivery_lists.REACH_IN_PAYLOADS if choice.reads_payloads else lists.REACH
        if self.organization_id is None:
            choice.checked += await merged.kept(session, Event)
        walk: Walk | merged.Merged = Walk(Event, choice.walked, choice.checked, reach)
        if self.organization_id is None and choice.by_organization:
            walk = await merged.walk(session, Event, choice.walked, choice.checked, reach)
        if choice.reads_payloads:
            return await delivery_lists.searching(session, walk, paging)
        return await walk.page(session, paging)

    async def count(self, session: AsyncSession) -> int | None:
        """How many there are, up to one more than `lists.MAX_COUNTED`. None where telling takes too long."""
        choice = choose(self.organization_id, self.filters)
        conditions = [*choice.walked, *choice.checked]
        if self.organization_id is None and choice.by_organization:
            conditions += await merged.any_of(session, Event)
        return await delivery_lists.counted(session, select(literal(1)).select_from(Event).where(*conditions))


async def get(session: AsyncSession, organization_id: UUID | None, event_id: UUID) -> Event:
    """Raises `NotFound` when there is none in this organization, or without one in any."""
    query = select(Event).where(Event.id == event_id)
    if organization_id is not None:
        query = query.where(Event.organization_id == organization_id)
    found = (await session.exec(query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no event {ids.show(ids.EVENT, event_id)}")
    return found


async def copies(session: AsyncSession, event: Event, most: int) -> list[tuple[UUID, str]]:
    """The events that were copied from this one, the latest first, and who did it. From the audit log, which has an
    index for it, as events have not."""
    shown = ids.show(ids.EVENT, event.id)
    entries = select(AuditEntry).where(AuditEntry.resource == shown, AuditEntry.action == "event.copied")
    rows = (await session.exec(entries.order_by(col(AuditEntry.id).desc()).limit(most))).all()
    return [(ids.parse(ids.EVENT, str((one.after or {})["event_id"])), one.actor_name or one.actor) for one in rows]
