"""Subscriptions: the list, one with how it is doing, and what people do to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.responses import Response

from app import views
from app.actions import breakers
from app.actions import subscriptions as actions
from app.admin import charts, delivery_filters
from app.admin import subscription_words as words
from app.admin.lists import Filter, PageQuery, time_of
from app.admin.visit import Visit
from core import audit, health, ids, jsontext, names, stats, subscriptions
from core.errors import CircuitBreakerOpen, Conflict, InvalidId, Unavailable, ValidationFailed
from core.limiting import breaker_changes
from core.limiting.breaker import Breaker, BreakerSettings, BreakerState
from core.limiting.breakers import UNREACHABLE
from core.limiting.limits import Limits
from core.listing import subscription_list
from core.listing.lists import Walk
from core.matching.patterns import validate_event_type
from core.models import Subscription, SubscriptionSecret, SubscriptionStatus
from core.retry import RetryPolicy
from core.states import State

BREAKER_OPEN = "breaker_open"
STATUSES = {
    SubscriptionStatus.ACTIVE: "active",
    BREAKER_OPEN: "circuit breaker open or half open",
    SubscriptionStatus.PAUSED: "paused",
    SubscriptionStatus.DISABLED: "disabled",
}
FILTERS = (
    delivery_filters.ORGANIZATION,
    Filter.choice("status", "Status", {str(one): label for one, label in STATUSES.items()}),
    Filter.text("text", "Text", hint="in URL or description"),
)
LATEST = 10  # deliveries on the page of a subscription
CHANGES = 20  # of its circuit breaker
MUST_TYPE = 100  # deliveries: who touches more types their number
TEST_TYPE = "webhook.test"
MAX_ANSWER = 2_000  # bytes of a receiver's answer to a test
OPEN_NOW = (
    "Nothing is sent to it now, because its circuit breaker is open. Reset it below if the receiver is mended, or wait"
)


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        filters = await delivery_filters.with_organizations(session, FILTERS)
    query = PageQuery.of(visit, filters, ids.SUBSCRIPTION)
    failing: list[UUID] | None = None
    if BREAKER_OPEN in query.asked.get("status", ""):
        try:
            known = await visit.services.breakers.all()
        except UNREACHABLE as error:
            raise Unavailable(
                "Redis does not answer, and it knows which circuit breakers are open; try again"
            ) from error
        failing = [one for one, breaker in known.items() if breaker.state is not BreakerState.CLOSED]
    async with visit.transaction() as session:
        page = await query.page(session, lambda asked: _walk(asked, failing))
        called = await names.of(session, page.rows)
    breakers_of = await _breakers_of(visit, page.rows)
    async with visit.services.database.driver() as driver:
        glances = await subscription_list.glance(driver, page.rows, breakers_of, datetime.now(UTC))
    rows = [
        {
            "row": row,
            "id": ids.show(ids.SUBSCRIPTION, row.id),
            "parts": words.host_and_path(visit.shown_url(row.url)),
            "glance": glances[row.id],
            "organization": called.organizations.get(row.organization_id, ""),
            "organization_id": ids.show(ids.ORGANIZATION, row.organization_id),
        }
        for row in page.rows
    ]
    return visit.render(
        "subscriptions/index.html", query.status, query=query, page=page, rows=rows, sparkline=charts.sparkline
    )


def _walk(asked: Mapping[str, str], failing: list[UUID] | None) -> Walk:
    chosen = [one for one in asked.get("status", "").split(",") if one]
    return subscription_list.walk(
        delivery_filters.organization_of(asked),
        statuses=[one for one in chosen if one != BREAKER_OPEN],
        only=failing,
        text=asked.get("text", ""),
    )


async def _breakers_of(visit: Visit, rows: Sequence[Subscription]) -> dict[UUID, Breaker] | None:
    """None while Redis is away."""
    try:
        return await visit.services.breakers.of([row.id for row in rows])
    except UNREACHABLE:
        return None


# --- one -----------------------------------------------------------------------------------------------------------


async def show(visit: Visit) -> Response:
    return await _show(visit)


async def find(visit: Visit) -> Subscription:
    """The one in the path, whosesoever it is."""
    async with visit.transaction() as session:
        return await subscriptions.find(session, visit.path_id(ids.SUBSCRIPTION))


def path_of(subscription: Subscription) -> str:
    return f"/subscriptions/{ids.show(ids.SUBSCRIPTION, subscription.id)}"


async def _show(
    visit: Visit, status: int = 200, problem: str = "", errors: Mapping[str, Any] | None = None
) -> Response:
    now = datetime.now(UTC)
    async with visit.transaction() as session:
        row = await subscriptions.find(session, visit.path_id(ids.SUBSCRIPTION))
        shown_id = ids.show(ids.SUBSCRIPTION, row.id)
        called = await names.of(session, [row])
        secrets = await subscriptions.live_secrets(session, row.id, now)
        changes = await breaker_changes.latest(session, row.id, CHANGES)
        open_since = await breaker_changes.open_since(session, row.id)
        paused = None
        if row.status == SubscriptionStatus.PAUSED:
            paused = await audit.last(session, shown_id, "subscription.paused")
        deliveries = await subscription_list.latest_deliveries(session, row, LATEST)
        test = await _test_of(visit, session, row)
    breaker = await breakers.known(visit, row)
    async with visit.services.database.driver() as driver:
        hour = await stats.figures(driver, row.organization_id, row.id, now - subscription_list.HOUR)
        day = await stats.figures(driver, row.organization_id, row.id, now - subscription_list.DAY)
        points = (await stats.sparklines(driver, [(row.organization_id, row.id)], now - subscription_list.DAY))[row.id]
        pending = await stats.count(driver, row.id, State.PENDING)
        dead = await stats.count(driver, row.id, State.DEAD)
        held = await subscription_list.count_held(driver, row.id) if row.status != SubscriptionStatus.ACTIVE else 0
    now_ms = int(now.timestamp() * 1000)
    settings = BreakerSettings.of(row.circuit_breaker)
    judged = health.judge(row.status, breaker, settings, hour, now_ms)
    return visit.render(
        "subscriptions/show.html",
        status,
        row=row,
        id=shown_id,
        path=path_of(row),
        parts=words.host_and_path(visit.shown_url(row.url)),
        organization=called.organizations.get(row.organization_id, ""),
        organization_id=ids.show(ids.ORGANIZATION, row.organization_id),
        health=judged,
        sentence=words.sentence(row, judged, breaker, day, now, open_since=open_since, paused=paused),
        hour=hour,
        day=day,
        points=points,
        bars=charts.bars(points, "Attempts of the last 24 hours, by the hour"),
        parts_of=charts.parts_of,
        legend=charts.legend(),
        pending=pending,
        dead=dead,
        held=held,
        most_counted=stats.MOST_COUNTED,
        must_type=MUST_TYPE,
        breaker=None if breaker is None else views.circuit_breaker(row, breaker, now_ms),
        breaker_state=None if breaker is None else breaker.state_at(settings, now_ms),
        breaker_until=_moment(breaker.opens_until_ms(settings)) if breaker is not None else None,
        breaker_failed_at=_moment(breaker.failed_at_ms) if breaker is not None else None,
        changes=[{"state": BreakerState(one.state), "at": ids.time_of(one.id), "row": one} for one in changes],
        words=words,
        retries=words.retries(RetryPolicy.parse(row.retry_policy)),
        limits=words.limits(Limits.of(row.limits)),
        breaker_settings=words.breaker_settings(settings),
        headers=list(actions.headers_of(visit, row)),
        secrets=[{"id": ids.show(ids.SECRET, one.id), "row": one} for one in secrets],
        missed=_number(visit.request.query_params.get("missed", "")),
        deliveries=[{"id": ids.show(ids.DELIVERY, one.id), "row": one} for one in deliveries],
        test=test,
        problem=problem,
        errors=errors or {},
    )


def _number(text: str) -> int:
    """Of a URL that we made ourselves; 0 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else 0


