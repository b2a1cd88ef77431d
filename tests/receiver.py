"""A receiver on a thread that misbehaves on request; also quick enough to be the far end of a benchmark.

    with Receiver() as receiver:
        receiver.script("/orders", [500, 500, 200])
        ...
        receiver.wait_for(3, timeout_s=5)
        assert receiver.requests[-1].body == b"{}"

It speaks HTTP/1.1 by hand, because no server library can be talked into most of these faults:

| path | does |
|---|---|
| `/ok` | 200 `ok` |
| `/status/NNN` | that status |
| `/slow/SECONDS` | 200 after a while |
| `/hang` | never answers |
| `/reset`, `/close` | RST, or FIN, instead of an answer |
| `/redirect?to=URL`, `/redirect/NNN?to=URL` | 302, or that status |
| `/large/BYTES` | 200 with a body of that size |
| `/endless` | a body that never ends |
| `/endless-headers`, `/endless-1xx` | a head that never ends, in two ways |
| `/huge-header`, `/many-headers` | one header of 64 KiB, or 500 headers |
| `/garbage` | bytes that are no HTTP |
| `/drip` | a head, then a byte of body each 0.2 s |
| `/drip-head` | a byte of the head each 0.2 s |
| `/nul` | NUL and invalid UTF-8 in the body |
| `/all-bytes` | each byte there is, over and over, 20 KiB |
| `/gzip-bomb` | 10 KiB that would unpack to 10 MiB |
| `/lying-length` | a Content-Length of 1000, 10 bytes, FIN |
| `/body-on-204` | a 204, and a body all the same |
| `/bad-chunk` | a chunked body whose second chunk has no size |
| `/early-hints` | 100 and 103 before the 200 |
| `/switch` | 101 that nobody asked for |
| `/cookie` | sets a cookie |
| `/retry-after/SECONDS` | 503 with Retry-After |
| `/gone` | 410 |
| `/directive/VALUE` | 500 with `webhook-delivery: VALUE` |
| `/close-after-response` | claims keep-alive and sends FIN with the answer |
| `/unsolicited` | 200 and then, unasked, a 408 |
| `/hold` | answers once the test calls `release`, and with the status that it names |
| `/hang-head`, `/hang-body` | half a head, or a head without its body, and then nothing |
| `/drip-1xx` | a 103 each 0.1 s, for ever |
| `/status-line/LINE` | a head that begins with LINE (percent-encoded) |
| `/nul-header`, `/latin-header` | NUL, or bytes that are no UTF-8, in a header's value |
| `/short-length` | a Content-Length of 5 and 50 bytes |
| `/two-lengths`, `/wrong-length/VALUE` | two Content-Lengths that differ, or one that is no number |
| `/late-reset` | a whole head and half a body, then RST |
| `/close-on-reuse`, `/reset-on-reuse` | 200, and FIN or RST instead of an answer to the connection's next request |
| `/close-soon/SECONDS` | 200, claims keep-alive, and closes after a while; requests that came by then are answered |
"""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Self, cast
from urllib.parse import parse_qs, unquote

import uvloop


@dataclass(slots=True)
class Recorded:
    """One request as it came off the wire."""

    method: str
    path: str  # the raw request target, query included
    head: bytes  # request line and headers, byte for byte
    body: bytes
    monotonic: float
    wall: float
    connection: int  # counts from 1; equal for requests on one connection

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Names and values in the order and case they came in."""
        pairs = (line.split(":", 1) for line in self.head.decode("latin-1").split("\r\n")[1:] if line)
        return [(name, value.strip()) for name, value in pairs]

    def header(self, name: str) -> str | None:
        """The first value of a header, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Receiver:
    """See the module. With `record=False` requests are only counted, for benchmarks."""

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        record: bool = True,
    ) -> None:
        self.requests: list[Recorded] = []
        self.count = 0
        self.connections = 0
        self.most_slow = 0  # requests for `/slow` at once
        self._slow = 0
        self.record = record
        self.host = host
        self.port = port
        self._ssl_context = ssl_context
        self._scripts: dict[str, list[int]] = {}
        self._changed = threading.Condition()
        self._open: set[_Connection] = set()
        self._held: list[_Connection] = []
        self._released: int | None = None
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)

    # --- from the test's thread ---

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop.call_soon(lambda: self._loop.create_task(self._serve(started)))
        self._thread.start()
        assert started.wait(10), "the receiver did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, path: str = "/ok", *, host: str | None = None) -> str:
        scheme = "https" if self._ssl_context else "http"
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    def script(self, path: str, statuses: Sequence[int]) -> None:
        """Answer requests for `path` with these statuses in turn; the last one repeats."""
        assert statuses, "a script needs a status"
        self._scripts[path] = list(statuses)

    def set(self, path: str, status: int) -> None:
        """Answer every request for `path` with this status."""
        self.script(path, [status])

    def wait_for(self, wanted: int | Callable[[list[Recorded]], bool], timeout_s: float = 90) -> list[Recorded]:
        """The requests, once there are `wanted` of them or once `wanted(requests)` holds."""

        def reached() -> bool:
            return self.count >= wanted if isinstance(wanted, int) else wanted(self.requests)

        with self._changed:
            if not self._changed.wait_for(reached, timeout_s):
                got = [(it.method, it.path) for it in self.requests[-20:]]
                raise TimeoutError(f"not within {timeout_s} s: wanted {wanted}, have {self.count}: {got}")
        return self.requests

    def release(self, status: int = 200) -> None:
        """Answer every request that `/hold` holds, and all that come to it from now on, with this status."""
        self._loop.call_soon_threadsafe(self._release, status)

    def hold(self) -> None:
        """Let `/hold` hold again."""
        self._loop.call_soon_threadsafe(self._release, None)

    def clear(self) -> None:
        """Forget what came so far."""
        with self._changed:
            self.requests.clear()
            self.count = 0

    # --- on the receiver's thread ---

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._server.close()
            for connection in list(self._open):
                connection.transport.abort()
            self._loop.run_until_complete(self._server.wait_closed())
            self._loop.run_until_complete(asyncio.sleep(0))
        finally:
            self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._server = await self._loop.create_server(
            lambda: _Connection(self), self.host, self.port, ssl=self._ssl_context, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]
        started.set()

    def _release(self, status: int | None) -> None:
        self._released = status
        if status is not None:
            held, self._held = self._held, []
            for connection in held:
                connection.send(_answer(status, b"held"))

    def note(self, request: Recorded | None) -> None:
        with self._changed:
            self.count += 1
            if request is not None:
                self.requests.append(request)
            self._changed.notify_all()

    def scripted(self, path: str) -> int | None:
        statuses = self._scripts.get(path)
        if statuses is None:
            return None
        return statuses.pop(0) if len(statuses) > 1 else statuses[0]


