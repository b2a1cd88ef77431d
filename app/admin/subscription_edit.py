"""Making and changing a subscription, with a live check of what it would have matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from starlette.responses import Response

from app.actions import subscriptions as actions
from app.admin import subscription_words as words
from app.admin.delivery_filters import MAX_OPTIONS
from app.admin.subscription_form import Faults, Filled
from app.admin.subscriptions import find, path_of, show_secrets
from app.admin.visit import Visit
from core import ids, organizations, payloads, subscriptions
from core.errors import Conflict, InvalidId, Unavailable, ValidationFailed
from core.limiting.breaker import BreakerSettings
from core.limiting.limits import Limits
from core.matching import subscription_checks
from core.matching.subscription_checks import Checked, Outcome
from core.models import Organization, Subscription
from core.retry import STRATEGIES
from core.secrets import signing

CHANGED = (
    "Somebody changed it meanwhile. What they changed and you did not is taken over; where both did, theirs stands"
    " beside yours. Nothing is saved yet."
)
STRATEGY_WORDS = {
    "exponential": "exponential: each delay a multiple of the one before",
    "linear": "linear: each delay longer by the same",
    "fixed": "fixed: always the same delay",
    "schedule": "schedule: a list of delays",
}


async def new(visit: Visit) -> Response:
    return await _form(visit, Filled.new())


async def create(visit: Visit) -> Response:
    filled = Filled.came(visit.form, [], is_new=True)
    if visit.form.text("check"):
        return await _form(visit, filled, checks=True)
    values = filled.values({})
    organization_id = _organization_id(visit)
    filled.refuse(subscriptions.faults_in_new(visit.services.rules, values))
    if organization_id is None:
        filled.faults["organization"] = ["Choose the organization that it belongs to"]
    if filled.faults or organization_id is None:
        return await _form(visit, filled, ValidationFailed.status)
    try:
        row, _ = await actions.create(visit, organization_id, values)
    except Conflict as error:  # it has as many as it may
        return await _form(visit, filled, error.status, problem=error.message)
    async with visit.transaction() as session:
        secrets = await subscriptions.live_secrets(session, row.id, row.created_at)
    sealer = visit.services.sealer
    opened = [(one, subscriptions.open_secret(sealer, one.id, one.sealed)) for one in secrets]
    return show_secrets(visit, row, "created", opened)


async def edit(visit: Visit) -> Response:
    row = await find(visit)
    return await _form(visit, Filled.of(row, list(actions.headers_of(visit, row))), row=row)


async def save(visit: Visit) -> Response:
    row = await find(visit)
    stored = actions.headers_of(visit, row)
    filled = Filled.came(visit.form, list(stored))
    if visit.form.text("check"):
        return await _form(visit, filled, row=row, checks=True, version=visit.form.text("version"))
    values = filled.values(stored)
    filled.refuse(subscriptions.faults_in_change(visit.services.rules, values))
    try:
        visit.check_version(row.version)
        if filled.faults:
            return await _form(visit, filled, ValidationFailed.status, row=row)
        await actions.update(visit, row.organization_id, row.id, values)
    except Conflict as error:
        current = await find(visit)
        if visit.form.text("version") == str(current.version):  # something else stands against it
            return await _form(visit, filled, error.status, row=current, problem=error.message)
        filled.merge(Filled.of(current, list(actions.headers_of(visit, current))))
        return await _form(visit, filled, error.status, row=current, problem=CHANGED)
    return visit.redirect(f"{path_of(row)}?done=saved")


async def check(visit: Visit) -> Response:
    """The part of the form that says what would have matched, while somebody types."""
    filled = Filled.came(visit.form, [], is_new=True)
    return visit.render(
        "subscriptions/_check.html", is_checked=False, **await _checked(visit, filled, _organization_id(visit))
    )


async def _checked(visit: Visit, filled: Filled, organization_id: UUID | None) -> dict[str, Any]:
    """What the check says: either a result or why there is none."""
    filters, events = filled.filters(), filled.events
    faults: Faults = {name: said for name, said in filled.faults.items() if name == "filters"}
    found: Checked | None = None
    busy = ""
    if events and not faults:
        wrong = subscriptions.faults_in_change(visit.services.rules, {"events": events, "filters": filters})
        told = Filled(filled.given)
        told.refuse(wrong)
        faults = told.faults
    if organization_id is not None and events and not faults:
        try:
            found = await visit.services.checks.check(organization_id, events, filters)
        except Unavailable as error:
            busy = error.message
    return {
        "check_faults": faults,
        "check_busy": busy,
        "has_events": bool(events),
        "checked": found,
        "seen": [] if found is None else [_seen(one) for one in found.seen],
    }


def _seen(one: subscription_checks.Seen) -> dict[str, Any]:
    why = {
        Outcome.MATCHED: "",
        Outcome.OTHER_TYPE: "No pattern matches its type",
        Outcome.UNDECIDED: "It holds more than a filter may look at, so it would not have been sent",
    }.get(one.outcome, "")
    condition = ""
    if one.mismatch is not None:
        condition = one.mismatch.condition.removeprefix("filters.")
        why = f"is {words.found(one.mismatch.found)}" if one.mismatch.found else "does not hold"
    return {
        "id": ids.show(ids.EVENT, one.event_id),
        "type": one.event_type,
        "at": ids.time_of(one.event_id),
        "is_matched": one.outcome is Outcome.MATCHED,
        "condition": condition,
        "why": why,
    }


def _organization_id(visit: Visit) -> UUID | None:
    given = visit.form.text("organization") or visit.request.query_params.get("organization", "")
    try:
        return ids.parse(ids.ORGANIZATION, given.strip())
    except InvalidId:
        return None


async def _form(
    visit: Visit,
    filled: Filled,
    status: int = 200,
    *,
    row: Subscription | None = None,
    version: str = "",
    problem: str = "",
    checks: bool = False,
) -> Response:
    organization_id = row.organization_id if row is not None else _organization_id(visit)
    every: list[Organization] = []
    organization: Organization | None = None
    known: list[str] = []
    async with visit.transaction() as session:
        if organization_id is not None:
            organization = await organizations.get(session, organization_id)
        else:
            every = list(await organizations.oldest(session, MAX_OPTIONS + 1))
    if organization is not None:
        async with visit.services.database.driver() as driver:
            known = await subscription_checks.known_types(driver, organization.id)
    checked: Mapping[str, Any] = {}
    if checks:
        checked = await _checked(visit, Filled(filled.given), organization_id)
    return visit.render(
        "subscriptions/form.html",
        status,
        filled=filled,
        given=filled.given,
        errors=filled.faults,
        row=row,
        path=path_of(row) if row is not None else "",
        parts=words.host_and_path(row.url) if row is not None else ("", ""),
        version=version or (row.version if row is not None else ""),
        organization=organization,
        organization_id="" if organization is None else ids.show(ids.ORGANIZATION, organization.id),
        has_organizations=bool(every),
        # Names to choose from, as long as they are few.
        organizations={
            ids.show(ids.ORGANIZATION, one.id): one.name for one in sorted(every, key=lambda one: one.name.casefold())
        }
        if len(every) <= MAX_OPTIONS
        else {},
        known=known,
        problem=problem,
        schemes={name: SCHEME_WORDS[name] for name in signing.SCHEMES},
        formats={name: FORMAT_WORDS[name] for name in payloads.FORMATS},
        strategies={name: STRATEGY_WORDS[name] for name in STRATEGIES},
        default_limits=Limits().to_json(),
        default_breaker=BreakerSettings().to_json(),
        default_timeout_ms=DEFAULT_TIMEOUT_MS,
        is_checked=checks,
        **{"check_faults": {}, "check_busy": "", "has_events": False, "checked": None, "seen": [], **checked},
    )


DEFAULT_TIMEOUT_MS = 15_000
SCHEME_WORDS = {
    "standard": "standard: webhook-signature of Standard Webhooks alone",
    "hmac_sha256": "hmac_sha256: a plain HMAC-SHA256 besides",
    "github": "github: as GitHub signs, besides",
    "stripe": "stripe: as Stripe signs, besides",
    "shopify": "shopify: as Shopify signs, besides",
    "slack": "slack: as Slack signs, besides",
}
FORMAT_WORDS = {
    "default": "default: event_id, event_type, occurred_at, organization_id, data",
    "standard": "standard: type, timestamp, data, as Standard Webhooks has it",
    "data": "data: the data alone",
    "cloudevents": "cloudevents: CloudEvents 1.0",
}
