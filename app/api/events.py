"""Events: accepting them, one or many, and looking at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from app import views
from app.actions import events as actions
from app.api import answers, body, inputs, lists
from app.api import deliveries as delivery_api
from app.api.calls import Call, repeated
from app.api.fields import MAX_BATCH, MAX_EXTERNAL_ID_CHARS
from app.api.inputs import BatchIn, CopyIn, EventIn, Nothing
from app.api.replies import Reply
from core import events, ids
from core.acceptance import Answer, Request
from core.errors import PayloadTooLarge, ValidationFailed
from core.events import Accepted, NewEvent
from core.listing import event_lists
from core.matching.patterns import validate_event_type
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
    async with call.transaction() as session:
        page = await event_lists.Events(call.organization_id, query.filters).page(session, query)
    return lists.answer(query, page, [views.event(row) for row in page.rows])


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        found = await event_lists.get(session, call.organization_id, call.path_id(ids.EVENT))
    return Reply(views.event_with_data(found))


async def redact(call: Call) -> Reply:
    call.read(Nothing)
    event = await actions.redact(call, call.organization_id, call.path_id(ids.EVENT))
    return Reply(views.event_with_data(event), message="Event redacted; its record stays, and nothing of it is sent")


async def copy(call: Call) -> Reply:
    given = call.read(CopyIn)
    answer = await actions.copy(
        call,
        call.organization_id,
        call.path_id(ids.EVENT),
        given.data,
        api_key_id=call.credential.key_id,
        idempotent=call.idempotent,
    )
    if answer.first_at is not None:
        return repeated(answer.data, answer.first_at)
    return Reply(answer.data, 202, "Event accepted, with the data given")


async def deliveries(call: Call) -> Reply:
    query = delivery_api.parse_query(call)
    event_id = call.path_id(ids.EVENT)
    async with call.transaction() as session:
        await event_lists.get(session, call.organization_id, event_id)
        return await delivery_api.run_query(call, session, query, event_id=ids.show(ids.EVENT, event_id))
