"""PostgreSQL is killed, or stops answering, under load: no 202 without it, and everything accepted is delivered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp

from core.acceptance import ACCEPT_TIMEOUT_S
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import POSTERS, Producer
from tests.faults.scene import LEASE_S, LONG, SLACK_S, Harm, until
from tests.platform import HANGS_S

Play = Callable[[Scenario], None]

OUTAGE_S = 30.0 if LONG else ACCEPT_TIMEOUT_S + 3.0
HEARD_WITHIN_S = 3.0  # an answer that was on its way when PostgreSQL stopped
assert OUTAGE_S > 2 * LEASE_S


def test_killed_under_load_answers_are_503_until_it_is_back(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(2):
                await fleet.pause(0.4, 1.0)
                began = time.monotonic()
                await fleet.parts.postgres.kill()
                gone_at = time.monotonic()

                async def refused(since: float = gone_at) -> bool:
                    return sum(one.status == 503 and one.began > since for one in producer.tries()) >= 10

                await until(refused, HANGS_S, "answers of 503")
                starting_at = time.monotonic()
                meanwhile = [one for one in producer.tries() if gone_at < one.began and one.ended < starting_at]
                assert {one.status for one in meanwhile} == {503}
                assert all(one.retry_after is not None and int(one.retry_after) >= 1 for one in meanwhile)
                await fleet.parts.postgres.start()
                fleet.harms.append(Harm(began, time.monotonic()))
                await producer.accepts(20)
        print(await settle(fleet, producer))
        assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])

    play(scenario)


def test_stopped_for_longer_than_a_lease_and_a_request_may_take(play: Play) -> None:
    """SIGSTOP. Unlike one that was killed, it closes no connection: only clocks can tell."""

    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        key = await fleet.make_key()
        producer = Producer(fleet.url, fleet.key, fleet.rng, answer_within_s=60)
        async with producer.producing():
            await fleet.pause(0.4, 1.0)
            began = time.monotonic()
            fleet.parts.postgres.freeze()
            frozen_at = time.monotonic()
            # The producer posts with a key that the web process knows; others ask in other ways.
            others = [
                asyncio.create_task(_ask(fleet, method, path, key))
                for method, path in (("POST", "/v1/events"), ("GET", "/v1/events"), ("GET", "/readyz"))
            ]
            try:
                await asyncio.sleep(OUTAGE_S)
                await asyncio.wait(others, timeout=SLACK_S)
                answers = producer.ended_since(frozen_at + HEARD_WITHIN_S)
                assert [one.done() and one.result() for one in others] == [503, 503, 503], (
                    "a client hangs, or was lied to"
                )
            finally:
                fleet.parts.postgres.thaw()
            thawed_at = time.monotonic()
            await producer.accepts(20)
            print(f"accepts again after {time.monotonic() - thawed_at:.1f} s")
            fleet.harms.append(Harm(began, time.monotonic()))
        assert len(answers) >= POSTERS
        assert {one.status for one in answers} == {503}
        assert all(one.retry_after is not None and int(one.retry_after) >= 1 for one in answers)
        slowest_s = max(one.ended - one.began for one in answers)
        assert slowest_s < ACCEPT_TIMEOUT_S + SLACK_S
        print(f"answers of 503 after {slowest_s:.1f} s at most")
        print(await settle(fleet, producer))
        assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])

    play(scenario)


async def _ask(fleet: Fleet, method: str, path: str, key: str) -> int:
    """The status of the answer."""
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": key}) as client,
        client.request(method, fleet.url + path, json={"event_type": "order.paid", "data": {}}) as answer,
    ):
        return answer.status
