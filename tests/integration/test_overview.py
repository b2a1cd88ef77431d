"""The overview as a browser gets it: what it says of each state that the installation may be in."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import unescape

import pytest

from app.admin import overview
from app.admin.overview import RANGES, Snapshot, Tone, notices
from core import ids, stats
from core.access.models import Role
from core.health import Health
from core.stats import Figures, History, Queue
from core.unwell import Judged, Reach
from tests.api import run
from tests.pages import Visitor, signed_in
from tests.platform import Platform, eventually, shown
from tests.receiver import Receiver

NOON = datetime(2026, 1, 28, 12, tzinfo=UTC)
NO_REDIS = "redis://127.0.0.1:1/0"


def words(html: str) -> str:
    """What is read, without the tags."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def stat(html: str, label: str) -> str:
    found = re.search(rf"<dt>{label}</dt>\s*<dd>(.*?)</dd>", html, re.DOTALL)
    assert found, label
    return words(found[1]).strip()


def test_what_to_do_first_when_there_is_nothing(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, "ada@example.com", Role.ADMIN) as visitor:
            page = await visitor.get("/")
            assert "First steps" in page.text
            assert f'href="/subscriptions/new?organization={shown(p)}"' in page.text, "there is one already"
            assert "<table" not in page.text, "nothing to show is no table"
            assert "No worker is alive" in page.text
            await p.sql("DELETE FROM api_keys")
            await p.sql("DELETE FROM organizations")
            page = await visitor.get("/")
            assert re.search(r'class="button main" href="/organizations/new"', page.text)
            assert "takes an admin" not in page.text
        async with signed_in(p, "vic@example.com", Role.VIEWER) as viewer:
            page = await viewer.get("/")
            assert "takes an admin" in page.text
            _, _, steps = page.text.partition('id="first-steps"')
            assert "<a" not in steps.partition("</section>")[0], "what would be refused is not offered"
        stranger = Visitor(p.app)
        page = await stranger.get("/")
        assert page.status_code == 200
        assert 'href="/sign-in"' in page.text
        assert "Overview" not in page.text

    run(database_url, redis_url, check)


