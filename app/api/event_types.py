"""Event types: the catalogue of what a producer may post."""

from __future__ import annotations

from sqlmodel import col

from app import views
from app.actions import event_types as acts
from app.api import answers, lists
from app.api.calls import Call
from app.api.inputs import EventTypeIn, EventTypePatch
from app.api.replies import Reply
from core import event_types
from core.errors import ValidationFailed
from core.models import EventType


async def create(call: Call) -> Reply:
    given = call.read(EventTypeIn)
    row = await acts.create(
        call,
        call.organization_id,
        name=given.name,
        description=given.description,
        schema=given.schema_,
        example=given.example,
    )
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
        return Reply(views.event_type(await event_types.get(session, call.organization_id, _name(call))))


async def update(call: Call) -> Reply:
    given = call.read(EventTypePatch)
    fields = {info.alias or name: name for name, info in EventTypePatch.model_fields.items()}
    changes = {shown: getattr(given, name) for shown, name in fields.items() if name in given.model_fields_set}
    row = await acts.update(call, call.organization_id, _name(call), changes)
    return Reply(views.event_type(row), message="Event type updated")


async def delete(call: Call) -> Reply:
    row = await acts.delete(call, call.organization_id, _name(call))
    return Reply(views.event_type(row), message="Event type deleted; events of this type stay")


def _name(call: Call) -> str:
    name: str = call.request.path_params["name"]
    return name
