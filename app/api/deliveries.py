"""Deliveries: what became of an event at a subscription, attempt by attempt; replay and discard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.actions import deliveries as actions
from app.api import answers, authentication, lists
from app.api.calls import Call
from app.api.inputs import Nothing
from app.api.lists import ListQuery
from app.api.replies import Reply
from core import ids
from core.access.api_keys import EVENTS_READ
from core.errors import ValidationFailed
from core.listing import delivery_lists, selection

# The latest attempts of a delivery that are shown: of one alone, and of each in a list. A retry policy makes at most
# 100 a series, the default one 10.
MAX_ATTEMPTS, MAX_ATTEMPTS_LISTED = 1_000, 20


async def index(call: Call) -> Reply:
    query = parse_query(call)
    async with call.transaction() as session:
        return await run_query(call, session, query)


def parse_query(call: Call) -> ListQuery:
    """What a caller asks of any list of deliveries."""
    return lists.parse(call.request, answers.DeliveryListed, includes=["attempts"])


async def run_query(call: Call, session: AsyncSession, query: ListQuery, **chosen: str) -> Reply:
    """The list, narrowed to what the path has `chosen` already."""
    if twice := set(chosen) & set(query.filters):
        raise ValidationFailed(details={f"filters.{name}": ["The path chooses it already"] for name in twice})
    check_search(call, query.filters)
    page = await delivery_lists.Deliveries(call.organization_id, {**query.filters, **chosen}).page(session, query)
    items = [views.delivery(row) for row in page.rows]
    if "attempts" in query.include:
        attempts = await delivery_lists.attempts(session, page.rows, MAX_ATTEMPTS_LISTED)
        for row, item in zip(page.rows, items, strict=True):
            item["attempts"] = [views.attempt(one) for one in attempts[row.id]]
    return lists.answer(query, page, items)


def check_search(call: Call, filters: Mapping[str, Any]) -> None:
    """Raises `PermissionDenied` where payloads are searched without the scope that reads them: what is found tells, a
    character at a time, what stands there."""
    if selection.searches_payloads(filters):
        authentication.require(call.credential, EVENTS_READ)


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        delivery = await delivery_lists.get(session, call.organization_id, call.path_id(ids.DELIVERY))
        attempts = await delivery_lists.attempts(session, [delivery], MAX_ATTEMPTS)
    shown: dict[str, Any] = views.delivery(delivery)
    return Reply(shown | {"attempts": [views.attempt(one) for one in attempts[delivery.id]]})


async def replay(call: Call) -> Reply:
    call.read(Nothing)
    delivery, replay = await actions.replay(call, call.organization_id, call.path_id(ids.DELIVERY))
    data = views.delivery(delivery) | {"replay_id": ids.show(ids.REPLAY, replay.id)}
    return Reply(data, 202, "The delivery is sent again")


async def discard(call: Call) -> Reply:
    call.read(Nothing)
    delivery = await actions.discard(call, call.organization_id, call.path_id(ids.DELIVERY))
    return Reply(views.delivery(delivery), message="Delivery discarded")
