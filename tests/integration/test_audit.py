"""The audit log has every change, once, in the change's own transaction. Walked through `API`: a new path is tested by
being there."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from app.api.operations import OPERATIONS
from app.routes import API
from core import ids
from core.limiting import breakers
from tests.api import FAST, SUBSCRIPTIONS, URL, error_of, faults_of, make_key, make_organization, run, success_of
from tests.integration.test_api_access import contents
from tests.platform import Platform, shown
from tests.receiver import Receiver
from tests.services import as_owner

WRITES = [(method, path) for path, actions in API.items() for method in actions if method != "GET"]
SECRET_HEADER = "a-secret-in-a-header"


@dataclass
class Ready:
    """A call that will succeed: its URL and body, and the resource that its entry names (None: the answer's id)."""

    url: str
    body: Any = None
    resource: str | None = None


async def _subscription(p: Platform, path: str) -> Ready:
    id_ = (await p.subscribe(URL, headers={"X-Token": SECRET_HEADER}))["id"]
    return Ready(path.replace("{id}", id_), resource=id_)


async def _changed(p: Platform, path: str) -> Ready:
    ready = await _subscription(p, path)
    return Ready(ready.url, {"description": "changed"}, ready.resource)


async def _paused(p: Platform, path: str) -> Ready:
    ready = await _subscription(p, path)
    await p.call("POST", f"{SUBSCRIPTIONS}/{ready.resource}/pause")
    return ready


async def _delivery(p: Platform, path: str) -> Ready:
    subscription = await p.subscribe(URL, ["for.this.one"])
    await p.send("for.this.one")
    [delivery] = await p.deliveries(subscription_id=subscription["id"])
    return Ready(path.replace("{id}", delivery["id"]), resource=delivery["id"])


async def _event(p: Platform, path: str) -> Ready:
    id_ = (await p.send("for.this.one"))["event_id"]
    return Ready(path.replace("{id}", id_), resource=id_)


async def _copied(p: Platform, path: str) -> Ready:
    ready = await _event(p, path)
    return Ready(ready.url, {"data": {"a": "copy"}}, ready.resource)


async def _replay(p: Platform, path: str) -> Ready:
    await _delivery(p, "")
    made = (await p.call("POST", "/v1/replays", {"filters": {"status": "pending"}}))["data"]
    if path.endswith("/resume"):
        await p.call("POST", f"/v1/replays/{made['id']}/pause")
    return Ready(path.replace("{id}", made["id"]), resource=made["id"])


async def _rate_of_replay(p: Platform, path: str) -> Ready:
    ready = await _replay(p, path)
    return Ready(ready.url, {"rate_per_second": 7}, ready.resource)


async def _event_type(p: Platform, path: str) -> Ready:
    name = f"a.type.n{ids.new_id().hex}"
    await p.call("POST", "/v1/event-types", {"name": name})
    return Ready(path.replace("{name}", name), {"description": "changed"}, name)


async def _organization(p: Platform, path: str) -> Ready:
    id_ = ids.show(ids.ORGANIZATION, await make_organization(p))
    return Ready(path.replace("{id}", id_), {"name": "Renamed"}, id_)


async def _key(p: Platform, path: str) -> Ready:
    await make_key(p, p.organization_id)
    [row] = await p.sql("SELECT id FROM api_keys WHERE name = 'a key' ORDER BY id DESC LIMIT 1")
    id_ = ids.show(ids.API_KEY, row["id"])
    return Ready(path.replace("{id}", id_), resource=id_)


async def _renamed_key(p: Platform, path: str) -> Ready:
    ready = await _key(p, path)
    return Ready(ready.url, {"name": f"renamed {ids.new_id().hex}"}, ready.resource)


def _posts(body: Callable[[], Any]) -> Callable[[Platform, str], Awaitable[Ready]]:
    async def ready(_: Platform, path: str) -> Ready:
        return Ready(path, body())

    return ready


# What each write needs to succeed. One that is missing here fails the test, as one without a declaration does.
READY: dict[tuple[str, str], Callable[[Platform, str], Awaitable[Ready]]] = {
    ("POST", "/v1/events"): _posts(lambda: {"event_type": "a.b", "data": {}}),
    ("POST", "/v1/events/batch"): _posts(lambda: {"events": [{"event_type": "a.b", "data": {}}]}),
    ("POST", "/v1/events/{id}/redact"): _event,
    ("POST", "/v1/events/{id}/copy"): _copied,
    ("POST", "/v1/deliveries/{id}/replay"): _delivery,
    ("POST", "/v1/deliveries/{id}/discard"): _delivery,
    ("POST", SUBSCRIPTIONS): _posts(lambda: {"url": URL, "events": ["*"], "headers": {"X-Token": SECRET_HEADER}}),
    ("POST", f"{SUBSCRIPTIONS}/check"): _posts(lambda: {"events": ["*"]}),
    ("PATCH", f"{SUBSCRIPTIONS}/{{id}}"): _changed,
    ("DELETE", f"{SUBSCRIPTIONS}/{{id}}"): _subscription,
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/pause"): _subscription,
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/resume"): _paused,
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/secret/rotate"): _subscription,
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/secret/reveal"): _subscription,
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/test"): _subscription,
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/circuit-breaker/reset"): _subscription,
    ("POST", "/v1/replays"): _posts(dict),
    ("PATCH", "/v1/replays/{id}"): _rate_of_replay,
    ("POST", "/v1/replays/{id}/pause"): _replay,
    ("POST", "/v1/replays/{id}/resume"): _replay,
    ("POST", "/v1/replays/{id}/cancel"): _replay,
    ("POST", "/v1/event-types"): _posts(lambda: {"name": f"a.type.n{ids.new_id().hex}"}),
    ("PATCH", "/v1/event-types/{name}"): _event_type,
    ("DELETE", "/v1/event-types/{name}"): _event_type,
    ("POST", "/v1/organizations"): _posts(lambda: {"name": "A new one"}),
    ("PATCH", "/v1/organizations/{id}"): _organization,
    ("DELETE", "/v1/organizations/{id}"): _organization,
    ("POST", "/v1/api-keys"): _posts(lambda: {"name": "A new one"}),
    ("PATCH", "/v1/api-keys/{id}"): _renamed_key,
    ("DELETE", "/v1/api-keys/{id}"): _key,
}


async def entries(p: Platform) -> list[Any]:
    return await p.sql("SELECT *, before::text AS b, after::text AS a FROM audit_log ORDER BY id")


def headers_of(p: Platform, path: str) -> dict[str, str]:
    """A platform's key where the scope asks for one."""
    admin = any(action.scope == "organizations.admin" for action in API[path].values())
    return {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)} if admin else {}


