"""Several web processes on one database: what they accept together, and that nothing is lost between them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from bench import ledger, usage
from bench.children import Receiver, generate
from bench.load import Order, Outcome
from bench.platform import OURSELVES, SETTINGS, BenchError, Platform, own_environment
from cli import target
from cli.process import Command, Process
from cli.supervisor.ports import free_port

CONNECTIONS = 64  # of all together
SECONDS = 8.0
READY_WITHIN_S, DRAIN_WITHIN_S = 20.0, 120.0


async def webs(platform: Platform, receiver: Receiver, most: int, folder: Path) -> bool:
    """Posts to 1, 2, 4 and so on up to `most` web processes at once. Whether each ledger is exact."""
    exact = True
    print("\nseveral web processes, one worker: closed loops of 64 connections together")
    count = 1
    while count <= most:
        async with _started(platform, count - 1) as more:
            ports = {platform.port: platform.pids["web"][0]} | more
            exact &= await _measure(platform, receiver, ports, folder)
        count *= 2
    return exact


async def _measure(platform: Platform, receiver: Receiver, ports: dict[int, int], folder: Path) -> bool:
    name = f"webs-{len(ports)}"
    await platform.subscribe(receiver.urls(name, 1), f"bench.{name}")
    orders = [
        Order(
            port=port,
            key=platform.key,
            event_type=f"bench.{name}",
            connections=CONNECTIONS // len(ports),
            seconds=SECONDS,
            scenario=f"{name}-{port}",
        )
        for port in ports
    ]
    before = sum(map(usage.cpu_s, ports.values()))
    outcomes = await asyncio.gather(*(generate(order, folder) for order in orders))
    cpu_s = sum(map(usage.cpu_s, ports.values())) - before
    outcome = _together(outcomes)
    deadline = time.monotonic() + DRAIN_WITHIN_S
    while await platform.query("SELECT 1 FROM deliveries WHERE state IN ('pending', 'sending') LIMIT 1"):
        if time.monotonic() > deadline:
            break  # the ledger tells
        await asyncio.sleep(0.1)
    settled = await ledger.settle(platform, f"bench.{name}", 1, outcome, await receiver.dump(name))
    accepted = len(outcome.ids)
    print(
        f"  {len(ports)}: {accepted / (outcome.ended_at - outcome.started_at):7,.0f} accepted/s,"
        f" {cpu_s / max(1, accepted) * 1e6:4.0f} µs of their CPU each; {settled.line()}",
        flush=True,
    )
    return settled.exact


def _together(outcomes: list[Outcome]) -> Outcome:
    statuses: Counter[str] = Counter()
    for one in outcomes:
        statuses.update(one.statuses)
    return Outcome(
        ids=[each for one in outcomes for each in one.ids],
        written_at=[each for one in outcomes for each in one.written_at],
        answered_at=[each for one in outcomes for each in one.answered_at],
        examples=[each for one in outcomes for each in one.examples],
        statuses=statuses,
        unanswered=sum(one.unanswered for one in outcomes),
        late=sum(one.late for one in outcomes),
        started_at=min(one.started_at for one in outcomes),
        ended_at=max(one.ended_at for one in outcomes),
    )


@asynccontextmanager
async def _started(platform: Platform, count: int) -> AsyncIterator[dict[int, int]]:
    """So many more web processes: their ports and process ids."""
    known = target.settings(platform.data_dir, keys=True)
    env = own_environment() | SETTINGS
    env |= {
        "HOOKWRIGHT_DATABASE_URL": known.database_url,
        "HOOKWRIGHT_REDIS_URL": known.redis_url,
        "HOOKWRIGHT_SECRET_KEYS": ",".join(known.secret_keys),
    }
    processes: dict[int, Process] = {}
    try:
        for _ in range(count):
            port = free_port("127.0.0.1", 0)
            argv = (*OURSELVES, "web", "--port", str(port))
            processes[port] = Process.spawn(Command("web", argv, env=env))
        await asyncio.gather(*map(_ready, processes))
        yield {port: process.pid for port, process in processes.items()}
    finally:
        for process in processes.values():
            await process.stop(10)


async def _ready(port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                if (await client.get(f"http://127.0.0.1:{port}/healthz")).is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise BenchError(f"the web process on port {port} did not start")
            await asyncio.sleep(0.05)
