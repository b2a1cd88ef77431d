"""Events: the list, one with its body and its deliveries, and sending it again with another payload."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from app.actions import events as actions
from app.admin import attempts, contents, delivery_filters, differences, json_text
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from core import idempotency, ids, jsontext, organizations
from core.errors import Conflict, HookwrightError, NotFound, Unavailable, ValidationFailed
from core.listing import delivery_lists, event_lists, labels, lists
from core.listing.event_lists import Events
from core.models import Event
from core.states import State

FILTERS = (
    delivery_filters.TEXT,
    Filter.text("event_type", "Event type"),
    delivery_filters.ORGANIZATION,
    Filter.text("branch_id", "Branch"),
    Filter.time("created_after", "Since"),
    Filter.time("created_before", "Before"),
)
MAX_DELIVERIES = 100  # that the page of an event lists; the list of deliveries has the rest
MAX_COPIES = 20
MAX_LAID_OUT = 4  # times its size that the text to edit may take, laid out over lines; else it stays as it is
UNKNOWN = "It was not stored in time. Send it again from here: should it be stored all the same, it is not sent twice."
DONE = {
    "redacted": "Its content is removed. What receivers got stays with them.",
    "sent": "Accepted. Its deliveries are on their way.",
}


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        query = PageQuery.of(visit, await delivery_filters.with_organizations(session, FILTERS), ids.EVENT)
        page = await query.page(session, _chosen)
        count = None if query.errors else await _chosen(query.asked).count(session)
        shown = await labels.of_rows(session, page.rows)
    return visit.render(
        "events/index.html",
        query.status,
        query=query,
        page=page,
        count=count,
        most=lists.MAX_COUNTED,
        labels=shown,
        is_live=page.newest is None and not query.errors and "text" not in query.asked,  # searching is no light work
    )


def _chosen(asked: dict[str, str]) -> Events:
    return Events(delivery_filters.organization_of(asked), delivery_filters.without_organization(asked))


async def show(visit: Visit) -> Response:
    event = await _find(visit)
    async with visit.transaction() as session:
        organization = await organizations.get(session, event.organization_id)
        deliveries = await delivery_lists.siblings(session, event.id, MAX_DELIVERIES + 1)
        shown = await labels.of_rows(session, deliveries)
        copies = await event_lists.copies(session, event, MAX_COPIES)
    return visit.render(
        "events/show.html",
        event=event,
        id=ids.show(ids.EVENT, event.id),
        organization=organization,
        accepted_at=ids.time_of(event.id),
        body=None if event.redacted_at else contents.of(_data(event)),
        metadata=contents.of(event.metadata_.encode()) if event.metadata_ else None,
        deliveries=deliveries[:MAX_DELIVERIES],
        is_live=any(one.state in (State.PENDING, State.SENDING) for one in deliveries),
        has_more=len(deliveries) > MAX_DELIVERIES,
        labels=shown,
        copies=copies,
        again=_again(event),
        done=DONE,
    )


def _again(event: Event) -> str:
    """The preview of sending it again to all that it went to."""
    organization, shown = ids.show(ids.ORGANIZATION, event.organization_id), ids.show(ids.EVENT, event.id)
    states = "delivered,dead,discarded,pending"
    return f"/replays/new?{urlencode({'organization': organization, 'event': shown, 'status': states}, safe=',')}"


async def body(visit: Visit) -> Response:
    """The bytes of its default body, as a file."""
    event = await _find(visit)
    if event.redacted_at is not None:
        raise NotFound("The event was redacted, so there is no body.")
    return attempts.download(event.payload, f"{ids.show(ids.EVENT, event.id)}.json")


async def redact(visit: Visit) -> Response:
    event = await _find(visit)
    await actions.redact(visit, event.organization_id, event.id)
    return visit.redirect(f"/events/{ids.show(ids.EVENT, event.id)}?done=redacted")


async def edit(visit: Visit) -> Response:
    event = await _editable(visit)
    return await _form(visit, event, Draft(_to_edit(event)))


@dataclass(frozen=True, slots=True)
class Draft:
    """What somebody made of an event's data, and what is wrong with it. `lines`: how it differs, once it was looked
    at; None where there is too much to compare. `key`: under which it was sent already, where nobody knows whether it
    was stored: sent again under the same, it is stored once."""

    text: str
    error: str = ""
    status: int = 200
    is_checked: bool = False
    lines: list[differences.Line] | None = None
    key: str = ""


async def copy(visit: Visit) -> Response:
    """First shows what differs, then, from there, sends it."""
    event = await _editable(visit)
    text = visit.form.text("data").replace("\r\n", "\n")  # as browsers send line ends (WHATWG HTML, "multipart/...")
    key = visit.form.text("key")
    try:
        data = _read(text)
        if visit.form.text("step") != "send":
            return await _form(visit, event, Draft(text, is_checked=True, lines=_lines(event, data)))
        answer = await actions.copy(
            visit,
            event.organization_id,
            event.id,
            data,
            api_key_id=None,
            idempotent=idempotency.call(event.organization_id, "POST", visit.request.scope["path"], key, text.encode()),
        )
    except Unavailable as error:
        draft = Draft(text, UNKNOWN, error.status, is_checked=True, lines=_lines(event, data), key=key)
        return await _form(visit, event, draft)
    except HookwrightError as error:
        return await _form(visit, event, Draft(text, _said(error), error.status))
    return visit.redirect(f"/events/{answer.data['event_id']}?done=sent")


def _lines(event: Event, data: dict[str, Any]) -> list[differences.Line] | None:
    return differences.lines(_to_edit(event), _laid_out(jsontext.dumps(data).decode()))


def _read(text: str) -> dict[str, Any]:
    data = jsontext.loads(text.encode())
    if not isinstance(data, dict):
        raise ValidationFailed("The data must be a JSON object, as { … }")
    return data


def _said(error: HookwrightError) -> str:
    faults = [said for value in error.details.values() if isinstance(value, list) for said in value]
    return f"This is not valid JSON: {'; '.join(faults)}" if faults else error.message


async def _find(visit: Visit) -> Event:
    async with visit.transaction() as session:
        event = await event_lists.get(session, None, visit.path_id(ids.EVENT))
        await organizations.get(session, event.organization_id)  # which may be being erased
    return event


async def _editable(visit: Visit) -> Event:
    event = await _find(visit)
    if event.redacted_at is not None:
        raise Conflict("The event was redacted, so there is nothing left to send.")
    return event


async def _form(visit: Visit, event: Event, draft: Draft) -> Response:
    return visit.render(
        "events/copy.html",
        draft.status,
        event=event,
        id=ids.show(ids.EVENT, event.id),
        draft=draft,
        key=draft.key or secrets.token_hex(16),  # what sends it twice by mistake sends it once
        errors={"data": [draft.error]} if draft.error else {},
    )


def _data(event: Event) -> bytes:
    return event.payload[event.data_at : -1]


def _to_edit(event: Event) -> str:
    return _laid_out(_data(event).decode())


def _laid_out(text: str) -> str:
    laid_out = json_text.pretty(text, max(MAX_LAID_OUT * len(text), contents.MAX_SHOWN)) or text
    return json_text.typeable(laid_out)
