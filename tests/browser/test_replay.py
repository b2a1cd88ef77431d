"""A partner's receiver failed and is mended: an operator sends them what they missed, and sees it arrive."""

from __future__ import annotations

import re

from playwright.async_api import expect

from core.access.models import Role
from tests.browser.checks import check
from tests.browser.conftest import Play
from tests.browser.site import Site
from tests.pages import PASSWORD, make_user
from tests.receiver import Receiver

EMAIL = "ada@example.com"
LETTERS = 120
POLICY = {"backoff_strategy": "fixed", "base_delay_ms": 1, "max_attempts": 1}


def test_dead_letters_are_replayed(play: Play, receiver: Receiver) -> None:
    async def scenario(s: Site) -> None:
        p = s.platform
        receiver.set("/orders", 503)
        never_opens = {"failure_threshold": 1_000, "failure_rate_threshold": 1}
        await p.subscribe(receiver.url("/orders"), retry_policy=POLICY, circuit_breaker=never_opens)
        events = [{"event_type": "order.paid", "data": {"number": number}} for number in range(LETTERS)]
        await p.call("POST", "/v1/events/batch", {"events": events})
        await p.settled(LETTERS, "dead", within_s=30)
        receiver.script("/orders", [500, 200])  # mended, but for one that they do not like

        await make_user(s, EMAIL, Role.OPERATOR)
        page = await s.open("/dead-letters")
        await page.get_by_label("Email").fill(EMAIL)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_role("main").get_by_role("button", name="Sign in").click()

        await expect(page.get_by_text(f"{LETTERS} dead letters in 1 group")).to_be_visible()
        await expect(page.get_by_text("Their server answered 503")).to_be_visible()
        await check(page)
        await page.get_by_role("link", name=re.compile("^127.0.0.1")).click()

        # All that match, of which the page shows fifty.
        await expect(page.get_by_role("button", name="Replay selected")).to_be_disabled()
        boxes = page.get_by_role("checkbox", name=re.compile("^Select dlv"))
        await expect(boxes).to_have_count(50)
        await boxes.nth(1).click()
        await boxes.nth(3).click(modifiers=["Shift"])
        await expect(page.get_by_text("3 on this page selected")).to_be_visible()
        await check(page)
        await page.get_by_role("checkbox", name="Select all on this page").click()
        await page.get_by_role("checkbox", name=f"Select all {LETTERS} that match").click()
        await page.get_by_role("button", name="Replay selected").click()

        await expect(page.get_by_role("heading", name=f"Replay {LETTERS} deliveries?")).to_be_visible()
        await expect(page.get_by_text("takes 3 s at least")).to_be_visible()
        await page.get_by_label("Deliveries a second").fill("1")
        await expect(page.get_by_text("takes 2 min at least")).to_be_visible()
        await check(page)
        start = page.get_by_role("button", name=f"Start the replay of {LETTERS}")
        await page.get_by_label("To confirm").fill("12")
        await start.click()
        said = f"Type {LETTERS} to confirm that you mean as many"
        await expect(page.get_by_label("To confirm")).to_have_accessible_description(said)
        await expect(page.get_by_label("Deliveries a second")).to_have_value("1")
        await page.get_by_label("To confirm").fill(str(LETTERS))
        await start.dblclick()

        # It moves without anybody's doing, stands still on demand, and does not need this page.
        await expect(page.get_by_role("heading", name=f"Replay of {LETTERS} deliveries")).to_be_visible()
        await expect(page.get_by_text(re.compile(rf"[2-9] of {LETTERS} dealt with"))).to_be_visible()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("button", name="Resume")).to_be_visible()
        await expect(page.get_by_text("stands still until somebody resumes it")).to_be_visible()
        await page.goto("/replays")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await check(page)
        await page.get_by_role("link", name=f"Replay of {LETTERS}").click()
        await page.get_by_text("Change the rate").click()
        await page.get_by_label("Deliveries a second").fill("1,000")
        await page.get_by_role("button", name="Change", exact=True).click()
        await expect(page.get_by_text("goes at the new rate")).to_be_visible()
        await page.get_by_role("button", name="Resume").click()
        await expect(page.get_by_text("completed", exact=True)).to_be_visible()
        await expect(page.locator(".stat", has_text="Succeeded")).to_contain_text(str(LETTERS - 1))

        # What failed again is one click away.
        await page.locator(".stat", has_text="Failed").get_by_role("link").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await check(page)
        [failed] = await p.deliveries(status="dead")
        await expect(page.get_by_role("link", name=failed["id"])).to_have_attribute(
            "href", f"/deliveries/{failed['id']}"
        )
        await page.get_by_role("link", name="Replay the failed ones again").click()
        await expect(page.get_by_role("heading", name="Replay 1 delivery?")).to_be_visible()
        await page.get_by_role("button", name="Start the replay of 1").click()
        await expect(page.get_by_text("completed", exact=True)).to_be_visible()
        await page.goto("/dead-letters")
        await expect(page.get_by_role("heading", name="No dead letters")).to_be_visible()
        assert len(await s.sql("SELECT id FROM replays")) == 2

    play(scenario, with_worker=True)
