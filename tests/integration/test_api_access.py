"""Who may do what: keys, access tokens, scopes, tenants. Access is walked through `API`, so a new path is tested by
being there; and every route of the application is in it, or among those that are public by intent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlmodel import SQLModel
from starlette.routing import Route

from app.admin.frame import PageResource
from app.api.calls import Resource
from app.main import create
from app.routes import API, PAGES, PUBLIC
from core import ids, settings
from core.access.access_tokens import AccessTokens
from core.access.api_keys import ALL_SCOPES, ORGANIZATION_SCOPES, ORGANIZATIONS_ADMIN
from core.secrets.sealing import Sealer, generate_key
from tests.api import (
    SUBSCRIPTIONS,
    URL,
    another_app,
    error_of,
    faults_of,
    make_key,
    make_organization,
    run,
    shown_organization,
    success_of,
)
from tests.platform import Platform, environment, shown

EVERY = [(method, path) for path, actions in API.items() for method in actions]
# Whoever opens a path to anybody says so here as well.
OPEN = {"/healthz", "/readyz", "/oauth/token", "/v1/openapi.json", "/static"}
# A body that each path would accept, so that nothing but access stands in its way.
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/v1/events"): {"event_type": "a.b", "data": {}},
    ("POST", "/v1/events/batch"): {"events": [{"event_type": "a.b", "data": {}}]},
    ("POST", "/v1/events/{id}/copy"): {"data": {}},
    ("PATCH", "/v1/replays/{id}"): {"rate_per_second": 5},
    ("POST", SUBSCRIPTIONS): {"url": URL, "events": ["*"]},
    ("PATCH", f"{SUBSCRIPTIONS}/{{id}}"): {"description": "changed"},
    ("POST", "/v1/event-types"): {"name": "a.new.one"},
    ("PATCH", "/v1/event-types/{name}"): {"description": "changed"},
    ("POST", "/v1/organizations"): {"name": "A new one"},
    ("PATCH", "/v1/organizations/{id}"): {"name": "Renamed"},
    ("POST", "/v1/api-keys"): {"name": "A new one"},
    ("PATCH", "/v1/api-keys/{id}"): {"name": "Renamed"},
}


@dataclass
class Owned:
    """One of everything, in the platform's own organization."""

    ids: dict[str, str]

    def url(self, path: str) -> str:
        """`path` with this organization's ids and names in it."""
        longest = max((one for one in self.ids if path.startswith(one)), key=len, default="")
        return path.replace("{id}", self.ids.get(longest, "")).replace("{name}", self.ids.get(longest, ""))


async def own_everything(p: Platform) -> Owned:
    subscription = await p.subscribe(URL)
    event = await p.send("a.b")
    [delivery] = await p.deliveries()
    replay = (await p.call("POST", "/v1/replays", {"filters": {"status": "pending"}}))["data"]
    await p.call("POST", "/v1/event-types", {"name": "a.b"})
    [row] = await p.sql("SELECT id FROM api_keys WHERE organization_id = $1", p.organization_id)
    return Owned(
        {
            SUBSCRIPTIONS: subscription["id"],
            "/v1/events": event["event_id"],
            "/v1/deliveries": delivery["id"],
            "/v1/replays": replay["id"],
            "/v1/event-types": "a.b",
            "/v1/organizations": shown(p),
            "/v1/api-keys": ids.show(ids.API_KEY, row["id"]),
        }
    )


async def contents(p: Platform) -> dict[str, list[str]]:
    """All that is stored, but for the moments of keys' last use and for statistics, which come in their own time."""
    found = {}
    for table in SQLModel.metadata.tables.keys() - {"delivery_stats"}:
        what = "(t.id, t.name, t.scopes, t.revoked_at)" if table == "api_keys" else "t"
        rows = await p.sql(f"SELECT {what}::text AS row FROM {table} t ORDER BY 1")
        found[table] = [row["row"] for row in rows]
    return found


def body_of(method: str, path: str) -> Any:
    return BODIES.get((method, path), {} if method == "POST" else None)