def test_real_deliveries_are_told_from_the_failing_subscription_to_its_error(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        fine = await p.subscribe(receiver.url("/ok"), ["order.*"])
        once = {"max_attempts": 1}
        failing = await p.subscribe(receiver.url("/status/503"), ["order.paid"], retry_policy=once)
        for event_type in ("order.paid", "order.paid", "order.made"):
            await p.send(event_type)
        await p.settled(3, "delivered")
        [dead, *_] = await p.settled(2, "dead")
        await kept(p)
        async with signed_in(p, "vic@example.com", Role.VIEWER) as viewer:
            for path in ("/", "/?range=1h", "/?range=7d", f"/?organization={shown(p)}", "/?range=nonsense"):
                page = await viewer.get(path)
                assert page.status_code == 200
                assert not re.search(r"<script>|<style|\bstyle=|\son\w+=", page.text)
                figures = [stat(page.text, one) for one in ("Accepted", "Delivered", "Failed attempts", "Given up")]
                assert figures == ["3", "3", "2", "2"], path
                assert [stat(page.text, one) for one in ("Success rate", "Waiting now", "Dead letters now")] == [
                    *("60 %", "0", "2")
                ]
                assert stat(page.text, "Workers") == "1"
                assert re.fullmatch(r"\d+ ms|[\d.]+ s", stat(page.text, "Delivery time"))
                said = words(page.text)
                assert "Our side is well: 1 worker is alive, nothing is late. What fails below fails at the" in said
                assert "healthy 1 degraded 0 failing 1 paused 0 disabled 0" in said
                assert "Their server answered 503" in said
                assert "2 of 2 attempts failed within the hour" in said
                assert "First steps" not in said
                for href in (
                    f"/subscriptions/{failing['id']}",
                    f"/dead-letters?subscription={failing['id']}",
                    f"/deliveries/{dead['id']}",
                    "/deliveries?error=status&amp;created_after=",
                ):
                    assert f'href="{href}' in page.text, href
                assert f"/subscriptions/{fine['id']}" not in page.text, "those that are well are only counted"
                chart = re.search(r'<svg class="bars".*?</svg>', page.text, re.DOTALL)
                assert chart
                bars = re.findall(r"(\d+) delivered, (\d+) failed and tried again, (\d+) given up", chart[0])
                told = [sum(int(bar[part]) for bar in bars) for part in range(3)]
                assert told == [3, 0, 2], "in one bar or, at the turn of a minute, in two"
        installation = await figures_of_installation(p)
        assert (installation.accepted, installation.attempts, installation.dead) == (3, 5, 2)
        assert sum(installation.durations) == 3

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


async def kept(p: Platform) -> None:
    """Web and worker write down what they have counted, which they else do every three seconds."""
    assert p.engine is not None
    async with p.database.driver() as driver:
        await p.services.acceptance.tally.flush(driver)

    async def all_is_there() -> bool:
        assert p.engine is not None
        await p.engine.flush_statistics()  # an outcome is counted a moment after it was stored
        figures = await figures_of_installation(p)  # what is being written at this moment is not there yet either
        return (figures.accepted, figures.attempts) == (3, 5)

    await eventually(all_is_there, what="the statistics")

    async def failures_are_known() -> bool:
        assert p.engine is not None
        await p.engine.sync_breakers(p.services.breakers)
        return [one.failures for one in (await p.services.breakers.all()).values()] == [2]

    await eventually(failures_are_known, what="what the breakers counted")


async def figures_of_installation(p: Platform) -> Figures:
    async with p.database.driver() as driver:
        return await stats.figures(driver, stats.INSTALLATION, None, datetime.now(UTC) - timedelta(days=1))


def test_what_was_accepted_before_counts_once(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for _ in range(2):
            await p.send(event_id="order-1")
        await p.call("POST", "/v1/events", {"event_type": "order.paid"}, 400)
        async with p.database.driver() as driver:
            await p.services.acceptance.tally.flush(driver)
        assert (await figures_of_installation(p)).accepted == 1
        rows = await p.sql("SELECT organization_id, subscription_id, accepted FROM delivery_stats")
        assert {tuple(row) for row in rows} == {
            (p.organization_id, stats.WHOLE, 1),
            (stats.INSTALLATION, stats.WHOLE, 1),
        }

    run(database_url, redis_url, check)


def test_without_redis_the_page_is_there_and_says_so(database_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe("https://example.com/hook")
        async with signed_in(p, "ada@example.com", Role.ADMIN) as visitor:
            page = await visitor.get("/")
            assert page.status_code == 200
            assert "Redis does not answer" in page.text
            assert "No worker is alive" in page.text
            assert "healthy 1" in words(page.text)

    run(database_url, NO_REDIS, check)


def test_one_organization_of_several(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe("https://example.com/hook")
        await p.send()
        other = ids.new_id()
        await p.sql("INSERT INTO organizations (id, name) VALUES ($1, 'Other <b>')", other)
        async with p.database.driver() as driver:
            await p.services.acceptance.tally.flush(driver)
        async with signed_in(p, "vic@example.com", Role.VIEWER) as visitor:
            page = await visitor.get("/")
            assert f'<option value="{ids.show(ids.ORGANIZATION, other)}">Other &lt;b&gt;</option>' in page.text
            page = await visitor.get(f"/?range=7d&organization={shown(p)}")
            assert "Overview of Test" in page.text
            assert f'href="/?organization={shown(p)}"' in page.text, "another range of the same organization"
            assert stat(page.text, "Accepted") == "1"
            page = await visitor.get(f"/?organization={ids.show(ids.ORGANIZATION, other)}")
            assert "healthy 0" in words(page.text) or "First steps" in page.text
            for wrong in ("org_nonsense", ids.show(ids.ORGANIZATION, ids.new_id()), "<script>"):
                page = await visitor.client.get("/", params={"organization": wrong})
                assert page.status_code == 404
                assert 'id="organization-error"' in page.text
                assert "<script>" not in page.text

    run(database_url, redis_url, check)


def test_of_many_organizations_one_is_named_by_its_id(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "MOST_CHOICES", 0)

    async def check(p: Platform) -> None:
        async with signed_in(p, "vic@example.com", Role.VIEWER) as visitor:
            page = await visitor.get(f"/?organization={shown(p)}")
            assert re.search(rf'<input id="organization"[^>]* value="{shown(p)}"', page.text)

    run(database_url, redis_url, check)


# --- is it us? -----------------------------------------------------------------------------------------------------


def seen(
    *,
    workers: int = 2,
    reach: Reach = Reach(10, 1),  # noqa: B008 - it can't be changed
    has_redis: bool = True,
    late_s: float | None = None,
    failing: int = 0,
) -> Snapshot:
    counts = dict.fromkeys(Health, 0) | {Health.FAILING: failing}
    due_at = None if late_s is None else NOON - timedelta(seconds=late_s)
    history = History([], Figures(0, 0, 0, 0, 0, 0, None, None), [])
    return Snapshot(NOON, history, Judged(counts, []), Queue(0, 0, due_at), workers, reach, has_redis)


def test_all_is_well() -> None:
    [one] = notices(seen())
    assert (one.tone, one.text) == (Tone.GOOD, "Our side is well: 2 workers are alive, nothing is late.")
    [one] = notices(seen(failing=1, workers=1, late_s=59))
    assert one.text.endswith("1 worker is alive, nothing is late. What fails below fails at the receivers.")


@pytest.mark.parametrize(
    ("snapshot", "tones", "text"),
    [
        (seen(workers=0), [Tone.BAD], "nothing is being delivered"),
        (seen(reach=Reach(10, 6)), [Tone.BAD], "It looks like us: 6 of the 10 subscriptions"),
        (seen(has_redis=False), [Tone.WARN], "Redis does not answer"),
        (seen(late_s=61), [Tone.WARN], "should have been sent at 11:58 UTC"),
        (seen(workers=0, late_s=61), [Tone.BAD], "No worker is alive"),  # that they are late goes without saying
        (seen(workers=0, reach=Reach(3, 3), has_redis=False), [Tone.BAD, Tone.BAD, Tone.WARN], "No worker"),
    ],
)
def test_what_is_wrong_with_us_is_said_first(snapshot: Snapshot, tones: list[Tone], text: str) -> None:
    found = notices(snapshot)
    assert [one.tone for one in found] == tones
    assert text in found[0].text


def test_ranges_have_points_enough_for_a_chart_and_no_more() -> None:
    assert {name: one.span.points for name, one in RANGES.items()} == {"1h": 60, "24h": 96, "7d": 168}
    for name, length in (("1h", 1), ("24h", 24), ("7d", 168)):
        assert RANGES[name].span.points * RANGES[name].span.step == timedelta(hours=length)
