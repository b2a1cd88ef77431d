"""The transport that sends webhooks: httpx on the outside, aiohttp's connections inside, one policy for all.

A request names its target and its deadline in `extensions`; `build_request` makes one:

    request = build_request(policy.check_url(url), headers=headers, body=body, deadline_s=15.0)
    response = await transport.handle_async_request(request)

Measured on 2 cores, 64 at a time, uvloop: 57 µs of CPU for both lines. A request without
a target (`httpx.AsyncClient(transport=transport).post(url)`, 200 µs) has `str(request.url)` checked and
parsed by `EgressPolicy.check_url`. Either way what is dialled and what stands in the request line comes from
a `Target`, never from a second reading of the URL.

What is sent: request line, `Host`, `Accept-Encoding: identity`, `Content-Length`, then the request's headers
in their order and case, less those that frame, route or identify us (`_OURS`), then the body, in one write.
There are no redirects, cookies, proxies, retries or decompression to switch off: nothing here does them.

What is decided by the time:

- One deadline covers resolving, connecting, TLS, sending, headers and body. It is a `timeout` in every phase,
  after a 200 whose body drips on as well.
- A complete head decides the outcome. A body that breaks off after it is kept as far as it came (`broken`),
  and so is one of more than 16 KiB (`truncated`); the connection is dropped.
- **A request is written at most once.** A pooled connection that the peer has closed by the moment before the
  write is put away unused and another dialled: nothing was sent, so nothing can have been processed. Once a
  byte is handed to the system there is no telling, so a connection that breaks then is `reset` and the
  delivery's own retry policy decides. (aiohttp's session would retry idempotent methods by itself; it is not
  used.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from core.egress import EgressPolicy, Target
from core.failures import ErrorKind
from worker.connector import (
    MAX_HEAD_BYTES,
    MAX_INFORMATIONAL,
    EgressConnector,
    Handler,
    Peer,
    ThreadResolver,
    tls_context,
)
from worker.send_errors import FORESEEN, HeadTooLarge, NotHttp, SendError, send_error_from, timed_out

DEFAULT_DEADLINE_S = 15.0
MAX_BODY_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_CONNECTION_AGE_S = 300.0  # a busy pooled connection would otherwise never see its name move

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)

# Headers that are the transport's business; what a request says about them is left out.
_OURS = frozenset(
    {
        b"host", b"content-length", b"transfer-encoding", b"accept-encoding", b"connection", b"keep-alive",
        b"upgrade", b"expect", b"te", b"trailer", b"cookie", b"proxy-authorization", b"proxy-connection",
    }
)  # fmt: skip


def build_request(
    target: Target,
    *,
    headers: Mapping[str, str] | Sequence[tuple[bytes, bytes]],
    body: bytes,
    deadline_s: float = DEFAULT_DEADLINE_S,
    method: str = "POST",
) -> httpx.Request:
    """A request for `EgressTransport`, cheaply.

    Given as a stream, the body keeps httpx from adding headers that the transport sets by itself: 3 instead
    of 12 µs.
    """
    return httpx.Request(
        method,
        _url(target),
        headers=headers,
        stream=httpx.ByteStream(body),
        extensions={"target": target, "deadline_s": deadline_s},
    )


@lru_cache(maxsize=4096)
def _url(target: Target) -> httpx.URL:
    return httpx.URL(target.url)  # shown in errors; never dialled


class _Progress:
    """How far an attempt came; read when the deadline passes."""

    __slots__ = ("dialling_tls", "phase", "status")

    def __init__(self) -> None:
        self.phase = "No connection"
        self.dialling_tls = False
        self.status: int | None = None


class EgressTransport(httpx.AsyncBaseTransport):
    """Sends under a policy. Make it inside a running event loop; one per process, shared by all deliveries.

    `limit` bounds the connections in use. Waiting for one counts against the attempt's deadline, so it must
    not be below the number of deliveries that the worker sends at once. At most `max_idle` more are kept
    open.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        ca_file: str | None = None,
        client_cert_file: str | None = None,
        limit: int = 1000,
        limit_per_host: int = 0,
        max_idle: int = 500,
        keepalive_s: float = 15.0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._policy = policy
        self._resolver = resolver or ThreadResolver()
        self._connector = EgressConnector(
            policy,
            tls_context(ca_file, client_cert_file),
            resolver=self._resolver,
            limit=limit,
            limit_per_host=limit_per_host,
            max_idle=max_idle,
            keepalive_s=keepalive_s,
        )
        self._target = lru_cache(maxsize=4096)(policy.check_url)
        self._peer = lru_cache(maxsize=4096)(Peer)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One attempt. Raises `SendError`."""
        deadline_s: float = request.extensions.get("deadline_s", DEFAULT_DEADLINE_S)
        progress = _Progress()
        deadline = asyncio.timeout(deadline_s)
        try:
            async with deadline:
                return await self._send(request, progress)
        except FORESEEN as error:
            if deadline.expired():
                failure: SendError | None = timed_out(progress.phase, deadline_s, progress.status)
            else:
                failure = send_error_from(error, dialling_tls=progress.dialling_tls)
            if failure is None:
                raise
            failure.request = request
            raise failure from error

    async def aclose(self) -> None:
        """Drop every connection."""
        await self._connector.close()
        await self._resolver.close()

    async def _send(self, request: httpx.Request, progress: _Progress) -> httpx.Response:
        target: Target = request.extensions.get("target") or self._target(str(request.url))
        wire = _wire(request, target, await request.aread())
        progress.dialling_tls = target.scheme == "https"
        connection, handler = await self._connect(self._peer(target))
        try:
            progress.phase, progress.dialling_tls = "No answer", False
            handler.begin()
            if handler.transport is not None:  # else the reading below says why
                handler.transport.write(wire)
            message, payload = await _read_head(handler)
            progress.status = message.code
            body, whole = await _read_body(payload)
        except BaseException:
            _drop(connection, handler)
            raise
        if whole is _WHOLE and not _unsent(handler):
            connection.release()
        else:
            _drop(connection, handler)
        return _response(message, body, {"truncated": whole is _TRUNCATED, "broken": whole is _BROKEN})

    async def _connect(self, peer: Peer) -> tuple[Connection, Handler]:
        """A connection that nothing was sent on, or whose last answer was complete and that still stands."""
        while True:
            connection = await self._connector.connect(cast(Any, peer), [], _NO_TIMEOUT)
            handler = cast(Handler, connection.protocol)
            if not handler.reused:
                handler.reused = True
                return connection, handler
            if handler.can_be_reused(MAX_CONNECTION_AGE_S):
                return connection, handler
            _drop(connection, handler)


def _drop(connection: Connection, handler: Handler) -> None:
    # Abort, not close: close would wait for a peer that does not read, or for its TLS close_notify (30 s).
    handler.abort()
    connection.close()


def _unsent(handler: Handler) -> int:
    """Bytes of the request still here: the peer answered before it had read all."""
    return 0 if handler.transport is None else handler.transport.get_write_buffer_size()


@lru_cache(maxsize=4096)
def _request_head(method: str, target: Target) -> bytes:
    return (
        f"{method} {target.raw_path} HTTP/1.1\r\nHost: {target.host_header}\r\n"
        "Accept-Encoding: identity\r\nContent-Length: "
    ).encode("ascii")


def _wire(request: httpx.Request, target: Target, body: bytes) -> bytes:
    """The request's bytes."""
    given = [(name, value) for name, value in request.headers.raw if name.lower() not in _OURS]
    lines = b"".join([b"%b: %b\r\n" % pair for pair in given])
    breaks = len(given)
    if lines.count(b"\n") != breaks or lines.count(b"\r") != breaks or b"\0" in lines:
        raise SendError(ErrorKind.PROTOCOL, "A header to be sent holds a line break or NUL")
    return b"%b%d\r\n%b\r\n%b" % (_request_head(request.method, target), len(body), lines, body)


