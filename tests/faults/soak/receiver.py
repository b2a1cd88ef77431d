"""The far end on a thread: notes every request in 26 bytes, checks its signature, and misbehaves as it is told.

A path is `/s/NUMBER` of the subscription, with anything behind it. 200 is noted only once it was written to a
connection that still stood, so what is not noted as answered with 200 was not answered with 200.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, cast

import uvloop

from core import ids
from core.secrets import signing
from tests.ports import free_port

NOTHING, OK, FAILED = 0, 1, 2  # what was answered
BEAT_S = 0.05
ROTATED_SLACK_S = 10.0  # beyond its grace period, how long an old secret may still be all that signs

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_FAILED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Request(NamedTuple):
    subscription: int
    event: int  # the event's id as a number
    at: float  # CLOCK_MONOTONIC
    said: int


@dataclass
class Behaviour:
    """Of one subscription's endpoint."""

    slow_s: tuple[float, float] = (0.0, 0.0)
    fails: float = 0.0  # the share that is answered with 503 at any time
    mood: str = "ok"  # or "fails", "hangs", "resets", "closes"
    secrets: list[tuple[bytes, float]] = field(default_factory=list)  # key and until when it may sign alone


class SoakReceiver:
    def __init__(self, behaviours: list[Behaviour], seed: int) -> None:
        self.behaviours = behaviours
        self.port = free_port()
        self.wrongly_signed: list[Request] = []
        self.malformed = 0
        self.rng = random.Random(seed)
        self._events = bytearray()
        self._subscriptions = array("B")
        self._times = array("d")
        self._said = array("B")
        self.stalls: list[tuple[float, float]] = []  # from and to which moment this thread did not get to its work
        self._open: set[_Connection] = set()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="soak receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._on_its_thread(self._listen())
        self._loop.call_soon_threadsafe(self._beat, time.monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def __len__(self) -> int:
        return len(self._times)

    def requests(self) -> Iterator[Request]:
        events = memoryview(self._events)
        for index, (subscription, at, said) in enumerate(
            zip(self._subscriptions, self._times, self._said, strict=True)
        ):
            event = int.from_bytes(events[index * 16 : index * 16 + 16], "big")
            yield Request(subscription, event, at, said)

    def add_secret(self, subscription: int, secret: str, grace_s: float) -> None:
        """From now on `secret` may sign; those before it may do so alone for a while."""
        until = time.monotonic() + grace_s + ROTATED_SLACK_S
        known = self.behaviours[subscription].secrets
        known[:] = [*((key, min(end, until)) for key, end in known), (signing.key_of(secret), float("inf"))]

    # --- outage ---

    def go_away(self) -> None:
        """Refuses connections and resets those that stand."""
        self._on_its_thread(self._close())

    def come_back(self) -> None:
        self._on_its_thread(self._listen())

    def _on_its_thread(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=4096, reuse_address=True
        )

    async def _close(self) -> None:
        self._server.close()
        for connection in list(self._open):
            connection.transport.abort()
        await asyncio.sleep(0)

    # --- on the receiver's thread ---

    def _beat(self, expected_at: float) -> None:
        moment = time.monotonic()
        if moment - expected_at > BEAT_S:
            self.stalls.append((expected_at - BEAT_S, moment))
        self._loop.call_later(BEAT_S, self._beat, moment + BEAT_S)

    def note(self, subscription: int, event: int) -> int:
        self._events += event.to_bytes(16, "big")
        self._subscriptions.append(subscription)
        self._times.append(time.monotonic())
        self._said.append(NOTHING)
        return len(self._said) - 1

    def answered(self, index: int, said: int) -> None:
        self._said[index] = said

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        self._loop.call_later(delay_s, work)

    def check(self, subscription: int, event: int, headers: dict[bytes, bytes], body: bytes) -> None:
        moment = time.monotonic()
        given = set(headers[b"webhook-signature"].decode("ascii").split(" "))
        shown, timestamp = headers[b"webhook-id"].decode("ascii"), int(headers[b"webhook-timestamp"])
        for secret, until in reversed(self.behaviours[subscription].secrets):
            expected = signing.standard_signature([secret], shown, timestamp, body)
            if until >= moment and expected in given:
                return
        self.wrongly_signed.append(Request(subscription, event, moment, NOTHING))


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, receiver: SoakReceiver) -> None:
        self._receiver = receiver
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._receiver._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._receiver._open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = self._buffer[:end].split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            length = int(headers.get(b"content-length", b"0"))
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._take(first, headers, body)

    def _take(self, first: bytes, headers: dict[bytes, bytes], body: bytes) -> None:
        try:
            subscription = int(first.split(b" ")[1].split(b"/")[2])
            event = ids.parse(ids.EVENT, headers[b"webhook-id"].decode("ascii")).int
            behaviour = self._receiver.behaviours[subscription]
            index = self._receiver.note(subscription, event)
            self._receiver.check(subscription, event, headers, body)
        except Exception:
            self._receiver.malformed += 1
            self.transport.abort()
            raise
        mood = behaviour.mood
        if mood == "hangs":
            return
        if mood == "resets":
            self.transport.abort()
        elif mood == "closes":
            self.transport.close()
        elif mood == "fails" or (behaviour.fails and self._receiver.rng.random() < behaviour.fails):
            self._answer(index, FAILED, _FAILED)
        elif behaviour.slow_s[1]:
            delay_s = self._receiver.rng.uniform(*behaviour.slow_s)
            self._receiver.later(delay_s, lambda: self._answer(index, OK, _OK))
        else:
            self._answer(index, OK, _OK)

    def _answer(self, index: int, said: int, answer: bytes) -> None:
        if not self.transport.is_closing():
            self._receiver.answered(index, said)
            self.transport.write(answer)
