"""Subscriptions through the API: what is refused, what is stored, and that acceptance knows of it at once."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from core import ids, settling
from core.secrets import signing
from tests.api import SUBSCRIPTIONS, TIME, URL, another_app, error_of, faults_of, run, success_of
from tests.platform import Platform

FIELDS = [
    *("id", "subscription_id", "organization_id", "status", "status_reason", "webhook_url", "events", "filters"),
    *("authentication", "payload_format", "retry_policy", "headers", "timeout_ms", "limits"),
    *("circuit_breaker", "description", "metadata", "branch_id", "version", "created_at", "updated_at"),
]
BREAKER = {
    "failure_threshold": 5,
    "failure_rate_threshold": 0.5,
    "timeout_ms": 60000,
    "half_open_max_calls": 3,
    "half_open_success_threshold": 2,
    "monitoring_window_ms": 300000,
}


def test_a_subscription_is_created_as_promised(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        asked = {
            "url": "https://ecommerce.example.com/webhooks/inventory",
            "events": ["inventory.quantity.updated", "inventory.product.*"],
            "filters": {"location_types": ["retail", "warehouse"], "total": {"$gte": 100}},
            "authentication": {"type": "hmac_sha256", "secret": "correct horse battery staple"},
            "retry_policy": {"max_attempts": 5, "backoff_strategy": "exponential"},
            "description": "",
            "metadata": {},
        }
        answer = await p.client.post(SUBSCRIPTIONS, json=asked)
        made = success_of(answer, 201)["data"]
        assert list(made) == [*FIELDS, "secret_key"]
        assert made["subscription_id"] == made["id"]
        assert made["id"].startswith("sub_")
        assert TIME.fullmatch(made["created_at"])
        expected = {
            "status": "active",
            "webhook_url": asked["url"],
            "events": asked["events"],
            "filters": asked["filters"],
            "authentication": {"type": "hmac_sha256"},
            "secret_key": "correct horse battery staple",
            "version": 1,
            "timeout_ms": 15000,
            "payload_format": "default",
            "headers": {},
            "branch_id": None,
            "status_reason": None,
            "limits": {"max_in_flight": 200, "per_second": None},
            "circuit_breaker": BREAKER,
        }
        assert {name: made[name] for name in expected} == expected
        assert made["retry_policy"] == {
            "backoff_strategy": "exponential",
            "max_attempts": 5,
            "max_delay_ms": 30000,
            "jitter": 0.1,
            "base_delay_ms": 1000,
            "backoff_multiplier": 2.0,
        }
        assert answer.headers["etag"] == '"version-1"'
        generated = await p.subscribe(URL)
        assert generated["secret_key"].startswith("whsec_")
        assert generated["retry_policy"]["schedule"] == [5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400]

    run(database_url, redis_url, check)


REFUSED: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"url", "events"}),
    ({"url": None, "events": None}, {"url", "events"}),
    ({"url": "http://example.com", "events": ["*"]}, {"url"}),
    ({"url": "https://127.0.0.1/x", "events": ["*"]}, {"url"}),
    ({"url": "ftp://example.com", "events": []}, {"url", "events"}),
    ({"url": URL, "events": ["a..b", "*", "a*"]}, {"events.0", "events.2"}),
    ({"url": URL, "events": ["*"] * 101}, {"events"}),
    ({"url": URL, "events": [1]}, {"events.0"}),
    ({"url": URL, "events": "*"}, {"events"}),
    ({"url": URL, "events": ["*"], "filters": {"a": {"$gt": True}}}, {"filters.a.$gt"}),
    ({"url": URL, "events": ["*"], "filters": {"$or": [{"a": {"$like": 1}}]}}, {"filters.$or.0.a.$like"}),
    ({"url": URL, "events": ["*"], "filters": {"a": 10**20}}, {"filters.a"}),
    ({"url": URL, "events": ["*"], "filters": {"a": 1e20}}, {"filters.a"}),
    (
        {"url": URL, "events": ["*"], "retry_policy": {"max_attempts": 0, "x": 1}},
        {"retry_policy.max_attempts", "retry_policy.x"},
    ),
    ({"url": URL, "events": ["*"], "retry_policy": {"backoff_strategy": "random"}}, {"retry_policy.backoff_strategy"}),
    ({"url": URL, "events": ["*"], "authentication": {"type": "rot13"}}, {"authentication.type"}),
    ({"url": URL, "events": ["*"], "authentication": {"secret": "short"}}, {"authentication.secret"}),
    ({"url": URL, "events": ["*"], "authentication": {"secret": "whsec_!!!"}}, {"authentication.secret"}),
    ({"url": URL, "events": ["*"], "authentication": {"secret": "x" * 65}}, {"authentication.secret"}),
    ({"url": URL, "events": ["*"], "authentication": {"key": "x"}}, {"authentication.key"}),
    ({"url": URL, "events": ["*"], "headers": {"webhook-id": "x", "X A": "y"}}, {"headers.webhook-id", "headers.X A"}),
    ({"url": URL, "events": ["*"], "headers": {"X-A": 1}}, {"headers.X-A"}),
    ({"url": URL, "events": ["*"], "headers": {"X-A": "a\r\nX-B: c"}}, {"headers.X-A"}),
    ({"url": URL, "events": ["*"], "timeout_ms": 999}, {"timeout_ms"}),
    ({"url": URL, "events": ["*"], "timeout_ms": 30001}, {"timeout_ms"}),
    ({"url": URL, "events": ["*"], "timeout_ms": 5000.0}, {"timeout_ms"}),
    ({"url": URL, "events": ["*"], "timeout_ms": True}, {"timeout_ms"}),
    ({"url": URL, "events": ["*"], "limits": {"max_in_flight": 0, "x": 1}}, {"limits.max_in_flight", "limits.x"}),
    ({"url": URL, "events": ["*"], "limits": 5}, {"limits"}),
    ({"url": URL, "events": ["*"], "limits": {"per_second": 0}}, {"limits.per_second"}),
    ({"url": URL, "events": ["*"], "circuit_breaker": {"timeout_ms": 1}}, {"circuit_breaker.timeout_ms"}),
    ({"url": URL, "events": ["*"], "circuit_breaker": {"open": True}}, {"circuit_breaker.open"}),
    ({"url": URL, "events": ["*"], "circuit_breaker": "off"}, {"circuit_breaker"}),
    ({"url": URL, "events": ["*"], "payload_format": "xml"}, {"payload_format"}),
    ({"url": URL, "events": ["*"], "description": "x" * 1001}, {"description"}),
    ({"url": URL, "events": ["*"], "metadata": {"x": "y" * 5000}}, {"metadata"}),
    ({"url": URL, "events": ["*"], "branch_id": ""}, {"branch_id"}),
    ({"url": "http://example.com", "events": 5, "typo": 1}, {"url", "events", "typo"}),
    ({"typo": 1}, {"url", "events", "typo"}),
    ({"url": 5, "events": ["a*"], "retry_policy": {"x": 1}}, {"url", "events.0", "retry_policy.x"}),
    (
        {"url": "http://x", "events": ["a b"], "timeout_ms": 1, "payload_format": "?", "metadata": {"a": "\0"}},
        {"url", "events.0", "timeout_ms", "payload_format", "metadata"},
    ),
]


def test_all_faults_are_told_at_once_by_their_paths_and_repeat_no_secret(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        good = await p.subscribe(URL)
        for body, expected in REFUSED:
            answer = await p.client.post(SUBSCRIPTIONS, json=body)
            assert set(faults_of(answer)) == expected, body
            secret = body.get("authentication", {}).get("secret")
            assert secret is None or secret not in answer.text
            if "url" in body and "events" in body and None not in body.values() and "secret" not in str(body):
                patched = await p.client.patch(f"{SUBSCRIPTIONS}/{good['id']}", json=body)
                assert set(faults_of(patched)) >= expected, body
        assert (await p.call("GET", f"{SUBSCRIPTIONS}/{good['id']}"))["data"]["version"] == 1
        assert len((await p.call("GET", SUBSCRIPTIONS))["data"]) == 1

    # Plain http stays forbidden here, and so does this machine.
    run(database_url, redis_url, check, EGRESS_ALLOW="", EGRESS_ALLOW_HTTP="false")


def test_a_patch_changes_what_it_names_and_null_resets(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(
            URL,
            ["a.*"],
            filters={"a": 1},
            retry_policy={"max_attempts": 2},
            headers={"X-Token": "hidden-value"},
            branch_id="berlin",
            description="before",
            metadata={"k": 1},
        )
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({"description": "after"}, {"description": "after", "branch_id": "berlin", "metadata": {"k": 1}}),
            ({"filters": None}, {"filters": {}, "events": ["a.*"]}),
            ({"retry_policy": None}, {"description": "after"}),
            ({"headers": None, "branch_id": None}, {"headers": {}, "branch_id": None}),
            ({"metadata": {}}, {"metadata": {}}),
            ({"url": "https://example.org/x"}, {"webhook_url": "https://example.org/x"}),
            ({"authentication": {"type": "github"}}, {"authentication": {"type": "github"}}),
            ({"payload_format": "data", "timeout_ms": 1000}, {"payload_format": "data", "timeout_ms": 1000}),
            ({"limits": {"max_in_flight": 5}}, {"limits": {"max_in_flight": 5, "per_second": None}}),
            ({"limits": {"per_second": 0.5}}, {"limits": {"max_in_flight": 200, "per_second": 0.5}}),
            ({"limits": None}, {"limits": {"max_in_flight": 200, "per_second": None}}),
            ({"circuit_breaker": {"timeout_ms": 500}}, {"circuit_breaker": BREAKER | {"timeout_ms": 500}}),
            (
                {"circuit_breaker": {"failure_rate_threshold": 1}},
                {"circuit_breaker": BREAKER | {"failure_rate_threshold": 1.0}},
            ),
            ({"circuit_breaker": None}, {"circuit_breaker": BREAKER}),
        ]
        for number, (change, expected) in enumerate(steps, start=2):
            answer = await p.client.patch(path, json=change)
            data = success_of(answer, 200)["data"]
            assert {name: data[name] for name in expected} == expected, change
            assert data["version"] == number
            assert answer.headers["etag"] == f'"version-{number}"'
        assert (await p.call("GET", path))["data"]["retry_policy"]["backoff_strategy"] == "schedule"
        required = ["url", "events", "payload_format", "timeout_ms", "description", "metadata", "authentication"]
        for name in required:
            assert list(faults_of(await p.client.patch(path, json={name: None}))) == [name]
        assert sorted(faults_of(await p.client.patch(path, json=dict.fromkeys(required)))) == sorted(required)
        for nothing in ({}, None):
            answer = await p.client.patch(path, json=nothing) if nothing is not None else await p.client.patch(path)
            assert success_of(answer, 200)["data"]["version"] == len(steps) + 1
        assert list(faults_of(await p.client.patch(path, json={"status": "paused"}))) == ["status"]
        assert list(faults_of(await p.client.patch(path, json={"secret": "x" * 30}))) == ["secret"]

    run(database_url, redis_url, check)


def test_a_change_on_an_older_version_is_a_conflict(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        for good in ('"version-1"', "*", ' W/"version-3" '):
            await p.call("PATCH", path, {"description": good}, 200, If_Match=good)
        before = (await p.call("GET", path))["data"]
        calls = [("PATCH", path, {"description": "lost"}), ("DELETE", path, None)]
        calls += [("POST", f"{path}/{one}", {}) for one in ("pause", "resume", "secret/rotate")]
        for method, url, body in calls:
            answer = await p.client.request(method, url, json=body, headers={"If-Match": '"version-3"'})
            error = error_of(answer, 409, "CONFLICT")
            assert error["details"] == {"current_version": 4, "provided_version": 3}
            for wrong in ("version-4", '"4"', '"version-4", "version-5"', "4", '"version-"', ""):
                answer = await p.client.request(method, url, json=body, headers={"If-Match": wrong})
                assert list(faults_of(answer)) == ["If-Match"], wrong
        assert (await p.call("GET", path))["data"] == before
        assert (await p.client.get(path)).headers["etag"] == '"version-4"'

    run(database_url, redis_url, check)


def test_secrets_and_header_values_are_shown_only_when_made(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, headers={"X-Token": "hidden-value"})
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        rotated = (await p.call("POST", f"{path}/secret/rotate", {"secret": "a secret of my own choosing"}))["data"]
        assert rotated["secret_key"].startswith("whsec_")
        assert made["headers"] == {"X-Token": "••••"}
        secrets = [made["secret_key"], rotated["secret_key"], "a secret of my own choosing", "hidden-value"]
        answers = [await p.client.get(url) for url in (path, SUBSCRIPTIONS, f"{path}/deliveries")]
        answers += [
            await p.client.patch(path, json={"description": "x"}),
            await p.client.post(f"{path}/pause"),
            await p.client.post(f"{path}/resume"),
            await p.client.post(f"{path}/secret/rotate", json={"grace_period_s": -1, "secret": secrets[2]}),
            await p.client.post(f"{path}/test"),
            await p.client.delete(path),
        ]
        for answer in answers:
            for secret in secrets:
                assert secret not in answer.text, answer.request.url
                assert secret.removeprefix("whsec_") not in answer.text

    run(database_url, redis_url, check)


def test_pausing_resuming_and_deleting_keep_to_their_states(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        for action, status, version in [
            ("pause", "paused", 2),
            ("pause", "paused", 2),
            ("resume", "active", 3),
            ("resume", "active", 3),
        ]:
            data = (await p.call("POST", f"{path}/{action}"))["data"]
            assert (data["status"], data["version"]) == (status, version)
        await p.sql("UPDATE subscriptions SET status = 'disabled', status_reason = 'the receiver asked for it'")
        error_of(await p.client.post(f"{path}/pause"), 409, "CONFLICT")
        error_of(await p.client.post(f"{path}/test"), 409, "CONFLICT")
        resumed = (await p.call("POST", f"{path}/resume"))["data"]
        assert (resumed["status"], resumed["status_reason"]) == ("active", None)
        await p.send()
        deleted = (await p.call("DELETE", path))["data"]
        assert deleted == {"subscription_id": made["id"], "status": "deleted"}
        [history] = await p.deliveries(subscription_id=made["id"])
        assert (history["status"], history["reason"]) == ("discarded", "subscription_deleted")
        for method, url in [
            *(("GET", path), ("PATCH", path), ("DELETE", path), ("GET", f"{path}/deliveries")),
            *(("POST", f"{path}/{one}") for one in ("pause", "resume", "test", "secret/rotate")),
        ]:
            body = {} if method in ("POST", "PATCH") else None
            error_of(await p.client.request(method, url, json=body), 404, "NOT_FOUND")

    run(database_url, redis_url, check)


def test_a_change_whose_settling_fails_is_a_change_all_the_same(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        subscription = await p.subscribe(URL)
        await p.send()
        genuine = settling.settle

        async def failing(*_: Any) -> int:
            raise TimeoutError

        monkeypatch.setattr(settling, "settle", failing)
        await p.call("DELETE", f"{SUBSCRIPTIONS}/{subscription['id']}", expect=200)
        assert [one["status"] for one in await p.deliveries()] == ["pending"]
        monkeypatch.setattr(settling, "settle", genuine)
        await settling.settle_all(p.database)  # as a worker does
        assert [one["status"] for one in await p.deliveries()] == ["discarded"]

    run(database_url, redis_url, check)


@pytest.mark.parametrize("error", [RuntimeError("something in it is poison"), TimeoutError()])
def test_a_subscription_that_can_not_be_settled_does_not_hold_up_the_others(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def check(p: Platform) -> None:
        made = [await p.subscribe(URL) for _ in range(3)]
        await p.sql("UPDATE subscriptions SET settled = false")
        genuine = settling.settle

        async def failing(driver: Any, subscription_id: UUID) -> int:
            if ids.show(ids.SUBSCRIPTION, subscription_id) == made[0]["id"]:
                raise error
            return await genuine(driver, subscription_id)

        monkeypatch.setattr(settling, "settle", failing)
        await settling.settle_all(p.database)
        left = await p.sql("SELECT id FROM subscriptions WHERE NOT settled")
        assert [ids.show(ids.SUBSCRIPTION, row["id"]) for row in left] == [made[0]["id"]]

    run(database_url, redis_url, check)


def test_resuming_from_a_time_sends_what_was_missed_since(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        before = await p.send("a.before")
        missed = [await p.send("a.one"), await p.send("b.other"), await p.send("a.two", {"vip": False})]
        made = await p.subscribe(URL, ["a.*"], filters={"vip": {"$ne": False}})
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        after = await p.send("a.after")
        await p.call("POST", f"{path}/pause")
        body = {"sync_from": missed[0]["created_at"], "priority": "high"}
        for created in (1, 0):
            answer = success_of(await p.client.post(f"{path}/resume", json=body), 200)["data"]
            assert answer["missed_deliveries_created"] == created
        found = [one["event_id"] for one in await p.deliveries(subscription_id=made["id"])]
        assert sorted(found) == sorted([missed[0]["event_id"], after["event_id"]])
        assert before["event_id"] not in found
        for wrong, name in [
            ({"sync_from": "yesterday"}, "sync_from"),
            ({"sync_from": 5}, "sync_from"),
            ({"sync_from": "1969-01-01T00:00:00Z"}, "sync_from"),
            ({"priority": "highest"}, "priority"),
        ]:
            assert list(faults_of(await p.client.post(f"{path}/resume", json=wrong))) == [name]

    run(database_url, redis_url, check)


def test_a_test_event_is_nobody_elses_missed_event(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        tested, other = await p.subscribe(URL), await p.subscribe(URL)
        event = (await p.call("POST", f"{SUBSCRIPTIONS}/{tested['id']}/test", expect=202))["data"]
        path = f"{SUBSCRIPTIONS}/{other['id']}"
        await p.call("POST", f"{path}/pause")
        resumed = await p.call("POST", f"{path}/resume", {"sync_from": event["created_at"]})
        assert resumed["data"]["missed_deliveries_created"] == 0
        assert await p.deliveries(subscription_id=other["id"]) == []

    run(database_url, redis_url, check)


def test_the_standard_scheme_is_refused_while_its_libraries_could_not_read_the_secret(
    database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        plain = {"type": "hmac_sha256", "secret": "a secret of my own choosing"}
        path = f"{SUBSCRIPTIONS}/{(await p.subscribe(URL, authentication=plain))['id']}"
        to_standard = {"authentication": {"type": "standard"}}
        error = error_of(await p.client.patch(path, json=to_standard), 409, "CONFLICT")
        assert "rotate the secret first" in error["message"]
        assert (await p.call("GET", path))["data"]["authentication"] == {"type": "hmac_sha256"}
        await p.call("PATCH", path, {"authentication": {"type": "github"}})  # which takes it as it is
        await p.call("POST", f"{path}/secret/rotate")
        await p.call("PATCH", path, to_standard)
        await p.call("PATCH", path, to_standard)  # it is so already
        generated = await p.subscribe(URL, authentication={"type": "hmac_sha256"})
        await p.call("PATCH", f"{SUBSCRIPTIONS}/{generated['id']}", to_standard)

    run(database_url, redis_url, check)


@pytest.mark.parametrize("scheme", signing.SCHEMES)
def test_a_rotation_says_from_when_the_new_secret_signs(database_url: str, redis_url: str, scheme: str) -> None:
    async def check(p: Platform) -> None:
        path = f"{SUBSCRIPTIONS}/{(await p.subscribe(URL, authentication={'type': scheme}))['id']}/secret/rotate"
        said = (await p.call("POST", path))["message"]
        assert ("at once" in said) == (scheme not in {"standard", "stripe"})
        assert "no more" in (await p.call("POST", path, {"grace_period_s": 0}))["message"]

    run(database_url, redis_url, check)


def test_rotation_has_bounds(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        for wrong, name in [
            ({"grace_period_s": -1}, "grace_period_s"),
            ({"grace_period_s": 10**9}, "grace_period_s"),
            ({"grace_period_s": 1.5}, "grace_period_s"),
            ({"secret": "short"}, "secret"),
            ({"grace_s": 1}, "grace_s"),
        ]:
            assert list(faults_of(await p.client.post(f"{path}/secret/rotate", json=wrong))) == [name]
        for live in range(2, 11):
            data = (await p.call("POST", f"{path}/secret/rotate"))["data"]
            assert len(data["secrets"]) == live
            assert [one["expires_at"] is None for one in data["secrets"]] == [True] + [False] * (live - 1)
            assert list(data["secrets"][0]) == ["id", "created_at", "expires_at"]
        error_of(await p.client.post(f"{path}/secret/rotate"), 409, "CONFLICT")

    run(database_url, redis_url, check)


def test_a_test_event_goes_to_its_subscription_alone(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, ["never.*"], filters={"never": True})
        await p.subscribe(URL, ["*"])
        path = f"{SUBSCRIPTIONS}/{made['id']}/test"
        answer = success_of(await p.client.post(path), 202)["data"]
        assert (answer["event_type"], answer["matched_subscriptions"]) == ("webhook.test", 1)
        [delivery] = await p.deliveries()
        assert (delivery["id"], delivery["subscription_id"]) == (answer["delivery_id"], made["id"])
        own = success_of(await p.client.post(path, json={"event_type": "a.b", "data": {"x": 1}}), 202)["data"]
        event = (await p.call("GET", f"/v1/events/{own['event_id']}"))["data"]
        assert (event["event_type"], event["data"]) == ("a.b", {"x": 1})
        assert list(faults_of(await p.client.post(path, json={"event_type": "a b"}))) == ["event_type"]

    run(database_url, redis_url, check)


MATCHING: list[tuple[list[str], dict[str, Any], list[tuple[str, dict[str, Any], bool]]]] = [
    (["a.b"], {}, [("a.b", {}, True), ("a.b.c", {}, False), ("a", {}, False)]),
    (["*"], {}, [("a.b", {}, True), ("x", {}, True)]),
    (["a.*"], {}, [("a.b", {}, True), ("a.b.c", {}, True), ("a", {}, False), ("ab.c", {}, False)]),
    (["a.*.c"], {}, [("a.b.c", {}, True), ("a.c", {}, False), ("a.b.b.c", {}, False)]),
    (["*"], {"n": {"$gte": 2}}, [("a", {"n": 2}, True), ("a", {"n": 1}, False), ("a", {}, False)]),
    (["*"], {"t": ["x", "y"]}, [("a", {"t": "x"}, True), ("a", {"t": ["z", "y"]}, True), ("a", {"t": "z"}, False)]),
    (["*"], {"n": 2**63, "f": 1.5}, [("a", {"n": 2**63, "f": 1.5}, True), ("a", {"n": 2**63 + 1, "f": 1.5}, False)]),
    (["*"], {"n": 1e18}, [("a", {"n": 10**18}, True), ("a", {"n": 1e18}, True), ("a", {"n": 1}, False)]),
    (["*"], {"event.branch_id": "berlin"}, [("a", {}, False)]),
    (["*"], {"$or": [{"a": 1}, {"$not": {"b": {"$exists": True}}}]}, [("a", {"b": 1}, False), ("a", {}, True)]),
]


def test_patterns_and_filters_are_matched_at_acceptance(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for patterns, filters, events in MATCHING:
            made = await p.subscribe(URL, patterns, filters=filters)
            for event_type, data, wanted in events:
                accepted = await p.send(event_type, data)
                assert accepted["matched_subscriptions"] == int(wanted), (patterns, filters, event_type, data)
            await p.call("DELETE", f"{SUBSCRIPTIONS}/{made['id']}")
        await p.subscribe(URL, ["*"], filters={"event.branch_id": "berlin"})
        assert (await p.send(branch_id="berlin"))["matched_subscriptions"] == 1

    run(database_url, redis_url, check)


def test_a_filter_that_was_accepted_never_fails_at_acceptance(database_url: str, redis_url: str) -> None:
    """The database writes 1e18 as 19 digits, so a filter just within the bounds comes back longer than they are."""

    async def check(p: Platform) -> None:
        large = {f"p{n}": {"$in": [-1e18 - i * 1e16 for i in range(100)]} for n in range(15)}
        await p.subscribe(URL, ["*"], filters=large)
        await p.subscribe(URL, ["*"])
        assert (await p.send())["matched_subscriptions"] == 1
        assert (await p.send(data={f"p{n}": -(10**18) for n in range(15)}))["matched_subscriptions"] == 2

    run(database_url, redis_url, check)


@pytest.mark.parametrize("batch", [False, True])
def test_a_change_through_one_process_is_matched_at_once_by_another(
    database_url: str, redis_url: str, batch: bool
) -> None:
    async def check(p: Platform) -> None:
        async with another_app(p, database_url, redis_url) as other:

            async def matched(event_type: str = "a.b", **data: Any) -> int:
                event = {"event_type": event_type, "data": data}
                if batch:
                    answer = await other.post("/v1/events/batch", json={"events": [event]})
                    return int(success_of(answer, 202)["data"][0]["matched_subscriptions"])
                return int(success_of(await other.post("/v1/events", json=event), 202)["data"]["matched_subscriptions"])

            for _ in range(3):  # the other process's cache is warm from the second round on
                assert await matched() == 0
                made = await p.subscribe(URL, ["a.*"])
                path = f"{SUBSCRIPTIONS}/{made['id']}"
                assert await matched() == 1
                await p.call("PATCH", path, {"events": ["b.*"]})
                assert (await matched(), await matched("b.c")) == (0, 1)
                await p.call("PATCH", path, {"filters": {"n": {"$gt": 5}}})
                assert (await matched("b.c"), await matched("b.c", n=6)) == (0, 1)
                await p.call("POST", f"{path}/pause")
                assert await matched("b.c", n=6) == 1  # held, not lost
                await p.call("POST", f"{path}/resume")
                await p.sql(
                    "WITH s AS (UPDATE subscriptions SET status = 'disabled' WHERE status = 'active')"
                    " UPDATE organizations SET subscriptions_version = subscriptions_version + 1"
                )
                assert await matched("b.c", n=6) == 0
                await p.call("POST", f"{path}/resume")
                assert await matched("b.c", n=6) == 1
                await p.call("DELETE", path)
                assert await matched("b.c", n=6) == 0

    run(database_url, redis_url, check)


def test_a_change_is_matched_at_once_while_another_process_is_busy(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, ["a"])
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        async with another_app(p, database_url, redis_url) as other:
            busy = True

            async def noise() -> None:
                while busy:
                    answer = await other.post("/v1/events", json={"event_type": "noise", "data": {}})
                    assert answer.status_code == 202

            tasks = [asyncio.create_task(noise()) for _ in range(8)]
            for turn in range(40):
                wanted, unwanted = ("b", "a") if turn % 2 else ("a", "b")
                await p.call("PATCH", path, {"events": [wanted]})
                for event_type, matched in ((wanted, 1), (unwanted, 0)):
                    answer = await other.post("/v1/events", json={"event_type": event_type, "data": {}})
                    assert answer.json()["data"]["matched_subscriptions"] == matched, turn
            busy = False
            await asyncio.gather(*tasks)

    run(database_url, redis_url, check)


def test_of_many_changes_on_one_version_exactly_one_is_made(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        async with another_app(p, database_url, redis_url) as other:
            answers = await asyncio.gather(
                *(
                    client.patch(path, json={"description": str(n)}, headers={"If-Match": '"version-1"'})
                    for n in range(10)
                    for client in (p.client, other)
                )
            )
        assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
        [won] = [answer.json()["data"] for answer in answers if answer.status_code == 200]
        assert (await p.call("GET", path))["data"]["description"] == won["description"]

    run(database_url, redis_url, check)
