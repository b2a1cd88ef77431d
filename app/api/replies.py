"""The envelope around every answer (docs/api.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson
from starlette.responses import Response, StreamingResponse

from core import jsontext, timestamps
from core.errors import AuthenticationFailed, HookwrightError, RateLimitExceeded, Unavailable
from core.limiting.rate_limits import Verdict


class Reply(NamedTuple):
    """What a handler answers. `version` becomes the ETag; `meta` is added to the envelope's."""

    data: Any
    status: int = 200
    message: str | None = None
    version: int | None = None
    meta: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Lines:
    """What a handler answers that is too long for an envelope: JSON lines, made while they are sent."""

    items: AsyncIterator[bytes]


class _Answer(Response):
    """Starlette's, without its work on every header's name: ours are all known."""

    media_type = "application/json"

    def __init__(self, body: bytes, status: int, request_id: str, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"x-request-id", request_id.encode("latin-1")),
            (b"cache-control", b"no-store"),  # some answers show a secret, all grow old
            (b"x-content-type-options", b"nosniff"),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            *more,
        ]


def rate_headers(verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """What docs/api.md says of them."""
    return [
        (b"x-ratelimit-limit", b"%d" % verdict.limit),
        (b"x-ratelimit-remaining", b"%d" % verdict.remaining),
        (b"x-ratelimit-reset", b"%d" % verdict.reset_at),
    ]


def success(reply: Reply, request_id: str, elapsed_ms: int) -> Response:
    meta = {"request_id": request_id, "processing_time_ms": elapsed_ms, **reply.meta}
    body = {
        "data": reply.data,
        "meta": meta,
        "message": reply.message,
        "toast": False,
        "responseType": "success",
    }
    more = () if reply.version is None else ((b"etag", b'"version-%d"' % reply.version),)
    return _Answer(jsontext.dumps(body), reply.status, request_id, more)


def streaming(lines: Lines, request_id: str) -> Response:
    """Without a length: when it breaks off, the connection is closed before the last chunk, which no client of HTTP/1.1
    takes for the end (RFC 9112, section 8)."""
    headers = {"X-Request-ID": request_id, "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(lines.items, headers=headers, media_type="application/x-ndjson")


def failure(error: HookwrightError, request_id: str) -> Response:
    more: list[tuple[bytes, bytes]] = []
    if isinstance(error, Unavailable | RateLimitExceeded):
        more.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, AuthenticationFailed):
        more.append((b"www-authenticate", b"Bearer"))  # RFC 9110, section 15.5.2: every 401 names a scheme
    if allow := error.details.get("allow"):
        more.append((b"allow", ", ".join(allow).encode("latin-1")))
    body = {
        "data": None,
        "error": {
            "code": error.code,
            "message": error.message,
            "details": error.details,
            "request_id": request_id,
            "timestamp": timestamps.show(datetime.now(UTC)),
        },
        "message": error.message,
        "toast": False,
        "responseType": "error",
    }
    return _Answer(orjson.dumps(body, default=str), error.status, request_id, more)
