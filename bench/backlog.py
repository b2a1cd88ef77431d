"""What a backlog does to all else: an outage with a million deliveries waiting, and an organization that floods."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from bench import ledger, scenarios, usage
from bench.children import Receiver, generate
from bench.costs import connected, percentile
from bench.load import Order
from bench.platform import BenchError, Platform
from bench.scenarios import Scenario
from cli.supervisor.ports import free_port

ENDPOINTS = 20  # that are down
CHUNK = 100_000  # rows an INSERT
PARK_WITHIN_S, DRAIN_WITHIN_S = 600.0, 1_800.0
LIVE_RATE, LIVE_S = 50.0, 20.0  # what is delivered to others meanwhile
SINGLE_EVERY_S = 0.2
FLOOD_TARGET_MS = 1_000.0
PATIENCE_S = 30.0


async def outage(platform: Platform, receiver: Receiver, count: int, folder: Path) -> bool:
    """`count` deliveries become due for endpoints that refuse connections; then the endpoints come back. Whether all
    were delivered, each once."""
    port = free_port("127.0.0.1", 0)  # where nobody listens yet
    urls = [f"http://127.0.0.1:{port}/outage/{number}" for number in range(ENDPOINTS)]
    for url in urls:
        await platform.call(
            "POST",
            "/v1/webhooks/subscriptions",
            {
                "url": url,
                "events": ["bench.outage"],
                # Or the few that were tried before the breakers opened would decide when all are delivered.
                "retry_policy": {"backoff_strategy": "fixed", "base_delay_ms": 2_000, "max_attempts": 50},
                "circuit_breaker": {"timeout_ms": 5_000},
            },
        )
    print(f"\nan outage: {count:,} deliveries for {ENDPOINTS} endpoints that refuse connections")
    await _live(platform, receiver, folder, "before")
    async with connected(platform) as driver:
        started = time.monotonic()
        for at in range(0, count, CHUNK):
            await driver.execute(_BACKLOG, min(CHUNK, count - at), timeout=600)
        print(f"  inserted in {time.monotonic() - started:.0f} s")
        started = time.monotonic()

        async def parked() -> bool:
            return not await driver.fetchval(_UNPARKED)

        await _until(parked, PARK_WITHIN_S, "all deliveries put aside", every_s=0.5)
        print(f"  put aside in {time.monotonic() - started:.0f} s; worker {_worker_mb(platform):.0f} MB")
        await _live(platform, receiver, folder, "during")
        async with Receiver(port) as back:
            started = time.monotonic()
            live = asyncio.create_task(_live(platform, receiver, folder, "draining"))

            async def received() -> bool:
                return await back.count("outage") >= count

            async def recorded() -> bool:
                return not await driver.fetchval(_UNFINISHED)

            await _until(received, DRAIN_WITHIN_S, "all deliveries received", every_s=0.5)
            took_s = time.monotonic() - started
            await live
            await _until(recorded, DRAIN_WITHIN_S, "all deliveries recorded")
            heard = await back.dump("outage")
    rate = count / took_s
    print(f"  delivered after the return in {took_s:.0f} s: {rate:,.0f}/s; worker {_worker_mb(platform):.0f} MB")
    print(f"  {heard.distinct:,} distinct in {heard.requests:,} requests")
    return heard.distinct == heard.requests == count


_BACKLOG = """
WITH model AS (
    SELECT e.*, d.subscription_id FROM events e JOIN deliveries d ON d.event_id = e.id ORDER BY e.id DESC LIMIT 1
), wanted AS (
    SELECT id, row_number() OVER (ORDER BY id) - 1 AS number, count(*) OVER () AS all_of_them
    FROM subscriptions WHERE events = '{bench.outage}'
), made AS (
    SELECT n, uuidv7() AS id FROM generate_series(1, $1::int) n
), stored AS (
    INSERT INTO events (id, organization_id, event_type, occurred_at, payload, data_at, matched_subscriptions)
    SELECT made.id, model.organization_id, 'bench.outage', now(), model.payload, model.data_at, 1 FROM made, model
)
INSERT INTO deliveries (id, organization_id, subscription_id, event_id, event_type, state, reason, due_at)
SELECT uuidv7(), model.organization_id, wanted.id, made.id, 'bench.outage', 'pending', 'new', now()
FROM made CROSS JOIN model JOIN wanted ON wanted.number = made.n % wanted.all_of_them
"""
_UNPARKED = """
SELECT count(*) FROM deliveries WHERE event_type = 'bench.outage' AND state IN ('pending', 'sending')
AND (reason IS NULL OR reason = 'new')
"""
_UNFINISHED = "SELECT EXISTS (SELECT FROM deliveries WHERE state IN ('pending', 'sending'))"


async def _until(
    condition: Callable[[], Awaitable[bool]], within_s: float, what: str, *, every_s: float = 0.05
) -> None:
    deadline = time.monotonic() + within_s
    while not await condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {within_s:.0f} s")
        await asyncio.sleep(every_s)


async def _live(platform: Platform, receiver: Receiver, folder: Path, name: str) -> None:
    """Events for an endpoint that is well."""
    scenario = Scenario(f"live-{name}", seconds=LIVE_S, rate=LIVE_RATE)
    result = await scenarios.run(scenario, platform, receiver, folder, 1024, drains=False)
    if result.ledger is None or not result.ledger.exact:
        raise BenchError(f"the ledger of what was delivered meanwhile is not exact: {result.ledger}")
    told = ", ".join(f"p{p} {result.figures[f'receipt_ms_p{p}']:.1f}" for p in (50, 95, 99))
    print(f"  new events for others, {name} ({LIVE_RATE:.0f}/s): POST written to receipt, ms: {told}", flush=True)


def _worker_mb(platform: Platform) -> float:
    """The most that any worker held since its start."""
    return max(map(usage.memory_mb, platform.pids["worker"]))


# --- a flood -------------------------------------------------------------------------------------------------------


async def flood(platform: Platform, receiver: Receiver, count: int, folder: Path) -> bool:
    """One organization posts `count` events as fast as it can, another a single one now and then. Whether none of the
    latter took longer than `FLOOD_TARGET_MS` from POST to receipt."""
    _, key = await platform.make_tenant("single")
    headers = {"X-API-Key": key}
    async with httpx.AsyncClient(base_url=platform.url, trust_env=False, headers=headers, timeout=60) as client:
        body = {"url": receiver.urls("single", 1)[0], "events": ["*"]}
        (await client.post("/v1/webhooks/subscriptions", json=body)).raise_for_status()
        await platform.subscribe(receiver.urls("flood", 1), "bench.flood")
        await _single(client)  # so that the first connection is not measured
        alone = await _singles(client, receiver, asyncio.create_task(asyncio.sleep(5)))
        order = Order(port=platform.port, key=platform.key, event_type="bench.flood", events=count, scenario="flood")

        async def delivered() -> None:
            outcome = await generate(order, folder)
            print(f"  {len(outcome.ids):,} accepted; waiting until all are delivered", flush=True)

            async def received() -> bool:
                return await receiver.count("flood") >= len(outcome.ids)

            await _until(received, DRAIN_WITHIN_S, "the flood received", every_s=0.2)
            heard = await receiver.dump("flood")
            settled = await ledger.settle(platform, "bench.flood", 1, outcome, heard)
            print(f"  flood: {settled.line()}")
            if not settled.exact:
                raise BenchError("the ledger of the flood is not exact")

        print(f"\none organization posts {count:,} events, another one each {SINGLE_EVERY_S} s")
        beside = await _singles(client, receiver, asyncio.create_task(delivered()))
    for name, taken in (("alone", alone), ("beside the flood", beside)):
        print(
            f"  POST to receipt, ms, {name:16} {len(taken):4}: p50 {statistics.median(taken):6.1f}"
            f"  p99 {percentile(taken, 99):6.1f}  max {max(taken):6.1f}"
        )
    return max(beside) <= FLOOD_TARGET_MS


async def _singles(client: httpx.AsyncClient, receiver: Receiver, until: asyncio.Task[Any]) -> Sequence[float]:
    """Posts until `until` is done; the milliseconds to each receipt."""
    written: dict[str, float] = {}
    while not until.done():
        at = time.monotonic()
        written[await _single(client)] = at
        await asyncio.sleep(SINGLE_EVERY_S)
    await until

    async def received() -> bool:
        return await receiver.count("single") >= len(written)

    await _until(received, PATIENCE_S, "all single events received")
    [first_at] = (await receiver.dump("single")).first_at.values()
    return [(first_at[one] - at) * 1000 for one, at in written.items() if one in first_at]


async def _single(client: httpx.AsyncClient) -> str:
    answer = await client.post("/v1/events", json={"event_type": "single.event", "data": {"text": "x" * 1_000}})
    if answer.status_code != 202:
        raise BenchError(f"an event was refused: {answer.status_code} {answer.text[:500]}")
    event_id: str = answer.json()["data"]["event_id"]
    return event_id
