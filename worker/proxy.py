"""Connections by way of an HTTP proxy of the operator's: CONNECT (RFC 9110, section 9.3.6).

The proxy is given the address that the policy has passed, never the name: what it resolved by itself, nobody would have
checked. TLS is spoken with the receiver through the tunnel, so the proxy reads no `https://` request; `http://` ones go
through a tunnel as well.
"""

from __future__ import annotations

import asyncio
import re
import socket
from base64 import b64encode
from contextlib import ExitStack, suppress
from urllib.parse import unquote, urlsplit

from worker.send_errors import ProxyFailed

MAX_HEAD_BYTES = 8 * 1024

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]")


class Proxy:
    """`url` as `core.urls.proxy` passes it: `http://user:password@host:port`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 0)
        self._credentials = b""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._credentials = b"Proxy-Authorization: Basic " + b64encode(pair) + b"\r\n"

    @property
    def address(self) -> str:
        """Without the credentials."""
        return f"{self._host}:{self._port}"

    async def ping(self) -> None:
        """Raises `ProxyFailed` where nothing listens."""
        (await self._reach(asyncio.get_running_loop())).close()

    async def tunnel(self, address: str, port: int) -> socket.socket:
        """A socket that leads to `address`. Raises `ProxyFailed`. The caller's deadline ends it, by cancelling."""
        loop = asyncio.get_running_loop()
        sock = await self._reach(loop)
        with ExitStack() as undo:
            undo.enter_context(sock)
            await self._connect(loop, sock, f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
            undo.pop_all()
        return sock

    async def _reach(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        """A connection to the proxy, at the first of its addresses that takes one."""
        try:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        for family, kind, protocol, _, address in found:
            with ExitStack() as undo, suppress(OSError):
                sock = undo.enter_context(socket.socket(family, kind, protocol))
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                undo.pop_all()
                return sock
        raise ProxyFailed("The sender's proxy can't be reached")

    async def _connect(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, authority: str) -> None:
        asked = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n".encode("ascii")
        head = b""
        try:
            await loop.sock_sendall(sock, asked + self._credentials + b"\r\n")
            while b"\r\n\r\n" not in head and len(head) <= MAX_HEAD_BYTES:
                piece = await loop.sock_recv(sock, 4096)
                if not piece:
                    break
                head += piece
        except OSError as error:
            raise ProxyFailed("The sender's proxy broke the connection") from error
        status = _STATUS_LINE.match(head)
        if status is None or b"\r\n\r\n" not in head:
            raise ProxyFailed("The sender's proxy gave no answer that could be read")
        if not status[1].startswith(b"2"):
            raise ProxyFailed(f"The sender's proxy made no connection (status {status[1].decode()})")
        # With TLS and HTTP alike we speak first, so this would pass for an answer to a request yet to be sent.
        if not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") != 1:
            raise ProxyFailed("The sender's proxy sent more than its answer")
