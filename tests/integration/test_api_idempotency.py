"""The same request twice has one effect: by `Idempotency-Key` for any POST, by `event_id` for events."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.api import (
    SUBSCRIPTIONS,
    TIME,
    URL,
    another_app,
    error_of,
    faults_of,
    make_key,
    make_organization,
    run,
    success_of,
)
from tests.platform import Platform

POSTS: dict[str, tuple[Any, Any, int, str]] = {  # path: a body, another body, the first status, what is made
    "/v1/events": (
        {"event_type": "a.b", "data": {"n": 10**30}},
        {"event_type": "a.b", "data": {"n": 2}},
        202,
        "events",
    ),
    "/v1/events/batch": (
        {"events": [{"event_type": "a.b", "data": {}}, {"event_type": "a.c", "data": {}}]},
        {"events": [{"event_type": "a.b", "data": {}}]},
        202,
        "events",
    ),
    SUBSCRIPTIONS: ({"url": URL, "events": ["*"]}, {"url": URL, "events": ["a"]}, 201, "subscriptions"),
    "/v1/replays": ({"filters": {}}, {"filters": {"status": "pending"}}, 202, "replays"),
    "/v1/event-types": ({"name": "a.b"}, {"name": "a.c"}, 201, "event_types"),
}


async def post(client: httpx.AsyncClient, path: str, body: Any, key: str, **headers: str) -> httpx.Response:
    return await client.post(path, json=body, headers={"Idempotency-Key": key} | headers)


async def count(p: Platform, table: str) -> int:
    [row] = await p.sql(f"SELECT count(*) AS n FROM {table}")
    found: int = row["n"]
    return found


@pytest.mark.parametrize("path", POSTS)
def test_a_repeat_gets_the_first_answer_and_has_no_effect(database_url: str, redis_url: str, path: str) -> None:
    body, other_body, status, table = POSTS[path]

    async def check(p: Platform) -> None:
        first = success_of(await post(p.client, path, body, "k1"), status)
        made = await count(p, table)
        assert "idempotent" not in first["meta"]
        async with another_app(p, database_url, redis_url) as other:
            for client in (p.client, other):
                repeated = success_of(await post(client, path, body, "k1"), 200)
                assert repeated["data"] == first["data"]
                assert repeated["meta"]["idempotent"] is True
                assert TIME.fullmatch(repeated["meta"]["original_created_at"])
                error_of(await post(client, path, other_body, "k1"), 422, "IDEMPOTENCY_KEY_REUSED")
        assert await count(p, table) == made
        if table == "subscriptions":
            assert first["data"]["secret_key"].startswith("whsec_")
        # Another key is another request.
        assert (await post(p.client, path, other_body, "k2")).status_code == status
        assert await count(p, table) > made

    run(database_url, redis_url, check)


def test_a_repeat_has_the_first_answers_etag(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        first = await post(p.client, SUBSCRIPTIONS, {"url": URL, "events": ["*"]}, "k1")
        path = f"{SUBSCRIPTIONS}/{first.json()['data']['id']}"
        await p.call("PATCH", path, {"description": "changed meanwhile"})
        again = await post(p.client, SUBSCRIPTIONS, {"url": URL, "events": ["*"]}, "k1")
        assert (again.status_code, again.headers["etag"]) == (200, first.headers["etag"])
        rotated = [await post(p.client, f"{path}/secret/rotate", {}, "k2") for _ in range(2)]
        assert [one.headers["etag"] for one in rotated] == ['"version-3"'] * 2

    run(database_url, redis_url, check)


@pytest.mark.parametrize("path", POSTS)
def test_of_twenty_at_once_with_one_key_exactly_one_has_an_effect(database_url: str, redis_url: str, path: str) -> None:
    body, _, status, table = POSTS[path]

    async def check(p: Platform) -> None:
        async with another_app(p, database_url, redis_url) as other:
            answers = await asyncio.gather(
                *(post(client, path, body, "k1") for _ in range(10) for client in (p.client, other))
            )
        first = [answer for answer in answers if answer.status_code == status]
        assert len(first) == 1
        for answer in answers:
            if answer.status_code == 409:
                assert "in flight" in error_of(answer, 409, "CONFLICT")["message"]
            elif answer is not first[0]:
                assert success_of(answer, 200)["data"] == first[0].json()["data"]
        made = len(body["events"]) if "events" in body and path.endswith("batch") else 1
        assert await count(p, table) == made
        assert success_of(await post(p.client, path, body, "k1"), 200)["data"] == first[0].json()["data"]

    run(database_url, redis_url, check)


def test_operations_on_one_resource_repeat_too(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        base = f"{SUBSCRIPTIONS}/{made['id']}"
        rotated = success_of(await post(p.client, f"{base}/secret/rotate", {}, "r"), 200)
        again = success_of(await post(p.client, f"{base}/secret/rotate", {}, "r"), 200)
        assert again["data"] == rotated["data"]
        assert await count(p, "subscription_secrets") == 2
        tested = success_of(await post(p.client, f"{base}/test", {}, "t"), 202)
        await p.call("POST", f"{base}/pause")
        # The first answer, although a paused subscription takes no new test.
        assert success_of(await post(p.client, f"{base}/test", {}, "t"), 200)["data"] == tested["data"]
        error_of(await post(p.client, f"{base}/test", {}, "t2"), 409, "CONFLICT")
        error_of(await post(p.client, f"{base}/test", {"data": {}}, "t"), 422, "IDEMPOTENCY_KEY_REUSED")
        assert await count(p, "events") == 1
        [delivery] = await p.deliveries()
        for _ in range(2):
            answer = await post(p.client, f"/v1/deliveries/{delivery['id']}/discard", {}, "d")
            assert success_of(answer, 200)["data"]["status"] == "discarded"

    run(database_url, redis_url, check)


def test_a_key_is_forgotten_after_a_day(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path in ("/v1/events", SUBSCRIPTIONS):
            body, other_body, status, table = POSTS[path]
            first = success_of(await post(p.client, path, body, "k"), status)["data"]
            await p.sql("UPDATE idempotency_keys SET created_at = created_at - interval '23 hours 59 minutes'")
            assert success_of(await post(p.client, path, body, "k"), 200)["data"] == first
            await p.sql("UPDATE idempotency_keys SET created_at = created_at - interval '2 minutes'")
            second = success_of(await post(p.client, path, other_body, "k"), status)["data"]
            assert success_of(await post(p.client, path, other_body, "k"), 200)["data"] == second
            assert await count(p, table) == 2

    run(database_url, redis_url, check)


def test_a_key_belongs_to_one_organization_method_and_path(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        body = {"event_type": "a.b", "data": {}}
        stranger = await make_key(p, await make_organization(p))
        success_of(await post(p.client, "/v1/events", body, "k"), 202)
        success_of(await post(p.client, "/v1/events", body, "k", **{"X-API-Key": stranger}), 202)
        success_of(await post(p.client, "/v1/events/batch", {"events": [body]}, "k"), 202)
        success_of(await post(p.client, SUBSCRIPTIONS, {"url": URL, "events": ["*"]}, "k"), 201)
        assert await count(p, "events") == 3
        # Only POSTs have keys.
        made = await p.subscribe(URL)
        for description in ("one", "two"):
            answer = await p.client.patch(
                f"{SUBSCRIPTIONS}/{made['id']}", json={"description": description}, headers={"Idempotency-Key": "k"}
            )
            assert success_of(answer, 200)["data"]["description"] == description

    run(database_url, redis_url, check)


def test_an_error_is_not_kept(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path, (body, *_) in POSTS.items():
            faults_of(await post(p.client, path, body | {"typo": 1}, "k"))
        assert await count(p, "idempotency_keys") == 0
        for path, (body, _, status, _) in POSTS.items():
            success_of(await post(p.client, path, body, "k"), status)

    run(database_url, redis_url, check)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\u00e9"])
def test_a_key_is_1_to_255_printable_ascii_characters(database_url: str, redis_url: str, key: str) -> None:
    async def check(p: Platform) -> None:
        headers = {"Idempotency-Key": key.encode()}
        answer = await p.client.post("/v1/events", json={"event_type": "a", "data": {}}, headers=headers)
        assert "1 to 255" in faults_of(answer)["Idempotency-Key"][0]
        success_of(await post(p.client, "/v1/events", {"event_type": "a", "data": {}}, "~" * 255), 202)

    run(database_url, redis_url, check)


def test_a_kept_answer_is_sealed(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = success_of(await post(p.client, SUBSCRIPTIONS, {"url": URL, "events": ["*"]}, "k"), 201)["data"]
        [row] = await p.sql("SELECT response FROM idempotency_keys")
        assert made["secret_key"].encode() not in row["response"]
        assert b"example.com" not in row["response"]

    run(database_url, redis_url, check)


# --- event_id ---------------------------------------------------------------------------------------------------


def test_an_event_id_that_came_before_is_the_same_event(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL)
        body = {"event_type": "a.b", "data": {"n": 1}, "event_id": "mine-1"}
        first = success_of(await p.client.post("/v1/events", json=body), 202)["data"]
        async with another_app(p, database_url, redis_url) as other:
            for client in (p.client, other):
                # Even with other content: the first is the event.
                again = success_of(await client.post("/v1/events", json=body | {"data": {"n": 2}}), 200)
                assert again["data"] == first
                assert again["meta"]["idempotent"] is True
                assert again["meta"]["original_created_at"] == first["created_at"]
        assert (await count(p, "events"), await count(p, "deliveries")) == (1, 1)
        stored = (await p.call("GET", f"/v1/events/{first['event_id']}"))["data"]
        assert (stored["external_id"], stored["data"]) == ("mine-1", {"n": 1})
        # Another organization's ids are its own.
        stranger = await make_key(p, await make_organization(p))
        answer = await p.client.post("/v1/events", json=body, headers={"X-API-Key": stranger})
        assert success_of(answer, 202)["data"]["event_id"] != first["event_id"]

    run(database_url, redis_url, check)


def test_one_event_id_many_times_at_once_through_two_processes_is_one_event(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL)
        async with another_app(p, database_url, redis_url) as other:
            for round_ in range(3):
                body = {"event_type": "a.b", "data": {}, "event_id": f"mine-{round_}"}
                answers = await asyncio.gather(
                    *(client.post("/v1/events", json=body) for _ in range(10) for client in (p.client, other))
                )
                assert sorted(answer.status_code for answer in answers) == [200] * 19 + [202]
                assert len({answer.json()["data"]["event_id"] for answer in answers}) == 1
                assert {answer.json()["data"]["matched_subscriptions"] for answer in answers} == {1}
                assert (await count(p, "events"), await count(p, "deliveries")) == (round_ + 1, round_ + 1)

    run(database_url, redis_url, check)


def test_crossing_batches_with_the_same_event_ids_make_each_event_once(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL)
        forth = [{"event_type": "a.b", "data": {}, "event_id": f"mine-{n}"} for n in range(20)]
        async with another_app(p, database_url, redis_url) as other:
            answers = await asyncio.gather(
                *(
                    client.post("/v1/events/batch", json={"events": order})
                    for _ in range(4)
                    for client, order in ((p.client, forth), (other, forth[::-1]))
                )
            )
        assert {answer.status_code for answer in answers} <= {200, 202}
        orders = [[one["event_id"] for one in answer.json()["data"]] for answer in answers]
        assert all(order in (orders[0], orders[0][::-1]) for order in orders)
        assert (await count(p, "events"), await count(p, "deliveries")) == (20, 20)

    run(database_url, redis_url, check)


def test_a_batch_answers_each_event_in_order_and_marks_those_that_came_before(
    database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL, ["a.*"])
        known = await p.send("a.known", event_id="known")
        events = [
            {"event_type": "a.first", "data": {}},
            {"event_type": "a.known", "data": {}, "event_id": "known"},
            {"event_type": "a.twin", "data": {"n": 1}, "event_id": "twin"},
            {"event_type": "b.none", "data": {}},
            {"event_type": "a.twin", "data": {"n": 2}, "event_id": "twin"},
        ]
        data = success_of(await p.client.post("/v1/events/batch", json={"events": events}), 202)["data"]
        assert [one["event_type"] for one in data] == [one["event_type"] for one in events]
        assert [one.get("idempotent", False) for one in data] == [False, True, False, False, True]
        assert [one["matched_subscriptions"] for one in data] == [1, 1, 1, 0, 1]
        assert data[1]["event_id"] == known["event_id"]
        assert data[2]["event_id"] == data[4]["event_id"]
        assert (await count(p, "events"), await count(p, "deliveries")) == (4, 3)
        # Wholly repeated: nothing new, so not 202.
        again = [event for event in events if "event_id" in event]
        answer = success_of(await p.client.post("/v1/events/batch", json={"events": again}), 200)
        assert answer["meta"]["idempotent"] is True
        assert (await count(p, "events"), await count(p, "deliveries")) == (4, 3)

    run(database_url, redis_url, check)


def test_a_batch_is_accepted_whole_or_not_at_all(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        good = {"event_type": "a.b", "data": {}}
        bad: list[Any] = [{"event_type": "a..b", "data": {}}, {"data": []}, good | {"event_id": ""}]
        answer = await p.client.post("/v1/events/batch", json={"events": [good, *bad, good]})
        faults = faults_of(answer)
        assert sorted(faults) == ["events.1.event_type", "events.2.data", "events.2.event_type", "events.3.event_id"]
        for wrong in ([], [good] * 1001, [1], "text", None):
            assert all(
                name.startswith("events")
                for name in faults_of(await p.client.post("/v1/events/batch", json={"events": wrong}))
            )
        assert await count(p, "events") == 0
        data = success_of(await p.client.post("/v1/events/batch", json={"events": [good] * 1000}), 202)["data"]
        assert len({one["event_id"] for one in data}) == 1000
        assert [one["event_id"] for one in data] == sorted(one["event_id"] for one in data)

    run(database_url, redis_url, check)
