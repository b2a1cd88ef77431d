"""Access to the pages as people and their attackers meet it: in Chromium."""

from __future__ import annotations

import re

from playwright.async_api import Page, Request, expect

from core.access import set_up_link
from core.access.models import Role
from tests.browser.conftest import Play
from tests.browser.site import Site, somebody_elses_page
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider
from tests.pages import PASSWORD, WRONG, make_user
from tests.platform import eventually

EMAIL = "ada@example.com"


async def sign_in(page: Page, email: str = EMAIL, password: str = PASSWORD) -> None:
    await page.goto("/sign-in")
    await page.get_by_label("Email").fill(email)
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("main").get_by_role("button", name="Sign in").click()


def test_from_the_first_link_to_signing_out(play: Play) -> None:
    async def scenario(s: Site) -> None:
        async with s.database.driver() as driver:
            token = await set_up_link.make(driver)
        page = await s.open(f"/set-up/{token}")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.get_by_label("Email").fill(EMAIL)
        await page.get_by_label("Password", exact=True).fill("password1234")
        await page.get_by_label("The same password again").fill("password1234")
        await page.get_by_role("button", name="Set up").click()
        wrong = page.get_by_label("Password", exact=True)
        await expect(wrong).to_have_accessible_description(re.compile("among the first that somebody would try"))
        await expect(wrong).to_be_focused()
        await wrong.fill(PASSWORD)
        await page.get_by_label("The same password again").fill(PASSWORD)
        await page.get_by_role("button", name="Set up").click()
        await page.wait_for_url(f"{s.url}/")
        assert not [url for url in asked if str(token) in url], "once it is in a form, no address has it"

        cookies = {cookie["name"]: cookie for cookie in await page.context.cookies()}
        assert list(cookies) == ["hookwright_session"]
        cookie = cookies["hookwright_session"]
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"], cookie["expires"]) == (True, "Lax", "/", -1)
        assert await page.evaluate("document.cookie") == ""

        await page.get_by_role("link", name="Users").click()
        await expect(page.get_by_role("cell", name=EMAIL)).to_be_visible()
        await page.get_by_role("button", name="Sign out").click()
        await page.wait_for_url(f"{s.url}/sign-in")
        await page.context.add_cookies([cookie])  # as somebody would who had copied it
        await page.goto("/users")
        await page.wait_for_url(f"{s.url}/sign-in?next=%2Fusers")
        await page.get_by_label("Email").fill(EMAIL)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.keyboard.press("Enter")
        await page.wait_for_url(f"{s.url}/users")

    play(scenario)


def test_wrong_passwords_and_then_a_wait(play: Play) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL)
        page = await s.open()
        for _ in range(5):
            await sign_in(page, password=WRONG)
            await expect(page.get_by_role("alert")).to_have_text("Email or password is wrong.")
            await expect(page.get_by_label("Email")).to_have_value(EMAIL)
            await expect(page.get_by_label("Password")).to_have_value("")
            await expect(page.get_by_label("Password")).to_be_focused()
        await sign_in(page)
        await expect(page.get_by_role("alert")).to_have_text(
            re.compile(r"Too many failed attempts. Try again in \d+ sec")
        )
        await s.sql("UPDATE sign_in_failures SET last_at = last_at - interval '31 s'")
        await sign_in(page)
        await expect(page.get_by_role("button", name="Sign out")).to_be_visible()

    play(scenario)


def attack(action: str, **fields: str) -> str:
    inputs = "".join(f'<input name="{name}" value="{value}">' for name, value in fields.items())
    return (
        f'<!doctype html><form method="post" action="{action}">{inputs}</form>'
        "<script>addEventListener('load', () => document.forms[0].submit())</script>"
    )


def test_a_form_on_another_site_changes_nothing(play: Play) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL, Role.ADMIN)
        page = await s.open()
        await sign_in(page)
        await page.wait_for_url(f"{s.url}/")
        before = await s.sql("SELECT * FROM users")
        sent: list[Request] = []
        page.on("request", lambda request: sent.append(request) if request.method == "POST" else None)
        # localhost is another site than 127.0.0.1; another port of 127.0.0.1 is the same site, and another origin.
        for host, has_cookie in (("localhost", False), ("127.0.0.1", True)):
            for path, fields in (
                ("/users", {"email": "eve@example.com", "role": "admin", "name": ""}),
                ("/account", {"name": "owned"}),
                ("/sign-in", {"email": "eve@example.com", "password": PASSWORD}),
                ("/sign-out", {}),
            ):
                sent.clear()
                with somebody_elses_page(attack(f"{s.url}{path}", **fields)) as port:
                    await page.goto(f"http://{host}:{port}/")
                    await expect(page.get_by_role("heading")).to_have_text("Not allowed")
                    assert page.url == f"{s.url}{path}"
                await expect(page.get_by_text("came from another site, so nothing was done")).to_be_visible()
                [request] = sent
                headers = await request.all_headers()
                assert ("hookwright_session" in headers.get("cookie", "")) == has_cookie, "SameSite"
        assert await s.sql("SELECT * FROM users") == before
        await page.goto("/account")
        await expect(page.get_by_role("heading", name="Your account")).to_be_visible()

        # Nor can another page show ours in a frame and let somebody click there.
        with somebody_elses_page(f'<iframe src="{s.url}/account"></iframe>') as port:
            await page.goto(f"http://127.0.0.1:{port}/")
            frame = page.frames[1]
            assert await frame.get_by_role("heading").count() == 0

            async def refused() -> bool:
                return any("frame-ancestors" in said for said in s.said)

            await eventually(refused, what="the browser's refusal")
            s.said.clear()

    play(scenario)


