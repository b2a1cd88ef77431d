"""The other two processes of a run, the load generator and the receiver, and questions to the receiver."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from bench.load import Order, Outcome
from bench.platform import BenchError, own_environment
from cli.process import Command, Process, describe_exit
from cli.supervisor.ports import free_port

START_WITHIN_S = 10.0


@dataclass
class Heard:
    """What the receiver tells about a scenario."""

    requests: int
    distinct: int
    first_at: dict[str, dict[str, float]]  # by path, then by webhook-id

    def times(self) -> list[float]:
        return sorted(at for of_path in self.first_at.values() for at in of_path.values())


async def generate(order: Order, folder: Path) -> Outcome:
    """Runs the load generator; it ends with us if we are cancelled."""
    result = folder / f"load-{order.scenario}.json"
    argv = (sys.executable, "-m", "bench.load", orjson.dumps(asdict(order)).decode(), str(result))
    process = Process.spawn(Command("load", argv, env=own_environment()))
    try:
        code = await process.wait()
    finally:
        process.kill()
    if code != 0:
        raise BenchError(f"the load generator failed ({describe_exit(code)})")
    return Outcome(**orjson.loads(result.read_bytes()))


class Receiver:
    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port("127.0.0.1", 0)

    async def __aenter__(self) -> Self:
        argv = (sys.executable, "-m", "bench.receiver", str(self.port))
        self._process = Process.spawn(Command("receiver", argv, env=own_environment()))
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                await self.count("none")
            except OSError:
                if self._process.exit_code is not None or time.monotonic() > deadline:
                    raise BenchError("the receiver did not start") from None
                await asyncio.sleep(0.02)
            else:
                return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    def urls(self, scenario: str, fanout: int) -> list[str]:
        return [f"http://127.0.0.1:{self.port}/{scenario}/{number}" for number in range(fanout)]

    async def count(self, scenario: str) -> int:
        return int(await self._ask("count", scenario))

    async def dump(self, scenario: str) -> Heard:
        return Heard(**orjson.loads(await self._ask("dump", scenario)))

    async def _ask(self, what: str, scenario: str) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET /-/{what}/{scenario} HTTP/1.1\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            return await reader.readexactly(int(head.split(b": ")[1]))
        finally:
            writer.close()