def _moment(ms: int | None) -> datetime | None:
    """Unix milliseconds; 0 is none."""
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None


async def _test_of(visit: Visit, session: AsyncSession, row: Subscription) -> dict[str, Any] | None:
    """The test delivery that the URL names, and its latest attempt: so that one can watch it arrive."""
    try:
        delivery_id = ids.parse(ids.DELIVERY, visit.request.query_params.get("test", ""))
    except InvalidId:
        return None
    delivery, attempt = await subscription_list.delivery_of(session, row, delivery_id)
    if delivery is None:
        return None
    is_over = delivery.state not in (State.PENDING, State.SENDING)
    return {
        "id": ids.show(ids.DELIVERY, delivery.id),
        "row": delivery,
        "attempt": attempt,
        "answer": (attempt.response_body or b"")[:MAX_ANSWER].decode("utf-8", "replace") if attempt else "",
        "is_over": is_over,
    }


# --- what people do to it ------------------------------------------------------------------------------------------


async def pause(visit: Visit) -> Response:
    row = await find(visit)
    try:
        await actions.pause(visit, row.organization_id, row.id)
    except Conflict as error:
        return await _show(visit, error.status, error.message)
    return visit.redirect(f"{path_of(row)}?done=paused")


async def resume(visit: Visit) -> Response:
    """With `sync_from` also what it missed since then."""
    row = await find(visit)
    text = visit.form.text("sync_from").strip()
    try:
        since = time_of(text, datetime.now(UTC)) if text else None
    except (ValueError, ValidationFailed) as error:
        said = error.message if isinstance(error, ValidationFailed) else str(error)
        return await _show(visit, ValidationFailed.status, errors={"sync_from": [said]})
    async with visit.services.database.driver() as driver:
        held = await subscription_list.count_held(driver, row.id)
    if said := _unconfirmed(visit, held):
        return await _show(visit, ValidationFailed.status, errors={"confirm_count": [said]})
    try:
        _, missed = await actions.resume(visit, row.organization_id, row.id, sync_from=since)
    except ValidationFailed as error:
        return await _show(visit, error.status, errors=error.details)
    return visit.redirect(f"{path_of(row)}?{urlencode({'done': 'resumed', 'missed': missed})}")


