"""List pages: filters that stand in the URL, so that a view can be shared, and paging by key in both directions.

A page declares its filters once. From them come what the form shows, what is wrong with what was given, what the query
is asked, and every link.

```
FILTERS = (Filter.choice("status", "State", State), Filter.of_id("subscription", "Subscription", ids.SUBSCRIPTION, …))

query = PageQuery.of(visit, FILTERS, ids.DELIVERY)
async with visit.services.database.session() as session:
    page = await query.page(session, lambda filters: walk(organization_id, filters))
return visit.render("deliveries/index.html", query.status, query=query, page=page)
```
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urlencode
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin.visit import Visit
from core import ids, timestamps
from core.errors import InvalidId, ValidationFailed
from core.listing.lists import Page, Paging
from core.listing.selection import moment

SIZE = 50  # rows a page
MAX_TEXT = 500  # characters of a filter
AFTER, BEFORE = "after", "before"
_AGO = re.compile(r"(\d{1,4}) ?(m|min|h|d)", re.ASCII)
_UNITS = {"m": timedelta(minutes=1), "min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_WRONG_TIME = "Must be a time in UTC, as 2026-01-28 10:15, or how long ago, as 30m, 24h or 7d"


class Kind(Enum):
    TEXT = "text"
    CHOICE = "choice"
    ID = "id"
    TIME = "time"


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter of a list: `name` in the URL, `field` where it is asked of core."""

    name: str
    label: str
    kind: Kind
    field: str
    hint: str = ""
    options: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # of a choice: what the URL holds, and what people read
    prefix: str = ""  # of an id

    @classmethod
    def text(cls, name: str, label: str, *, field: str = "", hint: str = "") -> Filter:
        return cls(name, label, Kind.TEXT, field or name, hint)

    @classmethod
    def choice(
        cls, name: str, label: str, options: Mapping[str, str] | Iterable[str], *, field: str = "", hint: str = ""
    ) -> Filter:
        """One of `options`; a URL may name several, separated by commas."""
        known = options if isinstance(options, Mapping) else {str(one): str(one).replace("_", " ") for one in options}
        return cls(name, label, Kind.CHOICE, field or name, hint, known)

    @classmethod
    def of_id(cls, name: str, label: str, prefix: str, *, field: str = "", hint: str = "") -> Filter:
        return cls(name, label, Kind.ID, field or name, hint or f"{prefix}_…", prefix=prefix)

    @classmethod
    def time(cls, name: str, label: str, *, field: str = "", hint: str = "") -> Filter:
        return cls(name, label, Kind.TIME, field or name, hint or "24h, or a time in UTC")

    def read(self, given: str, now: datetime) -> str:
        """What is asked of core. Raises ValueError that says what would be right."""
        if len(given) > MAX_TEXT or "\0" in given:
            raise ValueError(f"Must be text of at most {MAX_TEXT} characters")
        if self.kind is Kind.CHOICE:
            chosen = [word.strip() for word in given.split(",")]
            if not set(chosen) <= set(self.options):
                raise ValueError(f"Must be among: {', '.join(self.options)}")
            return ",".join(dict.fromkeys(chosen))
        if self.kind is Kind.ID:
            try:
                return ids.show(self.prefix, ids.parse(self.prefix, given))
            except InvalidId as error:
                raise ValueError(error.message) from None
        if self.kind is Kind.TIME:
            return timestamps.show(time_of(given, now))
        return given


def time_of(given: str, now: datetime) -> datetime:
    """What people write for a time, in UTC unless it names its zone: `2026-01-28`, `2026-01-28 10:15`,
    `2026-01-28T10:15:00+01:00`, or how long ago: `30m`, `24h`, `7d`. Raises ValueError."""
    text = given.strip().removesuffix(" UTC")
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS[ago[2]]
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(_WRONG_TIME) from None
    return moment((parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed).isoformat())


class Walking(Protocol):
    """What yields a page of rows in the order of their ids, as `Walk`."""

    async def page(self, session: AsyncSession, paging: Paging) -> Page: ...


@dataclass(frozen=True, slots=True)
class ListPage:
    """Rows, the newest first, and where to go from here: URLs, each None where there is nothing."""

    rows: Sequence[Any]
    newest: str | None = None
    newer: str | None = None
    older: str | None = None
    searched_to: datetime | None = None  # where it ended short of a page: only so far was looked