def test_what_is_put_into_a_name_is_text_and_the_policy_holds_besides(play: Play) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL, Role.ADMIN)
        hostile = "\"'><script>document.title='owned'</script><style>*{color:red}</style><img src=x onerror=alert(1)>"
        page = await s.open()
        await sign_in(page)
        await page.goto("/account")
        await page.get_by_label("Name").fill(hostile)
        await page.get_by_role("button", name="Save the name").click()
        await expect(page.get_by_label("Name")).to_have_value(hostile)
        await page.goto("/users")
        await expect(page.get_by_role("cell", name=hostile, exact=True)).to_be_visible()
        assert await page.locator("main script, main style, main img").count() == 0
        assert await page.title() == "Users · Hookwright"
        for path in ("/", "/account", "/users", "/nothing"):
            await page.goto(path)
        assert s.said == [], "our own pages break no rule of it"

        broken = await page.evaluate(
            """async () => {
                const broken = []
                addEventListener('securitypolicyviolation', event => broken.push(event.effectiveDirective))
                const add = (tag, set) => document.body.append(Object.assign(document.createElement(tag), set))
                add('script', {textContent: "document.title = 'owned'"})
                add('style', {textContent: 'body { display: none }'})
                add('img', {src: 'http://127.0.0.1:1/x.png'})
                document.body.insertAdjacentHTML('beforeend', '<p style="color: red" onclick="1">x</p>')
                await fetch('http://127.0.0.1:1/').catch(() => {})
                await new Promise(done => setTimeout(done))
                return broken
            }"""
        )
        assert {"script-src-elem", "style-src-elem", "img-src", "style-src-attr", "connect-src"} <= set(broken)
        assert "owned" not in await page.title()
        await expect(page.get_by_role("heading")).to_be_visible()
        s.said.clear()

    play(scenario)


def test_a_session_is_ended_from_another_browser(play: Play) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL)
        here, there = await s.open(), await s.open()
        await sign_in(here)
        await sign_in(there)
        await there.goto("/account")
        await here.goto("/account")
        await expect(here.get_by_role("row")).to_have_count(3)
        await here.get_by_role("cell").get_by_role("button", name="Sign out the session since").click()
        await expect(here.get_by_role("row")).to_have_count(2)
        await there.get_by_label("Name").fill("too late")
        await there.get_by_role("button", name="Save the name").click()
        await expect(there.get_by_role("heading")).to_have_text("You are not signed in")
        await there.goto("/account")
        await there.wait_for_url(f"{s.url}/sign-in?next=%2Faccount")
        assert [row["name"] for row in await s.sql("SELECT name FROM users")] == [""]

    play(scenario)


def test_pages_fit_a_phone_and_work_by_keyboard(play: Play) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL, Role.ADMIN)
        await make_user(s, f"{'long' * 15}@example.com")
        page = await s.open()
        await page.set_viewport_size({"width": 390, "height": 800})
        await sign_in(page)
        await page.wait_for_url(f"{s.url}/")
        for path in ("/", "/account", "/users", "/nothing"):
            await page.goto(path)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 390, path
            unlabelled = await page.evaluate(
                "[...document.querySelectorAll('input:not([type=hidden], [hidden]), textarea')]"
                ".filter(one => !one.labels.length).map(one => one.name)"
            )
            assert unlabelled == [], path
            await page.keyboard.press("Tab")
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.evaluate(outline) == "solid", "where the focus is can be seen"

    play(scenario)


def test_single_sign_on_there_and_back(play: Play, idp: IdentityProvider) -> None:
    async def scenario(s: Site) -> None:
        await make_user(s, EMAIL, Role.ADMIN, password=None)
        page = await s.open("/users")
        await page.wait_for_url(f"{s.url}/sign-in?next=%2Fusers")
        await page.get_by_role("link", name="Sign in with single sign-on").click()
        await page.wait_for_url(f"{s.url}/users")  # by way of the provider, which is another origin
        await expect(page.get_by_role("cell", name=EMAIL)).to_be_visible()
        assert [cookie["name"] for cookie in await page.context.cookies()] == ["hookwright_session"]
        assert len(idp.asked) == 1

    provider = {"OIDC_ISSUER": idp.issuer, "OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET": CLIENT_SECRET}
    play(scenario, **provider)
