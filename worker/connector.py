"""Connections: aiohttp's connector, with the address policy where the dialling happens.

A request is written here by hand onto aiohttp's connection (see `worker.transport`); what is used of aiohttp
is its pool, its dialling (RFC 8305), its TLS and its response parser (llhttp). `EgressConnector` checks
addresses in two places, each of which sees literal addresses and resolved ones alike:

1. `_resolve_host`, the one function whose answer is dialled: one denied address refuses the whole answer.
2. the socket factory, which is given the very address that is dialled next, should a release of aiohttp ever
   find another way to it. A test takes the first away and sees the second hold. With a proxy no such socket is made;
   then what is asked of the proxy is checked in the same way.

The members of aiohttp that are not documented (`_resolve_host`, `_wrap_create_connection`, `_wrap_existing_connection`,
`_release`, `_conns`, `_acquired`, `_factory`, `ResponseHandler`) are used in this file and `worker.transport` only;
`tests/integration/test_transport.py` and `test_proxy.py` fail where an upgrade changes them.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import select
import socket
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader
from yarl import URL

from core.egress import BlockedAddress, EgressPolicy, Target
from worker.proxy import Proxy
from worker.send_errors import DeniedSocket, HeadTooLarge, NotHttp

# A lookup holds a thread until the system's resolver gives up (10 s and more, where a name server is silent
# on purpose). The loop's default pool has 6 threads on 2 cores: six such names would stall every other
# tenant's.
RESOLVER_THREADS = 64
DNS_CACHE_S = 10

MAX_HEAD_BYTES = 32 * 1024  # status line and headers, informational responses included
MAX_INFORMATIONAL = 8  # 1xx responses before the answer

# Addresses of one name and family that are dialled. aiohttp goes through all that refuse, then through all but the
# first, and so on: 8 addresses are 36 connections, and 1,000 would be half a million until the deadline comes.
MAX_ADDRESSES = 4

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


def tls_context(
    ca_file: str | None = None, client_cert_file: str | None = None, client_key_file: str | None = None
) -> ssl.SSLContext:
    """TLS 1.2 at least; verifies certificate and host name, always. `ca_file` adds to the system's.

    Raises OSError (ssl.SSLError among them) where a file can't be used.
    """
    # Not ssl.create_default_context(): it writes session keys to wherever SSLKEYLOGFILE in the environment
    # says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_default_certs()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    if client_cert_file is not None:
        # Without a password OpenSSL would ask for that of an encrypted key at the terminal.
        context.load_cert_chain(client_cert_file, client_key_file, password=lambda: "")
    context.set_alpn_protocols(["http/1.1"])
    return context


class ThreadResolver(AbstractResolver):
    """The system's resolver on threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        # As bytes, which skips Python's own IDNA codec: the host is ASCII already.
        lookup = functools.partial(
            socket.getaddrinfo,
            host.encode("ascii"),
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        infos = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        return [_result(host, port, family, str(address[0])) for family, _, _, _, address in infos]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _result(hostname: str, port: int, family: int, address: str) -> ResolveResult:
    return ResolveResult(
        hostname=hostname, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )


def _few(found: Sequence[ResolveResult]) -> list[ResolveResult]:
    """The first `MAX_ADDRESSES` of each family, in their order."""
    kept: list[ResolveResult] = []
    seen: Counter[int] = Counter()
    for it in found:
        seen[it["family"]] += 1
        if seen[it["family"]] <= MAX_ADDRESSES:
            kept.append(it)
    return kept


class Peer:
    """What aiohttp's connector asks of a request: whom to connect to. One per scheme, host and port."""

    proxy = None
    proxy_auth = None
    ssl = True  # the connector's own context
    server_hostname = None  # the host itself

    def __init__(self, target: Target) -> None:
        self.host = target.host
        self.port = target.port
        self._is_ssl = target.scheme == "https"
        self.url = URL.build(scheme=target.scheme, host=target.host, port=target.port)
        if self.url.raw_host != target.host:
            raise BlockedAddress("The host can't be dialled as it was checked")
        self.connection_key = ConnectionKey(target.host, target.port, self._is_ssl, True, None, None, None, None)

    def is_ssl(self) -> bool:
        return self._is_ssl


class Census:
    """How many connections are open in this process."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = 0


class Handler(ResponseHandler):
    """One connection: aiohttp's protocol, with a bound on the head and a check before it is used again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, census: Census) -> None:
        super().__init__(loop=loop)
        self.reused = False
        self.cause: BaseException | None = None  # what lies under the exception that the reader will get
        self._census = census
        self._made_at = 0.0
        self._head_left = 0
        self._awaiting_head = False
        self._poll = select.poll()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._census.open += 1
        self._made_at = time.monotonic()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._census.open -= 1
        super().connection_lost(exc)

    def begin(self) -> None:
        """Expect an answer's head."""
        self._head_left = MAX_HEAD_BYTES
        self._awaiting_head = True
        self.set_response_params(
            read_until_eof=True, auto_decompress=False, read_bufsize=8192, max_headers=MAX_HEAD_BYTES
        )

    @property
    def head_is_too_large(self) -> bool:
        """Whether it passed its bound within the last segment, which is parsed before it is weighed."""
        return self._head_left < 0

    def resume_reading(self, resume_parser: bool = True) -> None:
        # Called twice for each body; reading was paused for few.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        # Where one segment brings several heads, or head and body, they are parsed one after the other: a parser
        # that stumbles over the body (on a 204, say) would throw the head away with it, and 256 KiB of 1xx
        # responses would hold the loop for 45 ms.
        while self._awaiting_head and data and self._exception is None:
            end = data.find(b"\r\n\r\n") + 4
            piece, data = (data[:end], data[end:]) if end >= 4 else (data, b"")
            super().data_received(piece)
            self._weigh(len(piece))
        if data and self._exception is None:
            super().data_received(data)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """The parser calls this with each complete head."""
        if data[0].code >= 200:
            self._awaiting_head = False
        super().feed_data(data, size)

    def _weigh(self, size: int) -> None:
        """Hold what came of the head so far against its bounds."""
        self._head_left -= size
        if not self._awaiting_head or self._exception is not None:
            return
        if self._head_left < 0 or len(self) > MAX_INFORMATIONAL:
            self.set_exception(HeadTooLarge() if self._head_left < 0 else NotHttp())
            if self.transport is not None:
                self.transport.abort()

    def set_exception(self, exc: BaseException, exc_cause: Any = None) -> None:
        # aiohttp links the cause only where a reader waits already, and wraps what it got in classes that say
        # less. A body that can't be parsed it reports here alone: its reader would wait until the deadline.
        if self.cause is None and isinstance(exc_cause, BaseException):
            self.cause = exc_cause
        super().set_exception(exc, *(() if exc_cause is None else (exc_cause,)))
        payload: StreamReader | None = self._payload
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(exc)

    def can_be_reused(self, max_age_s: float) -> bool:
        """Whether an idle connection may carry another request.

        Anything readable now is the peer's FIN, which the loop has not seen yet, or bytes that nobody asked
        for and that would be taken for the next answer. The look costs 1 µs.
        """
        return not (
            self.should_close  # also where an answer waits already
            or not self.is_connected()
            or time.monotonic() - self._made_at > max_age_s
            or self._poll.poll(0)
        )


class EgressConnector(aiohttp.TCPConnector):
    """Dials only what the policy allows."""

    def __init__(
        self,
        policy: EgressPolicy,
        context: ssl.SSLContext,
        *,
        resolver: AbstractResolver,
        limit: int,
        limit_per_host: int,
        max_idle: int,
        keepalive_s: float,
        proxy: Proxy | None = None,
    ) -> None:
        super().__init__(
            ssl=context,
            resolver=resolver,
            ttl_dns_cache=DNS_CACHE_S,
            limit=limit,
            limit_per_host=limit_per_host,
            keepalive_timeout=keepalive_s,
            socket_factory=self._make_socket,
        )
        self._policy = policy
        self._proxy = proxy
        self._max_idle = max_idle
        self._keepalive_s = keepalive_s
        self.census = Census()
        self._factory: Any = functools.partial(Handler, self._loop, self.census)

    async def _resolve_host(self, host: str, port: int, traces: Sequence[Any] | None = None) -> list[ResolveResult]:
        found = await super()._resolve_host(host, port, traces)
        for it in found:
            self._policy.check_address(it["host"])
        return _few(found)

    def _make_socket(self, info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        self._guard(address[0])
        return socket.socket(family, kind, protocol)

    def _guard(self, address: str) -> None:
        try:
            self._policy.check_address(address)
        except BlockedAddress as blocked:
            raise DeniedSocket(errno.EACCES, blocked.message) from blocked

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[Any], req: Any, timeout: Any, **kwargs: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        if self._proxy is None:
            return await super()._wrap_create_connection(
                *args, addr_infos=addr_infos, req=req, timeout=timeout, **kwargs
            )
        address, port = addr_infos[0][4][:2]  # aiohttp calls again with the next where this one fails
        try:
            self._guard(address)
            sock = await self._proxy.tunnel(address, port)
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return await self._wrap_existing_connection(*args, sock=sock, req=req, timeout=timeout, **kwargs)

    def take(self, peer: Peer, max_age_s: float) -> Handler | None:
        """An idle connection that may carry another request; it is in use from now on."""
        # What `connect` does first, without its two coroutines and its object for each use: 10 µs less.
        key = peer.connection_key
        idle = self._conns.get(key)
        if idle is None:
            return None
        found: Handler | None = None
        kept_since = time.monotonic() - self._keepalive_s
        while idle and found is None:
            protocol, since = idle.popleft()
            handler = cast(Handler, protocol)
            if since < kept_since:
                handler.close()
            elif handler.can_be_reused(max_age_s):
                found = handler
            else:
                handler.abort()
        if not idle:
            del self._conns[key]
        if found is not None:
            self._acquired.add(found)
            if self._limit_per_host:
                self._acquired_per_host[key].add(found)
        return found

    async def dial(self, peer: Peer, max_age_s: float) -> Handler:
        """A connection that nothing was sent on. Or, where the limit made this wait, one that came free."""
        while True:
            connection = await self.connect(cast(Any, peer), [], _NO_TIMEOUT)
            handler = cast(Handler, connection.protocol)
            connection._protocol = None  # it would give the connection back when it is collected
            if not handler.reused:
                handler.reused = True
                return handler
            if handler.can_be_reused(max_age_s):
                return handler
            self.drop(peer, handler)

    def keep(self, peer: Peer, handler: Handler) -> None:
        """The connection is idle again."""
        self._release(peer.connection_key, handler)

    def drop(self, peer: Peer, handler: Handler) -> None:
        # Abort, not close: close would wait for a peer that does not read, or for its TLS close_notify (30 s).
        handler.abort()
        self._release(peer.connection_key, handler, should_close=True)

    def _release(self, key: ConnectionKey, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        # aiohttp bounds the connections in use; idle ones it keeps without end, each a file descriptor.
        idle = self.census.open - len(self._acquired)
        super()._release(key, protocol, should_close=should_close or idle >= self._max_idle)
