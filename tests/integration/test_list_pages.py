"""Lists of rows in a real database, walked in both directions by the links of their pages."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

from sqlmodel import col

from app.admin.lists import Filter, ListPage, PageQuery
from core import audit, ids
from core.access.models import AuditEntry
from core.audit import COMMAND_LINE
from core.errors import ValidationFailed
from core.listing.lists import Walk
from tests.api import run
from tests.platform import Platform

FILTERS = (Filter.text("action", "What"),)
SIZE = 5


async def page_at(p: Platform, url: str, reach: int = 10_000) -> ListPage:
    parts = urlsplit(url)
    query = PageQuery.parse(parts.path, parse_qsl(parts.query), FILTERS, ids.AUDIT_ENTRY, datetime.now(UTC))
    checked = [col(AuditEntry.action) == query.asked["action"]] if query.asked else []
    async with p.database.session() as session:
        return await query.page(session, lambda _: Walk(AuditEntry, (), checked, reach), SIZE)


async def record(p: Platform, actions: list[str]) -> list[str]:
    """Entries, one after the other; what there is then, the newest first."""
    for action in actions:
        async with p.database.session() as session:
            audit.record(session, COMMAND_LINE, action, "x", organization_id=None)
    return [row["action"] for row in await p.sql("SELECT action FROM audit_log ORDER BY id DESC")]


def test_pages_lead_to_all_rows_and_back(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        assert await page_at(p, "/log") == ListPage([])
        every = await record(p, [f"thing.{number}" for number in range(12)])
        down = [await page_at(p, "/log")]
        assert (down[0].newest, down[0].newer) == (None, None)
        while down[-1].older:
            down.append(await page_at(p, down[-1].older))
        assert [[row.action for row in page.rows] for page in down] == [every[:5], every[5:10], every[10:]]
        assert [page.newest for page in down[1:]] == ["/log", "/log"]

        up = await page_at(p, down[2].newer or "")
        assert [row.action for row in up.rows] == every[5:10]
        assert (await page_at(p, up.older or "")).rows == down[2].rows
        # Two more have come since: the newest page begins with them, and misses none.
        every = await record(p, ["thing.12", "thing.13"])
        up = await page_at(p, up.newer or "")
        assert [row.action for row in up.rows] == every[2:7]
        up = await page_at(p, up.newer or "")
        assert [row.action for row in up.rows] == every[:5], "a whole page, and not the two alone"
        assert (up.newest, up.newer) == (None, None)
        assert [row.action for row in (await page_at(p, up.older or "")).rows] == every[5:10]

    run(database_url, redis_url, check)


def test_a_search_that_ends_early_says_how_far_it_looked_and_goes_on(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await record(p, ["wanted", *["other"] * 11, "wanted"])
        found = []
        url: str | None = "/log?action=wanted"
        pages = 0
        while url is not None:
            page = await page_at(p, url, reach=4)
            found += page.rows
            assert (page.searched_to is None) == (page.older is None)
            assert page.older is None or page.older.startswith("/log?action=wanted&after=aud_")
            url, pages = page.older, pages + 1
        assert [row.action for row in found] == ["wanted", "wanted"]
        assert pages == 4

        # Upwards as well, from the oldest.
        [oldest] = await p.sql("SELECT id FROM audit_log ORDER BY id LIMIT 1")
        page = await page_at(p, f"/log?action=wanted&before={ids.show(ids.AUDIT_ENTRY, oldest['id'])}", reach=4)
        assert (len(page.rows), page.searched_to is None) == (0, False)
        while page.newer:
            page = await page_at(p, page.newer, reach=4)
        assert [row.id for row in page.rows] == [found[0].id]

    run(database_url, redis_url, check)


def test_nothing_is_asked_of_the_database_for_what_is_wrong(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await record(p, ["thing"])
        assert await page_at(p, "/log?after=x") == ListPage(())

        def refuse(_: dict[str, str]) -> Walk:
            raise ValidationFailed.of("filters.action", "No")

        query = PageQuery.parse("/log", [("action", "thing")], FILTERS, ids.AUDIT_ENTRY, datetime.now(UTC))
        async with p.database.session() as session:
            assert await query.page(session, refuse) == ListPage(())
        assert (query.errors, query.status) == ({"action": ["No"]}, 400)

    run(database_url, redis_url, check)
