"""Event types: the catalogue of what a producer may post. It describes; it does not refuse."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.api import answers, lists
from app.api.calls import Call
from app.api.inputs import EventTypeIn, EventTypePatch
from app.api.replies import Reply
from core import ids
from core.errors import Conflict, NotFound, ValidationFailed
from core.models import EventType
from core.patterns import validate_event_type
from core.quotas import MAX_EVENT_TYPES, check_room
from core.subscriptions import check_metadata


async def create(call: Call) -> Reply:
    given = call.read(EventTypeIn)
    row = EventType(
        id=ids.new_id(),
        organization_id=call.organization_id,
        name=validate_event_type(given.name, "name"),
        description=given.description,
        schema_=given.schema_ and dict(check_metadata(given.schema_, "schema")),
        example=given.example and dict(check_metadata(given.example, "example")),
    )
    try:
        async with call.transaction() as session:
            advice = "delete those that are no longer sent"
            await check_room(session, call.organization_id, EventType, most=MAX_EVENT_TYPES, advice=advice)
            session.add(row)
            await session.flush()
            call.audit(session, "event_type.created", row.name, after=views.event_type(row))
    except IntegrityError:
        raise Conflict(f"There is an event type {given.name} already; change it with PATCH") from None
    return Reply(views.event_type(row), 201, "Event type created")


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.EventType)
    if query.filters:
        raise ValidationFailed.of("filters", "This list has no filters")
    async with call.transaction() as session:
        conditions = [col(EventType.organization_id) == call.organization_id]
        return await lists.run(session, query, EventType, conditions, views.event_type)


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        return Reply(views.event_type(await _get(call, session)))


async def update(call: Call) -> Reply:
    given = call.read(EventTypePatch)
    async with call.transaction() as session:
        row = await _get(call, session, lock=True)
        before = views.event_type(row)
        if "description" in given.model_fields_set:
            row.description = given.description or ""
        if "schema_" in given.model_fields_set:
            row.schema_ = given.schema_ and dict(check_metadata(given.schema_, "schema"))
        if "example" in given.model_fields_set:
            row.example = given.example and dict(check_metadata(given.example, "example"))
        session.add(row)
        after = views.event_type(row)
        if after != before:
            call.audit(session, "event_type.updated", row.name, before=before, after=after)
    return Reply(after, message="Event type updated")


async def delete(call: Call) -> Reply:
    async with call.transaction() as session:
        row = await _get(call, session, lock=True)
        await session.delete(row)
        call.audit(session, "event_type.deleted", row.name, before=views.event_type(row))
    return Reply(views.event_type(row), message="Event type deleted; events of this type stay")


async def _get(call: Call, session: AsyncSession, *, lock: bool = False) -> EventType:
    name = call.request.path_params["name"]
    query = select(EventType).where(EventType.organization_id == call.organization_id, EventType.name == name)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no event type {name[:128]}")
    return found
