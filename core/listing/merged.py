"""Lists of all organizations by indexes that begin with the organization: what each yields, put together in the order
of time. So a list of all dead letters costs the same whether there are few or many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ColumnElement, Uuid, bindparam, column, func, true
from sqlalchemy.orm import aliased
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core.listing import lists, selection
from core.listing.lists import Conditions, Page, Paging, Walk
from core.models import Organization

MAX_MERGED = 200  # organizations whose indexes are walked side by side
LEAST_REACH = 500  # entries in each of those


async def organizations(session: AsyncSession) -> Sequence[UUID]:
    """Those that there are, up to one more than `MAX_MERGED`."""
    found = select(Organization.id).where(col(Organization.deleted_at).is_(None)).limit(MAX_MERGED + 1)
    return (await session.exec(found)).all()


async def kept(session: AsyncSession, model: Any) -> list[ColumnElement[bool]]:
    """The condition that leaves out what belongs to organizations that are being erased, if there are any."""
    gone = (await session.exec(select(Organization.id).where(col(Organization.deleted_at).is_not(None)))).all()
    return [col(model.organization_id).not_in(gone)] if gone else []


async def any_of(session: AsyncSession, model: Any) -> list[ColumnElement[bool]]:
    """The condition that it is one of all organizations, as far as they are few: so that the indexes serve a count."""
    chosen = await organizations(session)
    return [] if len(chosen) > MAX_MERGED else [col(model.organization_id).in_(chosen)]


async def walk(session: AsyncSession, model: Any, walked: Conditions, checked: Conditions, reach: int) -> Walk | Merged:
    """All rows of `model`, by an index on the organization, `walked` and the id; or, where there are too many
    organizations, by the id alone. `reach`: of rows that a page walks, about."""
    chosen = await organizations(session)
    if len(chosen) > MAX_MERGED:
        return Walk(model, (), [*walked, *checked], reach)
    return Merged(model, chosen, walked, checked, max(reach // max(len(chosen), 1), LEAST_REACH))


@dataclass(frozen=True, slots=True)
class Merged:
    """As `lists.Walk`; `reach` is of each organization."""

    model: Any
    organizations: Sequence[UUID]
    walked: Conditions
    checked: Conditions
    reach: int

    async def page(self, session: AsyncSession, paging: Paging) -> Page:
        await selection.plan_by_value(session)
        key = col(self.model.id)
        walked = [*self.walked]
        if paging.after is not None:
            walked.append(key < paging.after if paging.descending else key > paging.after)
        edge = await self._edge(session, walked, paging) if self.checked else None
        if edge is not None:
            walked.append(key >= edge if paging.descending else key <= edge)
        each = self._each()
        wanted = select(self.model).where(col(self.model.organization_id) == each.c.id, *walked, *self.checked)
        one = aliased(self.model, wanted.order_by(paging.order(key)).limit(paging.limit + 1).lateral("one"))
        statement = select(one).select_from(each).join(one, true()).order_by(paging.order(one.id))
        return await lists.take(session, paging, statement, edge)

    async def _edge(self, session: AsyncSession, walked: Conditions, paging: Paging) -> UUID | None:
        """The last id up to which all of them are walked; None when all of each is in reach."""
        key, each = col(self.model.id), self._each()
        last = (
            select(key)
            .where(col(self.model.organization_id) == each.c.id, *walked)
            .order_by(paging.order(key))
            .offset(self.reach - 1)
            .limit(1)
            .lateral("last")
        )
        edges = select(last.c.id).select_from(each).join(last, true())
        return (await session.exec(edges.order_by(paging.order(last.c.id)).limit(1))).one_or_none()

    def _each(self) -> Any:
        given = bindparam(None, list(self.organizations), ARRAY(Uuid), unique=True)
        return func.unnest(given).table_valued(column("id", Uuid), name="each").render_derived()
