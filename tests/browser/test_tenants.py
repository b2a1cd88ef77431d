"""A new tenant, and afterwards who made it: in Chromium."""

from __future__ import annotations

import re

from playwright.async_api import expect

from core.access.models import Role
from tests.browser.checks import check
from tests.browser.conftest import Play
from tests.browser.site import Site
from tests.browser.test_sign_in import EMAIL, sign_in
from tests.pages import make_user


def test_from_a_new_organization_to_who_made_it(play: Play) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL, Role.ADMIN)
        page = await s.open("/sign-in")
        await sign_in(page)
        await page.get_by_role("link", name="Organizations").click()
        await page.get_by_role("link", name="New organization").click()
        await page.get_by_label("Name").fill("Acme <shop>")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Acme <shop>")).to_be_visible()
        await check(page)

        await page.get_by_role("link", name="Make an API key").click()
        await page.get_by_label("Name").fill("checkout")
        await page.get_by_label("deliveries.replay").uncheck()
        await check(page)
        await page.get_by_role("button", name="Make the key").click()
        key = await page.get_by_label("API key", exact=True).input_value()
        assert re.fullmatch(r"sk_live_[\w-]{43}", key)
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy the key").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == key
        await check(page)
        posted = await s.platform.client.post(
            "/v1/events", json={"event_type": "order.paid", "data": {}}, headers={"X-API-Key": key}
        )
        assert posted.status_code == 202
        await page.get_by_role("link", name="on to the key's page").click()
        await expect(page.get_by_role("definition").filter(has_text="events.write")).to_be_visible()
        assert key not in await page.content()
        await check(page)

        await page.get_by_role("link", name="Acme <shop>").click()
        await page.get_by_role("link", name="Describe an event type").click()
        await page.get_by_label("Name").fill("order.paid")
        await page.get_by_label("JSON Schema of its data").fill("{'no': json}")
        await page.get_by_role("button", name="Add it").click()
        wrong = page.get_by_label("JSON Schema of its data")
        await expect(wrong).to_have_accessible_description(re.compile("Must be JSON"))
        await expect(wrong).to_have_value("{'no': json}")
        await check(page)
        await wrong.fill('{"type": "object"}')
        await page.get_by_role("button", name="Add it").click()
        await expect(page.get_by_role("status").filter(has_text="It is in the catalogue.")).to_be_visible()
        await check(page)

        # By the search of every page, which `/` leads to, and on to what was just done.
        await page.keyboard.press("/")
        await page.keyboard.type("acme")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Acme <shop>")).to_be_visible()
        await page.get_by_role("link", name="All of its audit log").click()
        rows = page.get_by_role("row").filter(has_text=EMAIL)
        whats = rows.get_by_role("cell").nth(2)
        await expect(rows).to_have_count(3)
        assert await whats.first.inner_text() == "event_type.created"
        await expect(page.get_by_role("cell", name="organization.created")).to_be_visible()
        await page.get_by_label("What", exact=True).select_option("api_key.created")
        await page.get_by_role("button", name="Show").click()
        row = page.get_by_role("row").filter(has_text="api_key.created")
        await expect(row).to_have_count(1)
        await expect(row).to_contain_text(EMAIL)
        await row.locator("summary").click()
        await expect(row.get_by_role("cell", name="checkout")).to_be_visible()
        await check(page)
        assert key not in await page.content()

        for path in ("/organizations", "/api-keys", "/event-types", "/users", "/settings", "/go"):
            await page.goto(path)
            await check(page)

        await page.goto("/organizations?text=acme")
        await page.get_by_role("link", name="Acme <shop>").click()
        await page.get_by_role("link", name="Delete this organization").click()
        await check(page)
        await page.get_by_label("To confirm, type its name").fill("Acme <shop>")
        await page.get_by_role("button", name="Delete it and erase everything").click()
        # A worker erases it, and the page tells by itself.
        cell = page.get_by_role("row").filter(has_text="api keys").get_by_role("cell", name="1")
        await expect(cell).to_be_visible()
        await check(page)

    play(scenario, with_worker=True)
