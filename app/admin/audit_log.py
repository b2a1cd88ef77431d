"""The audit log, for admins: who did what, newest first, narrowed by what stands in the URL."""

from __future__ import annotations

from starlette.responses import Response

from app import views
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from app.api import audit_log
from core import ids
from core.lists import Walk
from core.models_access import AuditEntry

FILTERS = (
    Filter.text("actor", "Who", hint="usr_…, key_…, worker"),
    Filter.text("action", "What", hint="subscription.updated"),
    Filter.text("resource", "To what", hint="sub_…, usr_…, any id"),
    Filter.of_id("organization", "Whose", ids.ORGANIZATION),
    Filter.time("created_after", "Since"),
    Filter.time("created_before", "Before"),
)


async def index(visit: Visit) -> Response:
    query = PageQuery.of(visit, FILTERS, ids.AUDIT_ENTRY)
    async with visit.transaction() as session:
        page = await query.page(session, _walk)
    return visit.render(
        "audit_log/index.html", query.status, query=query, page=page, entries=[_shown(row) for row in page.rows]
    )


def _walk(asked: dict[str, str]) -> Walk:
    whose = asked.get("organization")
    filters = {name: value for name, value in asked.items() if name != "organization"}
    return audit_log.walk(ids.parse(ids.ORGANIZATION, whose) if whose else None, filters)


def _shown(row: AuditEntry) -> dict[str, object]:
    return views.audit_entry(row) | {
        "moment": ids.time_of(row.id),
        "changes": [(word, value) for word, value in (("before", row.before), ("after", row.after)) if value],
    }
