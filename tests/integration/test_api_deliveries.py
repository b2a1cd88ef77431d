"""Deliveries, attempts and replays as the API shows them, and what may be done to them in which state."""

from __future__ import annotations

from typing import Any

import pytest

from core import replays
from core.access.api_keys import DELIVERIES_READ, DELIVERIES_REPLAY
from core.states import TRANSITIONS, State
from tests.api import FAST, SUBSCRIPTIONS, TIME, URL, error_of, faults_of, make_key, run, success_of
from tests.platform import Platform, eventually, shown
from tests.receiver import Receiver
from worker.sending import STORED_BODY_BYTES

DELIVERY = [
    *("id", "delivery_id", "event_id", "event_type", "subscription_id", "organization_id", "status", "reason"),
    *("attempt_count", "series", "replay_id", "next_attempt_at", "status_code", "error", "error_message"),
    *("created_at", "updated_at"),
]
ATTEMPT = [
    *("id", "attempt_id", "delivery_id", "series", "number", "replay_id", "status", "status_code", "error"),
    *("error_message", "started_at", "duration_ms", "url", "request_headers", "response_headers", "response_body"),
]
EVENT = [
    *("id", "event_id", "event_type", "external_id", "organization_id", "occurred_at", "branch_id", "metadata"),
    *("matched_subscriptions", "copied_from", "created_at", "redacted_at"),
]
REPLAY = [
    *("id", "replay_id", "organization_id", "action", "status", "filters", "rate_per_second", "total", "sent"),
    *("succeeded", "failed", "skipped", "created_by", "created_at", "started_at", "finished_at"),
]


