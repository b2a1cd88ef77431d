"""Lists: filters, order, paging by key or by number, and a choice of fields, the same for every noun.

A page whose search was bounded (`core.listing.lists`) says up to when it has searched, and its `nextCursor` goes on
from there.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import Request

from app.api.answers import Answer
from app.api.replies import Reply
from core import ids, timestamps
from core.errors import ValidationFailed, quoted
from core.listing import lists as core_lists
from core.listing.lists import Conditions, Page, Paging, Walk

DEFAULT_LIMIT, MAX_LIMIT = 25, 200
MAX_PARAMETERS = 50
_FILTER = re.compile(r"filters\[([a-z_]{1,40})\]")
_PLAIN = frozenset({"limit", "after_key", "page", "pageSize", "sort", "fields", "include"})

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class ListQuery(Paging):
    """What a caller asked of a list."""

    filters: Mapping[str, str] = field(default_factory=dict)
    fields: Sequence[str] = ()
    include: frozenset[str] = frozenset()

    @property
    def sort(self) -> str:
        return "-created_at" if self.descending else "created_at"


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
    page = _integer(given, "page", 1, core_lists.MAX_COUNTED, faults) if by_number else None
    if page is not None and page * limit > core_lists.MAX_COUNTED:
        faults["page"] = [f"Pages by number reach the first {core_lists.MAX_COUNTED} rows; go further by after_key"]
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
    return ListQuery(limit, after, page, sort.startswith("-"), filters, fields, include)


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
    conditions: Conditions,
    show: Callable[[Row], dict[str, Any]],
    *,
    checked: Conditions = (),
) -> Reply:
    """One page of `model`, in the order of its id, which is the order of time. An index must serve `conditions`;
    `checked` are looked at row by row."""
    page = await Walk(model, conditions, checked, core_lists.REACH).page(session, query)
    return answer(query, page, [show(row) for row in page.rows])


def answer(query: ListQuery, page: Page, items: Sequence[dict[str, Any]]) -> Reply:
    """`items` are the page's rows as they are shown."""
    following = page.rows[-1].id if page.more else page.edge
    pagination: dict[str, Any] = {"pageSize": query.limit}
    if page.total is not None:
        exact = page.total <= core_lists.MAX_COUNTED and page.edge is None
        pagination |= {"page": query.page, "total": min(page.total, core_lists.MAX_COUNTED), "totalIsExact": exact}
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