def _unconfirmed(visit: Visit, count: int | None) -> str:
    """What is wrong with the number that was typed; nothing where none is asked for.

    What waits grows while somebody types, so it is held against what the page said (`counted`), as long as that is not
    far off by now."""
    shown = _number(visit.form.text("counted"))
    now = stats.MOST_COUNTED if count is None else count
    if max(now, shown) <= MUST_TYPE:
        return ""
    if now > 2 * shown + MUST_TYPE:
        return f"It is {now:,} by now; type this number"
    if visit.form.text("confirm_count").replace(",", "").strip() != str(shown):
        return f"Type {shown} to confirm"
    return ""


async def confirm_delete(visit: Visit) -> Response:
    return await _ask_to_delete(visit)


async def _ask_to_delete(visit: Visit, status: int = 200, errors: Mapping[str, Any] | None = None) -> Response:
    row = await find(visit)
    async with visit.services.database.driver() as driver:
        pending = await stats.count(driver, row.id, State.PENDING)
        dead = await stats.count(driver, row.id, State.DEAD)
    return visit.render(
        "subscriptions/delete.html",
        status,
        row=row,
        path=path_of(row),
        parts=words.host_and_path(visit.shown_url(row.url)),
        pending=pending,
        dead=dead,
        counted=stats.MOST_COUNTED if pending is None else pending,
        most_counted=stats.MOST_COUNTED,
        must_type=MUST_TYPE,
        errors=errors or {},
    )


