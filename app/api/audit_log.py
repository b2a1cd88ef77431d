"""The audit log as a list, and as a whole in JSON lines. Who writes it is `core.audit`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement
from sqlmodel import col

from app import views
from app.api import answers, authentication, lists
from app.api.calls import Call
from app.api.lists import ListQuery
from app.api.replies import Lines, Reply
from core import ids, jsontext, organizations
from core.access.models import AuditEntry
from core.errors import ValidationFailed
from core.listing import lists as core_lists
from core.listing import selection
from core.listing.lists import Walk
from core.storage.database import Database

EXPORT_PAGE = 500  # entries in memory at once
_FILTERS: Mapping[str, Callable[[str], ColumnElement[bool]]] = {
    "actor": lambda value: col(AuditEntry.actor) == value,
    "action": lambda value: col(AuditEntry.action).in_(value.split(",")),
    "resource": lambda value: col(AuditEntry.resource) == value,
    "created_after": lambda value: col(AuditEntry.id) >= ids.lowest_at(selection.moment(value)),
    "created_before": lambda value: col(AuditEntry.id) < ids.lowest_at(selection.moment(value)),
}


def walk(organization_id: UUID | None, filters: Mapping[str, str]) -> Walk:
    """The entries of one organization, or of the whole installation. Raises `ValidationFailed` that names an unknown
    filter or a wrong value."""
    found: dict[str, ColumnElement[bool]] = {}
    faults: dict[str, list[str]] = {}
    for name, value in filters.items():
        if name not in _FILTERS:
            faults[f"filters.{name}"] = [f"There is no such filter; there are: {', '.join(sorted(_FILTERS))}"]
            continue
        try:
            found[name] = _FILTERS[name](value)
        except ValueError as error:
            faults[f"filters.{name}"] = [str(error)]
    if faults:
        raise ValidationFailed(details=faults)
    if organization_id is not None:
        found["organization"] = col(AuditEntry.organization_id) == organization_id
    walked = [found.pop(name) for name in ("created_after", "created_before") if name in found]
    # What has an index, the narrowest first. The rest is looked at entry by entry.
    by = next((name for name in ("resource", "actor", "organization") if name in found), None)
    if by is not None:
        walked.append(found.pop(by))
    return Walk(AuditEntry, walked, list(found.values()), core_lists.REACH)


async def _chosen(call: Call, query: ListQuery) -> Walk:
    """A key of the platform sees the whole installation, or what it names in `X-Organization-ID`."""
    organization_id = call.credential.organization_id
    if organization_id is not None or "x-organization-id" in call.headers:
        organization_id = authentication.organization_of(call.headers, call.credential)
        async with call.transaction() as session:
            await organizations.get(session, organization_id)
    return walk(organization_id, query.filters)


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.AuditEntry)
    chosen = await _chosen(call, query)
    async with call.transaction() as session:
        page = await chosen.page(session, query)
    return lists.answer(query, page, [views.audit_entry(row) for row in page.rows])


async def export(call: Call) -> Lines:
    query = lists.parse(call.request, answers.AuditEntry)
    if paged := {"limit", "after_key", "page", "pageSize"} & set(call.request.query_params):
        raise ValidationFailed(details={name: ["An export is whole; narrow it by filters"] for name in paged})
    chosen = await _chosen(call, query)
    return Lines(_none() if call.request.method == "HEAD" else lines(call.services.database, chosen, query))


async def _none() -> AsyncIterator[bytes]:
    nothing: list[bytes] = []
    for line in nothing:
        yield line


async def lines(database: Database, chosen: Walk, query: ListQuery) -> AsyncIterator[bytes]:
    """An entry a line, up to those of now. A page at a time, each in a transaction of its own: a slow reader holds up
    nobody, and costs no more memory than a quick one."""
    until = col(AuditEntry.id) < ids.new_id()
    chosen = replace(chosen, walked=[*chosen.walked, until])
    following: ListQuery | None = replace(query, limit=EXPORT_PAGE, page=None)
    while following is not None:
        async with database.session() as session:
            page = await chosen.page(session, following)
        shown: list[Mapping[str, Any]] = [
            lists.choose_fields(views.audit_entry(row), query.fields) for row in page.rows
        ]
        if shown:
            yield b"".join(jsontext.dumps(one) + b"\n" for one in shown)
        edge = page.rows[-1].id if page.more else page.edge
        following = None if edge is None else replace(following, after=edge)