@dataclass
class PageQuery:
    """What the URL asks of a list page."""

    path: str
    filters: Sequence[Filter]
    prefix: str  # of the rows' ids
    given: dict[str, str]  # by name, as it stands in the URL
    asked: dict[str, str]  # by field, as it is asked of core: without what is wrong or empty
    errors: dict[str, list[str]]  # by name
    after: UUID | None = None
    before: UUID | None = None

    @classmethod
    def of(cls, visit: Visit, filters: Sequence[Filter], prefix: str, now: datetime | None = None) -> PageQuery:
        params = visit.request.query_params
        return cls.parse(visit.request.scope["path"], params.multi_items(), filters, prefix, now or datetime.now(UTC))

    @classmethod
    def parse(
        cls, path: str, params: Iterable[tuple[str, str]], filters: Sequence[Filter], prefix: str, now: datetime
    ) -> PageQuery:
        """Parameters that are no filters of the page are left out; of several of one name, the last that is not empty
        counts, except for a choice, where they add up."""
        known = {one.name: one for one in filters}
        given: dict[str, str] = {}
        cursors: dict[str, str] = {}
        for name, value in params:
            text = value.strip()
            if not text:
                continue
            if name in (AFTER, BEFORE):
                cursors[name] = text
            elif name in known:
                adds_up = known[name].kind is Kind.CHOICE and name in given
                given[name] = f"{given[name]},{text}" if adds_up else text
        query = cls(path, filters, prefix, given, {}, {})
        for name, text in given.items():
            try:
                query.asked[known[name].field] = known[name].read(text, now)
            except (ValueError, ValidationFailed) as error:
                query.errors[name] = [error.message if isinstance(error, ValidationFailed) else str(error)]
        query.after, query.before = query._cursor(cursors, AFTER), query._cursor(cursors, BEFORE)
        return query

    def _cursor(self, cursors: Mapping[str, str], name: str) -> UUID | None:
        try:
            return ids.parse(self.prefix, cursors[name]) if name in cursors else None
        except InvalidId as error:
            self.errors[name] = [error.message]
            return None

    @property
    def status(self) -> int:
        """Of the answer."""
        return ValidationFailed.status if self.errors else 200

    @property
    def is_narrowed(self) -> bool:
        """Whether any filter is set: then what is missing may just not match."""
        return bool(self.given)

    @property
    def clear_url(self) -> str:
        return self.path

    def url(self, path: str | None = None, **changes: str | None) -> str:
        """This list, from its beginning, with some filters changed; None takes one out. At `path`: another page that
        knows the same filters."""
        chosen = {name: value for name, value in {**self.given, **changes}.items() if value}
        return f"{path or self.path}?{urlencode(chosen)}" if chosen else path or self.path

    def fixed_url(self, path: str) -> str:
        """Another page with the same filters, where "24h" ago is as now: what is selected there stays selected."""
        return self.url(path, **{one.name: self.asked.get(one.field) for one in self.filters})

    def refuse(self, error: ValidationFailed) -> None:
        """Notes what core says is wrong, beside the filters that it is about."""
        names = {one.field: one.name for one in self.filters}
        for where, said in error.details.items():
            asked = where.removeprefix("filters.")
            self.errors[names.get(asked, asked)] = said
        if not error.details:
            self.errors[""] = [error.message]

    async def page(
        self, session: AsyncSession, build: Callable[[dict[str, str]], Walking], size: int = SIZE
    ) -> ListPage:
        """The rows of `build(asked)`; none where something that was asked for is wrong, which `errors` then says."""
        if self.errors:
            return ListPage(())
        try:
            walking = build(self.asked)
            if self.before is not None:
                up = await walking.page(session, Paging(size, self.before, descending=False))
                if up.more or up.edge is not None:
                    return self._going_up(up, size)
                # Less than a page up to the newest: that whole page instead.
            after = self.after if self.before is None else None
            down = await walking.page(session, Paging(size, after))
        except ValidationFailed as error:
            self.refuse(error)
            return ListPage(())
        return self._going_down(down, after, size)

    def _going_down(self, found: Page, after: UUID | None, size: int) -> ListPage:
        following = found.rows[-1].id if found.more else found.edge
        return ListPage(
            found.rows,
            newest=None if after is None else self.url(),
            newer=self._at(BEFORE, found.rows[0].id) if after is not None and found.rows else None,
            older=None if following is None else self._at(AFTER, following),
            searched_to=_end_of(found, size),
        )

    def _going_up(self, found: Page, size: int) -> ListPage:
        rows = found.rows[::-1]
        following = rows[0].id if found.more else found.edge
        return ListPage(
            rows,
            newest=self.url(),
            newer=None if following is None else self._at(BEFORE, following),
            older=self._at(AFTER, rows[-1].id) if rows else self.url(),
            searched_to=_end_of(found, size),
        )

    def _at(self, cursor: str, id_: UUID) -> str:
        shown = urlencode({**self.given, cursor: ids.show(self.prefix, id_)})
        return f"{self.path}?{shown}"


def _end_of(found: Page, size: int) -> datetime | None:
    return ids.time_of(found.edge) if found.edge is not None and len(found.rows) < size else None
