"""The pages of the audit log and of the settings, and going to anything."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlencode

import pytest

from app.admin import links
from app.admin import settings as settings_page
from core import audit, ids, installation
from core.access.models import Role
from core.listing import search
from core.secrets import reseal
from tests.api import make_organization, run
from tests.api import shown_organization as org
from tests.pages import shown as shown_user
from tests.pages import signed_in
from tests.platform import SECRET_KEY, Platform
from tests.platform import shown as shown_own

ADMIN = "admin@example.com"
HOSTILE: dict[str, Any] = {
    "<img src=x onerror=alert(1)>": "<script>alert(2)</script>",
    "{{ visit.form_token }}": {"</td></table>": ["<b>", None, 2**70], "a.b": {"c": {"d": "</details>"}}},
    "": "",
    "é\u202eסכ": "line\nbreak\ttab\u2028",
    "long": "y" * 20_000,
}


def hrefs(page: str) -> set[str]:
    return {href.replace("&amp;", "&") for href in re.findall(r'href="([^"]+)"', page)}


# --- the audit log -------------------------------------------------------------------------------------------------


def test_every_action_is_shown_whatever_it_changed(database_url: str, redis_url: str) -> None:
    """Names and values come from whoever has a key, and are shown to admins."""

    async def check(p: Platform) -> None:
        sides: list[tuple[Any, Any]] = [(None, HOSTILE), (HOSTILE, None), (HOSTILE, {**HOSTILE, "": "new"}), ({}, {})]
        rows = []
        for number, action in enumerate(audit.ACTIONS):
            before, after = sides[number % len(sides)]
            rows.append(ids.new_id())
            await p.sql(
                "INSERT INTO audit_log"
                " (id, organization_id, actor, actor_name, action, resource, before, after, address)"
                " VALUES ($1, $2, $3, $3, $4, $5, $6::jsonb, $7::jsonb, $3)",
                rows[-1],
                p.organization_id if number % 2 else None,
                "<i>somebody</i>",
                action,
                "<i>something</i>",
                *(None if side is None else json.dumps(side) for side in (before, after)),
            )
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            page = await admin.get("/audit-log")
            seen = [page.text]
            for row in rows:
                page = await admin.get(f"/audit-log/{ids.show(ids.AUDIT_ENTRY, row)}")
                assert page.status_code == 200
                seen.append(page.text)
            for action in audit.ACTIONS:
                page = await admin.get(f"/audit-log?action={action}")
                assert f'role="cell" data-label="What">{action}<' in page.text
                seen.append(page.text)
            for text in seen:
                assert not re.search(r"<script>|<img|<i>|</details>&#|<b>", text)
                assert admin.form_token not in re.sub(r'value="[0-9a-f]{64}"', "", text), "nothing of it is a template"
            whole = "".join(seen)
            assert "&lt;img src=x onerror=alert(1)&gt;" in whole
            assert "{{ visit.form_token }}.a.b.c</th>" in whole, "three levels deep, and no deeper"
            assert str(2**70) in whole
            assert "… (20,000 characters)" in whole
            for nowhere in ("aud_x", ids.show(ids.AUDIT_ENTRY, ids.new_id())):
                assert (await admin.get(f"/audit-log/{nowhere}")).status_code == 404

    run(database_url, redis_url, check)


def test_who_did_that_is_found_by_any_of_its_sides(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        subscription = await p.subscribe("https://example.com/hook", description="first")
        path = f"/v1/webhooks/subscriptions/{subscription['id']}"
        await p.call("PATCH", path, {"description": "second", "retry_policy": {"max_attempts": 3}})
        await p.call("POST", "/v1/event-types", {"name": "order.paid"})
        other = await make_organization(p, "Other")
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, "eve@example.com", Role.ADMIN) as eve:
            await eve.get(f"/organizations/{org(other)}")
            await eve.post(f"/organizations/{org(other)}", name="Mine now", version="1")
            [row] = await p.sql("SELECT id FROM users WHERE email = 'eve@example.com'")
            its = shown_user(row["id"])

            async def found(query: str) -> list[str]:
                page = await admin.get(f"/audit-log?{query}")
                assert page.status_code == 200
                return re.findall(r'data-label="What">([a-z_.]+)<', page.text)

            for query in (
                "actor=EVE@example.com",
                f"actor={its}",
                f"resource={org(other)}",
                f"organization={org(other)}",
            ):
                assert (await found(query))[0] == "organization.updated", query
            assert await found("action=subscription.updated,organization.updated") == [
                "organization.updated",
                "subscription.updated",
            ]
            assert await found("actor=nobody@example.com") == []
            assert await found("created_before=2020-01-01") == []
            assert "Nothing matches" in admin.page.text
            assert len(await found("created_after=1h")) > 3
            assert await found(f"resource={subscription['id']}") == ["subscription.updated", "subscription.created"]
            page = admin.page.text
            assert {f"/subscriptions/{subscription['id']}", f"/organizations/{shown_own(p)}"} < hrefs(page)
            assert "<del>first</del>" in page
            assert "<ins>second</ins>" in page
            assert re.search(
                r'retry_policy.max_attempts <span class="aside">changed<.*?<del>10</del>.*?<ins>3<', page, re.S
            )
            assert re.search(r'<th scope="row">retry_policy.jitter</th>', page), "beside what changed, what did not"
            await found("action=event_type.created")
            assert links.event_type(shown_own(p), "order.paid") in hrefs(admin.page.text)
            for wrong in ("action=nothing.done", "organization=x", "after=x", "created_after=yesterday"):
                refused = await admin.get(f"/audit-log?{wrong}")
                assert (refused.status_code, 'class="error"' in refused.text) == (400, True), wrong

    run(database_url, redis_url, check)


# --- settings ------------------------------------------------------------------------------------------------------

CANARY = "c4n4ry"


def test_the_settings_are_shown_without_their_secrets(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            page = await admin.get("/settings")
            assert page.status_code == 200
            for secret in (CANARY, SECRET_KEY, p.services.settings.database_url, p.key, p.platform_key):
                assert secret not in page.text
            password = re.search(r"://[^:]+:([^@]+)@", p.services.settings.database_url)
            assert password is None or f":{password[1]}@" not in page.text
            for names in settings_page.GROUPS.values():
                for name in names:
                    assert f"HOOKWRIGHT_{name.upper()}" in page.text
            for found in (
                "PostgreSQL 1",
                "schema at revision",
                "Valkey",
                "Python 3",
                "10,000 requests a minute, 7 at once",
            ):
                assert found in page.text, found
            assert "No worker has been seen" in page.text
            [key_id] = p.services.sealer.key_ids
            assert f"<code>{key_id.hex()}</code>" in page.text

            await p.sql("INSERT INTO workers (id, seen_at) VALUES (gen_random_uuid(), now())")
            await p.sql("UPDATE api_keys SET hash_key_id = '\\x01020304' WHERE name = 'test'")
            page = await admin.get("/settings")
            assert "1 worker alive" in page.text
            assert "<code>01020304</code>" in page.text
            assert "Put it back at the end" in page.text

    run(
        database_url,
        redis_url,
        check,
        EGRESS_PROXY_URL=f"http://{CANARY}:{CANARY}-2@127.0.0.1:3128",
        OIDC_ISSUER="https://id.example.com",
        OIDC_CLIENT_ID="hookwright",
        OIDC_CLIENT_SECRET=f"{CANARY}-3",
        RATE_LIMIT_PREMIUM="10000/7",
    )


def test_what_does_not_answer_is_said_and_does_not_hold_up_the_page(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        async def never(*_: Any) -> Any:
            raise TimeoutError(f"no answer from {CANARY}")

        monkeypatch.setattr(reseal, "survey", never)
        monkeypatch.setattr(p.services.redis, "info", never)
        monkeypatch.setattr(installation, "_workers", never)
        monkeypatch.setattr(installation, "_days", never)
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            page = await admin.get("/settings")
            assert page.status_code == 200
            assert "It does not answer (TimeoutError)" in page.text
            assert "hookwright keys status" in page.text
            assert "could not be looked at in time" in page.text
            assert CANARY not in page.text

    run(database_url, redis_url, check)


# --- going to anything ---------------------------------------------------------------------------------------------


def test_any_id_goes_to_its_page(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        event = await p.send("order.paid", event_id="shop-4711")
        subscription = await p.subscribe("https://hooks.example.com:8443/in")
        [secret] = await p.sql("SELECT id FROM subscription_secrets")
        delivery_id, attempt_id = ids.new_id(), ids.new_id()
        await p.sql(
            "INSERT INTO attempts (id, delivery_id, organization_id, series, number, started_at, duration_ms, url,"
            " request_headers) VALUES ($1, $2, $3, 0, 1, now(), 5, 'https://example.com', '[]')",
            attempt_id,
            delivery_id,
            p.organization_id,
        )
        [change] = await p.sql(
            "INSERT INTO breaker_changes SELECT gen_random_uuid(), organization_id, id, 'OPEN', 2 FROM subscriptions"
            " RETURNING id"
        )
        await p.call("POST", "/v1/event-types", {"name": "order.refunded"})
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            [user] = await p.sql("SELECT id FROM users WHERE email = 'viewer@example.com'")
            [session] = await p.sql("SELECT id FROM user_sessions WHERE user_id = $1", user["id"])
            its = shown_user(user["id"])
            delivery = ids.show(ids.DELIVERY, delivery_id)
            leads = {
                event["event_id"]: f"/events/{event['event_id']}",
                f"  {event['event_id'].lower()} ".replace("EVT", "evt"): f"/events/{event['event_id']}",
                f'{{"level": "info", "delivery": "{delivery}"}}': f"/deliveries/{delivery}",
                ids.show(ids.ATTEMPT, attempt_id): f"/deliveries/{delivery}",
                ids.show(ids.SECRET, secret["id"]): f"/subscriptions/{subscription['id']}",
                ids.show(ids.BREAKER_CHANGE, change["id"]): f"/subscriptions/{subscription['id']}",
                ids.show(ids.SESSION, session["id"]): f"/users/{its}",
                its: f"/users/{its}",
                "shop-4711": f"/events/{event['event_id']}",
                "order.refunded": links.event_type(shown_own(p), "order.refunded"),
                "hooks.example.com:8443": f"/subscriptions/{subscription['id']}",
                "https://HOOKS.example.com:8443/in?x=1": f"/subscriptions/{subscription['id']}",
                "tes": f"/organizations/{shown_own(p)}",
                "viewer@example": f"/users/{its}",
            }
            for text, path in leads.items():
                answer = await admin.get(f"/go?{urlencode({'q': text})}")
                assert (answer.status_code, answer.headers.get("location")) == (303, path), text
            for text in (its, ids.show(ids.SESSION, session["id"]), "viewer@example", p.key):
                answer = await viewer.get(f"/go?{urlencode({'q': text})}")
                assert answer.status_code == 200, text
                assert its not in answer.text.replace(f'value="{its}"', ""), "who may not see users does not find them"

    run(database_url, redis_url, check)


def test_several_are_listed_and_what_is_not_there_is_said(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for _ in range(2):
            await make_organization(p, "<b>Acme</b> 100%")
        await p.subscribe("https://acme.example/in")
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            page = await viewer.get("/go?q=acme")
            assert page.text.count("&lt;b&gt;Acme&lt;/b&gt; 100%") == 2
            assert "https://acme.example/in" in page.text
            assert "/subscriptions?text=acme" in hrefs(page.text)
            nothing = [
                "",
                "%25%25",
                "_",
                "zz",
                "x" * 2_000,
                "%00",
                "%22%3E%3Cscript%3E",
                "http://[::1",
                "[::1]:1",
                "sk_live_",
            ]
            for text in [*nothing, ids.show(ids.ATTEMPT, ids.new_id()), "att_" + "Z" * 26]:
                page = await viewer.get(f"/go?q={text}")
                assert page.status_code == 200, text
                assert "What can be searched for" in page.text, text
                assert "<script>" not in page.text

    run(database_url, redis_url, check)


def test_a_search_that_takes_too_long_says_so(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        monkeypatch.setattr(search, "SEARCH_MS", 50)
        monkeypatch.setattr(
            search, "_ORGANIZATIONS", "SELECT id, name, id FROM organizations, pg_sleep(5) WHERE name = $1 LIMIT $2"
        )
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            page = await admin.get("/go?q=admin%40example.com")
            assert page.status_code == 200, "one hit is not the one answer while not everything was searched"
            assert "could be searched in time: organization" in page.text
            assert "admin@example.com</a>" in page.text

    run(database_url, redis_url, check)