def test_a_delivery_shows_its_attempts(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(receiver.url("/status/503"), retry_policy=FAST)
        event = await p.send("a.b")
        [listed] = await p.settled(1, "dead")
        assert list(listed) == DELIVERY
        one = (await p.call("GET", f"/v1/deliveries/{listed['id']}"))["data"]
        assert list(one) == [*DELIVERY, "attempts"]
        expected: dict[str, Any] = {
            "event_id": event["event_id"],
            "event_type": "a.b",
            "subscription_id": made["id"],
            "organization_id": shown(p),
            "status": "dead",
            "reason": "exhausted",
            "attempt_count": 1,
            "series": 0,
            "replay_id": None,
            "next_attempt_at": None,
            "status_code": 503,
            "error": "status",
        }
        assert {name: one[name] for name in expected} == expected
        [attempt] = one["attempts"]
        assert list(attempt) == ATTEMPT
        expected = {
            "delivery_id": listed["id"],
            "series": 0,
            "number": 1,
            "status": "failed",
            "status_code": 503,
            "error": "status",
            "url": receiver.url("/status/503"),
            "response_body": "as asked",
        }
        assert {name: attempt[name] for name in expected} == expected
        assert attempt["response_headers"]["Content-Length"] == "8"
        assert attempt["request_headers"]["webhook-id"] == event["event_id"]
        assert isinstance(attempt["duration_ms"], int)
        assert TIME.fullmatch(attempt["started_at"])
        whole = (await p.call("GET", f"/v1/events/{event['event_id']}"))["data"]
        assert list(whole) == [*EVENT, "data"]
        [of_event] = (await p.call("GET", f"/v1/events/{event['event_id']}/deliveries"))["data"]
        assert of_event == listed

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_answers_of_raw_bytes_are_shown_as_text_and_no_longer_than_kept(database_url: str, redis_url: str) -> None:
    paths = ["/nul", "/all-bytes", "/latin-header", "/gzip-bomb", "/endless", "/redirect/307?to=%3Cscript%3E"]

    async def check(p: Platform) -> None:
        for path in paths:
            await p.subscribe(receiver.url(path), retry_policy=FAST)
        await p.send()
        await p.settled(len(paths) - 1, "delivered")
        await p.settled(1, "dead")
        listed = await p.client.get("/v1/deliveries?include=attempts")
        assert listed.headers["content-type"] == "application/json"
        assert b"\0" not in listed.content
        shown = {}
        for one in listed.json()["data"]:
            [attempt] = one["attempts"]
            assert (await p.call("GET", f"/v1/deliveries/{one['id']}"))["data"]["attempts"] == [attempt]
            assert len(attempt["response_body"]) <= STORED_BODY_BYTES
            shown[attempt["url"].removeprefix(receiver.url(""))] = attempt
        assert shown["/nul"]["response_body"].startswith("\0nul \ufffd")
        assert (shown["/nul"]["status"], shown["/nul"]["error"]) == ("succeeded", None)
        every = bytes(range(256)).decode("utf-8", "replace")
        assert shown["/all-bytes"]["response_body"] == every * (STORED_BODY_BYTES // 256)
        assert shown["/latin-header"]["response_headers"]["X-Latin"] == "\xff\xfe\xc3( \xe9"
        assert shown["/gzip-bomb"]["response_body"].startswith("\x1f\ufffd")  # as it came, packed
        assert set(shown["/endless"]["response_body"]) == {"x"}
        redirected = shown["/redirect/307?to=%3Cscript%3E"]
        assert (redirected["status_code"], redirected["error"]) == (307, "status")
        assert redirected["response_headers"]["Location"] == "<script>"

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


async def put_into(p: Platform, state: str) -> str:
    """A delivery in `state`, set past the state machine, since no worker runs here."""
    [before] = await p.sql("SELECT id FROM deliveries")
    reason = {"pending": "new", "dead": "exhausted", "discarded": "requested"}.get(state)
    await p.sql(
        "UPDATE deliveries SET state = $2, reason = $3,"
        " due_at = CASE WHEN $2 IN ('pending', 'sending') THEN now() END,"
        " lease_token = CASE WHEN $2 = 'sending' THEN gen_random_uuid() END WHERE id = $1",
        before["id"],
        state,
        reason,
    )
    [delivery] = await p.deliveries()
    shown_id: str = delivery["id"]
    return shown_id


@pytest.mark.parametrize("operation", ["discard", "replay"])
def test_an_operation_is_a_conflict_in_every_state_that_does_not_allow_it(
    database_url: str, redis_url: str, operation: str
) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL)
        await p.send()
        allowed = TRANSITIONS[operation].before
        for state in State:
            delivery = await put_into(p, state)
            answer = await p.client.post(f"/v1/deliveries/{delivery}/{operation}")
            if state in allowed:
                data = success_of(answer, 200 if operation == "discard" else 202)["data"]
                assert list(data) == DELIVERY
                assert data["status"] == ("discarded" if operation == "discard" else "pending")
                assert data["reason"] == ("requested" if operation == "discard" else "replay")
            else:
                details = error_of(answer, 409, "CONFLICT")["details"]
                assert details == {"status": state, "allowed": sorted(allowed)}
                assert (await p.deliveries())[0]["status"] == state
        answer = await p.client.post(f"/v1/deliveries/{delivery}/{operation}", json={"force": True})
        assert list(faults_of(answer)) == ["force"]

    run(database_url, redis_url, check)


def test_nothing_is_sent_again_to_a_subscription_that_takes_nothing(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        await p.send()
        delivery = await put_into(p, "dead")
        await p.sql("UPDATE subscriptions SET status = 'disabled'")
        error = error_of(await p.client.post(f"/v1/deliveries/{delivery}/replay"), 409, "CONFLICT")
        assert "resume it first" in error["message"]
        await p.call("DELETE", f"{SUBSCRIPTIONS}/{made['id']}")
        error = error_of(await p.client.post(f"/v1/deliveries/{delivery}/replay"), 409, "CONFLICT")
        assert "deleted" in error["message"]
        assert await p.sql("SELECT id FROM replays") == []

    run(database_url, redis_url, check)


def test_a_dry_run_counts_exactly_and_changes_nothing(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        patient: dict[str, Any] = {"retry_policy": FAST, "circuit_breaker": {"failure_threshold": 1000}}
        one = await p.subscribe(receiver.url("/status/500"), ["a.*"], **patient)
        two = await p.subscribe(receiver.url("/reset"), ["a.*", "b.*"], **patient)
        for event_type in ("a.b", "a.c", "b.c"):
            await p.send(event_type)
        await p.settled(5, "dead")
        body = {"filters": {}, "rate_per_second": 2, "dry_run": True}
        dry = success_of(await p.client.post("/v1/replays", json=body), 202)["data"]
        assert (dry["dry_run"], dry["total"], dry["rate_per_second"], dry["estimated_duration_s"]) == (True, 5, 2, 3)
        assert dry["by_subscription"] == [
            {"subscription_id": two["id"], "count": 3},
            {"subscription_id": one["id"], "count": 2},
        ]
        assert dry["by_error"] == [{"error": "reset", "count": 3}, {"error": "status", "count": 2}]
        assert dry["groups"] == [
            {"subscription_id": two["id"], "error": "reset", "count": 3},
            {"subscription_id": one["id"], "error": "status", "count": 2},
        ]
        assert dry["by_status"] == [{"status": "dead", "count": 5}]
        assert (dry["action"], dry["skipped"], dry["skips"], dry["held"], dry["overlaps"]) == ("replay", 0, [], [], [])
        assert dry["filters"]["status"] == "dead"
        assert TIME.fullmatch(dry["filters"]["created_before"])
        assert (await p.call("GET", "/v1/replays"))["data"] == []
        assert len(await p.deliveries(status="dead")) == 5
        for filters, total in [
            ({"subscription_id": one["id"]}, 2),
            ({"error": ["reset", "status"], "event_type": "a.b"}, 2),
            ({"status": ["delivered", "discarded"]}, 0),
            ({"status_code": 500}, 2),
        ]:
            answer = await p.client.post("/v1/replays", json={"filters": filters, "dry_run": True})
            assert success_of(answer, 202)["data"]["total"] == total, filters
        # What the dry run answered may be posted as it is: it chooses the same.
        body = {"filters": dry["filters"], "rate_per_second": 1000}
        replay = success_of(await p.client.post("/v1/replays", json=body), 202)["data"]
        assert list(replay) == [*REPLAY, "by_subscription", "by_error"]
        assert (replay["total"], replay["status"]) == (5, "queued")
        assert replay["by_error"] == dry["by_error"]

        async def completed() -> Any:
            found = (await p.call("GET", f"/v1/replays/{replay['id']}"))["data"]
            return found if found["status"] == "completed" else None

        done = await eventually(completed)
        assert list(done) == REPLAY
        assert [done[name] for name in ("sent", "succeeded", "failed", "skipped")] == [5, 0, 5, 0]
        assert all(TIME.fullmatch(done[name]) for name in ("created_at", "started_at", "finished_at"))
        assert len(await p.deliveries(replay_id=replay["id"])) == 5

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_searching_payloads_needs_the_scope_that_reads_them(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe("https://one.example/", ["order.paid"])
        await p.send("order.paid", {"card": "4242"})
        [delivery] = await p.deliveries(text="4242")
        of_one = f"{SUBSCRIPTIONS}/{delivery['subscription_id']}/deliveries"
        key = await make_key(p, p.organization_id, [DELIVERIES_READ, DELIVERIES_REPLAY])
        for path in ("/v1/deliveries", of_one):
            answer = await p.call("GET", f"{path}?filters[text]=42", expect=403, X_API_Key=key)
            assert answer["error"]["details"] == {"required_scope": "events.read"}
            found = await p.call("GET", f"{path}?filters[text]={delivery['id']}", X_API_Key=key)
            assert [one["id"] for one in found["data"]] == [delivery["id"]]
            await p.call("GET", f"{path}?filters[text]=", expect=400, X_API_Key=key)
        body = {"filters": {"text": "42", "status": "pending"}, "dry_run": True}
        await p.call("POST", "/v1/replays", body, 403, X_API_Key=key)
        await p.call("POST", "/v1/replays", body)

    run(database_url, redis_url, check)


def test_a_bulk_discard_and_what_came_of_each(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        for _ in range(5):
            await p.send()
        await p.sql("UPDATE deliveries SET state = 'dead', reason = 'exhausted', due_at = NULL")
        paused = f"{SUBSCRIPTIONS}/{made['id']}/pause"
        await p.call("POST", paused)
        dry = (await p.call("POST", "/v1/replays", {"dry_run": True}))["data"]
        assert dry["held"] == [{"subscription_id": made["id"], "reason": "paused", "count": 5}]
        body = {"action": "discard", "rate_per_second": 4}
        job = success_of(await p.client.post("/v1/replays", json=body), 202)["data"]
        assert (job["action"], job["total"]) == ("discard", 5)
        path = f"/v1/replays/{job['id']}"
        dry = (await p.call("POST", "/v1/replays", {"dry_run": True}))["data"]
        overlap = {"replay_id": job["id"], "action": "discard", "status": "queued", "count": 5}
        assert dry["overlaps"] == [overlap]
        assert await replays.tick(p.database) == []

        every = (await p.call("GET", f"{path}/items?sort=created_at"))["data"]
        assert [one["outcome"] for one in every] == ["succeeded"] * 4 + ["waiting"]
        assert [one["status"] for one in every] == ["discarded"] * 4 + ["dead"]
        assert every[0]["replay_id"] == job["id"]
        page = await p.call("GET", f"{path}/items?filters[outcome]=succeeded&limit=3")
        cursor = page["meta"]["pagination"]["nextCursor"]
        rest = await p.call("GET", f"{path}/items?filters[outcome]=succeeded&limit=3&after_key={cursor}")
        newest_first = [one["id"] for one in every[3::-1]]
        assert [one["id"] for one in page["data"] + rest["data"]] == newest_first
        for wrong in ("filters[outcome]=lost", "filters[status]=dead", "fields=colour"):
            assert (await p.client.get(f"{path}/items?{wrong}")).status_code == 400
        assert (await p.client.get("/v1/replays/rpl_01M7X7GQX8E008X9FCP040HQMR/items")).status_code == 404

        assert (await p.call("PATCH", path, {"rate_per_second": 9}))["data"]["rate_per_second"] == 9
        for rate in (0, 10_001, "9", None):
            assert list(faults_of(await p.client.patch(path, json={"rate_per_second": rate}))) == ["rate_per_second"]
        await p.call("POST", f"{path}/cancel")
        error_of(await p.client.patch(path, json={"rate_per_second": 9}), 409, "CONFLICT")

    run(database_url, redis_url, check)


def test_a_wrong_replay_is_refused_dry_or_not(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for body, name in [
            ({"filters": {"nonsense": 1}}, "filters.nonsense"),
            ({"filters": {"status": "alive"}}, "filters.status"),
            ({"filters": {"status": []}}, "filters.status"),
            ({"filters": {"status": None}}, "filters.status"),
            ({"filters": {"status": {"$ne": "dead"}}}, "filters.status"),
            ({"filters": {"reason": "because"}}, "filters.reason"),
            ({"filters": {"ids": []}}, "filters.ids"),
            ({"filters": {"ids": ["x"]}}, "filters.ids"),
            ({"filters": {"status_code": 10**40}}, "filters.status_code"),
            ({"filters": {"created_before": "soon"}}, "filters.created_before"),
            ({"filters": []}, "filters"),
            ({"rate_per_second": 0}, "rate_per_second"),
            ({"rate_per_second": 10**30}, "rate_per_second"),
            ({"rate_per_second": "50"}, "rate_per_second"),
            ({"action": "delete"}, "action"),
        ]:
            for dry_run in (True, False):
                answer = await p.client.post("/v1/replays", json=body | {"dry_run": dry_run})
                assert list(faults_of(answer)) == [name], body
        # More values than PostgreSQL takes parameters are still only one condition.
        body = {"filters": {"status": ["dead"] * 33_000}, "dry_run": True}
        assert success_of(await p.client.post("/v1/replays", json=body), 202)["data"]["total"] == 0
        assert (await p.call("GET", "/v1/replays"))["data"] == []

    run(database_url, redis_url, check)


ALLOWED = {
    "pause": {"queued": "paused", "running": "paused"},
    "resume": {"paused": "running"},
    "cancel": {"queued": "cancelled", "running": "cancelled", "paused": "cancelled"},
}


def test_a_replay_is_steered_only_from_states_that_allow_it(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL)
        await p.send()
        await put_into(p, "dead")
        replay = (await p.call("POST", "/v1/replays", {}))["data"]
        path = f"/v1/replays/{replay['id']}"
        for operation, after in ALLOWED.items():
            for status in ("queued", "running", "paused", "completed", "cancelled"):
                await p.sql("UPDATE replays SET status = $1", status)
                answer = await p.client.post(f"{path}/{operation}")
                if status in after:
                    assert success_of(answer, 200)["data"]["status"] == after[status]
                else:
                    details = error_of(answer, 409, "CONFLICT")["details"]
                    assert details == {"status": status, "allowed": sorted(after)}
        assert list((await p.call("GET", path))["data"]) == REPLAY

    run(database_url, redis_url, check)
