"""Event types: the catalogue of an organization, which everybody reads and admins keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from starlette.responses import Response

from app.actions import event_types as acts
from app.admin import delivery_filters, links, wording
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from core import event_types, ids, jsontext, organizations
from core.errors import Conflict, InvalidId, NotFound, ValidationFailed
from core.listing.lists import Walk
from core.models import EventType

FILTERS = (Filter.text("text", "Name"), delivery_filters.ORGANIZATION)
DONE = {"created": "It is in the catalogue.", "changed": "It is changed.", "deleted": "It is out of the catalogue."}
MOST_SHOWN = 20  # subscriptions, of those that are asked about a type
JSON_FIELDS = ("schema", "example")


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        filters = await delivery_filters.with_organizations(session, FILTERS)
        query = PageQuery.of(visit, filters, PREFIX)
        page = await query.page(session, _walk)
        names = await organizations.names(session, {row.organization_id for row in page.rows})
    return visit.render(
        "event_types/index.html",
        query.status,
        query=query,
        page=page,
        types=[
            _shown(row) | {"organization": names.get(row.organization_id, ""), "events": _events(row)}
            for row in page.rows
        ],
        organization=query.asked.get("organization", ""),
        done=DONE,
    )


PREFIX = "typ"  # of cursors in the URL alone: people know a type by its name


def _walk(asked: dict[str, str]) -> Walk:
    return event_types.walk(delivery_filters.organization_of(asked), asked.get("text", ""))


def _shown(row: EventType) -> dict[str, object]:
    organization_id = ids.show(ids.ORGANIZATION, row.organization_id)
    return {
        "row": row,
        "organization_id": organization_id,
        "path": links.event_type(organization_id, row.name),
    }


def _events(row: EventType) -> str:
    chosen = {"organization": ids.show(ids.ORGANIZATION, row.organization_id), "event_type": row.name}
    return f"/events?{urlencode(chosen)}"


async def new(visit: Visit) -> Response:
    return await _form(visit, visit.request.query_params.get("organization", ""))


async def create(visit: Visit) -> Response:
    form = visit.form
    whose = form.text("organization")
    try:
        given = _given(visit)
        async with visit.transaction() as session:
            organization = await organizations.get(session, _organization_id(whose))
        row = await acts.create(visit, organization.id, name=form.text("name").strip(), **given)
    except ValidationFailed as error:
        return await _form(visit, whose, error.status, error.details)
    except NotFound as error:
        return await _form(visit, whose, 400, {"organization": [error.message]})
    except Conflict as error:
        return await _form(visit, whose, error.status, {"name": [error.message]})
    return visit.redirect(f"{_shown(row)['path']}?done=created")


async def _form(
    visit: Visit, whose: str, status: int = 200, errors: Mapping[str, Sequence[str]] | None = None
) -> Response:
    name = ""
    try:
        async with visit.transaction() as session:
            name = (await organizations.get(session, _organization_id(whose))).name
    except (ValidationFailed, NotFound):
        pass
    form = visit.form
    return visit.render(
        "event_types/new.html",
        status,
        organization=whose,
        organization_name=name,
        given={field: form.text(field) for field in ("name", "description", *JSON_FIELDS)},
        errors=errors or {},
    )


def _organization_id(text: str) -> UUID:
    try:
        return ids.parse(ids.ORGANIZATION, text.strip())
    except InvalidId:
        raise ValidationFailed.of("organization", "Must be the id of an organization, as org_…") from None


def _given(visit: Visit) -> dict[str, Any]:
    """Raises `ValidationFailed` where a text that must be JSON is none, naming each."""
    faults: dict[str, list[str]] = {}
    given: dict[str, Any] = {"description": visit.form.text("description").replace("\r\n", "\n")}
    for field in JSON_FIELDS:
        text = visit.form.text(field).strip()
        try:
            given[field] = jsontext.loads(text.encode()) if text else None
        except ValidationFailed as error:
            faults[field] = [f"Must be JSON: {'; '.join(said for all_ in error.details.values() for said in all_)}"]
        else:
            if given[field] is not None and not isinstance(given[field], dict):
                faults[field] = ["Must be a JSON object, in { }"]
    if faults:
        raise ValidationFailed(details=faults)
    return given


async def show(visit: Visit) -> Response:
    return await _page(visit)


async def update(visit: Visit) -> Response:
    organization_id, name = _of_path(visit)
    try:
        await acts.update(visit, organization_id, name, _given(visit))
    except ValidationFailed as error:
        return await _page(visit, error.status, error.details)
    return visit.redirect(f"{links.event_type(ids.show(ids.ORGANIZATION, organization_id), name)}?done=changed")


async def delete(visit: Visit) -> Response:
    organization_id, name = _of_path(visit)
    await acts.delete(visit, organization_id, name)
    whose = ids.show(ids.ORGANIZATION, organization_id)
    return visit.redirect(f"/event-types?{urlencode({'organization': whose, 'done': 'deleted'})}")


def _of_path(visit: Visit) -> tuple[UUID, str]:
    return visit.path_id(ids.ORGANIZATION, "organization"), visit.request.path_params["name"]


async def _page(visit: Visit, status: int = 200, errors: Mapping[str, Sequence[str]] | None = None) -> Response:
    organization_id, name = _of_path(visit)
    async with visit.transaction() as session:
        organization = await organizations.get(session, organization_id)
        row = await event_types.get(session, organization_id, name)
        asked = await event_types.subscribers(session, organization_id, row.name)
    stored = {"description": row.description, "schema": _pretty(row.schema_), "example": _pretty(row.example)}
    return visit.render(
        "event_types/show.html",
        status,
        type=_shown(row),
        row=row,
        organization=organization,
        events=_events(row),
        subscribers=[(ids.show(ids.SUBSCRIPTION, one.id), one) for one in asked.found[:MOST_SHOWN]],
        count=len(asked.found),
        all_were_seen=asked.all_were_seen,
        most_looked_at=event_types.MOST_LOOKED_AT,
        given={field: visit.form.text(field) for field in stored} if errors else stored,
        done=DONE,
        errors=errors or {},
    )


def _pretty(value: dict[str, Any] | None) -> str:
    return "" if value is None else wording.pretty(value)
