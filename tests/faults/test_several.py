"""Several workers on one queue, several web processes behind one producer: killed at random, restarted in turn."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

from cli.process import Process
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.ports import free_port

Play = Callable[[Scenario], None]
STOPPED_WITHIN_S = 10.0


def test_three_workers_of_which_random_ones_die_never_claim_the_same(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, first = await fleet.start()
        workers = [first, *await asyncio.gather(fleet.start_worker(), fleet.start_worker())]
        await fleet.subscribe("/slow/0.05")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(3):
                await fleet.pause(0.2, 0.6)
                victim = fleet.rng.randrange(len(workers))
                await fleet.kill(workers[victim])
                workers[victim] = await fleet.start_worker()
        print(await settle(fleet, producer))
        doubled = "SELECT 1 FROM attempts GROUP BY delivery_id, series, number HAVING count(*) > 1"
        assert not await fleet.query(doubled)

    play(scenario)


def test_restarted_in_turn_under_load_nobody_notices(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        port = free_port()
        web, worker = await fleet.start()
        second_web, _ = await asyncio.gather(fleet.start_web(port=port), fleet.start_worker())
        await fleet.subscribe("/slow/0.05")
        producer = Producer(fleet.url, fleet.key, fleet.rng, f"http://127.0.0.1:{port}")
        turns: list[tuple[Process, Callable[[], Awaitable[Process]]]] = [
            (web, fleet.start_web),
            (second_web, lambda: fleet.start_web(port=port)),
            (worker, fleet.start_worker),
        ]
        async with producer.producing():
            for process, start in fleet.rng.sample(turns, len(turns)):
                await fleet.pause(0.2, 0.6)
                asked_at = time.monotonic()
                process.send(signal.SIGTERM)
                assert await process.wait() == 0
                print(f"{process.command.name} ended within {time.monotonic() - asked_at:.1f} s")
                assert time.monotonic() - asked_at < STOPPED_WITHIN_S
                await start()
        ledger = await settle(fleet, producer)
        print(ledger, f"{sum(one.status is None for one in producer.tries())} connections broke")
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert {one.status for one in producer.tries()} <= {202, 200, None}, "an answer of 5xx"

    play(scenario)
