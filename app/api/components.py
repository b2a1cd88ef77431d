"""What operations of the OpenAPI document share: the envelope, errors, headers, parameters, and schemas of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.api import fields, lists
from app.api.answers import Answer
from app.api.fields import Schema
from app.api.inputs import Input
from core import errors, ids
from core.idempotency import MAX_KEY_CHARS
from core.listing.lists import MAX_COUNTED

SCHEMAS = "#/components/schemas/"


def schemas(answers: Iterable[type[Answer]], requests: Iterable[type[Input]], listed: Iterable[type[Answer]]) -> Schema:
    """Of these models and of those that they name; of those `listed`, a second one with any of the fields."""
    wanted: dict[tuple[type[Any], JsonSchemaMode], None] = {(model, "serialization"): None for model in answers}
    wanted |= {(model, "validation"): None for model in requests}
    _, found = models_json_schema(list(wanted), ref_template=SCHEMAS + "{model}")
    shapes: Schema = {name: _plain(schema) for name, schema in found["$defs"].items()}
    for model in listed:
        shape = shapes[model.__name__]
        shapes[chosen(model)] = {
            "type": "object",
            "description": f"Of {model.__name__}, what `fields` names",
            "properties": shape["properties"],
        }
    return shapes | _ENVELOPE


def chosen(model: type[Answer]) -> str:
    return f"{model.__name__}Chosen"


def _plain(schema: Any) -> Any:
    """Without the titles that pydantic makes of names, and defaults that are null."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    shown = {}
    for name, value in schema.items():
        if (name == "title" and isinstance(value, str)) or (name == "default" and value is None):
            continue
        # Below `properties` stand names of fields, which may be title or default.
        shown[name] = {key: _plain(one) for key, one in value.items()} if name == "properties" else _plain(value)
    return shown


def _kinds(of: type[errors.HookwrightError]) -> Iterator[type[errors.HookwrightError]]:
    yield of
    for one in of.__subclasses__():
        yield from _kinds(one)


def _codes() -> dict[int, list[str]]:
    found: dict[int, set[str]] = {429: {"RATE_LIMIT_EXCEEDED"}}
    for kind in _kinds(errors.HookwrightError):
        found.setdefault(kind.status, set()).add(kind.code)
    return {status: sorted(codes) for status, codes in sorted(found.items())}


CODES = _codes()


def name_of(status: int) -> str:
    return f"Error{status}"


_MORE_HEADERS = {401: ["WWW-Authenticate"], 405: ["Allow"], 429: ["Retry-After"], 503: ["Retry-After"]}


def failure(status: int, codes: list[str]) -> Schema:
    names = ["X-Request-ID", *RATE, *_MORE_HEADERS.get(status, [])]
    code = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    schema = {"allOf": [{"$ref": SCHEMAS + "Failure"}, code]}
    return {
        "description": " or ".join(codes),
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {"application/json": {"schema": schema}},
    }


def _object(properties: Schema, *optional: str) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


_STRING: Schema = {"type": "string"}
_META = {
    "request_id": _STRING,
    "processing_time_ms": {"type": "integer"},
    "idempotent": {"const": True, "description": "This is the answer to an earlier request, given again"},
    "original_created_at": fields.TIME,
}
_ENVELOPE: Schema = {
    "Meta": _object(_META, "idempotent", "original_created_at"),
    "ListMeta": _object(
        {
            "request_id": _STRING,
            "processing_time_ms": {"type": "integer"},
            "pagination": {"$ref": SCHEMAS + "Pagination"},
        }
    ),
    "Pagination": _object(
        {
            "pageSize": {"type": "integer"},
            "page": {"type": "integer", "description": "Only when paging by number, like total"},
            "total": fields.whole(0, MAX_COUNTED),
            "totalIsExact": {"type": "boolean"},
            "hasMore": {"type": "boolean"},
            "nextCursor": {"type": ["string", "null"]},
            "sort": {"enum": ["-created_at", "created_at"]},
            "searchedTo": {**fields.TIME, "description": "How far this page has looked, where it did not fill"},
        },
        *("page", "total", "totalIsExact", "searchedTo"),
    ),
    "Success": _object(
        {
            "data": {},
            "meta": {"type": "object"},
            "message": {"type": ["string", "null"]},
            "toast": {"const": False},
            "responseType": {"const": "success"},
        }
    ),
    "Failure": _object(
        {
            "data": {"type": "null"},
            "error": _object(
                {
                    "code": {"enum": sorted({code for codes in CODES.values() for code in codes})},
                    "message": _STRING,
                    "details": {
                        "type": "object",
                        "description": "Each fault under its dotted path, or what else helps",
                    },
                    "request_id": _STRING,
                    "timestamp": fields.TIME,
                }
            ),
            "message": _STRING,
            "toast": {"const": False},
            "responseType": {"const": "error"},
        }
    ),
}

_WHOLE: Schema = {"type": "integer"}
RATE = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
HEADERS: Schema = {
    "X-Request-ID": {"description": "The caller's, or one of ours", "required": True, "schema": _STRING},
    "X-RateLimit-Limit": {"description": "Requests a minute that this key may make", "schema": _WHOLE},
    "X-RateLimit-Remaining": {"description": "How many of them are left now", "schema": _WHOLE},
    "X-RateLimit-Reset": {
        "description": "When all that may come at once may come again, in Unix seconds",
        "schema": _WHOLE,
    },
    "Retry-After": {"description": "Seconds", "required": True, "schema": _WHOLE},
    "ETag": {"description": "The version, for If-Match", "schema": {**_STRING, "examples": ['"version-5"']}},
    "WWW-Authenticate": {"required": True, "schema": _STRING},
    "Allow": {"required": True, "schema": _STRING},
}


def _parameter(name: str, where: str, schema: Schema, description: str = "", **more: Any) -> Schema:
    return {"name": name, "in": where, "schema": schema, "description": description, **more}


_VERSION = r'^(\*|(W/)?"version-[0-9]{1,9}")$'
PARAMETERS: Schema = {
    one["name"]: one
    for one in (
        _parameter("X-Request-ID", "header", _STRING, "1 to 128 letters, digits, . _ and - are kept, others replaced"),
        _parameter(
            "X-Organization-ID",
            "header",
            fields.id_of(ids.ORGANIZATION),
            "The organization that a platform key acts for; an organization's key may leave it out",
        ),
        _parameter("X-Branch-ID", "header", _STRING, "Labels what the body gives no branch_id; UTF-8"),
        _parameter(
            "Idempotency-Key",
            "header",
            fields.text(1, MAX_KEY_CHARS, pattern="^[ -~]+$"),
            "Kept for 24 hours; a repeat is answered 200 with the first result",
        ),
        _parameter(
            "If-Match",
            "header",
            {**_STRING, "pattern": _VERSION, "examples": ['"version-5"']},
            "The version that is changed, or *",
        ),
        _parameter(
            "limit", "query", fields.whole(1, lists.MAX_LIMIT), f"Rows a page, {lists.DEFAULT_LIMIT} by default"
        ),
        _parameter(
            "after_key",
            "query",
            {**_STRING, "pattern": "^[A-Za-z0-9_-]{22}$"},
            "The nextCursor of the page before; with limit",
        ),
        _parameter("page", "query", fields.whole(1, MAX_COUNTED), "Instead of after_key, with pageSize"),
        _parameter("pageSize", "query", fields.whole(1, lists.MAX_LIMIT)),
        _parameter("sort", "query", {"type": "string", "enum": ["-created_at", "created_at"]}),
    )
}
