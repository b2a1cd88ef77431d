"""PostgreSQL commits, and its answer is lost: the connection ends exactly between the two (`postgres_proxy.py`).

Whoever asked can't know whether it is done. It asks again, and that must come to the same as once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.postgres_proxy import PostgresProxy
from tests.faults.producer import Producer
from tests.faults.scene import LEASE_S, SLACK_S, SWEEP_S
from tests.platform import HANGS_S

Play = Callable[[Scenario], None]

CUTS = 4
COMMIT = "COMMIT;"  # acceptance, whose statements need a transaction: event_keys, events, deliveries
RECORDING = "INSERT INTO attempts"  # an outcome, whose one statement is its own transaction
CLAIMING = "SET state = 'sending'"


@asynccontextmanager
async def proxied(fleet: Fleet, part: str, **more: str) -> AsyncIterator[PostgresProxy]:
    """A fleet whose `part`, web or worker, reaches PostgreSQL through a proxy. `more` are its settings."""
    async with PostgresProxy(fleet.database_url) as proxy:
        await fleet.make_tenant()
        settings = {"DATABASE_URL": proxy.url, **more}
        await asyncio.gather(
            fleet.start_web(**settings if part == "web" else {}),
            fleet.start_worker(**settings if part == "worker" else {}),
        )
        await fleet.subscribe("/ok")
        yield proxy
        assert fleet.errors() == []


async def cut_often(fleet: Fleet, proxy: PostgresProxy, needle: str) -> None:
    for _ in range(CUTS):
        await fleet.pause(0.1, 0.4)
        async with asyncio.timeout(HANGS_S):
            await proxy.cut(needle).done.wait()


def test_an_acceptance_whose_commit_was_not_heard_is_one_event_when_sent_again(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with proxied(fleet, "web") as proxy:
            producer = Producer(fleet.url, fleet.key, fleet.rng)

            def repeated() -> int:
                """200 says that it had been stored by the first try."""
                return sum(len(one.tries) > 1 and one.tries[-1].status == 200 for one in producer.accepted)

            async with producer.producing(), asyncio.timeout(HANGS_S):
                while repeated() < CUTS:  # a cut may also hit the look at an API key, and then nothing was stored
                    await fleet.pause(0.1, 0.4)
                    await proxy.cut(COMMIT).done.wait()
            ledger = await settle(fleet, producer)
            assert ledger.repeats == 0
            again = [one for one in producer.accepted if len(one.tries) > 1]
            assert {one.tries[0].status for one in again} == {503}

    play(scenario)


def test_an_outcome_whose_commit_was_not_heard_is_recorded_again_and_stands_once(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        async with proxied(fleet, "worker") as proxy:
            producer = Producer(fleet.url, fleet.key, fleet.rng)
            async with producer.producing():
                await cut_often(fleet, proxy, RECORDING)
            ledger = await settle(fleet, producer)
            assert ledger.repeats == 0
            [attempts] = await fleet.query("SELECT count(*), max(number) FROM attempts")
            assert tuple(attempts) == (ledger.requests, 1), "each request is one attempt, and the first"

    play(scenario)


def test_a_failed_outcome_whose_commit_was_not_heard_spends_one_attempt(play: Play) -> None:
    """The delivery is due again, maybe claimed again, before the outcome of its first claim is recorded twice."""

    async def scenario(fleet: Fleet) -> None:
        async with proxied(fleet, "worker") as proxy:
            fleet.receiver.script("/ok", [500, 500, 200])
            first = proxy.cut(RECORDING)
            await fleet.post("1")
            await fleet.delivered(1, within_s=3 * SWEEP_S + LEASE_S + SLACK_S)
            assert first.done.is_set()
            assert len(fleet.receiver.requests) == 3
            rows = await fleet.query("SELECT number, status_code FROM attempts ORDER BY number")
            assert [tuple(row) for row in rows] == [(1, 500), (2, 500), (3, 200)]
            [delivery] = await fleet.query("SELECT state, attempt_count FROM deliveries")
            assert tuple(delivery) == ("delivered", 3)

    play(scenario)


def test_a_claim_whose_commit_was_not_heard_is_sent_once_its_lease_ends(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        # Few sweeps, so that it is claimed by its hint: a sweep's claim would not be committed yet at that statement.
        async with proxied(fleet, "worker", SWEEP_INTERVAL_S="2") as proxy:
            await fleet.pause(0.2, 0.8)
            cut = proxy.cut(CLAIMING)
            began = time.monotonic()
            event = await fleet.post("1")
            async with asyncio.timeout(SLACK_S):
                await cut.done.wait()
            assert await fleet.states() == {"sending": 1}
            assert fleet.receiver.requests == []
            await fleet.delivered(1, within_s=LEASE_S + 2 + SLACK_S)
            print(f"delivered {time.monotonic() - began:.1f} s after it was posted")
            assert [one.header("webhook-id") for one in fleet.receiver.requests] == [event]

    play(scenario)
