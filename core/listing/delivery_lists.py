"""Deliveries as lists: of one organization or of all, in the order of time, at a bounded cost; and their attempts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, bindparam, column, func, literal, true
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from core import ids
from core.errors import NotFound, ValidationFailed
from core.listing import lists, merged, selection
from core.listing.deliveries_by_type import WalkByType
from core.listing.lists import Page, Paging, Walk
from core.listing.merged import Merged
from core.listing.selection import Choice
from core.models import Attempt, Delivery, Subscription
from core.storage.database import TooSlow, within

CLOCKS_DIFFER = timedelta(days=1)
REACH_IN_INDEX = 10_000  # entries that a page walks at most where the index itself checks
REACH_IN_PAYLOADS = 5_000  # deliveries whose payloads a page reads at most
SEARCH_TIMEOUT_MS = 3_000
COUNT_TIMEOUT_MS = 250  # of a count that only tells how many there are; without it the page is as good


@dataclass(frozen=True, slots=True)
class Deliveries:
    """The deliveries that `filters` choose (`selection.conditions`), of one organization or, without one, of all."""

    organization_id: UUID | None
    filters: Mapping[str, Any]

    async def page(self, session: AsyncSession, paging: Paging) -> Page:
        """Raises `ValidationFailed` on a wrong filter, or where searching payloads takes too long."""
        organization_id = await _whose(session, self.organization_id, self.filters)
        choice = selection.choose(organization_id, self.filters)
        if organization_id is None:
            kept = await merged.kept(session, Delivery)
            choice = replace(choice, checked=[*choice.checked, *kept])
        walk = await _walk(session, choice, organization_id)
        return await searching(session, walk, paging) if choice.reads_payloads else await walk.page(session, paging)

    async def count(self, session: AsyncSession) -> int | None:
        """How many there are, up to one more than `lists.MAX_COUNTED`. None where telling takes too long."""
        organization_id = await _whose(session, self.organization_id, self.filters)
        choice = selection.choose(organization_id, self.filters)
        conditions = [*choice.walked, *choice.checked]
        if organization_id is None and choice.by_organization:
            conditions += await merged.any_of(session, Delivery)
        return await counted(session, select(literal(1)).select_from(Delivery).where(*conditions))


async def searching(session: AsyncSession, walk: Walk | WalkByType | Merged, paging: Paging) -> Page:
    """A page of what must be read for it, payload by payload. Raises `ValidationFailed` where that takes too long, and
    `Unavailable` while others search: whoever waited here would hold a connection meanwhile."""
    try:
        with selection.turn():
            async with within(session, SEARCH_TIMEOUT_MS):
                return await walk.page(session, paging)
    except TooSlow:
        raise ValidationFailed.of(
            "filters.text",
            f"Searching the payloads takes longer than {SEARCH_TIMEOUT_MS / 1000:g} s; narrow it by created_after and"
            " created_before, or by a subscription or a status",
        ) from None


async def counted(session: AsyncSession, rows: SelectOfScalar[int]) -> int | None:
    """How many `rows` there are, up to one more than `lists.MAX_COUNTED`. None where telling takes too long."""
    await selection.plan_by_value(session)
    few = rows.limit(lists.MAX_COUNTED + 1).subquery()
    try:
        async with within(session, COUNT_TIMEOUT_MS):
            return (await session.exec(select(func.count()).select_from(few))).one()
    except TooSlow:
        return None


async def _whose(session: AsyncSession, organization_id: UUID | None, filters: Mapping[str, Any]) -> UUID | None:
    """A subscription, for one, says which organization is meant, and with that its indexes serve."""
    if organization_id is not None:
        return organization_id
    try:
        return await selection.owner(session, filters)
    except (ValueError, ValidationFailed):
        return None  # choosing says what is wrong


async def _walk(session: AsyncSession, choice: Choice, organization_id: UUID | None) -> Walk | WalkByType | Merged:
    if choice.events:
        return WalkByType(choice)
    reach = REACH_IN_INDEX if choice.in_index else lists.REACH
    if choice.reads_payloads:
        reach = REACH_IN_PAYLOADS
    if organization_id is None and choice.by_organization:
        return await merged.walk(session, Delivery, choice.walked, choice.checked, reach)
    return Walk(Delivery, choice.walked, choice.checked, reach)


async def get(
    session: AsyncSession, organization_id: UUID | None, delivery_id: UUID, *, lock: bool = False
) -> Delivery:
    """Raises `NotFound` when there is none in this organization, or without one in any."""
    query = select(Delivery).where(Delivery.id == delivery_id)
    if organization_id is not None:
        query = query.where(Delivery.organization_id == organization_id)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no delivery {ids.show(ids.DELIVERY, delivery_id)}")
    return found


async def attempts(session: AsyncSession, rows: Sequence[Delivery], latest: int) -> dict[UUID, list[Attempt]]:
    """The `latest` attempts of each delivery, the oldest of them first."""
    found: dict[UUID, list[Attempt]] = {row.id: [] for row in rows}
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
            found[attempt.delivery_id].append(attempt)
    return found


async def subscription_of(session: AsyncSession, delivery: Delivery) -> Subscription:
    """Whatever has become of it since."""
    return (await session.exec(select(Subscription).where(Subscription.id == delivery.subscription_id))).one()


async def siblings(session: AsyncSession, event_id: UUID, most: int) -> Sequence[Delivery]:
    """The first deliveries of an event, its own among them."""
    low, high = ids.family_bounds(event_id)
    of_event = select(Delivery).where(col(Delivery.id).between(low, high), Delivery.event_id == event_id)
    return (await session.exec(of_event.order_by(col(Delivery.id)).limit(most))).all()


async def neighbours(session: AsyncSession, delivery: Delivery) -> tuple[UUID | None, UUID | None]:
    """The deliveries of the same subscription before and after this one."""
    key = col(Delivery.id)
    same = select(key).where(Delivery.subscription_id == delivery.subscription_id).limit(1)
    before = (await session.exec(same.where(key < delivery.id).order_by(key.desc()))).one_or_none()
    after = (await session.exec(same.where(key > delivery.id).order_by(key))).one_or_none()
    return before, after
