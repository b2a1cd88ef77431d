"""The web server: uvicorn, with bounds on what a client may send before the application sees anything, and on its time.

uvicorn bounds neither with its quick parser (httptools): a header may be endless, a request come a byte a minute, and a
connection that sends nothing stays for ever. Here each connection notes what it waits for and since when, which costs
a request next to nothing, and the server looks at all of them twice a second.

```
connected ──▶ head ──▶ body ──▶ the application works ──▶ answered ──▶ (uvicorn's keep-alive) ──▶ head …
   head_s      head_s   body_s + size / body_bytes_per_s      answer_s without its being taken
```

Whoever is late or sends too much gets 408, 431 or 400 where an answer is still possible, and has `linger_s` to read it.
"""

from __future__ import annotations

import asyncio
import heapq
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

PIECE = 16_384  # how exact bounds in bytes are: what comes at once is looked at in pieces of so much
LOOK_EVERY = 5  # of uvicorn's ticks, which are 0.1 s
MAX_DISCARDED = 1 << 20  # bytes
RESERVED_FILES = 128  # descriptors for everything but clients
MAX_REFUSED = RESERVED_FILES // 2  # connections beyond the bound that are told so
ROOM = 20  # where connections are too many, the twentieth that waits for longest goes


@dataclass(frozen=True)
class Bounds:
    """What a client may take of a web process. docs/api.md says the same."""

    head_bytes: int = 65_536  # request line and headers; a list by 1,000 ids has some 35,000
    headers: int = 100
    head_s: float = 20.0  # from connecting, or from its first byte, to its end
    body_s: float = 30.0
    body_bytes_per_s: int = 16_384  # what is sent at least so fast may take longer
    answer_s: float = 60.0  # without taking anything of an answer
    linger_s: float = 2.0  # to read why a request was refused, and for the rest of one that was answered early
    connections: int = 4_096
    pipelined: int = 8  # requests that wait behind another on their connection; few clients send any


class TooMuch(Exception):
    """A request has more headers than it may, or waits behind more of them"""


