"""The pages of organizations, API keys, event types and users."""

from __future__ import annotations

import re
from uuid import UUID

from app.admin import links
from core import erasure, ids
from core.access.models import Role
from tests.api import make_key, make_organization, run
from tests.api import shown_organization as org
from tests.pages import Visitor, audited, everything, make_user, signed_in
from tests.pages import shown as shown_user
from tests.platform import Platform
from tests.platform import shown as shown_own

HOSTILE = "<script>alert('x')</script>\" onload=1 & {{ 7*7 }}"
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34; onload=1 &amp; {{ 7*7 }}"
KEY = re.compile(r"sk_live_[A-Za-z0-9_-]{43}")
ADMIN = "admin@example.com"


def hrefs(page: str) -> set[str]:
    return {href.replace("&amp;", "&") for href in re.findall(r'href="([^"]+)"', page)}


async def done(p: Platform) -> list[str]:
    """What people have done on pages, without how they came in."""
    return [
        action for action, actor, *_ in await audited(p) if actor.startswith("usr_") and not action.startswith("sign_")
    ]


# --- organizations -------------------------------------------------------------------------------------------------


def test_an_organization_is_made_and_renamed_and_what_comes_next_is_said(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            await admin.get("/organizations/new")
            refused = await admin.post("/organizations", name="  ")
            assert (refused.status_code, 'id="name-error"' in refused.text) == (400, True)
            made = await admin.post("/organizations", name=HOSTILE)
            assert made.status_code == 303
            page = await admin.get(made.headers["location"])
            path = made.headers["location"].partition("?")[0]
            organization = path.rpartition("/")[2]
            assert ESCAPED in page.text
            assert HOSTILE not in page.text
            assert "The organization is made." in page.text
            nexts = {f"/api-keys/new?organization={organization}", f"/subscriptions/new?organization={organization}"}
            assert nexts < hrefs(page.text)
            assert "organization.created" in page.text, "the latest entries of the audit log"
            assert ESCAPED in (await admin.get("/organizations")).text

            await admin.get(path)
            assert (await admin.post(path, name="", version="1")).status_code == 400
            assert (await admin.post(path, name="Another", version="1")).status_code == 303
            stale = await admin.post(path, name="Third", version="1")
            assert stale.status_code == 409
            assert "changed meanwhile" in stale.text
            assert 'value="Third"' in stale.text, "what was typed is not lost"
            assert "<h1>Another</h1>" in (await admin.get(path)).text
            assert await done(p) == ["organization.created", "organization.updated"]
            for path in ("/organizations/org_nonsense", f"/organizations/{org(ids.new_id())}"):
                assert (await admin.get(path)).status_code == 404

            own = await admin.get(f"/organizations/{shown_own(p)}")
            assert nexts.isdisjoint(hrefs(own.text))
            await p.subscribe("https://example.com/hook")
            own = await admin.get(f"/organizations/{shown_own(p)}")
            assert "Next steps" not in own.text, "it has a key and a subscription"

    run(database_url, redis_url, check)


def test_organizations_are_found_and_paged_both_ways(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = [await make_organization(p, f"Shop {n:03} 100%") for n in range(60)]
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:

            def names() -> list[str]:
                return re.findall(r'<a href="/organizations/org_\w+">([^<]+)</a>', viewer.page.text)

            def to(label: str) -> str:
                [href] = re.findall(rf'href="([^"]+)"[^>]*>{label}<', viewer.page.text)
                return str(href).replace("&amp;", "&")

            await viewer.get("/organizations")
            first = names()
            assert first == [f"Shop {n:03} 100%" for n in range(59, 9, -1)]
            await viewer.get(to("Older"))
            assert names() == [*(f"Shop {n:03} 100%" for n in range(9, -1, -1)), "Test"]
            await viewer.get(to("Newer"))
            assert names() == first

            await viewer.get("/organizations?text=sHOP%20007")
            assert names() == ["Shop 007 100%"]
            await viewer.get("/organizations?text=0%25")
            assert len(names()) == 50, "a per cent sign is one, and no wildcard"
            await viewer.get("/organizations?text=%25%25")
            assert names() == []
            assert "Nothing matches" in viewer.page.text
            await viewer.get(f"/organizations?text={org(made[5])}")
            assert names() == ["Shop 005 100%"]
            assert "New organization" not in viewer.page.text

    run(database_url, redis_url, check)


def test_an_organization_is_deleted_by_its_name_and_its_erasure_is_seen(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        gone = await make_organization(p, "Doomed & <b>done</b>")
        key = await make_key(p, gone)
        await p.call("POST", "/v1/events", {"event_type": "a.b", "data": {}}, X_API_Key=key)
        path = f"/organizations/{org(gone)}"
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            page = await admin.get(f"{path}/delete")
            assert "can't be undone" in page.text
            assert "Doomed &amp; &lt;b&gt;done&lt;/b&gt;" in page.text
            for wrong in ("", "Doomed", "doomed & <b>done</b>"):
                refused = await admin.post(f"{path}/delete", confirm_name=wrong, version="1")
                assert (refused.status_code, 'id="confirm_name-error"' in refused.text) == (400, True), wrong
            refused = await admin.post(f"{path}/delete", confirm_name="Doomed & <b>done</b>", version="7")
            assert refused.status_code == 409
            assert (await p.client.get("/v1/events", headers={"X-API-Key": key})).status_code == 200, "nothing was done"
            await admin.get(f"{path}/delete")
            deleted = await admin.post(f"{path}/delete", confirm_name=" Doomed & <b>done</b> ", version="1")
            assert (deleted.status_code, deleted.headers["location"]) == (303, path)
            assert (await p.client.get("/v1/events", headers={"X-API-Key": key})).status_code == 401

            page = await viewer.get(path)
            assert page.status_code == 200
            assert "data-live" in page.text
            assert "0 rows so far" in page.text
            assert "Being erased" in (await viewer.get("/organizations")).text
            await admin.get(path)
            assert (await admin.post(path, name="Back again", version="2")).status_code == 404

            async with p.database.session() as session:
                await erasure._step(session, p.services.breakers, gone, 3_600.0)
            page = await viewer.get(path)
            assert re.search(r"<td>api keys</td><td class=\"figure\">1</td>", page.text)
            assert "1 row so far" in page.text

            await erasure.advance(p.database, p.services.breakers, work_s=30.0, late_s=0.0)
            page = await viewer.get(path)
            assert page.status_code == 200
            assert "is erased, with" in page.text
            assert "data-live" not in page.text, "it asks no more"
            assert re.search(r"<td>events</td><td class=\"figure\">1</td>", page.text)
            assert "Being erased" not in (await viewer.get("/organizations")).text
            log = await admin.get(f"/audit-log?resource={org(gone)}")
            assert log.text.count(">organization.deleted<") == log.text.count(">organization.erased<") == 2, (
                "row, choice"
            )

    run(database_url, redis_url, check)


# --- API keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_never_again(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        own = shown_own(p)
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            page = await admin.get(f"/api-keys/new?organization={own}")
            assert "organizations.admin" not in page.text, "no key of an organization can have it"
            chosen = {"organization": own, "name": HOSTILE, "tier": "premium"}
            data = {"form_token": admin.form_token, **chosen, "scopes": ["events.write", "events.read"]}
            page = await admin.client.post("/api-keys", data=data)
            assert page.status_code == 200
            assert page.headers["cache-control"] == "no-store"
            assert ESCAPED in page.text
            [key] = set(KEY.findall(page.text))
            assert page.text.count(key) == 3, "the key, for curl, and for the command line"
            answer = await p.client.get("/v1/events", headers={"X-API-Key": key})
            assert answer.status_code == 200
            assert (await p.client.get("/v1/deliveries", headers={"X-API-Key": key})).status_code == 403
            [row] = await p.sql("SELECT * FROM api_keys WHERE name = $1", HOSTILE)
            assert (row["tier"], row["scopes"]) == ("premium", ["events.write", "events.read"])

            path = f"/api-keys/{ids.show(ids.API_KEY, row['id'])}"
            for seen in (path, "/api-keys", f"/api-keys?organization={own}", "/audit-log", "/settings"):
                page = await admin.get(seen)
                assert page.status_code == 200, seen
                assert key[18:] not in page.text, seen
            for stored in (await everything(p, "audit_log", "api_keys", "idempotency_keys")).values():
                assert key[18:] not in str(stored)
            found = await admin.get(f"/go?q={key}")
            assert (found.status_code, found.headers["location"]) == (303, path), "whose key is this?"
            assert key[:18] in (await admin.get(path)).text, "by its first characters one knows it"

            for wrong, field in (
                ({"name": ""}, "name"),
                ({"tier": "golden"}, "tier"),
                ({"scopes": "organizations.admin"}, "scopes"),
                ({"scopes": ""}, "scopes"),
                ({"organization": "org_nonsense"}, "organization"),
                ({"organization": org(ids.new_id())}, "organization"),
            ):
                await admin.get(f"/api-keys/new?organization={own}")
                refused = await admin.post("/api-keys", **{**chosen, "scopes": "events.read", "name": "kept", **wrong})
                assert (refused.status_code, f'id="{field}-error"' in refused.text) == (400, True), wrong
                assert KEY.search(refused.text) is None
                assert ('value="kept"' in refused.text) == ("name" not in wrong)

            await admin.get(path)
            assert (await admin.post(path, name="Renamed", tier="bulk")).status_code == 303
            assert (await admin.post(path, name="Renamed", tier="golden")).status_code == 400
            assert "data-confirm" in (await admin.get(path)).text
            assert (await admin.post(f"{path}/revoke")).status_code == 303
            assert (await p.client.get("/v1/events", headers={"X-API-Key": key})).status_code == 401
            page = await admin.get(path)
            assert "revoked" in page.text
            assert f"{path}/revoke" not in page.text
            assert await done(p) == ["api_key.created", "api_key.updated", "api_key.revoked"]
            assert {row["organization_id"] for row in await p.sql("SELECT * FROM audit_log WHERE action ~ 'api_key'")}
            assert (await admin.get("/api-keys/key_nonsense")).status_code == 404

    run(database_url, redis_url, check)


def test_a_platform_key_and_the_list_of_keys(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            page = await admin.get("/api-keys/new?organization=platform")
            assert "organizations.admin" in page.text
            page = await admin.post(
                "/api-keys", organization="platform", name="Ops", tier="default", scopes="organizations.admin"
            )
            [key] = set(KEY.findall(page.text))
            assert (await p.client.get("/v1/organizations", headers={"X-API-Key": key})).status_code == 200

            def listed() -> set[str]:
                return set(re.findall(r'<a href="/api-keys/key_\w+">(\w+)</a>', admin.page.text))

            await admin.get("/api-keys")
            assert listed() == {"Ops", "test", "platform"}
            await admin.get("/api-keys?kind=platform")
            assert listed() == {"Ops", "platform"}
            await admin.get(f"/api-keys?organization={shown_own(p)}")
            assert listed() == {"test"}
            await p.sql("UPDATE api_keys SET revoked_at = now() WHERE name = 'platform'")
            await admin.get("/api-keys?state=revoked")
            assert listed() == {"platform"}
            await admin.get("/api-keys?state=live")
            assert listed() == {"Ops", "test"}
            await admin.get("/api-keys?kind=partner")
            assert admin.page.status_code == 400

    run(database_url, redis_url, check)


# --- event types ---------------------------------------------------------------------------------------------------


def test_the_catalogue_is_kept_by_admins_and_read_by_all(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        own = shown_own(p)
        matching = await p.subscribe("https://example.com/all", ["order.*"])
        await p.subscribe("https://example.com/none", ["invoice.*"])
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            assert "No event type yet" in (await viewer.get("/event-types")).text
            await admin.get(f"/event-types/new?organization={own}")
            good = {
                "organization": own,
                "name": "order.paid",
                "description": HOSTILE,
                "schema": '{"type": "object", "title": "<b>"}',
                "example": '{"total": 12345678901234567890123}',
            }
            for wrong, field in (
                ({"name": "order paid"}, "name"),
                ({"name": ""}, "name"),
                ({"schema": "{nope"}, "schema"),
                ({"schema": "[1]"}, "schema"),
                ({"schema": '{"a":' + "[" * 80 + "]" * 80 + "}"}, "schema"),
                ({"example": "7"}, "example"),
                ({"example": '{"x": "' + "x" * 5_000 + '"}'}, "example"),
                ({"example": r'{"x": "\u0000"}'}, "example"),
                ({"description": "x" * 1_001}, "description"),
                ({"organization": "org_x"}, "organization"),
                ({"organization": org(ids.new_id())}, "organization"),
            ):
                refused = await admin.post("/event-types", **{**good, **wrong})
                assert (refused.status_code, f'id="{field}-error"' in refused.text) == (400, True), wrong
            made = await admin.post("/event-types", **good)
            assert made.status_code == 303, made.text
            path = links.event_type(own, "order.paid")
            assert made.headers["location"] == f"{path}?done=created"
            again = await admin.post("/event-types", **good)
            assert (again.status_code, 'id="name-error"' in again.text) == (409, True)

            page = await viewer.get(path)
            assert ESCAPED in page.text
            assert "12345678901234567890123" in page.text, "no digit is lost"
            assert matching["id"] in page.text
            assert "https://example.com/none" not in page.text
            assert f"/events?organization={own}&event_type=order.paid" in hrefs(page.text)
            assert "<textarea" not in page.text
            assert path in hrefs((await viewer.get(f"/event-types?organization={own}&text=PAID")).text)

            await admin.get(path)
            refused = await admin.post(path, description="new", schema="{", example="")
            assert (refused.status_code, ">\n{</textarea>" in refused.text) == (400, True), "nothing is lost"
            assert (await admin.post(path, description="new", schema="", example="{}")).status_code == 303
            kept = (await p.call("GET", "/v1/event-types/order.paid"))["data"]
            assert (kept["description"], kept["schema"], kept["example"]) == ("new", None, {})
            assert (await admin.post(f"{path}/delete")).status_code == 303
            assert (await admin.get(path)).status_code == 404
            assert await done(p) == ["event_type.created", "event_type.updated", "event_type.deleted"]
            for nowhere in (
                links.event_type(own, "a/../b"),
                links.event_type("org_x", "a.b"),
                f"{path}/more/than/that",
            ):
                assert (await admin.get(nowhere)).status_code == 404, nowhere

    run(database_url, redis_url, check)


# --- users ---------------------------------------------------------------------------------------------------------


def test_users_are_found_paged_and_signed_out(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for n in range(55):
            await make_user(p, f"u{n:02}@example.com", password=None)
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, "grace@example.org", Role.VIEWER) as grace:
            page = await admin.get("/users")
            assert (page.text.count('data-row="usr_'), ">Older<" in page.text) == (50, True)
            page = await admin.get("/users?text=EXAMPLE.org")
            assert page.text.count('data-row="usr_') == 1
            assert "Nothing matches" in (await admin.get("/users?text=nobody_")).text

            path = f"/users/{shown_user(await user_id(p, 'grace@example.org'))}"
            page = await admin.get(path)
            [end] = re.findall(rf'action="({path}/sessions/ses_\w+/revoke)"', page.text)
            mine = f"/users/{shown_user(await user_id(p, ADMIN))}"
            assert "this one" in (await admin.get(mine)).text
            await admin.get(path)
            stranger = re.sub(r"usr_\w+", mine.rpartition("/")[2], end)
            assert (await admin.post(stranger)).status_code == 404, "it is not a session of theirs"
            await admin.get(path)
            assert (await admin.post(end)).status_code == 303
            assert (await grace.get("/account")).status_code == 303, "signed out"
            async with signed_in(p, "grace@example.org") as one, signed_in(p, "grace@example.org") as two:
                await admin.get(path)
                assert (await admin.post(f"{path}/sessions/revoke")).status_code == 303
                for browser in (one, two):
                    assert (await browser.get("/account")).status_code == 303
            assert (await admin.get("/account")).status_code == 200
            assert await done(p) == ["session.revoked", "session.all_revoked"]
            [row] = await p.sql("SELECT after FROM audit_log WHERE action = 'session.revoked'")
            assert path.rpartition("/")[2] in str(row["after"])

    run(database_url, redis_url, check)


async def user_id(p: Platform, email: str) -> UUID:
    [row] = await p.sql("SELECT id FROM users WHERE email = $1", email)
    found: UUID = row["id"]
    return found


# --- who may ---------------------------------------------------------------------------------------------------------


def test_nobody_is_offered_what_would_be_refused_them(database_url: str, redis_url: str) -> None:
    """Every link and form of these pages, as somebody of each lesser role sees it."""

    async def check(p: Platform) -> None:
        own = shown_own(p)
        await p.call("POST", "/v1/event-types", {"name": "order.paid", "schema": {}, "example": {}})
        await p.subscribe("https://example.com/hook")
        pages = ["/organizations", f"/organizations/{own}", "/event-types", links.event_type(own, "order.paid"), "/go"]
        for role in (Role.VIEWER, Role.OPERATOR):
            async with signed_in(p, f"{role}@example.com", role) as somebody:
                offered: set[str] = set()
                for path in pages:
                    page = await somebody.get(path)
                    assert page.status_code == 200, path
                    offered |= {href for href in hrefs(page.text) if href.startswith("/")}
                    posts = set(re.findall(r'method="post" action="([^"]+)"', page.text))
                    assert posts == {"/sign-out"}, path
                for href in offered:
                    assert (await somebody.get(href)).status_code != 403, href

    run(database_url, redis_url, check)


def test_pages_without_anything_yet_say_what_to_do_first(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.sql("DELETE FROM api_keys")
        await p.sql("DELETE FROM organizations")
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            for path, first in (
                ("/organizations", "/organizations/new"),
                ("/event-types", "/event-types/new"),
                ("/api-keys", "/api-keys/new"),
            ):
                page = await admin.get(path)
                assert "yet</h2>" in page.text
                assert first in hrefs(page.text)
                if path != "/api-keys":
                    assert first not in hrefs((await viewer.get(path)).text)

    run(database_url, redis_url, check)


def test_a_visitor_who_is_not_signed_in_sees_none_of_it(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        stranger = Visitor(p.app)
        for path in ("/organizations", "/api-keys", "/event-types", "/audit-log", "/settings", "/go?q=Test"):
            answer = await stranger.get(path)
            assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/sign-in"), path

    run(database_url, redis_url, check)