async def delete(visit: Visit) -> Response:
    row = await find(visit)
    async with visit.services.database.driver() as driver:
        pending = await stats.count(driver, row.id, State.PENDING)
    if said := _unconfirmed(visit, pending):
        return await _ask_to_delete(visit, ValidationFailed.status, {"confirm_count": [said]})
    await actions.delete(visit, row.organization_id, row.id)
    whose = ids.show(ids.ORGANIZATION, row.organization_id)
    return visit.redirect(f"/subscriptions?{urlencode({'organization': whose, 'done': 'deleted'})}")


async def reset_breaker(visit: Visit) -> Response:
    row = await find(visit)
    try:
        await breakers.reset(visit, row.organization_id, row.id, breakers.now_ms())
    except Unavailable as error:
        return await _show(visit, error.status, error.message)
    return visit.redirect(f"{path_of(row)}?done=reset#breaker")


async def reveal(visit: Visit) -> Response:
    """Shows them in the answer to the form, and nowhere else."""
    row = await find(visit)
    _, live = await actions.reveal_secret(visit, row.organization_id, row.id)
    return show_secrets(visit, row, "revealed", live)


async def rotate(visit: Visit) -> Response:
    row = await find(visit)
    hours = visit.form.text("grace_hours").strip()
    if not (hours.isascii() and hours.isdecimal() and len(hours) <= 4):
        return await _show(visit, ValidationFailed.status, errors={"grace_hours": ["Must be a whole number of hours"]})
    secret = visit.form.text("secret").strip() or None
    try:
        await actions.rotate_secret(visit, row.organization_id, row.id, grace_s=int(hours) * 3600, secret=secret)
        async with visit.transaction() as session:
            live = await subscriptions.live_secrets(session, row.id, datetime.now(UTC))
    except ValidationFailed as error:
        named = {"grace_period_s": "grace_hours"}
        return await _show(
            visit, error.status, errors={named.get(name, name): said for name, said in error.details.items()}
        )
    except Conflict as error:
        return await _show(visit, error.status, error.message)
    sealer = visit.services.sealer
    opened = [(one, subscriptions.open_secret(sealer, one.id, one.sealed)) for one in live[:1]]
    return show_secrets(visit, row, "rotated", opened, old=live[1:])


def show_secrets(
    visit: Visit,
    row: Subscription,
    what: str,
    opened: Sequence[tuple[SubscriptionSecret, str]],
    old: Sequence[SubscriptionSecret] = (),
) -> Response:
    """The answer to the form that made or revealed them: there is no second time."""
    return visit.render(
        "subscriptions/secret.html",
        row=row,
        path=path_of(row),
        parts=words.host_and_path(visit.shown_url(row.url)),
        what=what,
        opened=[{"id": ids.show(ids.SECRET, one.id), "row": one, "text": text} for one, text in opened],
        old=old,
    )


async def send_test(visit: Visit) -> Response:
    """Sends it, and goes to where one can watch it arrive."""
    row = await find(visit)
    event_type = visit.form.text("event_type").strip() or TEST_TYPE
    text = visit.form.text("data").strip()
    try:
        validate_event_type(event_type)
        data = jsontext.loads(text.encode()) if text else None
        if data is not None and not isinstance(data, dict):
            raise ValidationFailed.of("body", "Must be a JSON object")
        answer = await actions.send_test(visit, row, event_type, data)
    except CircuitBreakerOpen as error:
        return await _show(visit, Conflict.status, f"{OPEN_NOW} {error.retry_after_s} s.")
    except Conflict as error:
        return await _show(visit, error.status, error.message)
    except ValidationFailed as error:
        named = {"body": "data"}
        return await _show(
            visit, error.status, errors={named.get(name, name): said for name, said in error.details.items()}
        )
    return visit.redirect(f"{path_of(row)}?test={answer.data['delivery_id']}#test")