def token(p: Platform, key_id: UUID, organization_id: UUID | None, scopes: Sequence[str], age_s: float = 0) -> str:
    issued = datetime.now(UTC) - timedelta(seconds=age_s)
    return p.services.access_tokens.issue(key_id, organization_id, scopes, issued)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}", "X-API-Key": ""}


def test_every_route_of_the_application_says_what_it_needs() -> None:
    app = create(settings.load(environment("postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1/0")))
    walked, pages = set(), set()
    for route in app.routes:
        if isinstance(route, Route) and isinstance(route.app, Resource):
            assert route.app.actions == API[route.path]
            assert all(action.scope in ALL_SCOPES for action in route.app.actions.values())
            walked.add(route.path)
        elif isinstance(route, Route) and isinstance(route.app, PageResource):
            assert route.app.pages == PAGES[route.path]  # each names a role, or why anybody may
            pages.add(route.path)
        else:
            assert any(route is one for one in PUBLIC), f"{route} is declared nowhere"
    assert walked == set(API)
    assert pages == set(PAGES)
    assert {route.path for route in PUBLIC} == OPEN


def test_every_path_wants_a_key_with_its_scope_and_changes_nothing_without(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        owned = await own_everything(p)
        every = set(ALL_SCOPES)
        lacking = {scope: await make_key(p, None, sorted(every - {scope})) for scope in ALL_SCOPES}
        [platform] = await p.sql("SELECT id FROM api_keys WHERE scopes @> $1", list(every))
        platform_id = platform["id"]
        elsewhere = AccessTokens(Sealer([generate_key()]), p.services.settings.public_url)
        refused = {
            "without a key": {"X-API-Key": ""},
            "with nonsense": {"X-API-Key": "sk_live_" + "x" * 43},
            "with another's kind": {"X-API-Key": "Basic abc"},
            "with a token that has expired": bearer(token(p, platform_id, None, ALL_SCOPES, age_s=3600)),
            "with a token of another installation": bearer(
                elsewhere.issue(platform_id, None, ALL_SCOPES, datetime.now(UTC))
            ),
            "with a token of a key that is none": bearer(token(p, UUID(int=5), None, ALL_SCOPES)),
            "with a token as a key": {"X-API-Key": token(p, platform_id, None, ALL_SCOPES)},
        }
        named = {"X-Organization-ID": shown(p), "Idempotency-Key": "k"}
        before = await contents(p)
        for method, path in EVERY:
            scope = API[path][method].scope
            url, body = owned.url(path), body_of(method, path)
            for how, headers in refused.items():
                answer = await p.client.request(method, url, json=body, headers=headers | named)
                error = error_of(answer, 401, "AUTHENTICATION_FAILED")
                assert answer.headers["www-authenticate"] == "Bearer", how
                assert not any(value and value in error["message"] for value in headers.values()), how
            narrow = token(p, platform_id, None, sorted(every - {scope}))
            for headers in ({"X-API-Key": lacking[scope]}, bearer(narrow)):
                answer = await p.client.request(method, url, json=body, headers=headers | named)
                error = error_of(answer, 403, "PERMISSION_DENIED")
                assert error["details"] == {"required_scope": scope}, (method, path)
        assert await contents(p) == before
        # What all these lacked is what a key and a token that are refused nowhere have.
        whole = bearer(token(p, platform_id, None, ALL_SCOPES))
        for headers in ({"X-API-Key": p.platform_key}, whole):
            assert (await p.client.get(owned.url("/v1/events/{id}"), headers=headers | named)).status_code == 200

    run(database_url, redis_url, check)


def test_what_another_tenant_owns_is_not_found_and_unchanged(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        owned = await own_everything(p)
        other = await make_organization(p)
        stranger = await make_key(p, other)
        [row] = await p.sql("SELECT id FROM api_keys WHERE organization_id = $1", other)
        as_token = bearer(token(p, row["id"], other, ORGANIZATION_SCOPES))
        # As if somebody could sign: the key of one organization and the name of the other.
        mixed = bearer(token(p, row["id"], p.organization_id, ORGANIZATION_SCOPES))
        platform_key = {"X-API-Key": p.platform_key, "X-Organization-ID": shown_organization(other)}
        before = await contents(p)
        for method, path in EVERY:
            action = API[path][method]
            if not action.tenant:
                continue
            url, body = owned.url(path), body_of(method, path)
            strangers = [{"X-API-Key": stranger, "Idempotency-Key": "k"}, as_token | {"Idempotency-Key": "k"}]
            callers = [platform_key] if "{" in path else []
            if action.scope != ORGANIZATIONS_ADMIN:
                callers += [caller | {"X-Organization-ID": shown(p)} for caller in strangers]
                callers += strangers if "{" in path else []
            for headers in callers:
                error_of(await p.client.request(method, url, json=body, headers=headers), 404, "NOT_FOUND")
            error_of(await p.client.request(method, url, json=body, headers=mixed), 401, "AUTHENTICATION_FAILED")
        for path in ("/v1/events", "/v1/deliveries", "/v1/replays", SUBSCRIPTIONS, "/v1/event-types"):
            for headers in ({"X-API-Key": stranger}, as_token):
                listed = success_of(await p.client.get(path, headers=headers), 200)
                assert listed["data"] == [], path
        for name in ("subscription_id", "event_id", "replay_id", "ids"):
            place = {"subscription_id": SUBSCRIPTIONS, "event_id": "/v1/events", "replay_id": "/v1/replays"}
            value = owned.ids[place.get(name, "/v1/deliveries")]
            listed = success_of(
                await p.client.get(f"/v1/deliveries?filters[{name}]={value}", headers={"X-API-Key": stranger}), 200
            )
            assert listed["data"] == [], name
        assert await contents(p) == before

    run(database_url, redis_url, check)


def test_an_id_that_is_none_is_not_found(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        prefixes = ("evt", "dlv", "sub", "org", "rpl", "key")
        unknown = [f"{prefix}_{'0' * 26}" for prefix in prefixes]
        for method, path in EVERY:
            if "{id}" not in path:
                continue
            for id_ in ["x", "1", "%F0%9F%98%80", "null", "a" * 5000, "evt_" + "Z" * 26, *unknown]:
                url = path.replace("{id}", id_)
                answer = await p.client.request(method, url, json=body_of(method, path), headers=headers)
                error_of(answer, 404, "NOT_FOUND")

    run(database_url, redis_url, check)


def test_a_key_is_taken_from_either_header(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for name, value, status in [
            ("X-API-Key", p.key, 200),
            ("X-API-Key", f" {p.key} ", 200),
            ("Authorization", f"Bearer {p.key}", 200),
            ("Authorization", f"bearer {p.key}", 200),
            ("Authorization", f"Basic {p.key}", 401),
            ("Authorization", p.key, 401),
            ("Authorization", "Bearer ", 401),
            ("X-API-Key", p.key[:-1], 401),
            ("X-API-Key", p.key + "x", 401),
            ("X-API-Key", p.key.lower(), 401),
            ("X-API-Key", p.key[:18], 401),
            ("X-API-Key", "sk_live_\u00e9", 401),
            ("X-API-Key", "sk_live_\0abcdefghij", 401),
            ("X-API-Key", "' OR 1=1 --", 401),
        ]:
            del p.client.headers["X-API-Key"]
            answer = await p.client.get("/v1/events", headers={name: value.encode()})
            p.client.headers["X-API-Key"] = p.key
            assert answer.status_code == status, (name, value)

    run(database_url, redis_url, check)


def test_a_revoked_key_does_nothing_more_in_any_process(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        made = (await p.client.post("/v1/api-keys", json={"name": "n"}, headers=admin)).json()["data"]
        subscription = await p.subscribe(URL)
        key = {"X-API-Key": made["key"]}
        posts = {
            "/v1/events": {"event_type": "a", "data": {}},
            "/v1/events/batch": {"events": [{"event_type": "a", "data": {}}]},
            f"{SUBSCRIPTIONS}/{subscription['id']}/test": {},
        }
        async with another_app(p, database_url, redis_url) as other:
            for client in (p.client, other):  # each of them now knows the key
                for path, body in posts.items():
                    assert (await client.post(path, json=body, headers=key)).status_code == 202
            stored = len(await p.sql("SELECT id FROM events"))
            revoked = success_of(await p.client.delete(f"/v1/api-keys/{made['id']}", headers=admin), 200)
            assert revoked["data"]["revoked_at"] is not None
            for client in (p.client, other):
                for path, body in posts.items():
                    answer = await client.post(path, json=body, headers=key)
                    assert "revoked" in error_of(answer, 401, "AUTHENTICATION_FAILED")["message"]
                error_of(await client.get("/v1/events", headers=key), 401, "AUTHENTICATION_FAILED")
            assert len(await p.sql("SELECT id FROM events")) == stored
            again = success_of(await p.client.delete(f"/v1/api-keys/{made['id']}", headers=admin), 200)
            assert again["data"]["revoked_at"] == revoked["data"]["revoked_at"]

    run(database_url, redis_url, check)


def test_a_platform_key_names_an_organization_that_exists(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        body = {"event_type": "a", "data": {}}
        for method, path, sent in [("GET", "/v1/events", None), ("POST", "/v1/events", body)]:

            async def ask(named: str | None, method: str = method, path: str = path, sent: Any = sent) -> Any:
                headers = {"X-API-Key": p.platform_key}
                return await p.client.request(
                    method, path, json=sent, headers=headers | ({} if named is None else {"X-Organization-ID": named})
                )

            for named in (None, ""):
                assert list(faults_of(await ask(named))) == ["X-Organization-ID"]
            for named in ("x", "org_", "evt_" + "0" * 26, "org_" + "U" * 26):
                assert list(faults_of(await ask(named))) == ["X-Organization-ID"]
            error_of(await ask(shown_organization(UUID(int=5))), 404, "NOT_FOUND")
            assert (await ask(shown(p))).is_success
            assert (await ask(shown(p).lower())).is_success
        assert {row["organization_id"] for row in await p.sql("SELECT organization_id FROM events")} == {
            p.organization_id
        }

    run(database_url, redis_url, check)


def test_an_organization_key_acts_for_its_own_organization_alone(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        other = shown_organization(await make_organization(p))
        body = {"event_type": "a", "data": {}}
        success_of(await p.client.post("/v1/events", json=body, headers={"X-Organization-ID": shown(p)}), 202)
        answer = await p.client.post("/v1/events", json=body, headers={"X-Organization-ID": other})
        error_of(answer, 404, "NOT_FOUND")
        answer = await p.client.post("/v1/events", json=body, headers={"X-Organization-ID": "nonsense"})
        assert list(faults_of(answer)) == ["X-Organization-ID"]
        assert len(await p.sql("SELECT id FROM events")) == 1

    run(database_url, redis_url, check)


@pytest.mark.parametrize(
    ("scopes", "granted"),
    [
        (None, list(ORGANIZATION_SCOPES)),
        (["events.write"], ["events.write"]),
        (["events.write", "events.write"], ["events.write"]),
        ([], None),
        (["organizations.admin"], None),
        (["events.write", "everything"], None),
    ],
)
def test_a_new_key_has_the_scopes_that_were_asked_for(
    database_url: str, redis_url: str, scopes: list[str] | None, granted: list[str] | None
) -> None:
    async def check(p: Platform) -> None:
        headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        answer = await p.client.post("/v1/api-keys", json={"name": "n", "scopes": scopes}, headers=headers)
        if granted is None:
            assert "choose from" in faults_of(answer)["scopes"][0]
            return
        made = success_of(answer, 201)["data"]
        assert made["scopes"] == granted
        assert made["key"].startswith(made["prefix"])
        listed = success_of(await p.client.get("/v1/api-keys", headers=headers), 200)["data"]
        assert all("key" not in one for one in listed)
        assert made["key"] not in str(listed)
        assert made["key"] not in str(await contents(p))

    run(database_url, redis_url, check)
