"""The envelope around every answer, and what never reaches a handler."""

from __future__ import annotations

import pytest
from starlette.routing import Match, Route

from app.main import create
from app.routes import API
from core import settings
from tests.api import SUBSCRIPTIONS, TIME, error_of, faults_of, run, success_of
from tests.platform import Platform, environment, shown


def test_a_success_and_a_list_come_in_the_promised_envelope(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        created = await p.client.post(SUBSCRIPTIONS, json={"url": "https://example.com/a", "events": ["*"]})
        body = success_of(created, 201)
        assert body["message"] == "Subscription created"
        assert body["meta"]["request_id"].startswith("req_")
        assert created.headers["etag"] == '"version-1"'
        listed = success_of(await p.client.get(SUBSCRIPTIONS), 200)
        assert listed["message"] is None
        assert listed["meta"]["pagination"] == {
            "pageSize": 25,
            "hasMore": False,
            "nextCursor": None,
            "sort": "-created_at",
        }
        event = await p.client.post("/v1/events", json={"event_type": "a.b", "data": {}})
        data = success_of(event, 202)["data"]
        assert list(data) == ["event_id", "event_type", "occurred_at", "matched_subscriptions", "created_at"]
        assert data["event_id"].startswith("evt_")
        assert TIME.fullmatch(data["created_at"])

    run(database_url, redis_url, check)


SANE = ["abc", "req_01HZ", "a" * 128, "A.b-c_9"]
NOT_SANE = ["a" * 129, "a b", "<script>", "a\tb", "é", '"', "x" * 1_000_000]


def test_only_a_sane_request_id_is_echoed(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path in ("/v1/events", "/v1/nothing", "/healthz", "/readyz", "/"):
            for given in SANE:
                answer = await p.client.get(path, headers={"X-Request-ID": given})
                assert answer.headers["x-request-id"] == given, path
            for given in NOT_SANE:
                answer = await p.client.get(path, headers={"X-Request-ID": given.encode()})
                assert answer.headers["x-request-id"].startswith("req_"), path
                assert len(answer.headers["x-request-id"]) == 36

    run(database_url, redis_url, check)


def test_no_answer_is_to_be_stored_on_its_way(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path in ("/v1/events", "/v1/events/nothing", "/v1/nothing", "/healthz"):
            assert (await p.client.get(path)).headers["cache-control"] == "no-store", path

    run(database_url, redis_url, check)


def test_a_path_that_is_not_there_is_404_in_the_envelope(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path in ("/v1", "/v1/", "/v1/nothing", "/v1/events/", "/v1/events/a/b/c", "/v2/events", "/v1//events"):
            for method in ("GET", "POST", "DELETE"):
                error = error_of(await p.client.request(method, path), 404, "NOT_FOUND")
                assert path in error["message"]

    run(database_url, redis_url, check)


def test_a_method_that_a_path_lacks_is_405_with_those_it_has(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path, actions in API.items():
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - set(actions):
                answer = await p.client.request(method, path.replace("{id}", "x").replace("{name}", "x"))
                error = error_of(answer, 405, "METHOD_NOT_ALLOWED")
                assert error["details"]["allow"] == sorted(actions)
                assert answer.headers["allow"] == ", ".join(sorted(actions))
        answer = await p.client.post("/healthz")
        error_of(answer, 405, "METHOD_NOT_ALLOWED")
        assert "GET" in answer.headers["allow"]

    run(database_url, redis_url, check)


def test_the_short_way_to_a_path_leads_where_the_routes_lead() -> None:
    app = create(settings.load(environment("postgresql://127.0.0.1:1/none", "redis://127.0.0.1:1/0")))
    short = {path for path in API if "{" not in path}
    assert "/v1/events" in short
    assert set(app.resources) == short
    for path, resource in app.resources.items():
        scope = {"type": "http", "method": "POST", "path": path}
        [first, *_] = [route for route in app.routes if route.matches(scope)[0] is Match.FULL]
        assert isinstance(first, Route)
        assert first.app is resource


def test_an_unforeseen_error_is_a_500_in_the_envelope_that_tells_nothing(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("the inner secret")

        monkeypatch.setattr("app.api.lists.parse", fail)
        answer = await p.client.get("/v1/events", headers={"X-Request-ID": "mine"})
        error = error_of(answer, 500, "INTERNAL_ERROR")
        assert error["request_id"] == "mine"
        assert "inner" not in answer.text

    run(database_url, redis_url, check)


UNKNOWN_FIELDS = {
    "/v1/events": ({"event_type": "a", "data": {}, "typo": 1}, "typo", "event_type"),
    "/v1/events/batch": ({"events": [{"event_type": "a", "data": {}, "typo": 1}]}, "events.0.typo", "event_type"),
    SUBSCRIPTIONS: ({"url": "https://example.com", "events": ["*"], "retries": 3}, "retries", "retry_policy"),
    "/v1/replays": ({"filter": {}}, "filter", "filters"),
    "/v1/event-types": ({"name": "a", "schema_": {}}, "schema_", "schema"),
}


@pytest.mark.parametrize("path", UNKNOWN_FIELDS)
def test_an_unknown_field_is_refused_and_the_known_ones_named(database_url: str, redis_url: str, path: str) -> None:
    body, field, known = UNKNOWN_FIELDS[path]

    async def check(p: Platform) -> None:
        faults = faults_of(await p.client.post(path, json=body))
        assert list(faults) == [field]
        assert known in faults[field][0].removeprefix("Unknown field; known here: ").split(", ")

    run(database_url, redis_url, check)


def test_an_answer_does_not_repeat_endless_nonsense(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        many = {f"{'x' * 200}{n}": n for n in range(1000)}
        answer = await p.client.post("/v1/events", json=many)
        assert len(faults_of(answer)) <= 50
        assert len(answer.content) < 20_000
        query = "&".join(f"{'y' * 300}{n}=1" for n in range(200))
        answer = await p.client.get(f"/v1/events?{query}")
        faults_of(answer)
        assert len(answer.content) < 20_000

    run(database_url, redis_url, check)


def test_an_unknown_query_parameter_is_refused_everywhere(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for path, actions in API.items():
            for method, action in actions.items():
                url = path.replace("{id}", "x").replace("{name}", "x")
                headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
                answer = await p.client.request(method, url + "?Limit=3", headers=headers)
                if action.lists and "{" not in path:
                    assert "after_key" in faults_of(answer)["Limit"][0], path
                elif not (action.lists or action.exports):
                    assert "Limit" in faults_of(answer)["query"][0], path

    run(database_url, redis_url, check)
