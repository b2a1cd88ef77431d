"""The envelope around every answer (docs/api.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.responses import Response

from core import jsontext, timestamps
from core.errors import AuthenticationFailed, HookwrightError, Unavailable


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers. `version` becomes the ETag; `meta` is added to the envelope's."""

    data: Any
    status: int = 200
    message: str | None = None
    version: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def _headers(request_id: str) -> dict[str, str]:
    return {"X-Request-ID": request_id, "Cache-Control": "no-store"}  # some answers show a secret, all grow old


def success(reply: Reply, request_id: str, elapsed_ms: int) -> Response:
    meta = {"request_id": request_id, "processing_time_ms": elapsed_ms, **reply.meta}
    headers = _headers(request_id)
    if reply.version is not None:
        headers["ETag"] = f'"version-{reply.version}"'
    body = {
        "data": reply.data,
        "meta": meta,
        "message": reply.message,
        "toast": False,
        "responseType": "success",
    }
    return Response(jsontext.dumps(body), reply.status, headers, "application/json")


def failure(error: HookwrightError, request_id: str) -> Response:
    headers = _headers(request_id)
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, AuthenticationFailed):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, section 15.5.2: every 401 names a scheme
    if allow := error.details.get("allow"):
        headers["Allow"] = ", ".join(allow)
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
    return Response(orjson.dumps(body, default=str), error.status, headers, "application/json")
