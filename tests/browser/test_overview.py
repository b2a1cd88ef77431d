"""Three in the morning: from signing in to the error of the subscription that fails."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from playwright.async_api import expect

from core import stats
from core.access.models import Role
from tests.browser.checks import check
from tests.browser.conftest import Play
from tests.browser.site import Site
from tests.pages import PASSWORD, make_user
from tests.platform import eventually
from tests.receiver import Receiver

EMAIL = "vic@example.com"


async def kept(s: Site, attempts: int) -> None:
    """Web and worker write down what they have counted, which they else do every three seconds."""
    p, since = s.platform, datetime.now(UTC) - timedelta(hours=1)

    async def all_is_there() -> bool:
        assert p.engine is not None
        async with p.database.driver() as driver:
            await p.services.acceptance.tally.flush(driver)
            await p.engine.flush_statistics()
            return (await stats.figures(driver, stats.INSTALLATION, None, since)).attempts == attempts

    await eventually(all_is_there, what="the statistics")


def test_three_in_the_morning(play: Play, receiver: Receiver) -> None:
    async def scenario(s: Site) -> None:
        p = s.platform
        await p.subscribe(receiver.url("/ok"))
        failing = await p.subscribe(receiver.url("/status/503"), ["order.paid"], retry_policy={"max_attempts": 1})
        await p.send("order.paid")
        [dead] = await p.settled(1, "dead")
        await kept(s, attempts=2)

        await make_user(s, EMAIL, Role.VIEWER)
        page = await s.open("/")
        await page.get_by_role("link", name="Sign in").click()
        await page.get_by_label("Email").fill(EMAIL)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_role("main").get_by_role("button", name="Sign in").click()

        # Is it us or them? Which, since when, how many wait and how many are dead, without a click.
        await expect(page.get_by_text("Our side is well: 1 worker is alive, nothing is late.")).to_be_visible()
        row = page.get_by_role("row", name=re.compile("failing"))
        await expect(row).to_have_count(1)
        label = receiver.url("/status/503").removeprefix("http://")
        await expect(row.get_by_role("link", name=label)).to_be_visible()
        await expect(row).to_contain_text("nothing delivered in 7 days")
        await expect(row).to_contain_text("the receiver's side")
        figures = row.get_by_role("cell")
        await expect(figures.nth(4)).to_have_text("0")
        await expect(figures.nth(5).get_by_role("link")).to_have_attribute(
            "href", f"/dead-letters?subscription={failing['id']}"
        )
        await check(page)

        # It stays fresh by itself, and what was opened stays open.
        await page.get_by_text("The same as a table").click()
        await expect(page.get_by_role("region", name="Table of the chart")).to_be_visible()
        await p.send("order.paid")
        await p.settled(2, "dead")
        await kept(s, attempts=4)
        await expect(figures.nth(5)).to_have_text("2", timeout=20_000)
        await expect(page.get_by_role("region", name="Table of the chart")).to_be_visible()

        # The error, at the first click.
        [_, latest] = sorted(one["id"] for one in await p.deliveries(status="dead"))
        assert latest > dead["id"]
        await row.get_by_role("link", name="Their server answered 503").click()
        await page.wait_for_url(f"{s.url}/deliveries/{latest}")
        await expect(page.get_by_text("Their server answered 503").first).to_be_visible()
        # And what is beside it leads where it says.
        for name, path, heading in (
            (label, f"/subscriptions/{failing['id']}", label),
            ("2", f"/dead-letters?subscription={failing['id']}", "Dead letters"),
        ):
            await page.goto("/")
            await row.get_by_role("link", name=name, exact=True).click()
            await page.wait_for_url(f"{s.url}{path}")
            await expect(page.get_by_role("heading", level=1)).to_contain_text(heading)

    play(scenario, with_worker=True)
