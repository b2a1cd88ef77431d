"""The audit log, for admins: who did what, newest first, narrowed by what stands in the URL."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import urlencode
from uuid import UUID

from starlette.responses import Response

from app import views
from app.admin import changes, delivery_filters, links
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from app.api import audit_log
from core import audit, ids, organizations
from core.access import users
from core.access.models import AuditEntry
from core.errors import NotFound
from core.listing.lists import Walk

FILTERS = (
    Filter.text("actor", "Who", hint="An email, usr_…, key_…"),
    Filter.choice("action", "What", {action: action for action in audit.ACTIONS}),
    Filter.text("resource", "To what", hint="sub_…, usr_…, any id"),
    delivery_filters.ORGANIZATION,
    Filter.time("created_after", "Since"),
    Filter.time("created_before", "Before"),
)


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        filters = await delivery_filters.with_organizations(session, FILTERS)
        query = PageQuery.of(visit, filters, ids.AUDIT_ENTRY)
        if "@" in query.asked.get("actor", ""):
            somebody = await users.find(session, query.asked["actor"])
            query.asked["actor"] = users.shown_id(somebody) if somebody else "nobody"
        page = await query.page(session, _walk)
        names = await organizations.names(session, [row.organization_id for row in page.rows if row.organization_id])
    return visit.render(
        "audit_log/index.html",
        query.status,
        query=query,
        page=page,
        entries=[shown(row, names) for row in page.rows],
    )


async def show(visit: Visit) -> Response:
    async with visit.transaction() as session:
        row = await session.get(AuditEntry, visit.path_id(ids.AUDIT_ENTRY))
        if row is None:
            raise NotFound("There is no such entry in the audit log")
        names = await organizations.names(session, [row.organization_id] if row.organization_id else [])
    return visit.render("audit_log/show.html", entry=shown(row, names))


def shown(row: AuditEntry, names: Mapping[UUID, str] = MappingProxyType({})) -> dict[str, object]:
    """An entry for the templates: as the API has it, and what it links to. `names` of organizations."""
    entry = views.audit_entry(row)
    return entry | {
        "organization": names.get(row.organization_id, "") if row.organization_id else "",
        "moment": ids.time_of(row.id),
        "changes": changes.of(row.before, row.after),
        "resource_path": _path_of(entry),
        "same_resource": f"/audit-log?{urlencode({'resource': row.resource})}",
        "same_actor": f"/audit-log?{urlencode({'actor': row.actor})}",
    }


def _path_of(entry: dict[str, str]) -> str | None:
    """Of the page of what it was done to. An event type has no id but its name."""
    if entry["action"].startswith("event_type.") and entry["organization_id"]:
        return links.event_type(entry["organization_id"], entry["resource"])
    return links.link_of(entry["resource"])


def _walk(asked: dict[str, str]) -> Walk:
    return audit_log.walk(delivery_filters.organization_of(asked), delivery_filters.without_organization(asked))
