"""The transport that sends webhooks: its own requests over aiohttp's connections, one policy for all.

    target = policy.check_url(url)
    answer = await transport.post(target, header_lines(headers), body, deadline_s=15.0)

Measured on 2 cores, 64 at a time, uvloop, 1 KB: 60 µs of CPU for the second line, where aiohttp's own client takes 147.
It serves an `httpx.AsyncClient(transport=transport)` as well (370 µs, nearly all of them httpx's).
`request.extensions` may name the `target` and the `deadline_s`; without a target, `str(request.url)` is checked and
parsed by `EgressPolicy.check_url`. What is dialled and what stands in the request line comes from a `Target`, never
from a second reading of the URL.

What is sent: request line, `Host`, `Accept-Encoding: identity`, `Content-Length`, then the request's headers
in their order and case, less those that frame, route or identify us (`_OURS`), then the body, in one write.
There are no redirects, cookies, proxies of the environment, retries or decompression to switch off: nothing here does
them. A proxy that the operator set is a way to connect and no more (`worker.proxy`).

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
from collections.abc import Awaitable, Iterable, Sequence
from functools import lru_cache
from typing import Any, cast

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader

from core.egress import EgressPolicy, Target
from core.failures import ErrorKind
from worker.connector import (
    MAX_INFORMATIONAL,
    EgressConnector,
    Handler,
    Peer,
    ThreadResolver,
    tls_context,
)
from worker.proxy import Proxy
from worker.send_errors import FORESEEN, HeadTooLarge, NotHttp, SendError, send_error_from, timed_out

DEFAULT_DEADLINE_S = 15.0
MAX_BODY_BYTES = 16 * 1024
MAX_HEADERS = 100
MAX_CONNECTION_AGE_S = 300.0  # a busy pooled connection would otherwise never see its name move

_ENDS: tuple[type[BaseException], ...] = (*FORESEEN, asyncio.CancelledError)

# Headers that are the transport's business; what a request says about them is left out.
_OURS = frozenset(
    {
        "host", "content-length", "transfer-encoding", "accept-encoding", "connection", "keep-alive",
        "upgrade", "expect", "te", "trailer", "cookie", "proxy-authorization", "proxy-connection",
    }
)  # fmt: skip


class Answer:
    """What came back."""

    __slots__ = ("body", "broken", "headers", "status", "truncated")

    def __init__(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, truncated: bool, broken: bool
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body  # as far as it came, at most `MAX_BODY_BYTES`
        self.truncated = truncated
        self.broken = broken


class _Try:
    """How far a request came, and its deadline, which cancels the task that waits."""

    __slots__ = ("_cancellations", "_task", "_timer", "dialling_tls", "late", "phase", "status")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline_s: float) -> None:
        self.phase = "No connection"
        self.dialling_tls = False
        self.status: int | None = None
        self.late = False
        # What `asyncio.timeout` does, for a third of its 6 µs.
        self._task = cast("asyncio.Task[Any]", asyncio.current_task(loop))
        self._cancellations = self._task.cancelling()
        self._timer = loop.call_later(deadline_s, self._be_late)

    def _be_late(self) -> None:
        self.late = True
        self._task.cancel()

    def end(self) -> bool:
        """Call once. Whether the deadline passed and nobody else cancelled the task."""
        self._timer.cancel()
        return self.late and self._task.uncancel() <= self._cancellations


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
        client_key_file: str | None = None,
        proxy_url: str | None = None,
        limit: int = 1000,
        limit_per_host: int = 0,
        max_idle: int = 500,
        keepalive_s: float = 15.0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._policy = policy
        self._resolver = resolver or ThreadResolver()
        self._connector = EgressConnector(
            policy,
            tls_context(ca_file, client_cert_file, client_key_file),
            resolver=self._resolver,
            limit=limit,
            limit_per_host=limit_per_host,
            max_idle=max_idle,
            keepalive_s=keepalive_s,
            proxy=None if proxy_url is None else Proxy(proxy_url),
        )
        self._target = lru_cache(maxsize=4096)(policy.check_url)

    def post(self, target: Target, lines: bytes, body: bytes, deadline_s: float) -> Awaitable[Answer]:
        """One attempt, to be awaited at once. `lines` are `header_lines`. Raises `SendError`."""
        it = _Try(self._loop, deadline_s)
        return self._in_time(it, deadline_s, self._exchange(it, "POST", target, lines, body))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One attempt. Raises `SendError`."""
        deadline_s: float = request.extensions.get("deadline_s", DEFAULT_DEADLINE_S)
        it = _Try(self._loop, deadline_s)
        try:
            return _response(await self._in_time(it, deadline_s, self._exchange_httpx(it, request)))
        except SendError as error:
            error.request = request
            raise

    async def aclose(self) -> None:
        """Drop every connection."""
        await self._connector.close()
        await self._resolver.close()

    async def _in_time(self, it: _Try, deadline_s: float, exchange: Awaitable[Answer]) -> Answer:
        try:
            answer = await exchange
        except _ENDS as error:
            alone = it.end()
            if it.late and (alone or not isinstance(error, asyncio.CancelledError)):
                failure: SendError | None = timed_out(it.phase, deadline_s, it.status)
            else:
                failure = send_error_from(error, dialling_tls=it.dialling_tls)
            if failure is None:
                raise
            _let_go(error)
            try:
                raise failure from error
            finally:
                del failure  # it holds this frame
        except BaseException:
            it.end()
            raise
        it.end()
        return answer

    async def _exchange_httpx(self, it: _Try, request: httpx.Request) -> Answer:
        target: Target = request.extensions.get("target") or self._target(str(request.url))
        body = await request.aread()
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw]
        return await self._exchange(it, request.method, target, header_lines(headers, "latin-1"), body)

    async def _exchange(self, it: _Try, method: str, target: Target, lines: bytes, body: bytes) -> Answer:
        peer, head = _route(method, target)
        wire = b"%b%d\r\n%b\r\n%b" % (head, len(body), lines, body)
        it.dialling_tls = peer.is_ssl()
        connector = self._connector
        handler = connector.take(peer, MAX_CONNECTION_AGE_S)
        if handler is None:
            handler = await connector.dial(peer, MAX_CONNECTION_AGE_S)
        try:
            it.phase, it.dialling_tls = "No answer", False
            handler.begin()
            if handler.transport is not None:  # else the reading below says why
                handler.transport.write(wire)
            message, payload = await _read_head(handler)
            it.status = message.code
            body, whole = await _read_body(payload)
        except BaseException:
            connector.drop(peer, handler)
            raise
        if whole is _WHOLE and not _unsent(handler):
            connector.keep(peer, handler)
        else:
            connector.drop(peer, handler)
        return Answer(message.code, message.raw_headers, body, truncated=whole is _TRUNCATED, broken=whole is _BROKEN)


