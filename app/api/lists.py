"""Lists: filters, order, paging by key or by number, and a choice of fields, the same for every noun.

What one page reads is bounded, whatever it is asked for. An index yields rows in the list's order; where filters are
checked row by row, at most `reach` rows are walked. A page that ends there says up to when it has searched, and its
`nextCursor` goes on from there. Totals are counted up to `MAX_COUNTED`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar
from starlette.requests import Request

from app.api.answers import Answer
from app.api.replies import Reply
from core import ids, selection, timestamps
from core.errors import ValidationFailed, quoted

DEFAULT_LIMIT, MAX_LIMIT = 25, 200
MAX_COUNTED = 10_000  # rows that a total counts, and that pages by number reach
REACH = 10_000  # rows that a page walks at most where each must be looked at
SOON = 10  # rows that it walks first, for each that it may show
MAX_PARAMETERS = 50
_FILTER = re.compile(r"filters\[([a-z_]{1,40})\]")
_PLAIN = frozenset({"limit", "after_key", "page", "pageSize", "sort", "fields", "include"})

Row = TypeVar("Row")
Conditions = Sequence[ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What a caller asked of a list."""

    filters: Mapping[str, str]
    limit: int
    after: UUID | None
    page: int | None  # set only when the caller pages by number
    descending: bool
    fields: Sequence[str]
    include: frozenset[str]

    @property
    def sort(self) -> str:
        return "-created_at" if self.descending else "created_at"

    def order(self, key: Any) -> Any:
        return key.desc() if self.descending else key.asc()


def parse(request: Request, shows: type[Answer], *, includes: Sequence[str] = ()) -> ListQuery:
    """What a caller asks of a list whose items are `shows`.

    Raises `ValidationFailed` that names every parameter that is unknown or wrong.
    """
    given = request.query_params
    faults: dict[str, list[str]] = {}
    filters: dict[str, str] = {}
    for name, value in given.multi_items()[:MAX_PARAMETERS]:
        match = _FILTER.fullmatch(name)
        if match:
            filters[match[1]] = value
        elif name not in _PLAIN:
            faults[name[:80]] = [f"Unknown parameter; there are filters[…] and: {', '.join(sorted(_PLAIN))}"]
        if len(given.getlist(name)) > 1:
            faults[name[:80]] = ["Given more than once; several values of a filter are separated by commas"]
    if len(given.multi_items()) > MAX_PARAMETERS:
        faults["query"] = [f"At most {MAX_PARAMETERS} parameters"]
    sort = given.get("sort", "-created_at")
    if sort not in {"created_at", "-created_at"}:
        faults["sort"] = ["Must be created_at or -created_at"]
    by_number = "page" in given or "pageSize" in given
    if by_number and "after_key" in given:
        faults["after_key"] = ["Page either by after_key with limit, or by page with pageSize"]
    if by_number and "limit" in given:
        faults["limit"] = ["Belongs to after_key; with page, give pageSize"]
    limit = _integer(given, "pageSize" if by_number else "limit", DEFAULT_LIMIT, MAX_LIMIT, faults)
    page = _integer(given, "page", 1, MAX_COUNTED, faults) if by_number else None
    if page is not None and page * limit > MAX_COUNTED:
        faults["page"] = [f"Pages by number reach the first {MAX_COUNTED} rows; go further by after_key"]
    after = None
    if "after_key" in given:
        after = _decode(given["after_key"], faults)
    include = frozenset(given["include"].split(",") if "include" in given else ())
    if unknown := include - set(includes):
        known = f"there is {', '.join(includes)}" if includes else "nothing can be included here"
        faults["include"] = [f"Unknown: {', '.join(map(quoted, sorted(unknown)))[:200]}; {known}"]
    fields = given["fields"].split(",") if "fields" in given else []
    known_fields = [name for name in shows.names() if name in include or name not in includes]
    if wrong := [name for name in fields if name not in known_fields]:
        faults["fields"] = [f"Unknown: {', '.join(map(quoted, wrong))[:200]}; there are: {', '.join(known_fields)}"]
    if faults:
        raise ValidationFailed(details=faults)
    return ListQuery(filters, limit, after, page, sort.startswith("-"), fields, include)


