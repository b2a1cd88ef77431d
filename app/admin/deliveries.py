"""Deliveries: the list, and one with its attempts, what was sent and what came back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from starlette.responses import Response

from app.actions import deliveries as actions
from app.admin import attempts, delivery_filters, delivery_words, explanations
from app.admin.lists import PageQuery
from app.admin.visit import Visit
from core import ids, organizations
from core.errors import Conflict, NotFound
from core.listing import delivery_lists, event_lists, labels, lists
from core.models import Attempt, Delivery, Event, Subscription, SubscriptionStatus
from core.retry import RetryPolicy
from core.states import TRANSITIONS, State

MAX_ATTEMPTS = 200  # the latest, that the page of a delivery shows
MAX_SIBLINGS = 20
FAR = timedelta(minutes=1)
DONE = {
    "replayed": "It is sent again.",
    "discarded": "It is discarded. It can still be replayed.",
}


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        filters = await delivery_filters.with_organizations(session, delivery_filters.FILTERS)
        query = PageQuery.of(visit, filters, ids.DELIVERY)
        page = await query.page(session, delivery_filters.chosen)
        count = None if query.errors else await delivery_filters.chosen(query.asked).count(session)
        shown = await labels.of_rows(session, page.rows)
    return visit.render(
        "deliveries/index.html",
        query.status,
        query=query,
        page=page,
        count=count,
        most=lists.MAX_COUNTED,
        labels=shown,
        is_live=page.newest is None and not query.errors and "text" not in query.asked,  # searching is no light work
    )


async def show(visit: Visit) -> Response:
    return await _page(visit)


async def replay(visit: Visit) -> Response:
    delivery = await _find(visit)
    try:
        await actions.replay(visit, delivery.organization_id, delivery.id)
    except Conflict as error:
        return await _page(visit, error)
    return visit.redirect(f"/deliveries/{ids.show(ids.DELIVERY, delivery.id)}?done=replayed")


async def discard(visit: Visit) -> Response:
    delivery = await _find(visit)
    try:
        await actions.discard(visit, delivery.organization_id, delivery.id)
    except Conflict as error:
        return await _page(visit, error)
    return visit.redirect(f"/deliveries/{ids.show(ids.DELIVERY, delivery.id)}?done=discarded")


async def body(visit: Visit) -> Response:
    """The bytes of an attempt's request, as a file."""
    delivery = await _find(visit)
    async with visit.transaction() as session:
        found = await delivery_lists.attempts(session, [delivery], MAX_ATTEMPTS)
        event = await event_lists.get(session, delivery.organization_id, delivery.event_id)
        subscription = await delivery_lists.subscription_of(session, delivery)
    attempt = _chosen(visit, found[delivery.id])
    if attempt is None or event.redacted_at is not None:
        raise NotFound("Of this attempt there is no body: its event was redacted, or there was no attempt.")
    sent = (await attempts.exchange(visit, attempt, event, subscription)).sent
    content = sent.content if sent is not None else b""
    return attempts.download(content, attempts.file_name(attempt))


async def _find(visit: Visit) -> Delivery:
    async with visit.transaction() as session:
        delivery = await delivery_lists.get(session, None, visit.path_id(ids.DELIVERY))
        await organizations.get(session, delivery.organization_id)  # which may be being erased
    return delivery


async def _page(visit: Visit, refusal: Conflict | None = None) -> Response:
    delivery = await _find(visit)
    async with visit.transaction() as session:
        event = await event_lists.get(session, delivery.organization_id, delivery.event_id)
        subscription = await delivery_lists.subscription_of(session, delivery)
        organization = await organizations.get(session, delivery.organization_id)
        found = (await delivery_lists.attempts(session, [delivery], MAX_ATTEMPTS))[delivery.id]
        family = await delivery_lists.siblings(session, delivery.event_id, MAX_SIBLINGS + 1)
        before, after = await delivery_lists.neighbours(session, delivery)
        shown = await labels.of_rows(session, family)
    chosen = _chosen(visit, found)
    max_attempts = RetryPolicy.parse(subscription.retry_policy).max_attempts
    return visit.render(
        "deliveries/show.html",
        refusal.status if refusal else 200,
        problem=refusal.message if refusal else "",
        done=DONE,
        delivery=delivery,
        id=ids.show(ids.DELIVERY, delivery.id),
        organization=organization,
        subscription=subscription,
        host=urlsplit(subscription.url).netloc,
        event=event,
        sentence=delivery_words.sentence(delivery, found, max_attempts),
        bars=attempts.timeline(delivery, found),
        chosen=chosen and await attempts.exchange(visit, chosen, event, subscription),
        explanation=_explanation(chosen),
        offers=_offers(delivery, subscription, event),
        siblings=[one for one in family if one.id != delivery.id][:MAX_SIBLINGS],
        labels=shown,
        before=before,
        after=after,
        fresh_every_s=_fresh_every_s(delivery),
        max_attempts=max_attempts,
    )


def _fresh_every_s(delivery: Delivery) -> int | None:
    """How often the page looks again: as long as something may happen by itself, and more often when it soon will."""
    if delivery.state not in (State.PENDING, State.SENDING):
        return None
    is_far = delivery.due_at is None or delivery.due_at - datetime.now(UTC) > FAR
    return 15 if is_far else 3


def _chosen(visit: Visit, found: Sequence[Attempt]) -> Attempt | None:
    """The attempt that the URL names, or else the latest."""
    named = visit.request.query_params.get("attempt", "")
    return next((one for one in found if ids.show(ids.ATTEMPT, one.id) == named), found[-1] if found else None)


def _explanation(attempt: Attempt | None) -> explanations.Explanation | None:
    if attempt is None or attempt.error_kind is None:
        return None
    return explanations.explain(attempt.error_kind, attempt.status_code)


def _offers(delivery: Delivery, subscription: Subscription, event: Event) -> dict[str, str]:
    """Of what can be done to a delivery, why it can't be done now; empty where it can."""
    replay = discard = ""
    if delivery.state not in TRANSITIONS["replay"].before:
        replay = "It is being sent now."
    elif event.redacted_at is not None:
        replay = "Its event was redacted, so there is nothing left to send."
    elif subscription.status not in (SubscriptionStatus.ACTIVE, SubscriptionStatus.PAUSED):
        hint = ": resume it first" if subscription.status == SubscriptionStatus.DISABLED else ""
        replay = f"Its subscription is {subscription.status}{hint}."
    if delivery.state not in TRANSITIONS["discard"].before:
        discard = "Only what is pending or dead can be discarded."
    return {"replay": replay, "discard": discard}
