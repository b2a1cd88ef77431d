"""Holds answers against the OpenAPI document, more strictly than a client would: a field that is not in it fails."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import httpx
import jsonschema_rs

from app.api import openapi
from app.routes import API

DOCUMENT = json.loads(json.dumps(openapi.document(API)))
OPERATIONS = {
    (path, method.upper()): one for path, methods in DOCUMENT["paths"].items() for method, one in methods.items()
}
_PATHS = {re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", path)): path for path in DOCUMENT["paths"]}


class Answers:
    """Checks each answer it is given, and knows which operations it has seen and how they ended."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], set[int]] = {}

    async def hook(self, response: httpx.Response) -> None:
        """For `httpx.AsyncClient(event_hooks={"response": [...]})`."""
        await response.aread()
        self.check(response)

    def check(self, response: httpx.Response) -> None:
        path, method = path_of(response.request.url.path), response.request.method
        if path is None or (path, method) not in OPERATIONS:
            return
        chosen = "fields" in response.request.url.params
        said = f"{method} {response.request.url}: {response.status_code} {response.text[:1000]}"
        media_type, validator = _expected(path, method, response.status_code, chosen)
        assert validator is not None, f"This status is not documented: {said}"
        assert response.headers["content-type"] == media_type
        lines = media_type.endswith("ndjson")  # which a newline alone ends, and str.splitlines sees many more
        for text in filter(None, response.text.split("\n")) if lines else [response.text]:
            faults = [
                f"{error.message[:300]} at {error.instance_path}" for error in validator.iter_errors(json.loads(text))
            ]
            assert not faults, f"{faults}: {said}"
        self.seen.setdefault((path, method), set()).add(response.status_code)


def path_of(url: str) -> str | None:
    """The path of the document, exact ones first, as the router has it."""
    found = [path for pattern, path in _PATHS.items() if pattern.fullmatch(url)]
    return min(found, key=lambda path: path.count("{"), default=None)


@cache
def _expected(path: str, method: str, status: int, chosen: bool) -> tuple[str, Any]:
    response = OPERATIONS[path, method]["responses"].get(str(status))
    if response is None:
        return "", None
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    [(media_type, content)] = response["content"].items()
    schema = content.get("x-line", content["schema"])
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "allOf": [schema], "components": _PARTS}
    return media_type, jsonschema_rs.validator_for(_closed(whole, chosen))


_PARTS = {"schemas": DOCUMENT["components"]["schemas"]}


def _closed(schema: Any, chosen: bool) -> Any:
    """Objects have no other fields than those named; items have all of them, unless the caller has `chosen`."""
    if isinstance(schema, list):
        return [_closed(one, chosen) for one in schema if chosen or not _is_choice(one)]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value, chosen) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema:
        closed["additionalProperties"] = False
    return closed


def _is_choice(schema: Any) -> bool:
    return isinstance(schema, dict) and str(schema.get("$ref", "")).endswith("Chosen")
