"""The OpenAPI document: it is one, it has every operation, and it says what docs/api.md says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis

from app.api import lists
from app.api.operations import OPERATIONS
from app.routes import API
from core import errors
from tests.openapi import DOCUMENT, Answers

TEXT = (Path(__file__).parents[2] / "docs/api.md").read_text()
EVERY = [(path, method, action) for path, actions in API.items() for method, action in actions.items()]
ORGANIZATION = {
    "id": "org_01M7X7GQY2E008D61A1N1X15MN",
    "organization_id": "org_01M7X7GQY2E008D61A1N1X15MN",
    "name": "Acme",
    "version": 1,
    "created_at": "2026-11-20T19:39:15.266996Z",
    "updated_at": "2026-11-20T19:39:15.267009Z",
}
CODES = {
    "VALIDATION_FAILED": 400,
    "AUTHENTICATION_FAILED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "METHOD_NOT_ALLOWED": 405,
    "CONFLICT": 409,
    "PAYLOAD_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "RATE_LIMIT_EXCEEDED": 429,
    "CIRCUIT_BREAKER_OPEN": 503,
    "UNAVAILABLE": 503,
    "INTERNAL_ERROR": 500,
}


def test_it_is_an_openapi_document() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_operation_is_described_and_no_other() -> None:
    """A new path fails here until app/api/operations.py says what it takes and gives."""
    described = [(path, method) for path, methods in OPERATIONS.items() for method in methods]
    assert sorted(described) == sorted((path, method) for path, method, _ in EVERY)
    shown = [(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods]
    assert sorted(shown) == sorted(described)


def test_summaries_and_statuses_are_those_of_the_documentation() -> None:
    rows = re.findall(r"^\| `(/v1/[^`]+)` \| ([A-Z]+) \| `([a-z.]+)` \| (20[0-2]) \| (.*) \|$", TEXT, re.M)
    said = [
        (path, method, action.scope, str(OPERATIONS[path][method].status), OPERATIONS[path][method].summary)
        for path, method, action in EVERY
    ]
    assert sorted(said) == sorted(rows)


@pytest.mark.parametrize(("path", "method", "action"), EVERY, ids=[f"{method} {path}" for path, method, _ in EVERY])
def test_an_operation_says_all_there_is_to_know(path: str, method: str, action: Any) -> None:
    one = DOCUMENT["paths"][path][method.lower()]
    parameters = [_resolved(parameter) for parameter in one["parameters"]]
    names = {parameter["name"] for parameter in parameters}
    assert one["x-required-scope"] == action.scope
    in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    assert in_path == set(re.findall(r"\{([a-z_]+)\}", path))
    assert all("pattern" in parameter["schema"] for parameter in parameters if parameter["in"] == "path")
    assert (lists._PLAIN - {"include"} <= names) == action.lists
    assert ({"sort", "fields"} <= names) == (action.lists or action.exports)
    assert ("Idempotency-Key" in names) == (method == "POST" and not OPERATIONS[path][method].repeats)
    assert ("X-Organization-ID" in names) == (action.tenant or path.startswith("/v1/audit-log"))
    assert ("requestBody" in one) == (method in {"POST", "PATCH"})
    assert {"400", "401", "403", "404", "429", "500", "503"} < set(one["responses"])
    for response in map(_resolved, one["responses"].values()):
        assert {"X-Request-ID", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"} <= set(
            response["headers"]
        )


def test_operation_ids_are_unique() -> None:
    ids = [one["operationId"] for methods in DOCUMENT["paths"].values() for one in methods.values()]
    assert len(set(ids)) == len(ids)


def test_every_code_of_the_contract_is_there_with_its_status() -> None:
    shown = {
        code: int(name.removeprefix("Error"))
        for name, response in DOCUMENT["components"]["responses"].items()
        for code in response["content"]["application/json"]["schema"]["allOf"][1]["properties"]["error"]["properties"][
            "code"
        ]["enum"]
    }
    assert shown == CODES
    assert {kind.code for kind in _kinds(errors.HookwrightError)} <= set(CODES)


def test_references_lead_somewhere_and_examples_fit_their_schemas() -> None:
    examples = 0
    for schema in _schemas(DOCUMENT):
        if "$ref" in schema:
            assert _resolved(schema)
        for example in schema.get("examples", ()):
            examples += 1
            whole = {**schema, "components": DOCUMENT["components"]}
            assert jsonschema_rs.is_valid(whole, example), (schema, example)
    assert examples > 100


def _resolved(part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = DOCUMENT
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    resolved: dict[str, Any] = found
    return resolved


def _kinds(of: type[errors.HookwrightError]) -> Iterator[type[errors.HookwrightError]]:
    yield of
    for one in of.__subclasses__():
        yield from _kinds(one)


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
    for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _schemas(one)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": 418}, "not documented"),
        ({"data": {**ORGANIZATION, "more": 1}}, "more"),
        ({"data": {name: value for name, value in ORGANIZATION.items() if name != "version"}}, "version"),
        ({"data": ORGANIZATION | {"created_at": None}}, "null"),
        ({"toast": True}, "toast"),
    ],
)
def test_an_answer_that_drifts_from_the_document_is_found(change: dict[str, Any], says: str) -> None:
    """Of what the integration tests hold all answers against: it lets the right one pass, and no other."""
    request = httpx.Request("GET", f"http://test/v1/organizations/{ORGANIZATION['id']}")
    body = {"data": ORGANIZATION, "meta": {"request_id": "r", "processing_time_ms": 1}, "message": None, "toast": False}
    body |= {"responseType": "success"}
    answers = Answers()
    answers.check(httpx.Response(200, json=body, request=request))
    assert answers.seen == {("/v1/organizations/{id}", "GET"): {200}}
    changed = body | {name: value for name, value in change.items() if name != "status"}
    with pytest.raises(AssertionError, match=says):
        answers.check(httpx.Response(change.get("status", 200), json=changed, request=request))
