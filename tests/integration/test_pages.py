"""The frame of the pages: what each needs, whose forms are taken, and the headers of everything a browser may show.

Walked through `PAGES`, so that a new page is tested by being there.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from app.admin import forms
from app.admin.frame import Page
from app.headers import HEADERS
from app.routes import PAGES
from core.access import users
from core.access.models import Role
from tests.api import error_of, run
from tests.pages import ORIGIN, Visitor, everything, make_user, shown, signed_in
from tests.platform import Platform
from tests.platform import shown as shown_organization

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
EVERY = [(method, path, page) for path, pages in PAGES.items() for method, page in pages.items()]


async def url_of(p: Platform, path: str) -> str:
    """`path` with something real in it."""
    [user] = await p.sql("SELECT id FROM users ORDER BY id DESC LIMIT 1")
    return path.replace("{token}", "x" * 43).replace("{id}", shown(user["id"]))


def test_the_start_page_shows_the_first_steps(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        page = await p.client.get("/", headers={"X-API-Key": ""})
        assert page.status_code == 200
        assert "HOOKWRIGHT_URL=https://hooks.test" in page.text
        assert not re.search(r"<script|<style|\bstyle=|\bon\w+=", page.text)
        [sheet] = re.findall(r'href="([^"]+\.css\?v=\w+)"', page.text)
        assert (await p.client.get(sheet)).headers["content-type"].startswith("text/css")

    run(database_url, redis_url, check, PUBLIC_URL="https://hooks.test")


def test_a_page_names_a_role_or_why_anybody_may() -> None:
    handler: Any = None
    for wrong in ({}, {"role": Role.ADMIN, "public": "why"}):
        with pytest.raises(ValueError, match="names a role"):
            Page(handler, **wrong)
    assert [(one, needed) for needed in Role for one in Role if users.may(one, needed)] == [
        (Role.VIEWER, Role.VIEWER),
        (Role.OPERATOR, Role.VIEWER),
        (Role.ADMIN, Role.VIEWER),
        (Role.OPERATOR, Role.OPERATOR),
        (Role.ADMIN, Role.OPERATOR),
        (Role.ADMIN, Role.ADMIN),
    ]


def test_every_page_wants_its_role_and_changes_nothing_without(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, "admin@example.com", Role.ADMIN)
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            await viewer.get("/account")
            before = await everything(p)
            walked = 0
            for method, path, page in EVERY:
                url, stranger = await url_of(p, path), Visitor(p.app)
                if page.role is None:
                    continue
                walked += 1
                await stranger.get("/sign-in")
                if method == "GET":
                    answer = await stranger.get(f"{url}?a=b")
                    assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in"), path
                    assert "%3Fa%3Db" in answer.headers["location"]
                else:
                    answer = await stranger.post(url, role="admin", email="new@example.com")
                    assert answer.status_code == 401, path
                    assert 'href="/sign-in"' in answer.text
                if page.role != Role.VIEWER:
                    fields = {"role": "admin", "email": "new@example.com", "form_token": viewer.form_token}
                    answer = await viewer.client.request(method, url, data=fields if method == "POST" else None)
                    assert answer.status_code == 403, path
                    assert "This needs the role" in answer.text
            assert walked >= 10
            assert await everything(p) == before

    run(database_url, redis_url, check)


FOREIGN: list[tuple[dict[str, str | None], bool]] = [
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": ORIGIN}, False),
    ({"Sec-Fetch-Site": None}, False),
    ({"Sec-Fetch-Site": None, "Origin": "null"}, False),
    ({"Sec-Fetch-Site": None, "Origin": "http://127.0.0.1:8001"}, False),
    ({"Sec-Fetch-Site": None, "Origin": "https://127.0.0.1:8000"}, False),
    ({"Sec-Fetch-Site": None, "Origin": "http://127.0.0.1:8000.evil.example"}, False),
    ({"Sec-Fetch-Site": None, "Origin": ORIGIN}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": ORIGIN}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:9000"}, True),  # a forwarded port
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://hooks.example"}, False),  # nobody has set the public URL
    ({"Sec-Fetch-Site": "none", "Origin": "https://hooks.example"}, False),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, False),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://[::1"}, False),
]


@pytest.mark.parametrize(("given", "is_ours"), FOREIGN)
def test_where_a_form_comes_from(given: dict[str, str | None], is_ours: bool) -> None:
    headers = {name.lower(): value for name, value in given.items() if value is not None}
    if is_ours:
        forms.check_origin(headers, ORIGIN)
    else:
        with pytest.raises(forms.Foreign, match="nothing was done"):
            forms.check_origin(headers, ORIGIN)
    if headers.get("origin") == "http://localhost:9000":
        with pytest.raises(forms.Foreign, match="must be set as HOOKWRIGHT_PUBLIC_URL"):
            forms.check_origin(headers, "https://hooks.example")


def test_an_origin_has_no_default_port_and_no_path() -> None:
    urls = ("https://Hooks.Example:443/x", "http://hooks.example:80", "https://hooks.example:8443", "http://[::1]:8000")
    assert [forms.origin_of(url) for url in urls] == [
        "https://hooks.example",
        "http://hooks.example",
        "https://hooks.example:8443",
        "http://[::1]:8000",
    ]


def test_no_form_is_taken_from_another_site_or_without_its_token(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, "zoe@example.com")
        async with signed_in(p, "admin@example.com", Role.ADMIN) as admin, signed_in(p, "admin@example.com") as other:
            await other.get("/account")
            stranger = Visitor(p.app)
            await stranger.get("/sign-in")
            before = await everything(p)
            fields = {"email": "new@example.com", "role": "admin", "name": "new", "password": "a horse in the rain"}
            walked = 0
            for method, path, _ in EVERY:
                if method == "GET":
                    continue
                walked += 1
                url = await url_of(p, path)
                await admin.get("/account")
                answer = await admin.post(url, {"Sec-Fetch-Site": "cross-site"}, **fields)
                assert (answer.status_code, "came from another site" in answer.text) == (403, True), path
                for token in ("", "0" * 64, other.form_token, stranger.form_token, "é"):
                    answer = await admin.post(url, form_token=token, **fields)
                    assert (answer.status_code, "no longer valid" in answer.text) == (403, True), (path, token)
                answer = await admin.client.post(url, json=fields)
                assert answer.status_code == 415, path
                answer = await admin.client.post(url, data=fields)
                assert answer.status_code == 403, path
            assert walked >= 10
            assert await everything(p) == before

            await admin.get("/account")
            assert (await admin.post("/account", name="x" * 70_000)).status_code == 413
            assert (await admin.post("/account", name="a\0b")).status_code == 400
            assert (await admin.post("/account", **{f"x{n}": "" for n in range(200)})).status_code == 400
            for name in (b"%ff", b"%ed%a0%80", b"\xff"):
                for of_itself in ("", "; charset=latin-1"):
                    content = b"form_token=" + admin.form_token.encode() + b"&name=" + name
                    answer = await admin.client.post(
                        "/account", content=content, headers={"Content-Type": forms.MEDIA_TYPE + of_itself}
                    )
                    assert (answer.status_code, "is not UTF-8" in answer.text) == (400, True)
            # A form of parts names its own codec: of these, one takes seconds and the other makes what can't be stored.
            for codec, name in (("punycode", b"a" * 6_000 + b"-" + b"0" * 58_000), ("unicode_escape", rb"\ud800")):
                parts = [b"--b", b'Content-Disposition: form-data; name="name"', b"", name, b"--b--", b""]
                kind = {"Content-Type": f"multipart/form-data; boundary=b; charset={codec}"}
                answer = await stranger.client.post("/sign-in", content=b"\r\n".join(parts), headers=kind)
                assert (answer.status_code, forms.MEDIA_TYPE in answer.text) == (415, True), codec
            assert (await admin.post("/account", name="Adá 🐴")).status_code == 303, "and with all of it, it is"
            assert "Adá 🐴" in (await admin.get("/account")).text

    run(database_url, redis_url, check)


def test_headers_of_all_that_a_browser_may_show(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        assert HEADERS["Content-Security-Policy"] == POLICY
        visitor = Visitor(p.app, origin="https://hooks.test")
        shows = {
            "/": 200,
            "/sign-in": 200,
            "/account": 303,
            "/set-up/nothing": 404,
            "/nothing": 404,
            "/sign-out": 405,
            "/static/hookwright.css": 200,
            "/static/nothing.css": 404,
            "/static/../main.py": 404,
            "/healthz": 200,
        }
        for path, status in shows.items():
            answer = await visitor.get(path)
            assert answer.status_code == status, path
            for name, value in HEADERS.items():
                assert answer.headers.get_list(name) == [value], (path, name)
            assert answer.headers["strict-transport-security"] == "max-age=31536000"
            if not path.startswith("/static"):
                assert answer.headers["cache-control"] == "no-store", path
        [cookie] = (await visitor.get("/set-up/nothing")).headers.get_list("set-cookie") or [
            (await Visitor(p.app, origin="https://hooks.test").get("/sign-in")).headers["set-cookie"]
        ]
        assert cookie.startswith("__Host-hookwright_visitor=")
        assert sorted(cookie.lower().split("; ")[1:]) == ["httponly", "path=/", "samesite=lax", "secure"]
        await make_user(p, "ada@example.com")
        await visitor.get("/sign-in")
        answer = await visitor.post("/sign-in", email="ada@example.com", password="a horse in the rain")
        [cookie] = [one for one in answer.headers.get_list("set-cookie") if "session" in one]
        assert cookie.startswith("__Host-hookwright_session=")
        assert sorted(cookie.lower().split("; ")[1:]) == ["httponly", "path=/", "samesite=lax", "secure"]
        assert (await visitor.get("/account")).status_code == 200

        error_of(await visitor.get("/nothing", Accept="application/json"), 404, "NOT_FOUND")
        for path in ("/v1", "/v1/nothing"):
            error_of(await visitor.get(path), 404, "NOT_FOUND")
        for path in ("/v1/events", "/v1/organizations"):
            error_of(await visitor.get(path), 401, "AUTHENTICATION_FAILED")  # a session is no key

    run(database_url, redis_url, check, PUBLIC_URL="https://hooks.test")


def test_over_plain_http_the_cookie_is_one_that_browsers_keep(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, "ada@example.com")
        answer = await Visitor(p.app).sign_in("ada@example.com")
        [cookie] = [one for one in answer.headers.get_list("set-cookie") if "session" in one]
        assert cookie.startswith("hookwright_session=")
        assert sorted(cookie.lower().split("; ")[1:]) == ["httponly", "path=/", "samesite=lax"]
        assert "strict-transport-security" not in answer.headers

    run(database_url, redis_url, check)


UPDATED = 'role="cell" data-label="What">subscription.updated<'


def test_the_audit_log_shows_the_newest_first_and_what_the_url_narrows(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        subscription = await p.subscribe("https://example.com/hook", description="<b>before</b>")
        async with signed_in(p, "admin@example.com", Role.ADMIN) as admin:
            for number in range(60):
                body = {"description": f"<i>{number}</i>"}
                await p.call("PATCH", f"/v1/webhooks/subscriptions/{subscription['id']}", body)
            first = await admin.get(f"/audit-log?resource={subscription['id']}")
            assert first.text.count(UPDATED) == 50
            assert "&lt;i&gt;59&lt;/i&gt;" in first.text
            assert "<i>" not in first.text
            [older] = re.findall(r'href="(/audit-log\?[^"]+)" rel="next">Older', first.text)
            rest = await admin.get(older.replace("&amp;", "&"))
            assert (rest.text.count(UPDATED), rest.text.count(UPDATED.replace("updated", "created"))) == (10, 1)
            assert "Older" not in rest.text
            assert "Nothing matches" in (await admin.get("/audit-log?actor=nobody")).text
            of_it = await admin.get(f"/audit-log?organization={shown_organization(p)}&action=subscription.created")
            assert of_it.text.count(subscription["id"]) >= 1
            for wrong in ("organization=x", "after=x", "created_after=yesterday"):
                refused = await admin.get(f"/audit-log?{wrong}")
                assert refused.status_code == 400
                assert UPDATED not in refused.text

    run(database_url, redis_url, check)
