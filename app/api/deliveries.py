"""Deliveries: what became of an event at a subscription, attempt by attempt; replay and discard."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, bindparam, column, func, true
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.api import answers, lists
from app.api.calls import Call
from app.api.inputs import Nothing
from app.api.lists import ListQuery
from app.api.replies import Reply
from app.api.typed import WalkByType
from core import deliveries, ids, replays, selection
from core import lists as core_lists
from core.database import driver_of
from core.errors import NotFound, ValidationFailed
from core.hints import Hint
from core.lists import Walk
from core.models import Attempt, Delivery

# The latest attempts of a delivery that are shown: of one alone, and of each in a list. A retry policy makes at most
# 100 a series, the default one 10.
MAX_ATTEMPTS, MAX_ATTEMPTS_LISTED = 1_000, 20
CLOCKS_DIFFER = timedelta(days=1)
REACH_IN_INDEX = 20_000  # entries that a page walks at most where the index itself checks


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
    choice = selection.choose(call.organization_id, {**query.filters, **chosen})
    if choice.events:
        page = await WalkByType(choice).page(session, query)
    else:
        reach = REACH_IN_INDEX if choice.in_index else core_lists.REACH
        page = await Walk(Delivery, choice.walked, choice.checked, reach).page(session, query)
    items = [views.delivery(row) for row in page.rows]
    if "attempts" in query.include:
        attempts = await _attempts(session, page.rows, MAX_ATTEMPTS_LISTED)
        for row, item in zip(page.rows, items, strict=True):
            item["attempts"] = attempts[row.id]
    return lists.answer(query, page, items)


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        delivery = await _get(call, session)
        attempts = await _attempts(session, [delivery], MAX_ATTEMPTS)
    return Reply(views.delivery(delivery) | {"attempts": attempts[delivery.id]})


async def _get(call: Call, session: AsyncSession, *, lock: bool = False) -> Delivery:
    delivery_id = call.path_id(ids.DELIVERY)
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.organization_id == call.organization_id)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no delivery {ids.show(ids.DELIVERY, delivery_id)}")
    return found


async def _attempts(session: AsyncSession, rows: Sequence[Delivery], latest: int) -> dict[UUID, list[dict[str, Any]]]:
    """The `latest` attempts of each delivery, the oldest of them first."""
    found: dict[UUID, list[dict[str, Any]]] = {row.id: [] for row in rows}
    if rows:
        # No attempt is older than its delivery, nor younger than the change it made to it, but for clocks that differ:
        # partitions of other days are left out.
        since = ids.lowest_at(ids.time_of(min(found)) - CLOCKS_DIFFER)
        until = ids.lowest_at(max(row.updated_at for row in rows) + CLOCKS_DIFFER)
        given = (
            func.unnest(bindparam("given", list(found), ARRAY(Uuid))).table_valued(column("id", Uuid)).render_derived()
        )
        key = col(Attempt.id)
        of_one = (
            select(Attempt)
            .where(col(Attempt.delivery_id) == given.c.id, key >= since, key < until)
            .order_by(key.desc())
            .limit(latest)
        )
        one = aliased(Attempt, of_one.lateral("one"))
        query = select(one).select_from(given).join(one, true()).order_by(col(one.id))
        for attempt in (await session.exec(query)).all():
            found[attempt.delivery_id].append(views.attempt(attempt))
    return found


async def replay(call: Call) -> Reply:
    call.read(Nothing)
    async with call.transaction() as session:
        delivery = await _get(call, session, lock=True)
        before = views.delivery(delivery)
        replay = await replays.replay_one(session, call.organization_id, delivery.id, created_by=call.actor.id)
        data = await _changed(call, session, "delivery.replayed", delivery, before)
    call.after_commit(lambda: _hint(call, delivery))
    return Reply(data | {"replay_id": ids.show(ids.REPLAY, replay.id)}, 202, "The delivery is sent again")


async def _hint(call: Call, delivery: Delivery) -> None:
    call.services.hints.send([Hint(delivery.organization_id, delivery.subscription_id, delivery.id)])


async def discard(call: Call) -> Reply:
    call.read(Nothing)
    async with call.transaction() as session:
        delivery = await _get(call, session, lock=True)
        before = views.delivery(delivery)
        await deliveries.discard(await driver_of(session), call.organization_id, delivery.id)
        data = await _changed(call, session, "delivery.discarded", delivery, before)
    return Reply(data, message="Delivery discarded")


async def _changed(
    call: Call, session: AsyncSession, action: str, delivery: Delivery, before: dict[str, Any]
) -> dict[str, Any]:
    """The delivery as it is now, which goes into the audit log."""
    await session.refresh(delivery)
    data = views.delivery(delivery)
    call.audit(session, action, data["id"], before=before, after=data)
    return data
