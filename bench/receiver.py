"""The far end: answers 200 to every POST, and remembers for each path and `webhook-id` when it first came.

    python -m bench.receiver PORT

A path is `/SCENARIO/NUMBER`, so that the deliveries of one event to several subscriptions count apart. One that begins
with `/hanging` is never answered. `GET /-/count/SCENARIO` tells how many distinct ones came, `GET /-/dump/SCENARIO` all
about them, and forgets them.

Raw asyncio: 12 µs of CPU a request, since it shares two cores with what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from dataclasses import dataclass, field
from typing import cast

import orjson
import uvloop

HANGING = b"/hanging"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Heard:
    """What came for one scenario. Times are CLOCK_MONOTONIC's, which is the same in every process."""

    requests: int = 0
    distinct: int = 0
    first_at: dict[bytes, dict[bytes, float]] = field(default_factory=dict)  # by path, then by webhook-id

    def note(self, path: bytes, webhook_id: bytes) -> None:
        self.requests += 1
        of_path = self.first_at.setdefault(path, {})
        if webhook_id not in of_path:
            of_path[webhook_id] = time.monotonic()
            self.distinct += 1

    def to_json(self) -> bytes:
        first_at = {
            path.decode(): {one.decode(): at for one, at in of_path.items()} for path, of_path in self.first_at.items()
        }
        return orjson.dumps({"requests": self.requests, "distinct": self.distinct, "first_at": first_at})


class Connection(asyncio.Protocol):
    def __init__(self, heard: dict[bytes, Heard]) -> None:
        self._heard = heard
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            length_at = buffer.find(b"Content-Length: ", 0, end)
            length = int(buffer[length_at + 16 : buffer.index(b"\r", length_at)]) if length_at >= 0 else 0
            if len(buffer) < end + 4 + length:
                break
            method, path, _ = buffer[: buffer.index(b"\r")].split(b" ", 2)
            if method == b"POST":
                id_at = buffer.find(b"webhook-id: ", 0, end + 2)
                webhook_id = buffer[id_at + 12 : buffer.index(b"\r", id_at)] if id_at >= 0 else b""
                self._of(path).note(path, webhook_id)
                if not path.startswith(HANGING):
                    self._transport.write(OK)
            else:
                self._transport.write(self._tell(path))
            buffer = buffer[end + 4 + length :]
        self._buffer = buffer

    def _of(self, path: bytes) -> Heard:
        scenario = path.split(b"/", 2)[1]
        found = self._heard.get(scenario)
        if found is None:
            found = self._heard[scenario] = Heard()
        return found

    def _tell(self, path: bytes) -> bytes:
        _, _, what, scenario = path.split(b"/")
        if what == b"count":
            heard = self._heard.get(scenario)
            body = b"%d" % (heard.distinct if heard is not None else 0)
        else:
            body = self._heard.pop(scenario, Heard()).to_json()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def serve(port: int) -> None:
    heard: dict[bytes, Heard] = {}
    gc.freeze()
    gc.disable()  # nothing here is cyclic; a collection over a million ids would look like latency of the platform
    server = await asyncio.get_running_loop().create_server(lambda: Connection(heard), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
