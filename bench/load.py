"""The load generator, a process of its own: posts JSON over keep-alive connections and notes when each was answered.

    python -m bench.load '{"port": 8000, …}' RESULT.json

- closed loop: each connection posts its next event once the last is answered. With `window`, all of them pause
  while more than so many deliveries are on their way to the receiver: the fastest pace that builds up no backlog.
- open loop (`rate`): an event every 1/rate seconds, whatever the platform does, as long as a connection is free.

Raw asyncio on uvloop: 30 µs of CPU an event, since it shares two cores with what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import orjson
import uvloop

WINDOW_POLL_S = 0.005
PATIENCE_S = 30.0  # after the last event, for the answers that are still out
ID_MARK = b'"event_id":"'
ID_CHARS = 30


@dataclass(frozen=True)
class Order:
    """What to do. Ends after `events` or `seconds`, whichever comes first."""

    port: int
    path: str = "/v1/events"
    key: str = ""
    event_type: str = "bench"
    event_types: int = 1  # of several, `bench.0`, `bench.1` and so on come in turn
    payload_bytes: int = 1024  # of `data`
    connections: int = 64
    events: int | None = None
    seconds: float | None = None
    rate: float | None = None
    window: int | None = None  # deliveries that may be on their way
    fanout: int = 1
    receiver_port: int = 0
    scenario: str = ""


@dataclass
class Outcome:
    """What came of it. The three lists run in parallel, one entry for each 202."""

    ids: list[str] = field(default_factory=list)
    written_at: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)  # of answers other than 202
    unanswered: int = 0
    late: int = 0  # open loop: written more than 5 ms after they were due
    started_at: float = 0.0
    ended_at: float = 0.0  # when the last event was written


def body_of(order: Order, event_type: str) -> tuple[bytes, bytes]:
    """What stands before and after the ten digits of an event's number."""
    rest = len('{"number":1000000000,"text":""}')
    random_bytes = random.Random(1).randbytes(order.payload_bytes)  # nosec B311 # the same load each time, no secret
    text = random_bytes.hex()[: max(1, order.payload_bytes - rest)]
    before = f'{{"event_type":"{event_type}","data":{{"number":'
    after = f',"text":"{text}"}}}}'
    length = len(before) + 10 + len(after)
    head = (
        f"POST {order.path} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nX-API-Key: {order.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    return (head + before).encode(), after.encode()


class Generator:
    def __init__(self, order: Order) -> None:
        self.order = order
        self.outcome = Outcome()
        self.idle: list[Connection] = []
        self.connections: set[Connection] = set()
        names = [order.event_type]
        if order.event_types > 1:
            names = [f"{order.event_type}.{number}" for number in range(order.event_types)]
        self._bodies = [body_of(order, name) for name in names]
        self._made = 0
        self._deadline = float("inf")
        self._received = 0
        self._ending = False
        self._quiet = asyncio.Event()

    async def run(self) -> Outcome:
        order = self.order
        await asyncio.gather(*(self.connect() for _ in range(order.connections)))
        watching = asyncio.create_task(self._watch_receiver()) if order.window else None
        self.outcome.started_at = time.monotonic()
        if order.seconds is not None:
            self._deadline = self.outcome.started_at + order.seconds
        if order.rate is None:
            self.resume()
            while not self._over():  # noqa: ASYNC110 - what ends it is the clock
                await asyncio.sleep(0.01)
        else:
            await self._keep_pace(order.rate)
        self._ending = True
        await self._settle()
        if watching is not None:
            watching.cancel()
        return self.outcome

    async def connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: Connection(self), "127.0.0.1", self.order.port)

    def resume(self) -> None:
        """Closed loop: sets idle connections to work, as the window allows."""
        while self.idle and self._may_send():
            self.idle.pop().post(self.next_request())

    def next_request(self) -> bytes:
        self._made += 1
        self.outcome.ended_at = time.monotonic()
        before, after = self._bodies[self._made % len(self._bodies)]
        return b"%b%d%b" % (before, 1_000_000_000 + self._made, after)

    def answered(self, connection: Connection, written_at: float, head: bytes, body: bytes) -> None:
        status = head[9:12].decode()
        self.outcome.statuses[status] = self.outcome.statuses.get(status, 0) + 1
        if status == "202":
            at = body.find(ID_MARK) + len(ID_MARK)
            self.outcome.ids.append(body[at : at + ID_CHARS].decode())
            self.outcome.written_at.append(written_at)
            self.outcome.answered_at.append(time.monotonic())
        elif len(self.outcome.examples) < 5:
            self.outcome.examples.append(f"{status}: {body[:300].decode('utf-8', 'replace')}")
        self.free(connection)

    def free(self, connection: Connection) -> None:
        if self.order.rate is None and self._may_send():
            connection.post(self.next_request())
            return
        self.idle.append(connection)
        if self._ending and len(self.idle) == len(self.connections):
            self._quiet.set()

    def lost(self, connection: Connection, *, waiting: bool) -> None:
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self.outcome.unanswered += waiting
        if self._ending:
            self._quiet.set()
        else:
            self._reconnecting = asyncio.ensure_future(self.connect())

    def _over(self) -> bool:
        events = self.order.events
        return time.monotonic() >= self._deadline or (events is not None and self._made >= events)

    def _may_send(self) -> bool:
        if self._ending or self._over():
            return False
        window = self.order.window
        return window is None or self._made * self.order.fanout - self._received < window

    async def _keep_pace(self, rate: float) -> None:
        number, start = 0, time.monotonic()
        while not self._over():
            due = start + number / rate
            now = time.monotonic()
            if due > now:
                await asyncio.sleep(due - now)
            elif self.idle:
                self.idle.pop(0).post(self.next_request())
                self.outcome.late += now - due > 0.005
                number += 1
            else:
                await asyncio.sleep(0.001)

    async def _watch_receiver(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.order.receiver_port)
        request = f"GET /-/count/{self.order.scenario} HTTP/1.1\r\n\r\n".encode()
        while True:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            self._received = int(await reader.readexactly(int(head.split(b": ")[1])))
            self.resume()
            await asyncio.sleep(WINDOW_POLL_S)

    async def _settle(self) -> None:
        if len(self.idle) < len(self.connections):
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._quiet.wait()
            except TimeoutError:
                self.outcome.unanswered += len(self.connections) - len(self.idle)


class Connection(asyncio.Protocol):
    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._buffer = b""
        self._written_at: float | None = None  # while an answer is out

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._generator.connections.add(self)
        if self._generator.outcome.started_at:
            self._generator.free(self)
        else:
            self._generator.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._generator.lost(self, waiting=self._written_at is not None)
        self._written_at = None

    def post(self, request: bytes) -> None:
        self._written_at = time.monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._written_at is None:
            return
        head = self._buffer[:end].lower()
        length_at = head.find(b"\r\ncontent-length: ")
        line_end = head.find(b"\r", length_at + 2)
        length = int(head[length_at + 18 : line_end if line_end > 0 else end]) if length_at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        written_at, self._written_at = self._written_at, None
        self._generator.answered(self, written_at, head, body)


async def run(order: Order) -> Outcome:
    gc.freeze()
    gc.disable()  # a collection would look like latency of the platform
    return await Generator(order).run()


def main(argv: list[str]) -> None:
    outcome = uvloop.run(run(Order(**orjson.loads(argv[0]))))
    Path(argv[1]).write_bytes(orjson.dumps(vars(outcome)))


if __name__ == "__main__":
    main(sys.argv[1:])
