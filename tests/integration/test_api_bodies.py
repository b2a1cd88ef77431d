"""Request bodies and headers as a hostile caller sends them: refused in words, or stored exactly; never a 5xx."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.api.operations import OPERATIONS
from app.routes import API
from tests.api import FAST, JSON, SUBSCRIPTIONS, URL, error_of, faults_of, run, success_of
from tests.platform import Platform, platform, shown
from tests.receiver import Receiver


def event_with(data: str) -> bytes:
    return b'{"event_type":"a.b","data":' + data.encode("utf-8", "surrogatepass") + b"}"


def test_a_body_that_is_not_declared_as_json_is_415(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        body = event_with("{}")
        for kind in ("", "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "x" * 1_000_000):
            answer = await p.client.post("/v1/events", content=body, headers={"Content-Type": kind})
            error = error_of(answer, 415, "UNSUPPORTED_MEDIA_TYPE")
            assert "application/json" in error["message"]
            assert len(error["message"]) < 300
        answer = await p.client.post("/v1/events", content=body, headers=JSON | {"Content-Encoding": "gzip"})
        assert "gzip" in error_of(answer, 415, "UNSUPPORTED_MEDIA_TYPE")["message"]
        for good in ("application/json", "Application/JSON; charset=utf-8"):
            success_of(await p.client.post("/v1/events", content=body, headers={"Content-Type": good}), 202)

    run(database_url, redis_url, check)


def test_a_body_that_is_too_large_is_413_declared_or_streamed(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async def stream(size: int) -> AsyncIterator[bytes]:
            for _ in range(size // 1024):
                yield b" " * 1024

        for path, limit in (("/v1/events", 2048), ("/v1/events/batch", 4096), (SUBSCRIPTIONS, 262_144)):
            for content in (b" " * (limit + 1), stream(limit + 1024)):
                answer = await p.client.post(path, content=content, headers=JSON)
                error = error_of(answer, 413, "PAYLOAD_TOO_LARGE")
                assert error["details"] == {"max_bytes": limit}
        fits = event_with(json.dumps({"a": "x" * 1900}))
        success_of(await p.client.post("/v1/events", content=fits, headers=JSON), 202)
        large = {"event_type": "a.b", "data": {"a": "x" * 2100}}
        answer = await p.client.post("/v1/events/batch", json={"events": [{"event_type": "a", "data": {}}, large]})
        assert "events.1" in error_of(answer, 413, "PAYLOAD_TOO_LARGE")["message"]
        assert len(await p.sql("SELECT id FROM events")) == 1

    run(database_url, redis_url, check, EVENT_MAX_BYTES="2048", BATCH_MAX_BYTES="4096")


MALFORMED = {
    "empty": b"",
    "blank": b"  ",
    "cut": b'{"event_type": "a", "data": {',
    "trailing comma": b'{"a": 1,}',
    "single quotes": b"{'a': 1}",
    "two values": b"{} {}",
    "NaN": event_with('{"a": NaN}'),
    "infinity": event_with('{"a": -Infinity}'),
    "1e400": event_with('{"a": 1e400}'),
    "1e400 beside a long number": event_with('{"a": 1e400, "b": 12345678901234567890}'),
    "leading zero": event_with('{"a": 012}'),
    "lone surrogate": event_with(r'{"a": "\ud800"}'),
    "lone surrogate beside a long number": event_with(r'{"a": "\udc00", "b": 12345678901234567890}'),
    "lone surrogate in a key": event_with(r'{"\ud800": 12345678901234567890}'),
    "surrogate in UTF-8": event_with('{"a": "\ud800"}'),
    "invalid UTF-8": b'{"event_type": "a", "data": {"a": "\xff\xfe"}}',
    "byte order mark": b'\xef\xbb\xbf{"event_type": "a", "data": {}}',
    "UTF-16": '{"event_type": "a", "data": {}}'.encode("utf-16"),
    "raw control character": event_with('{"a": "\x01"}'),
    "65 levels": event_with('{"a":' * 63 + "{}" + "}" * 63).replace(b"{}", b"[]"),
    "a million brackets": b"[" * 200_000,
    "a number of 5000 digits": event_with('{"a": ' + "1" * 5000 + "}"),
}


def test_what_is_not_json_is_refused_and_nothing_is_stored(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for name, body in MALFORMED.items():
            answer = await p.client.post("/v1/events", content=body, headers=JSON)
            assert faults_of(answer)["body"], name
            assert "Python" not in answer.text, name
            assert "set_int_max" not in answer.text, name
        for body in (b"[]", b"null", b"1", b'"text"', b"true"):
            for path in ("/v1/events", "/v1/events/batch", SUBSCRIPTIONS, "/v1/replays"):
                answer = await p.client.post(path, content=body, headers=JSON)
                assert faults_of(answer) == {"body": ["Must be a JSON object"]}
        assert await p.sql("SELECT id FROM events") == []

    run(database_url, redis_url, check)


EXACT = [
    '{"n":12345678901234567890123456789,"small":-9223372036854775809}',
    '{"n":18446744073709551616,"f":0.1}',
    '{"f":1.5,"neg":-0.25,"e":1e+22,"zero":0}',
    '{"text":"Zoë 😀 \\u0000 \\" \\\\ /","empty":"","":"empty key"}',
    '{"z":1,"a":{"c":[],"b":null},"m":[true,false,[[]]]}',
    '{"deep":' + "[" * 61 + "]" * 61 + "}",
]


def test_data_arrives_as_it_was_posted(database_url: str, redis_url: str) -> None:
    """Long integers, order of keys, NUL and all; the last of a doubled key counts, as with every common parser."""

    async def check(p: Platform) -> None:
        await p.subscribe(receiver.url("/ok"), payload_format="data")
        for data in [*EXACT, '{"a":1,"a":2}']:
            receiver.clear()
            answer = await p.client.post("/v1/events", content=event_with(data), headers=JSON)
            event_id = success_of(answer, 202)["data"]["event_id"]
            [got] = await asyncio.to_thread(receiver.wait_for, 1)
            expected = '{"a":2}' if data.startswith('{"a":1,"a"') else data
            assert got.body.decode() == expected
            shown_again = await p.client.get(f"/v1/events/{event_id}")
            assert json.loads(shown_again.text)["data"]["data"] == json.loads(data)

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


NUL = "a\0b"
NO_NUL: list[tuple[str, str, Any, str]] = [
    ("POST", "/v1/events", {"event_type": NUL, "data": {}}, "event_type"),
    ("POST", "/v1/events", {"event_type": "a", "data": {}, "event_id": NUL}, "event_id"),
    ("POST", "/v1/events", {"event_type": "a", "data": {}, "branch_id": NUL}, "branch_id"),
    ("POST", "/v1/events", {"event_type": "a", "data": {}, "metadata": {"k": [NUL]}}, "metadata"),
    ("POST", "/v1/events", {"event_type": "a", "data": {}, "metadata": {NUL: 1}}, "metadata"),
    ("POST", "/v1/events", {"event_type": "a", "data": {}, "occurred_at": NUL}, "occurred_at"),
    ("POST", "/v1/events/batch", {"events": [{"event_type": "a", "data": {}, "event_id": NUL}]}, "events.0.event_id"),
    ("POST", SUBSCRIPTIONS, {"url": f"https://example.com/{NUL}", "events": ["*"]}, "url"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": [NUL]}, "events.0"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "description": NUL}, "description"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "metadata": {NUL: NUL}}, "metadata"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "branch_id": NUL}, "branch_id"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "payload_format": NUL}, "payload_format"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "authentication": {"type": NUL}}, "authentication.type"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "filters": {"a": {"$in": [NUL]}}}, "filters.a.$in.0"),
    ("POST", SUBSCRIPTIONS, {"url": URL, "events": ["*"], "headers": {"X-A": NUL}}, "headers.X-A"),
    ("POST", "/v1/replays", {"filters": {"event_type": NUL}}, "filters.event_type"),
    ("POST", "/v1/replays", {"filters": {"reason": [NUL]}}, "filters.reason"),
    ("POST", "/v1/replays", {"filters": {"ids": [NUL]}}, "filters.ids"),
    ("POST", "/v1/event-types", {"name": NUL}, "name"),
    ("POST", "/v1/event-types", {"name": "a", "description": NUL}, "description"),
    ("POST", "/v1/event-types", {"name": "a", "schema": {"title": NUL}}, "schema"),
    ("POST", "/v1/event-types", {"name": "a", "example": {NUL: 1}}, "example"),
    ("POST", "/v1/organizations", {"name": NUL}, "name"),
    ("POST", "/v1/api-keys", {"name": NUL}, "name"),
    ("GET", "/v1/events?filters[event_type]=%00", None, "query"),
    ("GET", "/v1/events?filters[external_id]=a%00", None, "query"),
    ("GET", "/v1/deliveries?filters[reason]=%00", None, "query"),
]


def test_nul_is_refused_where_the_database_cannot_hold_it(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        for method, path, body, field in NO_NUL:
            answer = await p.client.request(method, path, json=body, headers=headers)
            assert list(faults_of(answer)) == [field], (path, body)
        backslash = {"event_type": "a", "data": {}, "metadata": {"text": r"\u0000 is no NUL"}}
        success_of(await p.client.post("/v1/events", json=backslash), 202)
        for path in ("/v1/event-types/a%00", "/v1/events/%00", "/v1/deliveries/%00/replay"):
            method = "POST" if path.endswith("replay") else "GET"
            keyed = {"Idempotency-Key": "k"} if method == "POST" else {}
            error_of(await p.client.request(method, path, headers=keyed), 404, "NOT_FOUND")

    run(database_url, redis_url, check)


def test_whole_numbers_of_any_length_survive_in_metadata(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        metadata = {"n": 10**40, "below": -(2**63) - 1, "f": 0.5}
        event = await p.send(metadata=metadata, event_id="mine")
        assert (await p.call("GET", f"/v1/events/{event['event_id']}"))["data"]["metadata"] == metadata
        for key in ("k1", "k1"):
            body = {"url": URL, "events": ["*"], "metadata": metadata}
            made = await p.client.post(SUBSCRIPTIONS, json=body, headers={"Idempotency-Key": key})
            assert made.json()["data"]["metadata"] == metadata
        [listed] = (await p.call("GET", SUBSCRIPTIONS))["data"]
        assert listed["metadata"] == metadata

    run(database_url, redis_url, check)


def test_header_values_of_a_megabyte_are_refused_or_ignored(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        huge = "x" * 1_000_000
        body = {"event_type": "a.b", "data": {}}
        for name, status in {
            "X-Request-ID": 202,
            "X-Branch-ID": 400,
            "Idempotency-Key": 400,
            "X-Organization-ID": 400,
            "X-API-Key": 401,
            "X-Whatever": 202,
        }.items():
            answer = await p.client.post("/v1/events", json=body, headers={name: huge})
            assert answer.status_code == status, name
            assert len(answer.content) < 2_000
        made = await p.subscribe(URL)
        answer = await p.client.patch(f"{SUBSCRIPTIONS}/{made['id']}", json={}, headers={"If-Match": huge})
        assert list(faults_of(answer)) == ["If-Match"]
        for name in ("X-Branch-ID", "Idempotency-Key", "X-Organization-ID"):
            assert list(faults_of(await p.client.post("/v1/events", json=body, headers={name: b"\xff\xfe"})))

    run(database_url, redis_url, check)


@pytest.mark.parametrize("host", ["[", "a b", "x/v2", "[::1", "h:99999", "\u00e9"])
def test_a_strange_host_header_changes_nothing(database_url: str, redis_url: str, host: str) -> None:
    async def check(p: Platform) -> None:
        body = {"event_type": "a.b", "data": {}}
        headers = {"Host": host.encode(), "Idempotency-Key": "k"}
        success_of(await p.client.post("/v1/events", json=body, headers=headers), 202)
        assert [row["route"] for row in await p.sql("SELECT route FROM idempotency_keys")] == ["POST /v1/events"]
        error_of(await p.client.get("/v1/nothing", headers=headers), 404, "NOT_FOUND")

    run(database_url, redis_url, check)


# --- fuzzing: whatever is sent, the answer is no 5xx, and comes in the envelope ---------------------------------

texts = st.one_of(
    st.sampled_from(["", "*", "a.b", "sub_", NUL, "dead", "2026-01-28T10:15:00Z", "9999-12-31T23:59:59-23:59", URL]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts, st.just(10**30)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
FIELDS: dict[tuple[str, str], list[str]] = {
    ("POST", "/v1/events"): ["event_type", "data", "event_id", "occurred_at", "branch_id", "metadata"],
    ("POST", "/v1/events/batch"): ["events"],
    ("POST", SUBSCRIPTIONS): [
        "url",
        "events",
        "filters",
        "authentication",
        "payload_format",
        "retry_policy",
        "headers",
        "timeout_ms",
        "description",
        "metadata",
        "branch_id",
    ],
    ("POST", "/v1/replays"): ["filters", "rate_per_second", "dry_run"],
    ("POST", "/v1/event-types"): ["name", "description", "schema", "example"],
    ("POST", "/v1/api-keys"): ["name", "scopes"],
    ("POST", "/v1/organizations"): ["name"],
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/secret/rotate"): ["grace_period_s", "secret"],
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/resume"): ["sync_from", "priority"],
    ("POST", f"{SUBSCRIPTIONS}/{{id}}/test"): ["event_type", "data"],
}
FIELDS[("PATCH", f"{SUBSCRIPTIONS}/{{id}}")] = FIELDS[("POST", SUBSCRIPTIONS)]
FIELDS[("PATCH", "/v1/event-types/{name}")] = ["description", "schema", "example"]
FIELDS[("PATCH", "/v1/organizations/{id}")] = ["name"]
GOOD: dict[str, Any] = {
    "event_type": "a.b",
    "data": {"a": 1},
    "url": URL,
    "events": ["*"],
    "name": "a",
    "filters": {},
    "retry_policy": FAST,
}


NASTY: list[Any] = [
    *(None, True, 0, -1, 2**31, 2**63, 10**30, 10**400, 0.5, 1e20, 1e308, 5e-324),
    *(
        "",
        " ",
        "a",
        NUL,
        "\u202e",
        "\ufeff",
        "😀",
        "x" * 5000,
        "2026-01-28T10:15:00Z\0",
        "1970-01-01T00:00:00Z",
    ),
    *("9999-12-31T23:59:59-23:59", "' OR 1=1 --", "%00", "$where", "../../etc/passwd", "{{7*7}}"),
    *([], {}, [[]], [None], [NUL], ["a"] * 2000, {"": ""}, {NUL: NUL}, {"a": None}, {"a": [10**30, NUL]}, {"$or": []}),
    *(
        {"type": NUL},
        {"status": ["dead", NUL]},
        {"created_before": "2026-01-28T10:15:00Z\0"},
        {"ids": [1]},
        {"X-A": "\u00e9"},
    ),
    *({"a": 1e20}, {"a": {"$in": [10**30]}}, {"schedule": [1e308]}, {"max_attempts": 10**30}, {"jitter": 1e-320}),
]


def test_every_field_takes_or_refuses_every_nasty_value(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        made = await p.subscribe(URL)
        await p.call("POST", "/v1/event-types", {"name": "a.b"})
        for (method, path), names in FIELDS.items():
            id_ = shown(p) if path.startswith("/v1/organizations") else made["id"]
            url = path.replace("{id}", id_).replace("{name}", "a.b")
            # A change is read as the new thing is: each of its fields gets half of them, and the next the other half.
            step = 2 if method == "PATCH" else 1
            for field, name in enumerate(names):
                for number, value in [*enumerate(NASTY)][field % step :: step]:
                    body = {one: GOOD[one] for one in names if one in GOOD} | {name: value}
                    if path.endswith("/batch"):
                        body = {"events": value if isinstance(value, list) else [value]}
                    # With a key each answer is stored and so must be storable; without, it must be showable.
                    keyed = {"Idempotency-Key": f"{name}-{number}"} if number // step % 2 else {}
                    answer = await p.client.request(method, url, json=body, headers=admin | keyed)
                    assert answer.status_code < 500, (method, path, name, value, answer.text[:300])
        # What was taken is shown again, and an event is still accepted.
        for path in LISTS:
            if "{" not in path:
                success_of(await p.client.get(f"{path}?limit=200", headers=admin), 200)
        await p.send()

    run(database_url, redis_url, check)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, Any, dict[str, str]]:
    method, path = draw(st.sampled_from(sorted(FIELDS)))
    names = FIELDS[method, path]
    body: Any = {name: GOOD[name] for name in names if name in GOOD}
    if path.endswith("/batch"):
        body = {"events": [draw(values)]}
    for name in draw(st.lists(st.sampled_from(names), max_size=3)):
        body[name] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        body = draw(values)
    headers = draw(st.dictionaries(st.sampled_from(["Idempotency-Key", "If-Match", "X-Branch-ID"]), texts, max_size=2))
    return method, path, body, headers


NAMES = [
    *("limit", "after_key", "page", "pageSize", "sort", "fields", "include", "x"),
    *(
        f"filters[{name}]"
        for name in ("status", "error", "reason", "event_type", "ids", "event_id", "created_after", "status_code")
    ),
]
queries = st.dictionaries(st.sampled_from(NAMES), texts | st.integers(-5, 300).map(str), max_size=3)
LISTS = [path for path, methods in OPERATIONS.items() if "GET" in methods and API[path]["GET"].lists]
paths = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=30)


def test_no_request_whatsoever_is_answered_5xx(database_url: str, redis_url: str) -> None:
    with asyncio.Runner() as runner:
        context = platform(database_url, redis_url, with_worker=False)
        p = runner.run(context.__aenter__())
        made = runner.run(p.subscribe(URL))
        runner.run(p.call("POST", "/v1/event-types", {"name": "a.b"}))
        places = {SUBSCRIPTIONS: made["id"], "/v1/organizations": shown(p)}
        admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        fuzzing = settings(
            max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
        )

        def send(method: str, url: str, **more: Any) -> None:
            answer: httpx.Response = runner.run(p.client.request(method, url, **more))
            assert answer.status_code < 500, (method, url, more, answer.text[:500])
            if answer.status_code >= 400:
                error_of(answer, answer.status_code, answer.json()["error"]["code"])
            elif answer.headers["content-type"] == "application/x-ndjson":
                assert all(json.loads(line)["id"] for line in answer.text.splitlines())
            else:
                success_of(answer, answer.status_code)

        @fuzzing
        @given(requests())
        def bodies(request: tuple[str, str, Any, dict[str, str]]) -> None:
            method, path, body, headers = request
            base = next((one for one in places if path.startswith(one)), "")
            url = path.replace("{id}", places.get(base, "x")).replace("{name}", "a.b")
            encoded = {name: value.encode() for name, value in headers.items()}
            send(method, url, content=json.dumps(body), headers={**JSON, **admin, **encoded})

        @fuzzing
        @given(st.sampled_from(LISTS), queries)
        def lists(path: str, query: dict[str, str]) -> None:
            send("GET", path.replace("{id}", made["id"]), params=query, headers=admin)

        @fuzzing
        @given(st.sampled_from(sorted(API)), paths, st.binary(max_size=30))
        def addresses(path: str, part: str, body: bytes) -> None:
            url = path.replace("{id}", quote(part, safe="")).replace("{name}", quote(part, safe=""))
            for method in API[path]:
                send(method, url, content=body, headers=JSON | admin)

        try:
            bodies()
            lists()
            addresses()
        finally:
            runner.run(context.__aexit__(None, None, None))
