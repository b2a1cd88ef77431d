"""The OpenAPI 3.1 document: put together once, from `app.routes.API`, the models of requests (inputs.py) and answers
(answers.py), and what operations.py says of each operation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from app.api import calls, fields
from app.api.calls import Action
from app.api.components import CODES, HEADERS, PARAMETERS, RATE, SCHEMAS, chosen, failure, name_of, schemas
from app.api.fields import Schema
from app.api.operations import OPERATIONS, Operation
from core import ids

PATH = "/v1/openapi.json"
VERSION = "1"  # of the API, as in its paths
# What the id in a path is of, by what stands before it.
_IDS = {
    "/v1/events/": ids.EVENT,
    "/v1/deliveries/": ids.DELIVERY,
    "/v1/webhooks/subscriptions/": ids.SUBSCRIPTION,
    "/v1/replays/": ids.REPLAY,
    "/v1/organizations/": ids.ORGANIZATION,
    "/v1/api-keys/": ids.API_KEY,
}

DESCRIPTION = (
    "Accepts events and delivers each to every subscription that wants it, signed, until the receiver has it or a"
    " person decides. Field names are promised: some may be added, none is renamed or removed. Unknown fields and"
    " query parameters are refused."
)


def routes(api: Mapping[str, Mapping[str, Action]]) -> list[BaseRoute]:
    """The document is for anybody: it says what the API is, which is no secret, and nothing of anybody's."""

    @cache
    def text() -> bytes:  # not before somebody asks: it would be a tenth of the time that a process takes to start
        return orjson.dumps(document(api))

    async def show(request: Request) -> Response:
        headers = {"X-Request-ID": calls.request_id_of(request), "Cache-Control": "no-store"}
        return Response(text(), media_type="application/json", headers=headers)

    return [Route(PATH, show)]


def document(api: Mapping[str, Mapping[str, Action]]) -> Schema:
    """What operations.py does not describe is left out, which a test does not let pass."""
    described = {
        path: {
            method: (actions[method], said) for method, said in OPERATIONS.get(path, {}).items() if method in actions
        }
        for path, actions in api.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Hookwright", "version": VERSION, "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"apiKey": []}, {"bearer": []}],
        "paths": {
            path: {method.lower(): _operation(path, method, *one) for method, one in methods.items()}
            for path, methods in described.items()
        },
        "components": {
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "sk_live_…"},
                "bearer": {"type": "http", "scheme": "bearer", "description": "The same key, or an access token"},
            },
            "schemas": _schemas([one for methods in described.values() for one in methods.values()]),
            "responses": {name_of(status): failure(status, codes) for status, codes in CODES.items()},
            "headers": HEADERS,
            "parameters": PARAMETERS,
        },
    }


def _schemas(operations: Sequence[tuple[Action, Operation]]) -> Schema:
    return schemas(
        [model for _, one in operations for model in one.models],
        [one.takes for _, one in operations if one.takes is not None],
        [model for action, one in operations if action.lists or action.exports for model in one.models],
    )


# --- one operation -------------------------------------------------------------------------------------------------


def _operation(path: str, method: str, action: Action, said: Operation) -> Schema:
    noun = path.removeprefix("/v1/").removeprefix("webhooks/").partition("/")[0]
    shown: Schema = {
        "operationId": _operation_id(path, method),
        "tags": [noun],
        "summary": said.summary,
        "description": f"Needs the scope `{action.scope}`.",
        "x-required-scope": action.scope,
        "parameters": list(_parameters(path, method, action, said)),
        "responses": {
            **{str(status): _success(method, action, said, status) for status in _statuses(method, said)},
            **{str(status): {"$ref": f"#/components/responses/{name_of(status)}"} for status in _faults(method, said)},
        },
    }
    if said.takes is not None:
        content = {"application/json": {"schema": {"$ref": SCHEMAS + said.takes.__name__}}}
        # Where no field is required, an absent body is an empty object.
        schema = said.takes.model_json_schema()
        shown["requestBody"] = {"required": bool(schema.get("required")), "content": content}
    return shown


def _operation_id(path: str, method: str) -> str:
    words = [word for word in re.split(r"[^a-zA-Z]+", path.removeprefix("/v1/")) if word]
    return method.lower() + "".join(word[0].upper() + word[1:] for word in words)


def _parameters(path: str, method: str, action: Action, said: Operation) -> Iterator[Schema]:
    for before, name in re.findall(r"([^{}]*)\{([a-z_]+)\}", path):
        schema = fields.EVENT_TYPE if name == "name" else fields.id_of(_IDS[before])
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    shared = ["X-Request-ID"]
    if action.tenant or said.names_organization:
        shared.append("X-Organization-ID")
    if said.labels:
        shared.append("X-Branch-ID")
    if method == "POST" and not said.repeats:
        shared.append("Idempotency-Key")
    if said.versioned and _acts_on_one(path, method):
        shared.append("If-Match")
    if action.lists:
        shared += ["limit", "after_key", "page", "pageSize"]
    if action.lists or action.exports:
        shared.append("sort")
    yield from ({"$ref": f"#/components/parameters/{name}"} for name in shared)
    for name, schema in said.filters.items():
        yield {"name": f"filters[{name}]", "in": "query", "schema": schema}
    if action.lists or action.exports:
        names = [name for model in said.models for name in model.names()]
        yield _separated("fields", names, "Names of fields to show")
    if said.includes:
        yield _separated("include", said.includes, "What else to show")


def _separated(name: str, words: Sequence[str], description: str) -> Schema:
    schema = {"type": "array", "items": {"type": "string", "enum": list(words)}}
    said = f"{description}, separated by commas"
    return {"name": name, "in": "query", "style": "form", "explode": False, "schema": schema, "description": said}


def _acts_on_one(path: str, method: str) -> bool:
    return method != "GET" and "{" in path


def _statuses(method: str, said: Operation) -> list[int]:
    """A repeat of a POST is answered 200 with the first result."""
    return sorted({said.status, 200}) if method == "POST" else [said.status]


def _faults(method: str, said: Operation) -> list[int]:
    found = {400, 401, 403, 404, 429, 500, 503}
    if method in {"POST", "PATCH"}:
        found |= {413, 415}
    if method == "POST":
        found |= {409, 422}
    if said.conflicts or (said.versioned and method != "GET"):
        found.add(409)
    return sorted(found)


def _success(method: str, action: Action, said: Operation, status: int) -> Schema:
    names = [one.__name__ for one in said.models]
    if action.lists or action.exports:
        names += [chosen(one) for one in said.models]
    refs = [{"$ref": SCHEMAS + name} for name in names]
    data: Schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    line = data
    if action.lists or said.many:
        data = {"type": "array", "items": data}
    meta = "ListMeta" if action.lists else "Meta"
    headers = ["X-Request-ID", *RATE]
    if said.versioned or said.shows_version:
        headers.append("ETag")
    shown = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    if action.exports:
        # OpenAPI 3.1 has no word for the schema of a line.
        content = {"application/x-ndjson": {"schema": {"type": "string"}, "x-line": line}}
        return {"description": "A line each", "headers": shown, "content": content}
    repeated = method == "POST" and status == 200 != said.status
    return {
        "description": "A repeat of an earlier request: its first result" if repeated else "Success",
        "headers": shown,
        "content": {
            "application/json": {
                "schema": {
                    "allOf": [
                        {"$ref": SCHEMAS + "Success"},
                        {"properties": {"data": data, "meta": {"$ref": SCHEMAS + meta}}},
                    ]
                }
            }
        },
    }
