"""Deliveries of one event type. They have no index on it, for every index costs each of a delivery's writes. Their
events have one, and a delivery's id begins with its event's: so the index of the events leads to ranges of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, bindparam, column, func, true
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.listing import lists
from core.listing.lists import Page, Paging
from core.listing.selection import Choice, plan_by_value
from core.models import Delivery, Event

EVENTS_REACH = 250  # events whose deliveries one page looks at
DELIVERIES_REACH = 10_000  # and about as many deliveries: an event may have thousands


@dataclass(frozen=True, slots=True)
class WalkByType:
    """Deliveries of the events that `choice.events` choose, as far as they pass the rest of it."""

    choice: Choice

    async def page(self, session: AsyncSession, paging: Paging) -> Page:
        await plan_by_value(session)
        page = Page((), False)
        # A page's worth of events suffices mostly. By number, those before the page count as well.
        for reach in (paging.limit, EVENTS_REACH) if paging.page is None else (EVENTS_REACH,):
            families, edge = await self._families(session, paging, reach)
            page = await self._take(session, paging, families, edge)
            if page.more or edge is None:
                break
        return page

    async def _families(self, session: AsyncSession, paging: Paging, reach: int) -> tuple[list[UUID], UUID | None]:
        """The events to look at, and the last id that a delivery of theirs can have; None when there are no others."""
        key = col(Event.id)
        statement = select(key, col(Event.matched_subscriptions)).where(*self.choice.events)
        if paging.after is not None:
            low, high = ids.family_bounds(paging.after)
            if paging.after in {low, high}:  # no id of a delivery: the edge of a page that had all of this family
                statement = statement.where(key < low if paging.descending else key > high)
            else:  # its event may have further deliveries
                statement = statement.where(key <= high if paging.descending else key >= low)
        rows = (await session.exec(statement.order_by(paging.order(key)).limit(reach + 1))).all()
        # Events of several processes may share their first 64 bits: the ids of their deliveries are mixed.
        groups = [list(group) for _, group in groupby(rows, lambda row: ids.family_bounds(row[0]))]
        complete = len(rows) <= reach
        if not complete and len(groups) > 1:
            groups.pop()  # it may lack some
        chosen: list[UUID] = []
        cost = 0
        for group in groups:
            if cost >= DELIVERIES_REACH:
                complete = False
                break
            chosen += [event_id for event_id, _ in group]
            cost += sum(matched for _, matched in group)
        if complete:
            return chosen, None
        low, high = ids.family_bounds(chosen[-1])
        return chosen, low if paging.descending else high

    async def _take(self, session: AsyncSession, paging: Paging, event_ids: Sequence[UUID], edge: UUID | None) -> Page:
        bounds = [ids.family_bounds(event_id) for event_id in event_ids]
        arrays = [event_ids, [low for low, _ in bounds], [high for _, high in bounds]]
        unnested = func.unnest(*(bindparam(None, values, ARRAY(Uuid), unique=True) for values in arrays))
        columns = (column(name, Uuid) for name in ("event_id", "low", "high"))
        families = unnested.table_valued(*columns).render_derived()
        key = col(Delivery.id)
        of_one = select(Delivery).where(
            key.between(families.c.low, families.c.high),
            col(Delivery.event_id) == families.c.event_id,
            *self.choice.walked,
            *self.choice.checked,
        )
        if paging.after is not None:
            of_one = of_one.where(key < paging.after if paging.descending else key > paging.after)
        # With a limit it stays what it is: a look into the primary key for each event.
        one = aliased(Delivery, of_one.order_by(paging.order(key)).limit(lists.MAX_COUNTED + 1).lateral("one"))
        statement = select(one).select_from(families).join(one, true()).order_by(paging.order(one.id))
        return await lists.take(session, paging, statement, edge)