def test_every_write_says_what_the_audit_log_calls_it_or_why_not() -> None:
    for method, path in WRITES:
        action = API[path][method]
        assert bool(action.audited) != bool(action.unaudited), f"{method} {path}: declare audited=… or unaudited=…"
    names = [API[path][method].audited for method, path in WRITES if API[path][method].audited]
    assert len(set(names)) == len(names), "one name means one thing"


def test_each_write_leaves_the_one_entry_that_is_declared(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        keys = {
            p.key: ids.show(ids.API_KEY, p.key_id),
            p.platform_key: None,
        }
        [row] = await p.sql("SELECT id FROM api_keys WHERE name = 'platform'")
        keys[p.platform_key] = ids.show(ids.API_KEY, row["id"])
        for number, (method, path) in enumerate(WRITES):
            action = API[path][method]
            ready = await READY[method, path](p, path)
            headers = headers_of(p, path) | {"Idempotency-Key": f"k{number}", "X-Request-ID": f"r{number}"}
            before = len(await entries(p))
            answer = await p.client.request(method, ready.url, json=ready.body, headers=headers)
            assert answer.is_success, f"{method} {path}: {answer.text}"
            if method == "POST" and not OPERATIONS[path][method].repeats:
                again = await p.client.request(method, ready.url, json=ready.body, headers=headers)
                assert again.json()["meta"]["idempotent"] is True, f"{method} {path}"
            made = (await entries(p))[before:]
            if action.unaudited:
                assert made == [], f"{method} {path}"
                continue
            [entry] = made
            data = answer.json()["data"]
            assert entry["action"] == action.audited
            assert entry["resource"] == (ready.resource or data["id"]), f"{method} {path}"
            assert entry["actor"] == keys[headers.get("X-API-Key", p.key)]
            assert entry["actor_name"] == ("platform" if "X-API-Key" in headers else "test")
            assert (entry["request_id"], entry["address"]) == (f"r{number}", "127.0.0.1")
            about = data["id"] if path.startswith("/v1/organizations") else shown(p)
            if action.audited == "organization.deleted":  # what is its own is erased
                assert entry["organization_id"] is None
            else:
                assert ids.show(ids.ORGANIZATION, entry["organization_id"]) == about
            assert entry["before"] or entry["after"], f"{method} {path}: it says what changed"
            for secret in ("secret_key", "key"):
                assert data.get(secret, SECRET_HEADER) not in f"{entry['b']}{entry['a']}"
            assert SECRET_HEADER not in f"{entry['b']}{entry['a']}"

    run(database_url, redis_url, check)


def test_what_is_refused_or_changes_nothing_leaves_no_entry(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        other = await make_organization(p)
        stranger = await make_key(p, other)
        ready = {write: await READY[write](p, write[1]) for write in WRITES}
        active, paused = (await _subscription(p, "{id}")).url, (await _paused(p, "{id}")).url
        type_, key = await _event_type(p, "/v1/event-types/{name}"), await _key(p, "/v1/api-keys/{id}")
        await p.client.patch(type_.url, json={"description": "same"})
        await p.client.delete(key.url, headers=headers_of(p, "/v1/api-keys/{id}"))
        before = await entries(p)
        for (method, path), one in ready.items():
            for headers in ({"X-API-Key": stranger}, {"X-API-Key": ""}):
                if "{" in path or not headers["X-API-Key"]:
                    answer = await p.client.request(method, one.url, json=one.body, headers=headers)
                    assert answer.status_code in {401, 403, 404}, f"{method} {path}: {answer.text}"
            if method != "DELETE":
                answer = await p.client.request(method, one.url, json={"no": "field"}, headers=headers_of(p, path))
                assert answer.status_code == 400, f"{method} {path}: {answer.text}"
        for path, actions in API.items():
            if "GET" in actions and "{" not in path:
                assert (await p.client.get(path, headers=headers_of(p, path))).is_success
        for path in (f"{active}/resume", f"{paused}/pause"):
            success_of(await p.client.post(f"{SUBSCRIPTIONS}/{path}"), 200)
        success_of(await p.client.patch(f"{SUBSCRIPTIONS}/{active}", json={}), 200)
        success_of(await p.client.patch(type_.url, json={"description": "same"}), 200)
        success_of(await p.client.delete(key.url, headers=headers_of(p, "/v1/api-keys/{id}")), 200)
        success_of(await p.client.post("/v1/replays", json={"dry_run": True}), 202)
        stale = {"If-Match": '"version-7"'}
        error_of(await p.client.post(f"{SUBSCRIPTIONS}/{active}/pause", headers=stale), 409, "CONFLICT")
        assert await entries(p) == before

    run(database_url, redis_url, check)


NO_ENTRIES = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE 'no entries' USING ERRCODE = 'query_canceled'; END $$;
CREATE TRIGGER failing BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION fail();
"""


def test_what_cannot_be_audited_is_not_done(database_url: str, owner_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        ready = {write: await READY[write](p, write[1]) for write in WRITES if API[write[1]][write[0]].audited}
        await as_owner(owner_url, NO_ENTRIES)
        before = await contents(p)
        for (method, path), one in ready.items():
            answer = await p.client.request(method, one.url, json=one.body, headers=headers_of(p, path))
            error_of(answer, 503, "UNAVAILABLE")
            assert await contents(p) == before, f"{method} {path}"
        assert await p.services.redis.exists(breakers.KEY) == 0, "nothing was reset"

    run(database_url, redis_url, check)


def test_an_entry_says_what_changed_without_saying_a_secret(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, ["*"], headers={"X-Token": SECRET_HEADER, "X-Same": "same"})
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        another = {"X-Token": "another-secret", "X-Same": "same"}
        await p.call("PATCH", path, {"description": "new", "headers": another})
        [entry] = (await p.call("GET", "/v1/audit-log?limit=1", **admin(p)))["data"]
        assert entry["before"].pop("updated_at") != entry["after"].pop("updated_at")
        hidden = {"X-Token": "••••", "X-Same": "••••"}
        assert entry["before"] == {"description": "", "headers": hidden, "version": 1}
        changed = hidden | {"X-Token": "•••• (changed)"}
        assert entry["after"] == {"description": "new", "headers": changed, "version": 2}
        rotated = (await p.call("POST", f"{path}/secret/rotate"))["data"]
        [entry] = (await p.call("GET", "/v1/audit-log?limit=1", **admin(p)))["data"]
        assert [len(entry[side]["secrets"]) for side in ("before", "after")] == [1, 2]
        assert entry["after"]["secrets"] == rotated["secrets"]
        for secret in (made["secret_key"], rotated["secret_key"], SECRET_HEADER, "another-secret"):
            assert not await p.sql("SELECT FROM audit_log l WHERE l::text LIKE '%' || $1 || '%'", secret)

    run(database_url, redis_url, check)


def test_what_the_receiver_had_disabled_is_the_workers_doing_once(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(receiver.url("/status/410"), retry_policy=FAST)
        for _ in range(5):
            await p.send()
        await p.settled(5, "dead")
        found = (await p.call("GET", "/v1/audit-log?filters[actor]=worker", **admin(p)))["data"]
        [entry] = found
        assert (entry["action"], entry["resource"]) == ("subscription.disabled", made["id"])
        assert (entry["organization_id"], entry["request_id"], entry["address"]) == (shown(p), None, None)
        assert entry["before"] == {"status": "active", "status_reason": None, "version": 1}
        reason = "the receiver asked for it"
        assert entry["after"] == {"status": "disabled", "status_reason": reason, "version": 2}

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


# --- reading it ----------------------------------------------------------------------------------------------------


def admin(p: Platform, organization: str | None = "") -> dict[str, str]:
    """A platform's key, for the test's organization unless told otherwise; None: for the whole installation."""
    named = {} if organization is None else {"X_Organization_ID": organization or shown(p)}
    return {"X_API_Key": p.platform_key, **named}


async def plant(p: Platform, count: int = 30) -> list[dict[str, Any]]:
    """Entries of three organizations and of none, as the API shows them, the oldest first."""
    await p.sql("DELETE FROM idempotency_keys")
    for n in range(2):
        await make_organization(p, f"Org {n}")
    organizations = [row["id"] for row in await p.sql("SELECT id FROM organizations ORDER BY id")]
    for n in range(count):
        await p.sql(
            "INSERT INTO audit_log (id, organization_id, actor, action, resource) VALUES ($1, $2, $3, $4, $5)",
            ids.new_id(),
            [*organizations, None][n % 4],
            f"key_{n % 3}",
            f"thing.done{n % 2}",
            f"thing_{n % 5}",
        )
    every: list[dict[str, Any]] = (await p.call("GET", "/v1/audit-log?sort=created_at&limit=200", **admin(p, None)))[
        "data"
    ]
    assert len(every) == count
    return every


def test_the_log_is_listed_filtered_and_exported_for_whom_it_is_meant(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.audit_log.EXPORT_PAGE", 3)

    async def exported(p: Platform, query: str, headers: dict[str, str]) -> list[dict[str, Any]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await p.client.get(f"/v1/audit-log/export?{query}", headers=names)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"].startswith("req_")
        return [json.loads(line) for line in answer.text.splitlines()]

    async def check(p: Platform) -> None:
        every = await plant(p)
        mine = [one for one in every if one["organization_id"] == shown(p)]
        assert list(every[0]) == [
            *("id", "at", "organization_id", "actor", "actor_name", "action", "resource", "before", "after"),
            *("address", "request_id"),
        ]
        third = every[10]["at"]
        choices: dict[str, Callable[[dict[str, Any]], bool]] = {
            "": lambda _: True,
            "filters[actor]=key_1": lambda one: one["actor"] == "key_1",
            "filters[action]=thing.done1": lambda one: one["action"] == "thing.done1",
            "filters[resource]=thing_2": lambda one: one["resource"] == "thing_2",
            "filters[actor]=key_1&filters[resource]=thing_2": lambda one: (
                (one["actor"], one["resource"]) == ("key_1", "thing_2")
            ),
            f"filters[created_after]={third}": lambda one: one["at"] >= third,
            f"filters[created_before]={third}&filters[action]=thing.done0": lambda one: (
                one["at"] < third and one["action"] == "thing.done0"
            ),
        }
        for headers, whole in ((admin(p), mine), (admin(p, None), every)):
            for query, chosen in choices.items():
                wanted = [one for one in whole if chosen(one)]
                assert await exported(p, f"sort=created_at&{query}", headers) == wanted, query
                assert await exported(p, query, headers) == wanted[::-1], query
                found, cursor = [], ""
                while True:
                    page = await p.call("GET", f"/v1/audit-log?limit=2&sort=created_at&{query}{cursor}", **headers)
                    found += page["data"]
                    if not page["meta"]["pagination"]["hasMore"]:
                        break
                    cursor = f"&after_key={page['meta']['pagination']['nextCursor']}"
                assert found == wanted, query
                page = await p.call("GET", f"/v1/audit-log?page=2&pageSize=2&sort=created_at&{query}", **headers)
                assert (page["data"], page["meta"]["pagination"]["total"]) == (wanted[2:4], len(wanted))
        assert await exported(p, "fields=id,actor", admin(p)) == [
            {"id": one["id"], "actor": one["actor"]} for one in mine[::-1]
        ]
        for path in ("/v1/audit-log", "/v1/audit-log/export"):
            error_of(await p.client.get(path), 403, "PERMISSION_DENIED")
            nowhere = {"X-API-Key": p.platform_key, "X-Organization-ID": ids.show(ids.ORGANIZATION, ids.new_id())}
            error_of(await p.client.get(path, headers=nowhere), 404, "NOT_FOUND")
            as_admin = {"X-API-Key": p.platform_key}
            for wrong in ("filters[who]=x", "filters[created_after]=yesterday", "fields=secret", "limit=0"):
                assert faults_of(await p.client.get(f"{path}?{wrong}", headers=as_admin)), wrong
            head = await p.client.head(path, headers=as_admin)
            assert head.status_code == 200
        assert faults_of(await p.client.get("/v1/audit-log/export?limit=5", headers=as_admin)) == {
            "limit": ["An export is whole; narrow it by filters"]
        }

    run(database_url, redis_url, check)
