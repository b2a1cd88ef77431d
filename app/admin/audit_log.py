"""The audit log, for admins: who did what, newest first, narrowed by what stands in the URL."""

from __future__ import annotations

from urllib.parse import urlencode
from uuid import UUID

import orjson
from starlette.responses import Response

from app import views
from app.admin.visit import Visit
from app.api import audit_log
from app.api.lists import ListQuery
from core import ids
from core.errors import InvalidId, ValidationFailed
from core.models_access import AuditEntry

PAGE_SIZE = 50
FILTERS = {
    "actor": ("Who", "usr_…, key_… or worker"),
    "action": ("What", "such as subscription.updated"),
    "resource": ("To what", "sub_…, usr_… or another id"),
    "organization": ("Whose", "org_…"),
    "created_after": ("Since", "such as 2026-01-28T10:00:00Z"),
    "created_before": ("Before", "such as 2026-01-29T00:00:00Z"),
}


async def index(visit: Visit) -> Response:
    asked = visit.request.query_params
    given = {name: asked.get(name, "").strip() for name in (*FILTERS, "after")}
    chosen = {name: given[name] for name in FILTERS if given[name] and name != "organization"}
    rows: list[AuditEntry] = []
    older = None
    errors: dict[str, list[str]] = {}
    try:
        organization_id = _id(given, "organization", ids.ORGANIZATION)
        walk = audit_log.walk(organization_id, chosen)
        query = ListQuery(PAGE_SIZE, _id(given, "after", ids.AUDIT_ENTRY), None, True, chosen, [], frozenset())
        async with visit.services.database.session() as session:
            page = await walk.page(session, query)
        rows = list(page.rows)
        edge = rows[-1].id if page.more else page.edge
        if edge is not None:
            kept = {name: value for name, value in given.items() if value and name != "after"}
            older = f"{visit.request.scope['path']}?{urlencode(kept | {'after': ids.show(ids.AUDIT_ENTRY, edge)})}"
    except ValidationFailed as error:
        errors = {name.removeprefix("filters."): said for name, said in error.details.items()}
    return visit.render(
        "audit_log/index.html",
        400 if errors else 200,
        entries=[_shown(row) for row in rows],
        filters=FILTERS,
        given=given,
        is_narrowed=any(given.values()),
        older=older,
        errors=errors,
    )


def _id(given: dict[str, str], name: str, prefix: str) -> UUID | None:
    try:
        return ids.parse(prefix, given[name]) if given[name] else None
    except InvalidId as error:
        raise ValidationFailed.of(name, error.message) from None


def _shown(row: AuditEntry) -> dict[str, object]:
    return views.audit_entry(row) | {
        "moment": ids.time_of(row.id),
        "changes": [
            (word, orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
            for word, value in (("before", row.before), ("after", row.after))
            if value
        ],
    }
