"""One delivery, from the list of what fails to its end: what was sent, what came back, sent again, sent anew."""

from __future__ import annotations

import re

from playwright.async_api import expect

from core.access.models import Role
from tests.api import FAST
from tests.browser.checks import check
from tests.browser.conftest import Play
from tests.browser.site import Site
from tests.pages import PASSWORD, make_user
from tests.platform import eventually
from tests.receiver import Receiver

EMAIL = "ada@example.com"


def test_one_delivery_is_understood_and_sent_again(play: Play, receiver: Receiver) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL, Role.OPERATOR)
        await s.platform.subscribe(receiver.url("/ok"), ["order.*"])
        receiver.script("/orders", [500, 200, 200])
        await s.platform.subscribe(receiver.url("/orders"), ["order.*"], retry_policy=FAST, headers={"X-Token": "t"})
        await s.platform.send("order.paid", {"total": 100, "of": "<b>\u202eus</b>"})
        await s.platform.settled(1, "dead")
        await s.platform.settled(1, "delivered")

        page = await s.open("/deliveries")
        await page.get_by_label("Email").fill(EMAIL)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.keyboard.press("Enter")
        await page.get_by_label("State").select_option("dead")
        await page.get_by_role("button", name="Show").click()
        await page.wait_for_url(re.compile("status=dead"))
        await expect(page.locator("tr[data-row]")).to_have_count(1)
        await check(page)

        await page.keyboard.press("j")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Dead: the receiver answered 500; given up")).to_be_visible()
        await expect(page.get_by_text("Their server answered 500.")).to_be_visible()
        request = page.get_by_role("region", name="Request, as it was sent")
        await expect(request.get_by_role("region", name="Body of the request", exact=True)).to_contain_text(
            '"of": "<b>\\u202eus</b>"'
        )
        await expect(request.get_by_role("row", name="X-Token ••••")).to_be_visible()
        await page.get_by_text("As a curl command").click()
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy the command").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("curl -i ")
        assert copied.endswith(r"""\"of\":\"<b>\xe2\x80\xaeus</b>\"}}'""".replace('\\"', '"'))
        await check(page)

        await page.get_by_role("button", name="Replay").click()
        await expect(page.get_by_text("It is sent again.")).to_be_visible()
        # The page keeps itself fresh.
        await expect(page.get_by_text(re.compile("Delivered: the receiver answered 200"))).to_be_visible()
        await expect(page.get_by_role("heading", name="Attempts")).to_be_visible()
        await page.get_by_role("link", name="first series, no. 1").click()
        await expect(page.get_by_role("heading", name="Attempt 1,")).to_be_visible()
        await check(page)

        await page.get_by_role("link", name=re.compile("^evt_")).click()
        await expect(page.get_by_role("row", name=re.compile("delivered"))).to_have_count(2)
        await check(page)
        await page.get_by_role("link", name="Edit and send as a new event…").click()
        data = page.get_by_label("Data, a JSON object")
        text = await data.input_value()
        await data.fill(text.replace("100", "200,"))
        await page.get_by_role("button", name="See what changes").click()
        await expect(data).to_have_accessible_description(re.compile("line 2 column 16"))
        await expect(data).to_be_focused()
        await data.fill(text.replace("100", "200"))
        await page.get_by_role("button", name="See what changes").click()
        await expect(page.get_by_role("deletion")).to_have_text('removed: "total": 100,')
        await expect(page.get_by_role("insertion")).to_have_text('added: "total": 200,')
        await check(page)
        await page.get_by_role("button", name="Send as a new event").click()
        await expect(page.get_by_text("Accepted. Its deliveries are on their way.")).to_be_visible()
        await expect(page.get_by_text("with another payload")).to_be_visible()
        await eventually(lambda: _has(receiver, b'"total":200'), what="the new event")
        await s.platform.settled(4, "delivered")

    async def _has(receiver: Receiver, text: bytes) -> bool:
        return sum(text in one.body for one in receiver.requests) == 2

    play(scenario, with_worker=True)
