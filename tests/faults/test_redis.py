"""Redis is emptied, killed or away: it carries only hints, so nothing is lost, doubled or held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import LONG, SLACK_S, SWEEP_S

Play = Callable[[Scenario], None]

AWAY_S = 60.0 if LONG else 2.5  # longer than every timeout towards Redis, so that each of them is met


def test_emptied_under_load_nothing_is_lost_or_doubled(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(10):
                await fleet.pause(0.05, 0.3)
                assert await fleet.parts.redis("FLUSHALL")
        # No lease has to end for this: a lost hint waits for the sweep alone.
        ledger = await settle(fleet, producer, within_s=SWEEP_S + SLACK_S)
        assert (ledger.repeats, ledger.dead) == (0, 0)

    play(scenario)


def test_killed_and_restarted_empty_under_load_nothing_is_lost_or_doubled(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, worker = await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(2):
                await fleet.pause(0.2, 0.6)
                await fleet.parts.valkey.kill()
                await fleet.pause(0.0, 0.4)
                await fleet.parts.restart_valkey_empty()
        ledger = await settle(fleet, producer, within_s=SWEEP_S + SLACK_S)
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert worker.exit_code is None

    play(scenario)


def test_away_acceptance_and_delivery_go_on_and_hints_come_back(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await producer.accepts(60)
            before_s = max(one.ended - one.began for one in producer.tries())
            await fleet.parts.valkey.kill()
            away_since = time.monotonic()
            await asyncio.sleep(AWAY_S)
            await producer.accepts(50)
            meanwhile = len(producer.accepted)
            await fleet.delivered(meanwhile, within_s=SWEEP_S + SLACK_S)
            assert "redis" in (await fleet.why_not("/readyz") or "")
            back_at = time.monotonic()
            await fleet.parts.valkey.start()
            await fleet.hints_flow()
        slowest_s = max(one.ended - one.began for one in producer.tries() if away_since < one.began < back_at)
        assert slowest_s < max(1.0, 5 * before_s), "acceptance waited for Redis"
        ledger = await settle(fleet, producer, within_s=SWEEP_S + SLACK_S)
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert (web.exit_code, worker.exit_code) == (None, None)

    play(scenario)
