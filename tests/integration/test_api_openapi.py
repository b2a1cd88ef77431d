"""GET /v1/openapi.json against real answers: a walk through every operation, and fuzzing by what it says."""

from __future__ import annotations

from typing import Any

import httpx

from app.routes import API
from tests.api import FAST, SUBSCRIPTIONS, error_of, run
from tests.openapi import DOCUMENT, OPERATIONS, Answers
from tests.platform import Platform, shown
from tests.receiver import Receiver


async def walk(p: Platform, url: str) -> Answers:
    """Every operation at least once, its answers held against the document field for field."""
    answers = Answers()
    p.client.event_hooks = {"response": [answers.hook]}
    admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}

    async def call(method: str, path: str, body: Any = None, **headers: str) -> Any:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await p.client.request(method, path, json=body, headers=admin | given)
        assert answer.is_success, (method, path, answer.text)
        return answer.json()["data"] if answer.headers["content-type"] == "application/json" else answer.text

    async def every(path: str, *queries: str) -> None:
        for query in ("", "limit=1", "page=1&pageSize=1", "sort=created_at", *queries):
            await call("GET", f"{path}?{query}")
        await call("GET", f"{path}?fields=id")

    event_type = await call("POST", "/v1/event-types", {"name": "a.b", "schema": {}, "example": {"a": 1}})
    await call("PATCH", f"/v1/event-types/{event_type['name']}", {"description": "d", "example": None})
    await call("GET", "/v1/event-types/a.b")
    await every("/v1/event-types")
    await call("DELETE", "/v1/event-types/a.b")

    organization = await call("POST", "/v1/organizations", {"name": "Another"})
    await call("GET", f"/v1/organizations/{organization['id']}")
    await call("PATCH", f"/v1/organizations/{organization['id']}", {"name": "Renamed"})
    await every("/v1/organizations")
    erased = await call("POST", "/v1/organizations", {"name": "Erased"})
    await call("DELETE", f"/v1/organizations/{erased['id']}")
    key = await call("POST", "/v1/api-keys", {"name": "k", "scopes": ["events.read"]})
    await call("PATCH", f"/v1/api-keys/{key['id']}", {"tier": "bulk"})
    await every("/v1/api-keys")
    await call("DELETE", f"/v1/api-keys/{key['id']}")

    # With everything chosen, with nothing, and each of the retry policies.
    for more in (
        {},
        {"filters": {"a": 1}, "headers": {"X-A": "b"}, "limits": {"per_second": 5}, "circuit_breaker": {}},
        {"retry_policy": {"backoff_strategy": "linear"}, "branch_id": "berlin", "description": "d"},
        {"retry_policy": {"backoff_strategy": "exponential"}, "authentication": {"type": "github"}},
        {"retry_policy": {"schedule": [0.5]}, "metadata": {"a": [1]}, "payload_format": "data", "timeout_ms": 1000},
    ):
        made = await call("POST", SUBSCRIPTIONS, {"url": url, "events": ["never.*"], **more}, Idempotency_Key=str(more))
    await call("POST", SUBSCRIPTIONS, {"url": url, "events": ["never.*"], **more}, Idempotency_Key=str(more))
    one = f"{SUBSCRIPTIONS}/{made['id']}"
    await call("PATCH", one, {"events": ["a.*"], "retry_policy": FAST, "url": f"{url}/status/503"})
    await call("GET", one)
    await every(SUBSCRIPTIONS, "filters[status]=active")
    await call("POST", f"{one}/secret/rotate")
    await call("POST", f"{one}/secret/reveal")
    await call("POST", f"{one}/pause")

    body = {"event_type": "a.b", "data": {"a": 1}, "event_id": "mine", "branch_id": "b", "metadata": {"m": 1}}
    event = await call("POST", "/v1/events", body)
    await call("POST", "/v1/events", body)
    for _ in range(2):
        await call("POST", "/v1/events/batch", {"events": [body, {"event_type": "x", "data": {}}]}, Idempotency_Key="k")
    await call("POST", f"{one}/resume", {"sync_from": "2026-01-01T00:00:00Z", "priority": "high"})
    tested = await call("POST", f"{one}/test")
    await p.settled(2, "dead")
    await call("GET", f"/v1/events/{event['event_id']}")
    await every("/v1/events", "filters[event_type]=a.b", "filters[branch_id]=b", "filters[external_id]=mine")
    for path in ("/v1/deliveries", f"{one}/deliveries", f"/v1/events/{event['event_id']}/deliveries"):
        await every(path, "include=attempts", "filters[status]=dead", "filters[error]=status&include=attempts")
    delivery = f"/v1/deliveries/{tested['delivery_id']}"
    await call("GET", delivery)
    await call("POST", "/v1/replays", {"dry_run": True})
    await call("POST", f"{delivery}/replay")
    await p.settled(2, "dead")
    await call("POST", f"{delivery}/discard")
    await call("POST", "/v1/replays", {"filters": {"ids": [tested["delivery_id"]], "status": "discarded"}})
    await call("POST", "/v1/replays", {"filters": {"error": "none,status"}, "dry_run": True, "action": "discard"})
    await call("POST", f"{one}/pause")  # so that the replay can't come to its end
    replay = await call("POST", "/v1/replays", {"rate_per_second": 1})
    await every(f"/v1/replays/{replay['id']}/items", "filters[outcome]=waiting")
    await call("PATCH", f"/v1/replays/{replay['id']}", {"rate_per_second": 2})
    for name in ("pause", "resume", "cancel"):
        await call("POST", f"/v1/replays/{replay['id']}/{name}")
    await call("POST", f"{one}/resume")
    await call("GET", f"/v1/replays/{replay['id']}")
    await every("/v1/replays", "filters[status]=cancelled")

    await call("POST", f"/v1/events/{event['event_id']}/copy", {"data": {"a": 2}})
    await every("/v1/events", "filters[text]=a")
    await every("/v1/deliveries", "filters[text]=mine")
    await call("POST", f"/v1/events/{event['event_id']}/redact")
    await call("GET", f"/v1/events/{event['event_id']}")

    await call("GET", f"{one}/health")
    await call("GET", f"{one}/performance")
    await call("GET", "/v1/webhooks/performance")
    await call("GET", f"{one}/circuit-breaker")
    await call("GET", f"{one}/circuit-breaker/history")
    await call("POST", f"{one}/circuit-breaker/reset")
    await call("DELETE", one)

    await every("/v1/audit-log", "filters[action]=event_type.created", f"filters[resource]={made['id']}")
    exported = await call("GET", "/v1/audit-log/export")
    assert exported.count("\n") > 20
    assert '"at"' not in await call("GET", "/v1/audit-log/export?fields=id,actor&sort=created_at")

    # The examples of bodies are accepted as they stand.
    for (path, method), said in OPERATIONS.items():
        named = (
            said.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
        )
        for example in DOCUMENT["components"]["schemas"].get(named.rpartition("/")[2], {}).get("examples", ()):
            if "{" not in path:
                await call(method, path, example)
    return answers


def test_every_answer_of_a_walk_is_what_the_document_says(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        answers = await walk(p, receiver.url(""))
        every = {(path, method) for path, actions in API.items() for method in actions}
        assert every - answers.seen.keys() == set(), "the walk has not been there; add a call"
        for (path, method), statuses in answers.seen.items():
            documented = {int(one) for one in DOCUMENT["paths"][path][method.lower()]["responses"] if one < "300"}
            assert statuses & documented, (path, method)

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_the_document_is_for_anybody(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(p.app), base_url="http://hookwright.test"
        ) as anybody:
            answer = await anybody.get("/v1/openapi.json", headers={"X-Request-ID": "mine"})
            assert answer.json() == DOCUMENT
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers["content-type"] == "application/json"
            assert p.key not in answer.text
            error_of(await anybody.post("/v1/openapi.json"), 405, "METHOD_NOT_ALLOWED")

    run(database_url, redis_url, check)
