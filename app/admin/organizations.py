"""Organizations: the tenants. Everybody sees them; admins make, rename and delete them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from app.actions import organizations as acts
from app.admin import audit_log
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from app.api.audit_log import walk as audit_walk
from core import erasure, ids, organizations, stats
from core.access.models import Role
from core.errors import Conflict, NotFound, ValidationFailed
from core.listing.lists import Paging
from core.models import Organization
from core.storage.database import driver_of

FILTERS = (Filter.text("text", "Name or id"),)
LATEST = 5  # entries of the audit log
DONE = {
    "created": "The organization is made.",
    "renamed": "It has its new name.",
}


async def index(visit: Visit) -> Response:
    query = PageQuery.of(visit, FILTERS, ids.ORGANIZATION)
    async with visit.transaction() as session:
        page = await query.page(session, lambda asked: organizations.walk(asked.get("text", "")))
        counts = await organizations.count_subscriptions(await driver_of(session), [row.id for row in page.rows])
        leaving = await organizations.being_erased(session)
    return visit.render(
        "organizations/index.html",
        query.status,
        query=query,
        page=page,
        organizations=[_listed(row) | {"subscriptions": counts[row.id]} for row in page.rows],
        leaving=[_listed(row) for row in leaving],
        most=organizations.MOST_LISTED,
    )


def _listed(row: Organization) -> dict[str, object]:
    return {"id": ids.show(ids.ORGANIZATION, row.id), "row": row}


async def new(visit: Visit) -> Response:
    return visit.render("organizations/new.html", name=visit.form.text("name"))


async def create(visit: Visit) -> Response:
    name = visit.form.text("name")
    try:
        made = await acts.create(visit, name)
    except ValidationFailed as error:
        return visit.render("organizations/new.html", error.status, name=name, errors=error.details)
    return visit.redirect(f"/organizations/{ids.show(ids.ORGANIZATION, made.id)}?done=created")


async def show(visit: Visit) -> Response:
    return await _page(visit)


async def rename(visit: Visit) -> Response:
    organization_id = visit.path_id(ids.ORGANIZATION)
    try:
        await acts.rename(visit, organization_id, visit.form.text("name"))
    except (ValidationFailed, Conflict) as error:
        errors = error.details if isinstance(error, ValidationFailed) else {"name": [error.message]}
        return await _page(visit, error.status, errors)
    return visit.redirect(f"/organizations/{ids.show(ids.ORGANIZATION, organization_id)}?done=renamed")


async def ask(visit: Visit) -> Response:
    """Before it is deleted: what that means, and its name to be typed."""
    return await _asked(visit)


async def delete(visit: Visit) -> Response:
    organization_id = visit.path_id(ids.ORGANIZATION)
    async with visit.transaction() as session:
        organization = await organizations.get(session, organization_id)
    if visit.form.text("confirm_name").strip() != organization.name:
        return await _asked(visit, 400, {"confirm_name": [f"Type the name as it stands here: {organization.name}"]})
    await acts.delete(visit, organization_id)
    return visit.redirect(f"/organizations/{ids.show(ids.ORGANIZATION, organization_id)}")


async def _asked(visit: Visit, status: int = 200, errors: Mapping[str, Sequence[str]] | None = None) -> Response:
    async with visit.transaction() as session:
        organization = await organizations.get(session, visit.path_id(ids.ORGANIZATION))
        counts = await organizations.count(await driver_of(session), organization.id)
    return visit.render(
        "organizations/delete.html",
        status,
        organization=organization,
        id=ids.show(ids.ORGANIZATION, organization.id),
        counts=counts,
        most=organizations.MOST_COUNTED,
        errors=errors or {},
    )


async def _page(visit: Visit, status: int = 200, errors: Mapping[str, Sequence[str]] | None = None) -> Response:
    organization_id = visit.path_id(ids.ORGANIZATION)
    async with visit.transaction() as session:
        try:
            organization = await organizations.find(session, organization_id)
        except NotFound:
            rows = await erasure.last_word(session, organization_id)
            if rows is None:
                raise
            return _erasure(visit, None, rows)
        if organization.deleted_at is not None:
            return _erasure(visit, organization, organization.erased or {})
        driver = await driver_of(session)
        day = await stats.figures(driver, organization_id, None, datetime.now(UTC) - timedelta(days=1))
        counts = await organizations.count(driver, organization_id)
        latest = []
        if visit.may(Role.ADMIN):
            latest = list((await audit_walk(organization_id, {}).page(session, Paging(LATEST))).rows)
    return visit.render(
        "organizations/show.html",
        status,
        organization=organization,
        id=ids.show(ids.ORGANIZATION, organization_id),
        given=visit.form.text("name") if errors else organization.name,
        day=day,
        counts=counts,
        most=organizations.MOST_COUNTED,
        latest=[audit_log.shown(row) for row in latest],
        done=DONE,
        errors=errors or {},
    )


def _erasure(visit: Visit, organization: Organization | None, rows: Mapping[str, int]) -> Response:
    return visit.render(
        "organizations/erasure.html",
        id=visit.request.path_params["id"],
        organization=organization,
        rows=sorted(rows.items()),
        total=sum(rows.values()),
    )
