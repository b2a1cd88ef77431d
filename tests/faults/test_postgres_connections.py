"""PostgreSQL lives and cuts its clients off, or has no room for them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import asyncpg

from cli.process import Process
from core import ids
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import CUT, TIMEOUT_MS, Harm

Play = Callable[[Scenario], None]

AT_ONCE = 20  # connections opened side by side


def test_connections_cut_again_and_again_under_load(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        slowest_s = 0.0
        async with producer.producing(), _bystander(fleet) as seen:
            for _ in range(8):
                await fleet.pause(0.1, 0.5)
                began = time.monotonic()
                assert await fleet.cut() > 0
                await producer.accepts(5)
                slowest_s = max(slowest_s, time.monotonic() - began)
        ledger = await settle(fleet, producer)
        print(f"{ledger}; accepts again after {slowest_s:.2f} s at most; lists and changes: {Counter(seen)}")
        assert {200} <= set(seen) <= {200, 503}
        assert ledger.repeats == 0, "outcomes wait for a connection"
        assert all(one.status in (200, 202) or one.retry_after for one in producer.tries())
        assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])

    play(scenario)


def test_no_connection_is_left(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await fleet.pause(0.4, 1.0)
            began = time.monotonic()
            async with every_connection(fleet, web, worker):
                taken_at = time.monotonic()
                await producer.refused(20)
                tries = producer.since(taken_at)
                assert {one.status for one in tries} == {503}
                assert all(one.retry_after is not None and int(one.retry_after) >= 1 for one in tries)
                assert await fleet.why_not("/readyz") is not None
            free_at = time.monotonic()
            await producer.accepts(20)
            print(f"accepts again after {time.monotonic() - free_at:.2f} s")
            fleet.harms.append(Harm(began, time.monotonic()))
        print(await settle(fleet, producer))
        assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])

    play(scenario)


@asynccontextmanager
async def _bystander(fleet: Fleet) -> AsyncIterator[list[int]]:
    """Somebody who looks at lists and changes a subscription all the while; the statuses of the answers."""
    [row] = await fleet.query("SELECT id FROM subscriptions")
    subscription = f"/v1/webhooks/subscriptions/{ids.show(ids.SUBSCRIPTION, row['id'])}"
    seen: list[int] = []

    async def look(client: aiohttp.ClientSession) -> None:
        while True:
            for path in ("/v1/events", "/v1/deliveries", subscription):
                async with client.get(fleet.url + path) as answer:
                    seen.append(answer.status)
            async with client.patch(
                fleet.url + subscription, json={"timeout_ms": TIMEOUT_MS + len(seen) % 2}
            ) as answer:
                seen.append(answer.status)
            await asyncio.sleep(0.02)

    async with aiohttp.ClientSession(headers={"X-API-Key": fleet.key}) as client:
        looking = asyncio.create_task(look(client))
        yield seen
        looking.cancel()
        assert isinstance(*await asyncio.gather(looking, return_exceptions=True), asyncio.CancelledError)


@asynccontextmanager
async def every_connection(fleet: Fleet, *processes: Process) -> AsyncIterator[None]:
    """Holds all connections that PostgreSQL has, those of the platform's `processes` included."""
    hogs: list[Any] = []
    try:
        async with fleet.session() as operator:
            for process in processes:  # they would be quicker to connect again
                process.send(signal.SIGSTOP)
            try:
                while await operator.fetchval(CUT):  # noqa: ASYNC110 - it happens in PostgreSQL
                    await asyncio.sleep(0.05)
                await _open_all(fleet, hogs)
            finally:
                for process in processes:
                    process.send(signal.SIGCONT)
            yield
    finally:
        for hog in hogs:
            hog.terminate()


async def _open_all(fleet: Fleet, hogs: list[Any]) -> None:
    while True:
        opened = await asyncio.gather(
            *(asyncpg.connect(fleet.parts.hog_url) for _ in range(AT_ONCE)), return_exceptions=True
        )
        fresh = [one for one in opened if not isinstance(one, BaseException)]
        hogs += fresh
        for error in opened:
            if isinstance(error, BaseException) and not isinstance(error, asyncpg.TooManyConnectionsError):
                raise error
        if not fresh:
            return