class Together:
    """The transport of one answer: its head waits for what comes first of its body, and both are one write. uvicorn
    makes two, which are two calls of the system and two packets, a twentieth of what accepting an event costs."""

    __slots__ = ("_cycle", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._head: bytes | None = None  # b"" once it is written

    def write(self, data: bytes) -> None:
        if self._head is None and self._cycle.response_started:  # before that, only "100 Continue" is written
            self._head = data
            return
        if self._head and len(data) <= PIECE:  # a copy costs less than a call
            data = self._head + data
        elif self._head:
            self._transport.write(self._head)
        self._transport.write(data)
        self._head = self._head and b""

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """One client's connection. `bounds` are the class's: uvicorn makes the instances."""

    bounds = Bounds()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()  # when what it does now began
        self._awaited = True  # something of a request is to come from the client
        self._in_body = False
        self._framing = 0  # bytes of this request that are not its body
        self._body = 0
        self._body_of_piece = 0
        self._headers = 0
        self._refusal = HTTPStatus.BAD_REQUEST
        self._refused = False
        self._discarded = 0
        self._served = False
        self._unsent = 0  # bytes, when they were last looked at
        self._unsent_since = self._since  # when they last changed
        self._running: RequestResponseCycle | None = None
        if len(self.connections) > self.bounds.connections:
            self._make_room()

    # --- what comes ---

    def data_received(self, data: bytes) -> None:
        if len(data) <= PIECE:
            self._take(data)
            return
        for start in range(0, len(data), PIECE):
            self._take(data[start : start + PIECE])

    def _take(self, piece: bytes) -> None:
        if self._refused or self.transport.is_closing():
            self._discard(piece)
            return
        if not self._awaited:
            self._awaited = True
            self._since = self.loop.time()
        self._body_of_piece = 0
        super().data_received(piece)
        self._framing += len(piece) - self._body_of_piece
        if self._framing > self.bounds.head_bytes + self._body and not self._refused:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._framing = self._body = self._headers = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1  # trailers, which come after a body in pieces, are headers as well
        if self._headers > self.bounds.headers:
            self._refusal = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise TooMuch  # the parser stops, and uvicorn calls `send_400_response`
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._since = self.loop.time()
        super().on_headers_complete()
        if len(self.pipeline) > self.bounds.pipelined:  # reading is paused, but what was read may hold thousands
            raise TooMuch

    def on_body(self, body: bytes) -> None:
        self._body_of_piece += len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = self._awaited = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._running is not None:
            cast("Together", self._running.transport).flush()  # an answer to HEAD has nothing that follows
            # Each holds the other, and the request; what is no cycle, the garbage collector need not find.
            self._running.transport = self.transport
            self._running = None
        self._served = True
        self._since = self.loop.time()
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        cycle.transport = cast("asyncio.Transport", Together(self.transport, cycle))
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None:  # uvicorn tells the newest, which may wait behind this one
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    # --- what is refused ---

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, status: HTTPStatus) -> None:
        """Says so, if no answer to another request or half of one would be in the way, and listens no more."""
        self._refused = True
        self._since = self.loop.time()
        self._unset_keepalive_if_required()
        cycle = self.cycle
        under_way = cycle is not None and not cycle.response_complete
        if under_way:
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False  # or it would say so after our answer
            cycle.message_event.set()
        if under_way and (cycle.response_started or not self._in_body or self.pipeline):
            self.transport.close()
            return
        self.transport.write(_answer(status))
        if self.transport.can_write_eof():
            self.transport.write_eof()  # a full close with bytes unread would be a reset, which takes the answer along

    def _discard(self, piece: bytes) -> None:
        """What still comes is nobody's. Some of it is taken, since few clients read an answer before all is sent."""
        self._discarded += len(piece)
        if self._discarded > MAX_DISCARDED:
            self.flow.pause_reading()

    def shutdown(self) -> None:
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()

    # --- what is late ---

    def look(self, now: float) -> None:
        """Ends the connection where the client is too late with something."""
        bounds, transport = self.bounds, self.transport
        unsent = transport.get_write_buffer_size()
        if unsent != self._unsent:  # some was taken, or is new: an application adds little before it must wait
            self._unsent, self._unsent_since = unsent, now
        if (unsent or transport.is_closing()) and now - self._unsent_since > bounds.answer_s:
            transport.abort()
        if transport.is_closing():
            return
        if self._refused:
            if now - self._since > bounds.linger_s:
                transport.abort()
        elif self._awaited:
            self._look_at_request(now)

    def _look_at_request(self, now: float) -> None:
        bounds = self.bounds
        if self.flow.read_paused:  # then it is not the client that waits
            self._since = now
        elif not self._in_body:
            if now - self._since > bounds.head_s:
                if self._framing == 0:
                    self.transport.close()
                else:
                    self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        elif self.cycle.response_complete:  # answered before its body was here, as a wrong key is
            if now - self._since > bounds.linger_s:
                self.transport.close()
        elif now - self._since > bounds.body_s + self._body / bounds.body_bytes_per_s:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    # --- how many there are ---

    def _make_room(self) -> None:
        """Closes those that have been idle for longest, first of all those that never sent a request; where none is
        idle, those whose clients have been waited for longest; refuses this one where all others are at work."""
        others = [one for one in cast("Iterable[Connection]", self.connections) if one is not self]
        leaving = [one for one in others if one.is_idle] or [one for one in others if one.waits]
        for one in heapq.nsmallest(max(1, self.bounds.connections // ROOM), leaving, key=_leaving_order):
            one._refused = True
            one.transport.abort()
        if leaving:
            return
        if len(others) > self.bounds.connections + MAX_REFUSED:
            self._refused = True
            self.transport.abort()
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)

    @property
    def is_idle(self) -> bool:
        """No request of it is with the application, and no answer on its way."""
        answered = self.cycle is None or self.cycle.response_complete
        left = self._refused or self.transport.is_closing()
        return answered and not left and self.transport.get_write_buffer_size() == 0

    @property
    def waits(self) -> bool:
        """For its client, to send the rest of a body or to take an answer, be it the last."""
        sends = self._in_body and not self.flow.read_paused and not self.transport.is_closing()
        takes = self._unsent > 0 and self.transport.get_write_buffer_size() > 0
        return (sends or takes) and not self._refused


def _leaving_order(connection: Connection) -> tuple[bool, float]:
    since = connection._unsent_since if connection._unsent else connection._since
    return connection._served and connection.is_idle, since


def _answer(status: HTTPStatus) -> bytes:
    text = f"{status.phrase}\n"
    return (
        f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
    ).encode("ascii")


class Server(uvicorn.Server):
    """Looks after the connections of its `Connection`s."""

    async def on_tick(self, counter: int) -> bool:
        if counter % LOOK_EVERY == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                cast("Connection", connection).look(now)
        return await super().on_tick(counter)


def serve(app: Any, bounds: Bounds = Bounds(), **options: Any) -> Server:
    """A server of `app` within `bounds`; `options` are uvicorn's."""
    protocol = type("BoundConnection", (Connection,), {"bounds": bounds})
    return Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="on", **options))


def bounds_of_this_process() -> Bounds:
    """The bounds, with no more connections than the system gives us files; asks it for as many as it may give."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = Bounds.connections + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return Bounds(connections=max(soft - RESERVED_FILES, soft // 2))
    return Bounds()
