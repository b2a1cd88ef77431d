"""API keys, for admins: those of organizations, and those of the platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from starlette.responses import Response

from app.actions import api_keys as acts
from app.admin import delivery_filters
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from core import ids, organizations
from core.access import api_keys
from core.errors import Conflict, InvalidId, NotFound, ValidationFailed
from core.listing.lists import Walk
from core.models import ApiKey, RateTier

# What each scope lets a program do. Those that a partner's key needs stand first.
SCOPES = {
    api_keys.EVENTS_WRITE: "post events, redact them, and keep the catalogue of event types",
    api_keys.EVENTS_READ: "read events and the catalogue",
    api_keys.SUBSCRIPTIONS_READ: "read subscriptions, their health and circuit breakers",
    api_keys.SUBSCRIPTIONS_WRITE: "make, change, pause and delete subscriptions, and see their secrets",
    api_keys.DELIVERIES_READ: "read deliveries, attempts, replays and figures",
    api_keys.DELIVERIES_REPLAY: "replay and discard deliveries",
    api_keys.ORGANIZATIONS_ADMIN: "manage organizations and API keys, and read the audit log",
}
PLATFORM = "platform"
KINDS = {PLATFORM: "platform keys"}
STATES = {"live": "hold", "revoked": "revoked"}
FILTERS = (
    delivery_filters.ORGANIZATION,
    Filter.choice("kind", "Kind", KINDS),
    Filter.choice("state", "State", STATES),
)
DONE = {"changed": "It is changed.", "revoked": "It is revoked: whoever uses it is refused from now on."}


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        filters = await delivery_filters.with_organizations(session, FILTERS)
        query = PageQuery.of(visit, filters, ids.API_KEY)
        page = await query.page(session, _walk)
        names = await organizations.names(session, [row.organization_id for row in page.rows if row.organization_id])
    return visit.render(
        "api_keys/index.html",
        query.status,
        query=query,
        page=page,
        keys=[_shown(row, names) for row in page.rows],
        organization=query.asked.get("organization", ""),
    )


def _walk(asked: dict[str, str]) -> Walk:
    return api_keys.walk(
        delivery_filters.organization_of(asked),
        platform=bool(asked.get("kind")),
        revoked={"live": False, "revoked": True}.get(asked.get("state", "")),
    )


def _shown(row: ApiKey, names: Mapping[UUID, str]) -> dict[str, object]:
    return {
        "id": ids.show(ids.API_KEY, row.id),
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id) if row.organization_id else None,
        "organization": names.get(row.organization_id, "") if row.organization_id else "",
        "row": row,
    }


async def new(visit: Visit) -> Response:
    return await _form(visit, visit.request.query_params.get("organization", ""))


async def create(visit: Visit) -> Response:
    """Shows the key in the answer to the form itself: there is no second time."""
    form = visit.form
    whose = form.text("organization")
    try:
        organization_id = await _owner(visit, whose)
        key, text = await acts.create(
            visit, organization_id, name=form.text("name"), scopes=form.texts("scopes"), tier=form.text("tier")
        )
    except ValidationFailed as error:
        return await _form(visit, whose, error.status, error.details)
    except Conflict as error:
        return await _form(visit, whose, error.status, {"": [error.message]})
    return visit.render(
        "api_keys/created.html",
        key=key,
        text=text,
        id=ids.show(ids.API_KEY, key.id),
        organization=whose,
        public_url=visit.public_url,
        can_post=api_keys.EVENTS_WRITE in key.scopes,
    )


async def _owner(visit: Visit, whose: str) -> UUID | None:
    """None for the platform. Raises `ValidationFailed` where it is no organization that is there."""
    if whose == PLATFORM:
        return None
    try:
        async with visit.transaction() as session:
            return (await organizations.get(session, ids.parse(ids.ORGANIZATION, whose.strip()))).id
    except (InvalidId, NotFound):
        raise ValidationFailed.of("organization", "Must be the id of an organization, org_…, or platform") from None


async def _form(
    visit: Visit, whose: str, status: int = 200, errors: Mapping[str, Sequence[str]] | None = None
) -> Response:
    form = visit.form
    name = ""
    try:
        async with visit.transaction() as session:
            name = (await organizations.get(session, ids.parse(ids.ORGANIZATION, whose.strip()))).name
    except (InvalidId, NotFound):
        pass
    is_platform = whose == PLATFORM
    return visit.render(
        "api_keys/new.html",
        status,
        organization=whose,
        organization_name=name,
        is_platform=is_platform,
        scopes={
            scope: means for scope, means in SCOPES.items() if is_platform or scope in api_keys.ORGANIZATION_SCOPES
        },
        tiers=tiers(visit),
        given={
            "name": form.text("name"),
            "scopes": form.texts("scopes") if status != 200 else list(SCOPES),
            "tier": form.text("tier") or RateTier.DEFAULT,
        },
        errors=errors or {},
    )


def tiers(visit: Visit) -> dict[str, str]:
    """What each tier allows, as the settings have it."""
    settings = visit.services.settings
    return {tier: f"{tier}: {allowance(getattr(settings, f'rate_limit_{tier}'))}" for tier in RateTier}


def allowance(rate: str) -> str:
    """`1000/100` in words."""
    if rate == "off":
        return "no limit"
    per_minute, burst = rate.split("/")
    return f"{int(per_minute):,} requests a minute, {int(burst):,} at once"


async def show(visit: Visit) -> Response:
    return await _page(visit)


async def update(visit: Visit) -> Response:
    key_id, form = visit.path_id(ids.API_KEY), visit.form
    try:
        await acts.update(visit, key_id, None, name=form.text("name"), tier=form.text("tier"))
    except ValidationFailed as error:
        return await _page(visit, error.status, error.details)
    return visit.redirect(f"/api-keys/{ids.show(ids.API_KEY, key_id)}?done=changed")


async def revoke(visit: Visit) -> Response:
    key_id = visit.path_id(ids.API_KEY)
    await acts.revoke(visit, key_id, None)
    return visit.redirect(f"/api-keys/{ids.show(ids.API_KEY, key_id)}?done=revoked")


async def _page(visit: Visit, status: int = 200, errors: Mapping[str, Sequence[str]] | None = None) -> Response:
    async with visit.transaction() as session:
        row = await api_keys.find(session, visit.path_id(ids.API_KEY))
        names = await organizations.names(session, [row.organization_id] if row.organization_id else [])
    form = visit.form
    return visit.render(
        "api_keys/show.html",
        status,
        key=_shown(row, names),
        row=row,
        scopes={scope: SCOPES.get(scope, "") for scope in row.scopes},
        tiers=tiers(visit),
        given={"name": form.text("name"), "tier": form.text("tier")}
        if errors
        else {"name": row.name, "tier": row.tier},
        done=DONE,
        errors=errors or {},
    )
