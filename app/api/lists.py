"""Lists: filters, order, paging by key or by number, and a choice of fields, the same for every noun."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request

from app.api.replies import Reply
from core.errors import ValidationFailed

DEFAULT_LIMIT, MAX_LIMIT = 25, 200
MAX_PAGE = 10_000
MAX_PARAMETERS = 50
_FILTER = re.compile(r"filters\[([a-z_]{1,40})\]")
_PLAIN = frozenset({"limit", "after_key", "page", "pageSize", "sort", "fields", "include"})

Row = TypeVar("Row")


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


def parse(request: Request, *, includes: Sequence[str] = ()) -> ListQuery:
    """Raises `ValidationFailed` that names every parameter that is unknown or wrong."""
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
    page = _integer(given, "page", 1, MAX_PAGE, faults) if by_number else None
    after = None
    if "after_key" in given:
        after = _decode(given["after_key"], faults)
    include = frozenset(filter(None, given.get("include", "").split(",")))
    if unknown := include - set(includes):
        known = f"there is {', '.join(includes)}" if includes else "nothing can be included here"
        faults["include"] = [f"Unknown: {', '.join(sorted(unknown))[:80]}; {known}"]
    if faults:
        raise ValidationFailed(details=faults)
    fields = [name for name in given.get("fields", "").split(",") if name]
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


async def run(
    session: AsyncSession,
    query: ListQuery,
    model: type[Row],
    conditions: Sequence[ColumnElement[bool]],
    show: Callable[[Row], dict[str, Any]],
    *,
    finish: Callable[[Sequence[Row], list[dict[str, Any]]], Awaitable[None]] | None = None,
) -> Reply:
    """One page of `model`, in the order of its id, which is the order of time. `finish` may add to the items."""
    key: Any = col(model.id)  # type: ignore[attr-defined] # every table has an id; there is no base class to say so
    statement = select(model).where(*conditions)
    if query.after is not None:
        statement = statement.where(key < query.after if query.descending else key > query.after)
    statement = statement.order_by(key.desc() if query.descending else key.asc()).limit(query.limit + 1)
    pagination: dict[str, Any] = {"pageSize": query.limit}
    if query.page is not None:
        statement = statement.offset((query.page - 1) * query.limit)
        counted = select(func.count()).select_from(model).where(*conditions)
        pagination |= {"page": query.page, "total": (await session.exec(counted)).one()}
    rows = (await session.exec(statement)).all()
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    items = [show(row) for row in rows]
    if finish is not None:
        await finish(rows, items)
    last: Any = rows[-1] if rows else None
    pagination |= {
        "hasMore": more,
        "nextCursor": _encode(last.id) if more else None,
        "sort": query.sort,
    }
    return Reply([choose_fields(item, query.fields) for item in items], meta={"pagination": pagination})


def choose_fields(item: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Only the named fields. Raises `ValidationFailed` on one that there is not."""
    if not fields:
        return item
    unknown = [name for name in fields if name not in item]
    if unknown:
        raise ValidationFailed.of("fields", f"Unknown: {', '.join(unknown)[:80]}; there are: {', '.join(item)}")
    return {name: item[name] for name in fields}
