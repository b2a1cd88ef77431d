"""Lists: a cursor reads back, whatever is asked is read or refused by name, and pages show every row once in order."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from app.api import answers, lists
from app.api.lists import MAX_LIMIT, ListQuery
from core.errors import ValidationFailed
from core.listing.lists import MAX_COUNTED
from core.models import Organization
from core.storage.database import Database

uuids = st.integers(0, (1 << 128) - 1).map(lambda number: UUID(int=number))
NAMES = ("limit", "after_key", "page", "pageSize", "sort", "fields", "include", "filters[status]", "filters[", "other")
numbers = st.integers(-3, 12_000).map(str)
values = (
    st.text(max_size=30) | numbers | uuids.map(lists._encode) | st.sampled_from(["created_at", "-created_at", "x,y"])
)


def asked(parameters: list[tuple[str, str]]) -> Request:
    query = urlencode(parameters, errors="surrogatepass").encode()
    return Request({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": query})


@given(uuids)
def test_a_cursor_reads_back(key: UUID) -> None:
    faults: dict[str, list[str]] = {}
    text = lists._encode(key)
    assert (lists._decode(text, faults), faults) == (key, {})
    assert lists.parse(asked([("after_key", text)]), answers.Event).after == key
    assert text.isascii()
    assert len(text) == 22


@given(st.text(max_size=40) | st.text("ABab01-_=", min_size=20, max_size=24))
def test_what_is_no_cursor_is_refused_and_what_is_one_is_of_16_bytes(text: str) -> None:
    faults: dict[str, list[str]] = {}
    found = lists._decode(text, faults)
    assert (found is None) == ("after_key" in faults)
    if found is not None:
        # The last of 22 characters carries 4 bits that are used; a text that differs in the others means the same.
        assert lists._encode(found)[:21] == text[:21]


@given(st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=6))
def test_whatever_is_asked_of_a_list_is_read_within_bounds_or_refused_by_name(
    parameters: list[tuple[str, str]],
) -> None:
    query, named = None, set()
    try:
        query = lists.parse(asked(parameters), answers.Event, includes=["x"])
    except ValidationFailed as error:
        named = set(error.details)
    assert named <= {name for name, _ in parameters} | {"query"}
    if query is None:
        assert named
        return
    assert 1 <= query.limit <= MAX_LIMIT
    assert query.page is None or 1 <= query.page * query.limit <= MAX_COUNTED
    assert query.include <= {"x"}
    assert not (query.after and query.page)
    assert query.filters == {name[8:-1]: value for name, value in parameters if name.endswith("]")}


def test_pages_show_every_row_once_in_order(database_url: str) -> None:
    """By key and by number, either way round. The rows are rolled back after each example."""
    with asyncio.Runner() as runner:
        database = Database(database_url, pool_size=1)

        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.sets(uuids, max_size=12), st.integers(1, 5), st.booleans())
        def check(keys: set[UUID], limit: int, descending: bool) -> None:
            runner.run(_check_pages(database, sorted(keys, reverse=descending), limit, descending))

        try:
            check()
        finally:
            runner.run(database.close())


async def _check_pages(database: Database, keys: list[UUID], limit: int, descending: bool) -> None:
    async def page(after: UUID | None, number: int | None) -> tuple[list[UUID], dict[str, Any]]:
        query = ListQuery(limit, after, number, descending, {}, [], frozenset())
        reply = await lists.run(session, query, Organization, [], lambda row: {"id": row.id})
        pagination: dict[str, Any] = reply.meta["pagination"]
        return [item["id"] for item in reply.data], pagination

    async with database.session() as session:
        session.add_all([Organization(id=key, name="Test") for key in keys])
        await session.flush()
        by_key: list[UUID] = []
        after: UUID | None = None
        while True:
            found, said = await page(after, None)
            by_key += found
            assert len(found) == min(limit, len(keys) - len(by_key) + len(found))
            if not said["hasMore"]:
                break
            after = lists._decode(said["nextCursor"], {})
        assert by_key == keys
        pages = [await page(None, 1 + index) for index in range(-(-len(keys) // limit) + 1)]
        assert [key for found, _ in pages for key in found] == keys
        assert {said["total"] for _, said in pages} == {len(keys)}
        await session.rollback()
