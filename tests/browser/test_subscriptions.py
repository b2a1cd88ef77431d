"""A new partner, and an endpoint that makes trouble: as people go through it, in Chromium."""

from __future__ import annotations

import re

from playwright.async_api import expect

from core import ids
from tests.browser.checks import check
from tests.browser.conftest import Play
from tests.browser.site import Site
from tests.pages import audited
from tests.platform import eventually
from tests.receiver import Receiver


def test_a_new_partner_from_a_checked_filter_to_the_first_event(play: Play, receiver: Receiver) -> None:
    async def scenario(s: Site) -> None:
        p = s.platform
        for total in (5, 50, 500):
            await p.send("order.paid", {"total": total})
        await p.send("customer.updated", {})
        page = await s.enter("/subscriptions")
        await expect(page.get_by_role("heading", name="No subscriptions yet")).to_be_visible()
        await page.get_by_role("link", name="Make the first one").click()
        await page.get_by_label("Organization").select_option(label="Test")
        url, events, filters = (page.get_by_role("textbox", name=name) for name in ("URL", "Events", "Filter"))
        await url.fill("https://")
        told = page.locator("#check").get_by_role("status")
        await events.fill("order.*")
        await expect(told).to_have_text("Would have matched 3 of the last 4 events.")
        await filters.fill('{"total": {"$gte": 100')
        await expect(page.locator("#check")).to_contain_text("Filter: Is not JSON")
        await filters.fill('{"total": {"$gte": 100}}')
        await expect(told).to_have_text("Would have matched 1 of the last 4 events.")
        await page.get_by_text("Which of them").click()
        await expect(page.get_by_role("cell", name="no: total.$gte is 50", exact=True)).to_be_visible()
        await check(page)
        await filters.press("Tab")
        await url.press("Enter")
        await expect(url).to_have_accessible_description(re.compile("host"))
        await expect(url).to_be_focused()
        await expect(filters).to_have_value('{"total": {"$gte": 100}}')
        await url.fill(receiver.url("/ok"))
        await page.get_by_role("button", name="Make the subscription").click()

        await expect(page.get_by_role("heading", name="The subscription is made")).to_be_visible()
        secret = await page.get_by_label("Secret", exact=True).input_value()
        assert secret.startswith("whsec_")
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy the secret").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == secret
        await check(page)
        await page.get_by_role("button", name="Send a test event").click()
        test = page.get_by_role("region", name="Test event")
        await expect(test).to_contain_text("It arrived. 200 after")
        await expect(test.get_by_text("webhook.test")).to_be_visible()
        [request] = receiver.requests
        assert request.header("webhook-signature")
        assert secret not in await page.content()
        row = page.get_by_role("table", name="Latest deliveries").get_by_role("row")
        await expect(row.nth(1)).to_contain_text("delivered")
        await expect(page.get_by_role("region", name="How it is doing")).to_contain_text(
            "Healthy: every attempt of the last 24 hours succeeded."
        )
        await page.get_by_role("link", name="Subscriptions", exact=True).first.click()
        await expect(page.get_by_role("row").nth(1)).to_contain_text("healthy")
        await check(page)
        done = [one[0] for one in await audited(p) if one[0].startswith("subscription.")]
        assert done == ["subscription.created", "subscription.tested"]

    play(scenario, with_worker=True)


def test_a_noisy_endpoint_is_understood_held_mended_and_let_through(play: Play, receiver: Receiver) -> None:
    async def scenario(s: Site) -> None:
        p = s.platform
        receiver.set("/hook", 503)
        made = await p.subscribe(
            receiver.url("/hook"), circuit_breaker={"failure_threshold": 3, "timeout_ms": 3_600_000}
        )
        for _ in range(6):
            await p.send()
        await eventually(lambda: s.sql("SELECT FROM breaker_changes WHERE state = 'OPEN'"), 15, "the open breaker")
        await eventually(
            lambda: s.sql(
                "SELECT FROM delivery_stats WHERE subscription_id = $1", ids.parse(ids.SUBSCRIPTION, made["id"])
            ),
            15,
            "its figures",
        )
        page = await s.enter("/subscriptions?status=breaker_open")
        line = page.get_by_role("row").nth(1)
        await expect(line).to_contain_text("failing")
        await expect(line).to_contain_text("0 %")
        await line.get_by_role("link").first.click()
        doing = page.get_by_role("region", name="How it is doing")
        await expect(doing).to_contain_text(re.compile(r"Failing since .* when its circuit breaker opened\."))
        await expect(doing).to_contain_text("No attempt succeeded in the last 24 hours.")
        await expect(doing).to_contain_text(re.compile(r"A few deliveries are tried in 5\d min"))
        await expect(doing.get_by_role("listitem").filter(has_text="after 3 failures in a row")).to_be_visible()
        await expect(doing.get_by_role("link", name="6", exact=True)).to_have_attribute(
            "href", f"/deliveries?subscription={made['id']}&status=pending"
        )
        await check(page)
        await page.get_by_role("button", name="Send it").click()
        await expect(page.get_by_role("alert")).to_contain_text("its circuit breaker is open")

        await page.get_by_role("button", name="Pause").click()
        await expect(page.get_by_role("status").filter(has_text="It is paused")).to_be_visible()
        await expect(page.get_by_role("main")).to_contain_text("Paused by admin@example.com just now.")
        await page.get_by_role("link", name="Change").click()
        await page.get_by_text("Limits and timeout").click()
        await page.get_by_role("textbox", name="Attempts a second").fill("fifty")
        await page.get_by_role("button", name="Save").last.click()
        await expect(page.get_by_role("textbox", name="Attempts a second")).to_have_accessible_description(
            re.compile("Must be a number")
        )
        await page.get_by_role("textbox", name="Attempts a second").fill("50")
        await check(page)
        await page.get_by_role("button", name="Save").last.click()
        await expect(page.get_by_text("At most 200 requests at once, 50 a second.")).to_be_visible()

        receiver.set("/hook", 200)
        await page.get_by_role("button", name="Reset it").click()
        await expect(doing).to_contain_text("half open Once it is resumed, a few deliveries are tried.")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.get_by_text("It is resumed")).to_be_visible()
        await p.settled(6, "delivered", subscription_id=made["id"], within_s=30)
        await expect(doing.get_by_role("listitem").first).to_contain_text("closed", timeout=15_000)
        assert [
            one[0] for one in await audited(p) if one[0].startswith(("subscription.p", "subscription.u", "circuit"))
        ] == [
            "subscription.paused",
            "subscription.updated",
            "circuit_breaker.reset",
        ]

    play(scenario, with_worker=True)
