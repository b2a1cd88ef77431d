"""Events: accepting them, one or many, and looking at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement
from sqlmodel import col, select

from app import views
from app.api import answers, body, inputs, lists
from app.api import deliveries as delivery_api
from app.api.calls import Call, repeated
from app.api.fields import MAX_BATCH, MAX_EXTERNAL_ID_CHARS
from app.api.inputs import BatchIn, EventIn, Nothing
from app.api.replies import Reply
from core import events, ids, redaction, selection
from core.acceptance import Answer, Request
from core.errors import NotFound, PayloadTooLarge, ValidationFailed
from core.events import Accepted, NewEvent
from core.models import Event, EventKey
from core.patterns import validate_event_type
from core.subscriptions import check_label, check_metadata


async def create(call: Call) -> Reply:
    event = _event(call, body.parse(call.headers, call.body))
    answer = await _accept(call, [event], lambda accepted, _: accepted[0].to_json())
    if answer.first_at is not None:
        return repeated(answer.data, answer.first_at)
    return Reply(answer.data, 202, "Event accepted")


async def create_batch(call: Call) -> Reply:
    given = inputs.read(BatchIn, body.parse(call.headers, call.body)).events
    if not 1 <= len(given) <= MAX_BATCH:
        raise ValidationFailed.of("events", f"Must list 1 to {MAX_BATCH} events")
    accepted: list[NewEvent] = []
    faults: dict[str, Any] = {}
    for index, one in enumerate(given):
        try:
            accepted.append(_event(call, one, f"events.{index}"))
        except ValidationFailed as error:
            faults |= error.details
    if faults:
        raise ValidationFailed(details=faults)
    answer = await _accept(call, accepted, _each)
    if answer.first_at is not None:
        return repeated(answer.data, answer.first_at)
    return Reply(answer.data, 202, f"Events accepted: {len(accepted)}")


def _each(accepted: Sequence[Accepted], _: Sequence[UUID]) -> list[dict[str, Any]]:
    return [one.to_json() | ({"idempotent": True} if one.duplicate else {}) for one in accepted]


async def _accept(call: Call, accepted: Sequence[NewEvent], render: Any) -> Answer:
    request = Request(accepted, call.organization_id, call.credential.key_id, call.idempotent, render)
    return await call.services.acceptance.accept(request)


def _event(call: Call, value: Any, path: str = "") -> NewEvent:
    """The event in `value`. Raises `ValidationFailed` under `path`."""
    given = inputs.read(EventIn, value, path)
    at = f"{path}." if path else ""
    validate_event_type(given.event_type, f"{at}event_type")
    if given.event_id is not None:
        _check_external_id(given.event_id, f"{at}event_id")
    branch_id = given.branch_id if given.branch_id is not None else call.branch_id
    if branch_id is not None:
        check_label(branch_id, f"{at}branch_id")
    if given.metadata:
        check_metadata(given.metadata, f"{at}metadata")
    event = events.build(
        organization_id=call.organization_id,
        event_type=given.event_type,
        data=given.data,
        occurred_at=given.occurred_at,
        external_id=given.event_id,
        branch_id=branch_id,
        metadata=given.metadata,
    )
    limit = call.services.settings.event_max_bytes
    if path and len(event.payload) - event.data_at > limit:
        raise PayloadTooLarge(f"{path} exceeds {limit} bytes; send a smaller one", details={"max_bytes": limit})
    return event


def _check_external_id(value: str, path: str) -> None:
    if not value or len(value) > MAX_EXTERNAL_ID_CHARS or not value.isprintable():
        raise ValidationFailed.of(path, f"Must be 1 to {MAX_EXTERNAL_ID_CHARS} printable characters")


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.Event)
    conditions, checked = _conditions(call.organization_id, query)
    async with call.transaction() as session:
        return await lists.run(session, query, Event, conditions, views.event, checked=checked)


def _conditions(
    organization_id: UUID, query: lists.ListQuery
) -> tuple[list[ColumnElement[bool]], list[ColumnElement[bool]]]:
    """Those that an index serves, and those that are looked at event by event."""
    checked: list[ColumnElement[bool]] = []
    found: list[ColumnElement[bool]] = [col(Event.organization_id) == organization_id]
    faults: dict[str, list[str]] = {}
    for name, value in query.filters.items():
        try:
            match name:
                case "event_type":
                    found.append(col(Event.event_type) == value)
                case "branch_id":
                    checked.append(col(Event.branch_id) == value)
                case "external_id":
                    found.append(_by_external_id(organization_id, value))
                case "created_after":
                    found.append(col(Event.id) >= ids.lowest_at(selection.moment(value)))
                case "created_before":
                    found.append(col(Event.id) < ids.lowest_at(selection.moment(value)))
                case _:
                    known = "branch_id, created_after, created_before, event_type, external_id"
                    faults[f"filters.{name}"] = [f"There is no such filter; there are: {known}"]
        except ValueError as error:
            faults[f"filters.{name}"] = [str(error)]
    if faults:
        raise ValidationFailed(details=faults)
    return found, checked


def _by_external_id(organization_id: UUID, value: str) -> ColumnElement[bool]:
    """Through the key, which is unique; events themselves have no index for it."""
    key = select(EventKey.event_id).where(EventKey.organization_id == organization_id, EventKey.external_id == value)
    return col(Event.id) == key.scalar_subquery()


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        query = select(Event).where(Event.id == call.path_id(ids.EVENT))
        found = (await session.exec(query.where(Event.organization_id == call.organization_id))).one_or_none()
    if found is None:
        raise _none(call)
    return Reply(views.event_with_data(found))


async def redact(call: Call) -> Reply:
    call.read(Nothing)
    async with call.transaction() as session:
        event_id = call.path_id(ids.EVENT)
        event, is_new = await redaction.redact(session, call.organization_id, event_id)
        if is_new:
            shown = views.event(event)
            call.audit(session, "event.redacted", shown["id"], after={"redacted_at": shown["redacted_at"]})
    call.after_commit(lambda: redaction.finish(call.services.database, event_id))
    return Reply(views.event_with_data(event), message="Event redacted; its record stays, and nothing of it is sent")


async def deliveries(call: Call) -> Reply:
    query = delivery_api.parse_query(call)
    event_id = call.path_id(ids.EVENT)
    async with call.transaction() as session:
        owned = select(Event.id).where(Event.id == event_id, Event.organization_id == call.organization_id)
        if (await session.exec(owned)).one_or_none() is None:
            raise _none(call)
        return await delivery_api.run_query(call, session, query, event_id=ids.show(ids.EVENT, event_id))


def _none(call: Call) -> NotFound:
    return NotFound(f"There is no event {call.request.path_params['id'][:64]}")
