"""Every bound on what the API takes, from both sides: the most that is accepted, and one more."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from core.limiting.quotas import MAX_API_KEYS, MAX_EVENT_TYPES
from core.matching.filters import MAX_STEPS, MAX_STEPS_OF_ALL
from core.settings import Settings
from tests.api import (
    JSON,
    SUBSCRIPTIONS,
    URL,
    another_app,
    client,
    error_of,
    faults_of,
    make_key,
    make_organization,
    run,
)
from tests.platform import Platform, shown

Body = Callable[[int], Any]


def event(**fields: Any) -> dict[str, Any]:
    return {"event_type": "a.b", "data": {}, **fields}


def subscription(**fields: Any) -> dict[str, Any]:
    return {"url": URL, "events": ["never"], **fields}


def filtered(filters: Any) -> dict[str, Any]:
    return subscription(filters=filters)


def bytes_of_json(size: int) -> dict[str, str]:
    return {"a": "x" * (size - len('{"a":""}'))}


def nested(levels: int) -> Any:
    return {"a": 1} if levels == 1 else {"$not": nested(levels - 1)}


def filter_of_bytes(size: int) -> dict[str, Any]:
    found: dict[str, Any] = {f"f{number:02}": "x" * 1000 for number in range(15)}
    rest = size - len(json.dumps(found, separators=(",", ":"))) - len(',"last":[""]')
    return found | {"last": ["x" * min(rest, 1024)] + ["x" * (rest - 1027)] * (rest > 1024)}


# What is bounded: the path, the body for a size, and the least or the most that is accepted.
MOST: dict[str, tuple[str, Body, int]] = {
    "characters of an event type": ("/v1/events", lambda n: event(event_type="a" * n), 128),
    "characters of an event_id": ("/v1/events", lambda n: event(event_id="a" * n), 255),
    "characters of a branch": ("/v1/events", lambda n: event(branch_id="a" * n), 128),
    "bytes of an event's metadata": ("/v1/events", lambda n: event(metadata=bytes_of_json(n)), 4096),
    "events of a batch": ("/v1/events/batch", lambda n: {"events": [event()] * n}, 1000),
    "characters of a URL": (SUBSCRIPTIONS, lambda n: subscription(url=URL + "x" * (n - len(URL))), 2048),
    "patterns of a subscription": (
        SUBSCRIPTIONS,
        lambda n: subscription(events=[f"never.{one}" for one in range(n)]),
        100,
    ),
    "characters of a pattern": (SUBSCRIPTIONS, lambda n: subscription(events=["a" * n]), 128),
    "headers of a subscription": (
        SUBSCRIPTIONS,
        lambda n: subscription(headers={f"X-{one}": "a" for one in range(n)}),
        20,
    ),
    "bytes of a header's value": (SUBSCRIPTIONS, lambda n: subscription(headers={"X-A": "a" * n}), 4096),
    "bytes of all headers together": (
        SUBSCRIPTIONS,
        lambda n: subscription(headers={"X": "a" * 4000, "Y": "a" * (n - 4002)}),
        6144,
    ),
    "characters of a subscription's description": (SUBSCRIPTIONS, lambda n: subscription(description="a" * n), 1000),
    "bytes of a subscription's metadata": (SUBSCRIPTIONS, lambda n: subscription(metadata=bytes_of_json(n)), 4096),
    "delays of a retry schedule": (SUBSCRIPTIONS, lambda n: subscription(retry_policy={"schedule": [1] * n}), 99),
    "attempts of a retry policy": (SUBSCRIPTIONS, lambda n: subscription(retry_policy={"max_attempts": n}), 100),
    "milliseconds of a timeout": (SUBSCRIPTIONS, lambda n: subscription(timeout_ms=n), 30_000),
    "requests in flight to a receiver": (SUBSCRIPTIONS, lambda n: subscription(limits={"max_in_flight": n}), 1000),
    "bytes of a secret": (SUBSCRIPTIONS, lambda n: subscription(authentication={"secret": "a" * n}), 64),
    "levels of a filter": (SUBSCRIPTIONS, lambda n: filtered(nested(n)), 5),
    "conditions of a filter": (SUBSCRIPTIONS, lambda n: filtered({f"f{one}": 1 for one in range(n)}), 100),
    "bytes of a filter": (SUBSCRIPTIONS, lambda n: filtered(filter_of_bytes(n)), 16_384),
    "values of an array in a filter": (SUBSCRIPTIONS, lambda n: filtered({"a": list(range(n))}), 200),
    "characters of a text in a filter": (SUBSCRIPTIONS, lambda n: filtered({"a": "x" * n}), 1024),
    "characters of a path in a filter": (SUBSCRIPTIONS, lambda n: filtered({"x" * n: 1}), 256),
    "segments of a path in a filter": (SUBSCRIPTIONS, lambda n: filtered({".".join(["a"] * n): 1}), 16),
    "deliveries chosen by id": ("/v1/replays", lambda n: {"filters": {"ids": ["dlv_" + "0" * 26] * n}}, 1000),
    "deliveries a second of a replay": ("/v1/replays", lambda n: {"rate_per_second": n}, 10_000),
    "characters of an event type's description": (
        "/v1/event-types",
        lambda n: {"name": "c", "description": "a" * n},
        1000,
    ),
    "bytes of an event type's schema or example": (
        "/v1/event-types",
        lambda n: {"name": "s", "schema": bytes_of_json(n)},
        4096,
    ),
    "characters of an organization's name": ("/v1/organizations", lambda n: {"name": "a" * n}, 200),
    "characters of a key's name": ("/v1/api-keys", lambda n: {"name": "a" * n}, 200),
}
TEXT = (Path(__file__).parents[2] / "docs/api.md").read_text("utf-8")
LEAST: dict[str, tuple[str, Body, int]] = {
    "milliseconds of a timeout": (SUBSCRIPTIONS, lambda n: subscription(timeout_ms=n), 1000),
    "bytes of a secret": (SUBSCRIPTIONS, lambda n: subscription(authentication={"secret": "a" * n}), 24),
    "patterns of a subscription": (SUBSCRIPTIONS, lambda n: subscription(events=["a"] * n), 1),
    "events of a batch": ("/v1/events/batch", lambda n: {"events": [event()] * n}, 1),
    "deliveries a second of a replay": ("/v1/replays", lambda n: {"rate_per_second": n}, 1),
}


def test_every_bound_is_documented() -> None:
    table = TEXT.partition("## Bounds\n")[2]
    rows = {name: int(most.replace(",", "")) for name, most in re.findall(r"^\| (.+) \| ([0-9,]+) \|$", table, re.M)}
    assert rows == {name: bound for name, (_, _, bound) in MOST.items()}
    assert f"{MAX_API_KEYS:,} API keys" in table
    assert f"{MAX_EVENT_TYPES:,} event types" in table
    assert f"{Settings.model_fields['max_subscriptions'].default:,} subscriptions" in table
    for bound in (MAX_STEPS, MAX_STEPS_OF_ALL):
        assert f"{bound:,}" in TEXT


def test_bodies_hold_the_most_that_is_promised_and_no_more(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        for beyond, bounds in ((1, MOST), (-1, LEAST)):
            for name, (path, body, bound) in bounds.items():
                fits = await p.client.post(path, json=body(bound), headers=admin)
                assert fits.is_success, (name, bound, fits.text[:500])
                exceeds = await p.client.post(path, json=body(bound + beyond), headers=admin)
                assert faults_of(exceeds), (name, bound + beyond)
        for data, status in (
            ('{"a":' * 62 + "{}" + "}" * 62, 202),  # with the body around it 64 levels
            ('{"a":' * 63 + "{}" + "}" * 63, 400),
            (f'{{"a":{"1" * 4300}}}', 202),
            (f'{{"a":{"1" * 4301}}}', 400),
        ):
            content = f'{{"event_type":"a.b","data":{data}}}'
            answer = await p.client.post("/v1/events", content=content, headers=JSON)
            assert answer.status_code == status, data[:80]

    run(database_url, redis_url, check)


def test_queries_and_headers_hold_the_most_that_is_promised_and_no_more(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for query, most in (("limit={}", 200), ("pageSize={}", 200), ("page={}&pageSize=1", 10_000)):
            for number, status in ((most, 200), (most + 1, 400), (0, 400)):
                answer = await p.client.get(f"/v1/events?{query.format(number)}")
                assert answer.status_code == status, (query, number)
        said = [
            faults_of(await p.client.get("/v1/events?" + "&".join(f"p{one}=" for one in range(many))))
            for many in (50, 51)
        ]
        assert ["query" in faults for faults in said] == [False, True]
        for name, most in (("Idempotency-Key", 255), ("X-Branch-ID", 128)):
            for size, status in ((most, 202), (most + 1, 400)):
                answer = await p.client.post("/v1/events", json=event(), headers={name: "a" * size})
                assert answer.status_code == status, (name, size)

    run(database_url, redis_url, check)


async def at_once(
    clients: list[httpx.AsyncClient], path: str, bodies: list[Any], **headers: str
) -> list[httpx.Response]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await asyncio.gather(
        *(clients[number % len(clients)].post(path, json=body, headers=given) for number, body in enumerate(bodies))
    )


def of_these(answers: list[httpx.Response], most: int) -> int:
    """How many were created; the others were refused for the reason that is meant."""
    for answer in answers:
        if not answer.is_success:
            error = error_of(answer, 409, "CONFLICT")
            assert error["details"] == {"most": most}
            assert str(most) in error["message"]
    return Counter(answer.is_success for answer in answers)[True]


def test_an_organization_has_so_many_subscriptions_and_no_more(database_url: str, redis_url: str) -> None:
    """However many are created at once, through whichever process."""

    async def check(p: Platform) -> None:
        async with another_app(p, database_url, redis_url, MAX_SUBSCRIPTIONS="4") as other:
            made = [await p.subscribe(URL) for _ in range(2)]
            assert of_these(await at_once([p.client, other], SUBSCRIPTIONS, [subscription()] * 8), 4) == 2
            # The deleted do not count; the paused do; another organization has its own.
            await p.call("POST", f"{SUBSCRIPTIONS}/{made[0]['id']}/pause")
            assert of_these(await at_once([p.client, other], SUBSCRIPTIONS, [subscription()] * 2), 4) == 0
            await p.call("DELETE", f"{SUBSCRIPTIONS}/{made[0]['id']}")
            assert of_these(await at_once([p.client, other], SUBSCRIPTIONS, [subscription()] * 4), 4) == 1
            async with client(p.app, await make_key(p, await make_organization(p))) as theirs:
                assert of_these(await at_once([theirs], SUBSCRIPTIONS, [subscription()]), 4) == 1

    run(database_url, redis_url, check, MAX_SUBSCRIPTIONS="4")


def test_an_organization_has_so_many_keys_and_event_types_and_no_more(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        admin = {"X_API_Key": p.platform_key, "X_Organization_ID": shown(p)}
        [[live]] = await p.sql("SELECT count(*) FROM api_keys WHERE organization_id = $1", p.organization_id)
        await p.sql(
            "INSERT INTO api_keys (id, organization_id, name, prefix, hash, hash_key_id, scopes, revoked_at)"
            " SELECT gen_random_uuid(), $1, 'k', 'filler' || n, '', '', '{}', CASE WHEN n > $2 THEN now() END"
            " FROM generate_series(1, $2 + 50) n",
            p.organization_id,
            MAX_API_KEYS - live - 1,
        )
        keys = await at_once([p.client], "/v1/api-keys", [{"name": "k"}] * 4, **admin)
        assert of_these(keys, MAX_API_KEYS) == 1
        [created] = [answer.json()["data"]["id"] for answer in keys if answer.is_success]
        await p.call("DELETE", f"/v1/api-keys/{created}", **admin)
        assert of_these(await at_once([p.client], "/v1/api-keys", [{"name": "k"}] * 2, **admin), MAX_API_KEYS) == 1

        await p.sql(
            "INSERT INTO event_types (id, organization_id, name)"
            " SELECT gen_random_uuid(), $1, 'filler.' || n FROM generate_series(1, $2) n",
            p.organization_id,
            MAX_EVENT_TYPES - 1,
        )
        types = await at_once([p.client], "/v1/event-types", [{"name": f"t{number}"} for number in range(4)])
        assert of_these(types, MAX_EVENT_TYPES) == 1

    run(database_url, redis_url, check)