def _integer(given: Mapping[str, str], name: str, default: int, most: int, faults: dict[str, list[str]]) -> int:
    text = given.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most):
        faults[name] = [f"Must be a whole number from 1 to {most}"]
        return default
    return int(text)


def _encode(key: UUID) -> str:
    return base64.urlsafe_b64encode(key.bytes).rstrip(b"=").decode()


def _decode(text: str, faults: dict[str, list[str]]) -> UUID | None:
    try:
        return UUID(bytes=base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        faults["after_key"] = ["Must be the nextCursor of an earlier page"]
        return None


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

    async def page(self, session: AsyncSession, query: ListQuery) -> Page:
        key: Any = col(self.model.id)
        walked = list(self.walked)
        if query.after is not None:
            walked.append(key < query.after if query.descending else key > query.after)
        wanted = select(self.model).where(*walked, *self.checked).order_by(query.order(key))
        if not self.checked:
            return await take(session, query, wanted, None)
        await selection.plan_by_value(session)
        page = Page((), False)
        # Mostly a page is full soon. By number, all rows count.
        soon = min(SOON * query.limit, self.reach) if query.page is None else self.reach
        for reach in sorted({soon, self.reach}):
            edge = await self._edge(session, walked, query, reach)
            within = () if edge is None else (key >= edge if query.descending else key <= edge,)
            page = await take(session, query, wanted.where(*within), edge)
            if page.more or edge is None:
                break
        return page

    async def _edge(self, session: AsyncSession, walked: Conditions, query: ListQuery, reach: int) -> UUID | None:
        """The last id within reach; None when all rows are."""
        key: Any = col(self.model.id)
        statement = select(key).where(*walked).order_by(query.order(key)).offset(reach - 1).limit(1)
        found: UUID | None = (await session.exec(statement)).one_or_none()
        return found


async def take(session: AsyncSession, query: ListQuery, statement: SelectOfScalar[Any], edge: UUID | None) -> Page:
    """The page of `statement`, which selects a table in order, up to `edge`."""
    total = None
    if query.page is not None:
        one = statement.with_only_columns(literal(1), maintain_column_froms=True)
        counted = one.order_by(None).limit(MAX_COUNTED + 1).subquery()
        total = (await session.exec(select(func.count()).select_from(counted))).one()
        statement = statement.offset((query.page - 1) * query.limit)
    rows = (await session.exec(statement.limit(query.limit + 1))).all()
    return Page(rows[: query.limit], len(rows) > query.limit, edge, total)


async def run(
    session: AsyncSession,
    query: ListQuery,
    model: type[Row],
    conditions: Conditions,
    show: Callable[[Row], dict[str, Any]],
    *,
    checked: Conditions = (),
) -> Reply:
    """One page of `model`, in the order of its id, which is the order of time. An index must serve `conditions`;
    `checked` are looked at row by row."""
    page = await Walk(model, conditions, checked, REACH).page(session, query)
    return answer(query, page, [show(row) for row in page.rows])


def answer(query: ListQuery, page: Page, items: Sequence[dict[str, Any]]) -> Reply:
    """`items` are the page's rows as they are shown."""
    following = page.rows[-1].id if page.more else page.edge
    pagination: dict[str, Any] = {"pageSize": query.limit}
    if page.total is not None:
        exact = page.total <= MAX_COUNTED and page.edge is None
        pagination |= {"page": query.page, "total": min(page.total, MAX_COUNTED), "totalIsExact": exact}
    pagination |= {
        "hasMore": following is not None,
        "nextCursor": _encode(following) if following is not None else None,
        "sort": query.sort,
    }
    if len(page.rows) < query.limit and page.edge is not None:
        pagination["searchedTo"] = timestamps.show(ids.time_of(page.edge))
    return Reply([choose_fields(item, query.fields) for item in items], meta={"pagination": pagination})


def choose_fields(item: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Only the named fields, which `parse` has looked at."""
    return {name: item[name] for name in fields} if fields else item