@lru_cache(maxsize=1024)
def _answer(status: int, body: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unheard Of"
    bodiless = status in (204, 304)
    length = () if bodiless else (f"Content-Length: {len(body)}",)
    lines = [f"HTTP/1.1 {status} {phrase}", *length, *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + (b"" if bodiless else body)


OK = _answer(200, b"ok")


class _Connection(asyncio.Protocol):
    """One connection. `_write` and `_paused` make endless answers wait for a slow reader."""

    transport: asyncio.Transport

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self._paused = False
        self._endless: bytes | None = None
        self._number = 0
        self._answered = 0  # requests of this connection, for faults that strike at its reuse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._receiver.connections += 1
        self._number = self._receiver.connections
        self._receiver._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._endless = None
        self._receiver._open.discard(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def _pump(self) -> None:
        # A piece each turn of the loop: over TLS `pause_writing` is not called before the turn ends.
        if self._endless is not None and not self._paused and not self.transport.is_closing():
            self.transport.write(self._endless)
            self._receiver._loop.call_soon(self._pump)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while self._buffer:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if self._buffer.startswith(b"\x16\x03"):  # TLS, where HTTP is spoken
                    self.send_and_close(_answer(400))
                return
            head = self._buffer[: end + 2]
            at = head.lower().find(b"\r\ncontent-length:")
            length = int(head[at + 17 : head.index(b"\r\n", at + 2)]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._handle(head, body)

    def _handle(self, head: bytes, body: bytes) -> None:
        method, target, _ = head[: head.index(b"\r\n")].decode("latin-1").split(" ", 2)
        receiver = self._receiver
        recorded = None
        if receiver.record:
            recorded = Recorded(method, target, head, body, time.monotonic(), time.time(), self._number)
        path, _, query = target.partition("?")
        status = receiver.scripted(path) if receiver._scripts else None
        receiver.note(recorded)
        if status is not None:
            self.transport.write(_answer(status, b"scripted"))
        elif path == "/ok":
            self.transport.write(OK)
        else:
            name, _, argument = path[1:].partition("/")
            fault = _FAULTS.get(name)
            if fault is None:
                self.transport.write(_answer(404, b"no such path"))
            else:
                fault(self, argument, query)

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def send_endless(self, head: bytes, piece: bytes) -> None:
        self.send(head)
        self._endless = piece
        self._pump()

    def send_slowly(self, data: bytes, every_s: float) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data[:1])
            self._receiver._loop.call_later(every_s, self.send_slowly, data[1:], every_s)

    def drip(self, head: bytes) -> None:
        self.send(head)
        self.send_slowly(b"." * 9999, 0.2)

    def send_and_close(self, data: bytes) -> None:
        self.send(data)
        self.transport.close()

    def reset(self) -> None:
        if self.transport.is_closing():
            return
        # With a linger time of 0 the kernel sends RST instead of FIN. The duplicate shares the socket's
        # options.
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def held(self) -> None:
        if self._receiver._released is None:
            self._receiver._held.append(self)
        else:
            self.send(_answer(self._receiver._released, b"held"))

    def send_again(self, data: bytes, every_s: float) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)
            self._receiver._loop.call_later(every_s, self.send_again, data, every_s)

    def at_reuse(self, fault: Callable[[], None]) -> None:
        self._answered += 1
        if self._answered == 1:
            self.send(OK)
        else:
            fault()

    def close_soon(self, seconds: float) -> None:
        self._answered += 1
        self.send(OK)
        if self._answered == 1:
            self._receiver._loop.call_later(seconds, self.transport.close)

    def break_off(self) -> None:
        self.send(_LYING)
        self._receiver._loop.call_later(0.1, self.reset)  # a RST right behind would overtake the head

    def slow(self, seconds: float) -> None:
        receiver = self._receiver
        receiver._slow += 1
        receiver.most_slow = max(receiver.most_slow, receiver._slow)
        receiver._loop.call_later(seconds, self._be_over)

    def _be_over(self) -> None:
        self._receiver._slow -= 1
        self.send(OK)


@lru_cache(maxsize=1)
def _bomb() -> bytes:
    return _answer(200, gzip.compress(bytes(10 << 20)), ("Content-Encoding: gzip",))


_CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_HINTS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </s.css>; rel=preload\r\n\r\n"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello"
_LYING = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789"

_Fault = Callable[[_Connection, str, str], None]
_FAULTS: dict[str, _Fault] = {
    "status": lambda it, argument, _: it.send(_answer(int(argument), b"as asked")),
    "slow": lambda it, argument, _: it.slow(float(argument)),
    "hang": lambda it, *_: None,
    "reset": lambda it, *_: it.reset(),
    "close": lambda it, *_: it.transport.close(),
    "redirect": lambda it, argument, query: it.send(
        _answer(int(argument or 302), b"", ("Location: " + parse_qs(query)["to"][0],))
    ),
    "large": lambda it, argument, _: it.send(_answer(200, b"x" * int(argument))),
    "endless": lambda it, *_: it.send_endless(_CHUNKED, _CHUNK),
    "endless-headers": lambda it, *_: it.send_endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 64),
    "endless-1xx": lambda it, *_: it.send_endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 4),
    "huge-header": lambda it, *_: it.send(_answer(200, b"", ("X-Huge: " + "h" * 65536,))),
    "many-headers": lambda it, *_: it.send(_answer(200, b"", tuple(f"X-{n}: {n}" for n in range(500)))),
    "garbage": lambda it, *_: it.send(b"\x16\x03\x01 this is no HTTP \xff\xfe\r\n\r\n"),
    "drip": lambda it, *_: it.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
    "drip-head": lambda it, *_: it.send_slowly(OK, 0.2),
    "nul": lambda it, *_: it.send(_answer(200, b"\x00nul \xff\xfe\xc3( <script>")),
    "all-bytes": lambda it, *_: it.send(_answer(200, bytes(range(256)) * 80)),
    "gzip-bomb": lambda it, *_: it.send(_bomb()),
    "lying-length": lambda it, *_: it.send_and_close(_LYING),
    "body-on-204": lambda it, *_: it.send(_answer(204) + b"not allowed here"),
    "bad-chunk": lambda it, *_: it.send(_CHUNKED + b"5\r\nhello\r\n" + b"no size\r\n"),
    "early-hints": lambda it, *_: it.send(_HINTS + OK),
    "switch": lambda it, *_: it.send(_SWITCH),
    "cookie": lambda it, *_: it.send(_answer(200, b"", ("Set-Cookie: session=1; Path=/",))),
    "retry-after": lambda it, argument, _: it.send(_answer(503, b"", (f"Retry-After: {argument}",))),
    "gone": lambda it, *_: it.send(_answer(410, b"gone")),
    "directive": lambda it, argument, _: it.send(_answer(500, b"", (f"webhook-delivery: {argument}",))),
    "close-after-response": lambda it, *_: it.send_and_close(_answer(200, b"", ("Connection: keep-alive",))),
    "hold": lambda it, *_: it.held(),
    "hang-head": lambda it, *_: it.send(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "hang-body": lambda it, *_: it.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
    "drip-1xx": lambda it, *_: it.send_again(b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.1),
    "status-line": lambda it, argument, _: it.send(
        unquote(argument, "latin-1").encode("latin-1") + b"\r\nContent-Length: 2\r\n\r\nok"
    ),
    "nul-header": lambda it, *_: it.send(_answer(200, b"", ("X-Nul: a\0b",))),
    "latin-header": lambda it, *_: it.send(_answer(200, b"", ("X-Latin: \xff\xfe\xc3( \xe9",))),
    "short-length": lambda it, *_: it.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + b"0123456789" * 5),
    "two-lengths": lambda it, *_: it.send(_answer(200, b"ok", ("Content-Length: 3",))),
    "wrong-length": lambda it, argument, _: it.send(
        f"HTTP/1.1 200 OK\r\nContent-Length: {unquote(argument)}\r\n\r\nok".encode()
    ),
    "late-reset": lambda it, *_: it.break_off(),
    "close-on-reuse": lambda it, *_: it.at_reuse(it.transport.close),
    "reset-on-reuse": lambda it, *_: it.at_reuse(it.reset),
    "close-soon": lambda it, argument, _: it.close_soon(float(argument)),
    "unsolicited": lambda it, *_: it.send(OK + _answer(408, b"too late", ("Connection: close",))),
}