def _let_go(error: BaseException) -> None:
    """Cut the frames that a foreseen error passed off it.

    They hold the request and what came, and the error is among what they hold: such a cycle, with its body, would
    wait for the garbage collector.
    """
    chain = [error]
    for each in chain:
        chain += [one for one in (each.__cause__, each.__context__) if one is not None and one not in chain]
        each.__traceback__ = each.__context__ = None


def _unsent(handler: Handler) -> int:
    """Bytes of the request still here: the peer answered before it had read all."""
    return 0 if handler.transport is None else handler.transport.get_write_buffer_size()


@lru_cache(maxsize=4096)
def _route(method: str, target: Target) -> tuple[Peer, bytes]:
    """Whom to connect to, and a request's head as far as the length."""
    head = (
        f"{method} {target.raw_path} HTTP/1.1\r\nHost: {target.host_header}\r\n"
        "Accept-Encoding: identity\r\nContent-Length: "
    )
    return Peer(target), head.encode("ascii")


def header_lines(pairs: Iterable[tuple[str, str]], encoding: str = "ascii") -> bytes:
    """The lines of a request's headers, less those that frame, route or identify us.

    Raises `SendError` where one would become two, `UnicodeEncodeError` where `encoding` does not hold it.
    """
    given = [f"{name}: {value}\r\n" for name, value in pairs if name.lower() not in _OURS]
    lines, breaks = "".join(given), len(given)
    if lines.count("\n") != breaks or lines.count("\r") != breaks or "\0" in lines:
        raise SendError(ErrorKind.PROTOCOL, "A header to be sent holds a line break or NUL")
    return lines.encode(encoding)


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
    if len(message.raw_headers) > MAX_HEADERS or handler.head_is_too_large:
        raise HeadTooLarge
    return message, payload


_WHOLE, _TRUNCATED, _BROKEN = "whole", "truncated", "broken"


async def _read_body(payload: StreamReader) -> tuple[bytes, str]:
    """At most `MAX_BODY_BYTES`, and whether that was all."""
    body = b""
    try:
        while not payload.at_eof():
            # All there, mostly: it came in one segment with the head.
            body += payload.read_nowait() if payload.is_eof() else await payload.readany()
            if len(body) > MAX_BODY_BYTES:
                return body[:MAX_BODY_BYTES], _TRUNCATED
    except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
        _let_go(error)
        return body, _BROKEN
    return body, _WHOLE


def _response(answer: Answer) -> httpx.Response:
    response = httpx.Response(
        answer.status,
        headers=list(answer.headers),
        stream=httpx.ByteStream(answer.body),
        extensions={"http_version": b"HTTP/1.1", "truncated": answer.truncated, "broken": answer.broken},
    )
    # httpx would unpack what a Content-Encoding claims, 10 KiB into 10 MiB; a body that is there it leaves
    # alone.
    response._content = answer.body
    return response
