"""Pages of rows, by key or by number. What one page reads is bounded, whatever it is asked for.

An index yields rows in the list's order; where filters are checked row by row, at most `reach` rows are walked, and a
page that ends there says so by its `edge`. Totals are counted up to `MAX_COUNTED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from core.listing import selection

MAX_COUNTED = 10_000  # rows that a total counts, and that pages by number reach
REACH = 5_000  # rows that a page walks at most where each must be looked at

Conditions = Sequence[ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page, in which order."""

    limit: int
    after: UUID | None = None  # the key that the page comes after
    page: int | None = None  # set only when paged by number
    descending: bool = True

    def order(self, key: Any) -> Any:
        return key.desc() if self.descending else key.asc()


@dataclass(frozen=True, slots=True)
class Page:
    """What was found. `edge`: the last id that was looked at, if more may follow. `total`: of all up to there."""

    rows: Sequence[Any]
    more: bool
    edge: UUID | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Walk:
    """Rows of `model` that an index yields in the order of their ids, by `walked`; shown are those that pass `checked`
    too, of at most `reach`."""

    model: Any
    walked: Conditions
    checked: Conditions
    reach: int

    async def page(self, session: AsyncSession, paging: Paging) -> Page:
        key: Any = col(self.model.id)
        walked = list(self.walked)
        if paging.after is not None:
            walked.append(key < paging.after if paging.descending else key > paging.after)
        wanted = select(self.model).where(*walked, *self.checked).order_by(paging.order(key))
        if not self.checked:
            return await take(session, paging, wanted, None)
        await selection.plan_by_value(session)
        edge = await self._edge(session, walked, paging)
        within = () if edge is None else (key >= edge if paging.descending else key <= edge,)
        return await take(session, paging, wanted.where(*within), edge)

    async def _edge(self, session: AsyncSession, walked: Conditions, paging: Paging) -> UUID | None:
        """The last id within reach; None when all rows are."""
        key: Any = col(self.model.id)
        statement = select(key).where(*walked).order_by(paging.order(key)).offset(self.reach - 1).limit(1)
        found: UUID | None = (await session.exec(statement)).one_or_none()
        return found


async def take(session: AsyncSession, paging: Paging, statement: SelectOfScalar[Any], edge: UUID | None) -> Page:
    """The page of `statement`, which selects a table in order, up to `edge`."""
    total = None
    if paging.page is not None:
        one = statement.with_only_columns(literal(1), maintain_column_froms=True)
        counted = one.order_by(None).limit(MAX_COUNTED + 1).subquery()
        total = (await session.exec(select(func.count()).select_from(counted))).one()
        statement = statement.offset((paging.page - 1) * paging.limit)
    rows = (await session.exec(statement.limit(paging.limit + 1))).all()
    return Page(rows[: paging.limit], len(rows) > paging.limit, edge, total)
