"""Deliveries: what became of an event at a subscription, attempt by attempt; replay and discard."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from app.api import lists, views
from app.api.calls import Call
from app.api.inputs import Nothing
from app.api.lists import ListQuery
from app.api.replies import Reply
from core import deliveries, ids, replays, selection
from core.database import driver_of
from core.errors import NotFound, ValidationFailed
from core.models import Attempt, Delivery

# The latest attempts of a delivery that are shown: of one alone, and of each in a list. A retry policy makes at most
# 100 a series, the default one 10.
MAX_ATTEMPTS, MAX_ATTEMPTS_LISTED = 1_000, 20


async def index(call: Call) -> Reply:
    query = parse_query(call)
    async with call.transaction() as session:
        return await run_query(call, session, query)


def parse_query(call: Call) -> ListQuery:
    """What a caller asks of any list of deliveries."""
    return lists.parse(call.request, includes=["attempts"])


async def run_query(call: Call, session: AsyncSession, query: ListQuery, **chosen: str) -> Reply:
    """The list, narrowed to what the path has `chosen` already."""
    if twice := set(chosen) & set(query.filters):
        raise ValidationFailed(details={f"filters.{name}": ["The path chooses it already"] for name in twice})
    conditions = selection.conditions(call.organization_id, {**query.filters, **chosen})

    async def add_attempts(rows: Sequence[Delivery], items: list[dict[str, Any]]) -> None:
        attempts = await _attempts(session, [row.id for row in rows], MAX_ATTEMPTS_LISTED)
        for row, item in zip(rows, items, strict=True):
            item["attempts"] = attempts[row.id]

    finish = add_attempts if "attempts" in query.include else None
    return await lists.run(session, query, Delivery, conditions, views.delivery, finish=finish)


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        delivery = await _get(call, session)
        attempts = await _attempts(session, [delivery.id], MAX_ATTEMPTS)
    return Reply(views.delivery(delivery) | {"attempts": attempts[delivery.id]})


async def _get(call: Call, session: AsyncSession) -> Delivery:
    delivery_id = call.path_id(ids.DELIVERY)
    query = select(Delivery).where(Delivery.id == delivery_id, Delivery.organization_id == call.organization_id)
    found = (await session.exec(query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no delivery {ids.show(ids.DELIVERY, delivery_id)}")
    return found


async def _attempts(
    session: AsyncSession, delivery_ids: Sequence[UUID], latest: int
) -> dict[UUID, list[dict[str, Any]]]:
    """The `latest` attempts of each delivery, the oldest of them first."""
    found: dict[UUID, list[dict[str, Any]]] = {one: [] for one in delivery_ids}
    if delivery_ids:
        # No attempt is older than its delivery, but for clocks that differ: partitions of earlier days are left out.
        since = col(Attempt.id) >= ids.lowest_at(ids.time_of(min(delivery_ids)) - timedelta(days=1))
        from_last = func.row_number().over(partition_by=col(Attempt.delivery_id), order_by=col(Attempt.id).desc())
        ranked = (
            select(col(Attempt.id), from_last.label("from_last"))
            .where(col(Attempt.delivery_id).in_(delivery_ids), since)
            .subquery()
        )
        chosen = select(ranked.c.id).where(ranked.c.from_last <= latest)
        query = select(Attempt).where(since, col(Attempt.id).in_(chosen)).order_by(col(Attempt.id))
        for row in (await session.exec(query)).all():
            found[row.delivery_id].append(views.attempt(row))
    return found


async def replay(call: Call) -> Reply:
    call.read(Nothing)
    async with call.transaction() as session:
        replay = await replays.replay_one(
            session, call.organization_id, call.path_id(ids.DELIVERY), created_by=call.actor
        )
        data = views.delivery(await _get(call, session))
    call.after_commit(lambda: _hint(call, call.path_id(ids.DELIVERY)))
    return Reply(data | {"replay_id": ids.show(ids.REPLAY, replay.id)}, 202, "The delivery is sent again")


async def _hint(call: Call, delivery_id: UUID) -> None:
    call.services.hints.send([delivery_id])


async def discard(call: Call) -> Reply:
    call.read(Nothing)
    async with call.transaction() as session:
        await deliveries.discard(await driver_of(session), call.organization_id, call.path_id(ids.DELIVERY))
        data = views.delivery(await _get(call, session))
    return Reply(data, message="Delivery discarded")