async def _read_head(handler: Handler) -> tuple[RawResponseMessage, StreamReader]:
    """The final status and headers; informational responses are passed over."""
    for _ in range(MAX_INFORMATIONAL + 1):
        try:
            message, payload = await handler.read()
        except FORESEEN:
            if isinstance(handler.cause, FORESEEN):
                raise handler.cause from None
            raise
        if message.code >= 200:
            break
        if message.code < 100 or message.code == 101:
            raise NotHttp
    else:
        raise NotHttp
    headers = message.raw_headers
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES:
        raise HeadTooLarge
    return message, payload


_WHOLE, _TRUNCATED, _BROKEN = "whole", "truncated", "broken"


async def _read_body(payload: StreamReader) -> tuple[bytes, str]:
    """At most `MAX_BODY_BYTES`, and whether that was all."""
    body = b""
    try:
        while not payload.at_eof():
            body += await payload.readany()
            if len(body) > MAX_BODY_BYTES:
                return body[:MAX_BODY_BYTES], _TRUNCATED
    except (aiohttp.ClientError, HttpProcessingError, OSError):
        return body, _BROKEN
    return body, _WHOLE


def _response(message: RawResponseMessage, body: bytes, facts: dict[str, Any]) -> httpx.Response:
    response = httpx.Response(
        message.code,
        headers=list(message.raw_headers),
        stream=httpx.ByteStream(body),
        extensions={"http_version": b"HTTP/1.1", **facts},
    )
    # httpx would unpack what a Content-Encoding claims, 10 KiB into 10 MiB; a body that is there it leaves
    # alone.
    response._content = body
    return response
