"""Fuzzing the API by its OpenAPI document: `python -m tests.fuzz 1000` makes 1,000 examples of each kind for each
operation.

Schemathesis makes requests that fit the document and ones that do not; they go into the real application with a real
database behind it, with ids of things that are there in most paths. What it does not think of, such as broken JSON and
bytes that are no text, is sent besides (tests/strange.py). Whatever is sent: no 5xx, an answer that the document allows
field for field, and nothing is accepted that does not fit the document.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from app.routes import API
from core.storage import schema
from core.storage.database import Database
from tests import strange
from tests.api import SUBSCRIPTIONS, URL
from tests.openapi import DOCUMENT, Answers
from tests.platform import Platform, platform, shown
from tests.services import Services

load_all_checks()
ANSWERED = CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    ]
)
REFUSED = CHECKS.get_by_names(["negative_data_rejection"])
KINDS = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
HOST = "http://hookwright.test"


class Fuzzing:
    """One run against one platform."""

    def __init__(self, runner: asyncio.Runner, p: Platform, examples: int, *, repeatable: bool) -> None:
        self._runner, self._p = runner, p
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(strange.raw(p.app)), base_url=HOST)
        self._settings = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            derandomize=repeatable,
        )
        self.answers = Answers()
        self.sent: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()

    def close(self) -> None:
        self._runner.run(self._client.aclose())

    def all(self) -> None:
        for found in schemathesis.openapi.from_dict(_without_keys()).get_all_operations():
            operation = found.ok()
            here = self._runner.run(places(self._p))
            for kind in KINDS:
                self._by_schema(operation, kind, here)
            self._by_bytes(operation.path, operation.method.upper(), here)

    def _by_schema(self, operation: Any, kind: GenerationMode, here: dict[str, str]) -> None:
        there = {name: here[operation.path.partition("{")[0]] for name in strange.names_in(operation.path)}
        of_theirs = operation.as_strategy(generation_mode=kind)
        of_ours = operation.as_strategy(generation_mode=kind, path_parameters=there) if there else of_theirs

        @self._settings
        @given(st.integers(0, 4).flatmap(lambda number: of_ours if number else of_theirs))
        def send(case: Case) -> None:
            made = requests.Request(**case.as_transport_kwargs(base_url=HOST)).prepare()
            headers = {**made.headers, **self._credential(operation.path, operation.method.upper())}
            # One that is wrong in itself is sent as it is; any other becomes the one that is there.
            named = headers.get("X-Organization-ID")
            if named is None or _is_organization(named):
                headers["X-Organization-ID"] = shown(self._p)
            answer = self._send(operation.label, made.method or "", made.url or "", headers, made.body or b"")
            # A repeat is answered by its key and its body alone.
            judged = answer.is_success and '"idempotent":true' not in answer.text
            case.validate_response(answer, checks=ANSWERED + (REFUSED if judged else []))

        send()

    def _by_bytes(self, path: str, method: str, here: dict[str, str]) -> None:
        url = path.replace("{id}", here[path.partition("{")[0]]) if "{id}" in path else path.replace("{name}", "a.b")

        @self._settings
        @given(strange.requests(path, method))
        def send(request: strange.Request) -> None:
            headers = request.headers | self._credential(path, method) | {"X-Organization-ID": shown(self._p)}
            self._send(f"{method} {path}", method, HOST + url, headers | strange.query(request), request.body)

        send()

    def _credential(self, path: str, method: str) -> dict[str, str]:
        return {"X-API-Key": self._p.platform_key if API[path][method].scope == "organizations.admin" else self._p.key}

    def _send(self, label: str, method: str, url: str, headers: Any, body: Any) -> httpx.Response:
        answer = self._runner.run(self._client.request(method, url, headers=headers, content=body))
        self.sent[label] += 1
        self.statuses[answer.status_code] += 1
        assert answer.status_code < 500, f"{method} {url} {headers} {body!r}: {answer.text[:500]}"
        self.answers.check(answer)
        return answer


def _without_keys() -> dict[str, Any]:
    """The document, with nothing of API keys: each request is given one that holds."""
    components = {name: part for name, part in DOCUMENT["components"].items() if name != "securitySchemes"}
    return {name: part for name, part in DOCUMENT.items() if name != "security"} | {"components": components}


def _is_organization(text: str) -> bool:
    return text.startswith("org_") and len(text) == 30


async def places(p: Platform) -> dict[str, str]:
    """A thing of each kind, by the path before its id."""
    admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
    for name in ("a.b", "order.paid"):
        await p.client.post("/v1/event-types", json={"name": name})
    made = await p.subscribe(URL, ["*"])
    event = await p.send("a.b")
    [delivery, *_] = await p.deliveries(event_id=event["event_id"])
    replay = (await p.call("POST", "/v1/replays", {"filters": {"ids": [delivery["id"]], "status": "pending"}}))["data"]
    key = (await p.client.post("/v1/api-keys", json={"name": "k"}, headers=admin)).json()["data"]
    other = (await p.client.post("/v1/organizations", json={"name": "o"}, headers=admin)).json()["data"]
    return {
        "/v1/events/": event["event_id"],
        "/v1/deliveries/": delivery["id"],
        f"{SUBSCRIPTIONS}/": made["id"],
        "/v1/replays/": replay["id"],
        "/v1/api-keys/": key["id"],
        "/v1/organizations/": other["id"],
        "/v1/event-types/": "a.b",
    }


def run(database_url: str, redis_url: str, examples: int, *, repeatable: bool = True) -> Fuzzing:
    """Raises what was found, with the request that does it."""
    with asyncio.Runner() as runner:
        context = platform(database_url, redis_url, with_worker=False)
        fuzzing = Fuzzing(runner, runner.run(context.__aenter__()), examples, repeatable=repeatable)
        try:
            fuzzing.all()
        finally:
            fuzzing.close()
            runner.run(context.__aexit__(None, None, None))
    return fuzzing


async def _migrate(database_url: str) -> None:
    database = Database(database_url)
    await schema.migrate(database)
    await database.close()


def main() -> None:
    examples = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    services = Services()
    services.start()
    try:
        started = time.monotonic()
        asyncio.run(_migrate(services.database_url))
        fuzzing = run(services.database_url, services.redis_url, examples, repeatable=False)
        took_s = time.monotonic() - started
    finally:
        services.stop()
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(fuzzing.statuses.items()))
    total = fuzzing.sent.total()
    print(f"{total} requests to {len(fuzzing.sent)} operations in {took_s:.0f} s, none wrong: {statuses}")


if __name__ == "__main__":
    main()
