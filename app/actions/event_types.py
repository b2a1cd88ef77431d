"""Changing the catalogue of event types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app import views
from app.caller import Caller
from core import event_types
from core.models import EventType


async def create(
    caller: Caller,
    organization_id: UUID,
    *,
    name: str,
    description: str = "",
    schema: dict[str, Any] | None = None,
    example: dict[str, Any] | None = None,
) -> EventType:
    """Raises `ValidationFailed`, or `Conflict` when there is one of this name, or as many as there may be."""
    async with caller.transaction() as session:
        row = await event_types.create(
            session, organization_id, name=name, description=description, schema=schema, example=example
        )
        shown = views.event_type(row)
        caller.audit(session, "event_type.created", row.name, after=shown, organization_id=organization_id)
    return row


async def update(caller: Caller, organization_id: UUID, name: str, given: Mapping[str, Any]) -> EventType:
    """Changes what is given of `description`, `schema` and `example`. Raises `NotFound` or `ValidationFailed`."""
    async with caller.transaction() as session:
        row = await event_types.get(session, organization_id, name, lock=True)
        before = views.event_type(row)
        event_types.update(session, row, given)
        after = views.event_type(row)
        if after != before:
            caller.audit(
                session, "event_type.updated", row.name, before=before, after=after, organization_id=organization_id
            )
    return row


async def delete(caller: Caller, organization_id: UUID, name: str) -> EventType:
    """Takes an entry out of the catalogue; events of this type stay. Raises `NotFound`."""
    async with caller.transaction() as session:
        row = await event_types.get(session, organization_id, name, lock=True)
        await session.delete(row)
        caller.audit(
            session, "event_type.deleted", row.name, before=views.event_type(row), organization_id=organization_id
        )
    return row
