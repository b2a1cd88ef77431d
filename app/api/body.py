"""Reading a request's body: JSON, and no more of it than is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from core import jsontext
from core.errors import PayloadTooLarge, UnsupportedMediaType, quoted


async def read(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes:
    """The whole body. Raises `PayloadTooLarge` as soon as it exceeds `max_bytes`, before it is all here, and
    `ClientDisconnect` when the rest will never come."""
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise _too_large(max_bytes)
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def parse(headers: Mapping[str, str], body: bytes) -> Any:
    """The JSON value in `body`. Raises `UnsupportedMediaType` or `ValidationFailed`."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding: {quoted(encoding)}; send the JSON as it is, without one")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"Content-Type: {quoted(media_type)}; send JSON with Content-Type: application/json" if media_type else None
        )
    return jsontext.loads(body)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body exceeds {max_bytes} bytes; send a smaller one", details={"max_bytes": max_bytes})
