"""Requests that no schema makes: broken JSON, bytes that are no text, strange types, headers and queries."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.api import FAST, URL
from tests.openapi import OPERATIONS

RAW_QUERY = "x-raw-query"  # a header of the tests alone, in which a query travels as it is


@dataclass(frozen=True)
class Request:
    headers: dict[str, Any]
    query: bytes
    body: bytes


# Bodies that are accepted, by path; of all others {}.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/events": {"event_type": "a.b", "data": {"a": 1}, "event_id": "mine", "metadata": {"b": 2}, "branch_id": "c"},
    "/v1/events/batch": {"events": [{"event_type": "a.b", "data": {"a": 1}}]},
    "/v1/webhooks/subscriptions": {
        "url": URL,
        "events": ["a.*"],
        "filters": {"a": {"$in": [1]}},
        "retry_policy": FAST,
        "headers": {"X-A": "b"},
        "limits": {"per_second": 1},
        "circuit_breaker": {"timeout_ms": 1000},
        "metadata": {"a": 1},
    },
    "/v1/webhooks/subscriptions/{id}": {"filters": {"a": 1}, "description": "d", "timeout_ms": 1000},
    "/v1/webhooks/subscriptions/{id}/resume": {"sync_from": "2026-01-28T10:15:00Z", "priority": "high"},
    "/v1/webhooks/subscriptions/{id}/secret/rotate": {"grace_period_s": 1},
    "/v1/webhooks/subscriptions/{id}/test": {"event_type": "a", "data": {"a": 1}},
    "/v1/replays": {"filters": {"status": ["dead"], "status_code": 503}, "dry_run": True, "rate_per_second": 5},
    "/v1/event-types": {"name": "a.b", "schema": {"a": 1}, "example": {"a": 1}, "description": "d"},
    "/v1/event-types/{name}": {"schema": {"a": 1}, "example": {"a": 1}, "description": "d"},
    "/v1/organizations": {"name": "o"},
    "/v1/organizations/{id}": {"name": "o"},
    "/v1/api-keys": {"name": "k", "scopes": ["events.read"]},
}
# What a value in the JSON is replaced by.
VALUES = [
    *(b"NaN", b"-Infinity", b"1e400", b"-0", b"-0.0", b"1e-400", b"0x10", b"01", b"+1", b"1.", b".5", b"1_0"),
    *(b"9" * 20, b"-" + b"9" * 400, b"9" * 4300, b"9" * 4301, b"1e308", b"18446744073709551616", b"1" + b"0" * 309),
    *(
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b'"\\u0000"',
        b'"\\ud83d\\ude00"',
        b'"\xed\xa0\x80"',
        b'"\xc0\xaf"',
        b'"\xff"',
    ),
    *(b'"\\x41"', b'"\n"', b'"\\', b"'a'", b'"\xf4\x90\x80\x80"', b'"' + b"\\u202e" * 50 + b'"'),
    *(b"[" * 63 + b"]" * 63, b"[" * 2000 + b"]" * 2000, b'{"a":' * 2000 + b"1" + b"}" * 2000, b"[" * 100_000),
    *(
        b'{"a":1,"a":2}',
        b'{"":{"":{"":null}}}',
        b'{"__proto__":1,"$where":1,"$ref":"#"}',
        b"[,]",
        b"{,}",
        b"tru",
        b"null",
    ),
]
TYPES = [
    *(None, "", "application/json", "application/json; charset=utf-16", "text/json", "application/json, text/plain"),
    *("multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "application/merge-patch+json", ";", "/"),
]
HEADERS = [
    "Idempotency-Key",
    "If-Match",
    "X-Branch-ID",
    "X-Request-ID",
    "Content-Encoding",
    "Accept",
    "X-Forwarded-For",
]
HEADER_VALUES = st.one_of(
    st.sampled_from(
        [b"", b" ", b"*", b'"version-1"', b'W/"version-1"', b'"version-99999999999"', b"\xff", b"\x80\x81"]
    ),
    st.sampled_from(["é".encode(), b"a" * 256, b"a" * 20_000, b"gzip", b"identity", b"\t", b"a\tb", b"\x7f", b"\x01"]),
    st.binary(max_size=40).map(lambda value: re.sub(rb"[\r\n\0]", b"", value)),
)
QUERIES = [
    *(
        b"&",
        b"=",
        b"?",
        b"&&&=",
        b"%",
        b"%zz",
        b"%00",
        b"%ff=%fe",
        b"\xff=\xff",
        b"a=1;b=2",
        b"filters",
        b"filters[]=1",
    ),
    *(
        b"filters[status][]=dead",
        b"filters[[status]]=dead",
        b"filters[status]=dead&filters[status]=sending",
        b"limit=1e2",
    ),
    *(b"limit=+1", b"limit=%D9%A1", b"limit=0x1", b"limit=" + b"9" * 5000, b"page=1&pageSize=1&limit=1", b"page=-1"),
    *(b"after_key=====", b"after_key=" + b"A" * 22, b"after_key=_" * 3, b"after_key=%F0%9F%98%80", b"fields=,,,"),
    *(
        b"fields=" + b"a," * 2000,
        b"include=attempts,attempts",
        b"a=1&" * 3000,
        b"filters[created_after]=0001-01-01T00:00Z",
    ),
    *(b"filters[status_code]=%C2%B2%C2%B2%C2%B2", b"filters[ids]=" + b"," * 5000, b"filters[event_type]=%ED%A0%80"),
    *(
        b"filters[created_before]=9999-12-31T23:59:59-23:59",
        b"filters[reason]=a%20or%201=1",
        b"sort=created_at,-created_at",
    ),
]


def names_in(path: str) -> list[str]:
    return re.findall(r"\{([a-z_]+)\}", path)


@st.composite
def requests(draw: st.DrawFn, path: str, method: str) -> Request:
    headers: dict[str, Any] = draw(st.dictionaries(st.sampled_from(HEADERS), HEADER_VALUES, max_size=2))
    body = b""
    if "requestBody" in OPERATIONS[path, method]:
        body = draw(_bodies(BODIES.get(path, {})))
        kind = draw(st.sampled_from(TYPES)) if draw(st.integers(0, 5)) == 0 else "application/json"
        headers |= {} if kind is None else {"Content-Type": kind}
    strange = draw(st.integers(0, 5)) == 0 or method == "GET"
    return Request(headers, draw(st.sampled_from(QUERIES) | st.binary(max_size=30)) if strange else b"", body)


@st.composite
def _bodies(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    text = json.dumps(good).encode()
    match draw(st.sampled_from(["value", "key", "twice", "cut", "bytes", "anything"])):
        case "value":  # one of the values, whichever, is something else
            places = [match.span() for match in re.finditer(rb'(?<=: )("[^"]*"|[0-9.]+|true)', text)] or [
                (0, len(text))
            ]
            start, end = draw(st.sampled_from(places))
            return text[:start] + draw(st.sampled_from(VALUES)) + text[end:]
        case "key":
            places = [match.span() for match in re.finditer(rb'"[^"]*"(?=:)', text)] or [(0, len(text))]
            start, end = draw(st.sampled_from(places))
            return text[:start] + draw(st.sampled_from([b'"\\u0000"', b'"\\ud800"', b'"$"', b'""', b"1"])) + text[end:]
        case "twice":  # the last counts
            field = draw(st.sampled_from(sorted(good) or ["a"])).encode()
            return b'{"%b": %b, %b' % (field, draw(st.sampled_from(VALUES)), text[1:])
        case "cut":
            return text[: draw(st.integers(0, len(text)))]
        case "bytes":
            at = draw(st.integers(0, len(text)))
            return text[:at] + draw(st.binary(min_size=1, max_size=4)) + text[at:]
    return draw(st.binary(max_size=40) | st.sampled_from([b"\xef\xbb\xbf{}", b"\x1f\x8b", b" " * 100_000, b"{}" * 2]))


def query(request: Request) -> dict[str, Any]:
    return {RAW_QUERY: request.query.hex()} if request.query else {}


def raw(app: ASGIApp) -> ASGIApp:
    """`app`, with a query as it was meant: httpx would percent-encode it."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        given = [value for name, value in scope["headers"] if name == RAW_QUERY.encode()]
        if given:
            scope = {**scope, "query_string": bytes.fromhex(given[0].decode())}
        await app(scope, receive, send)

    return call
