"""The web process is killed: what it answered with 202 is delivered, what it did not answer can be sent again."""

from __future__ import annotations

from collections.abc import Callable

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import SLACK_S, SWEEP_S

Play = Callable[[Scenario], None]


def test_killed_right_after_a_202_its_event_is_delivered(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, _ = await fleet.start()
        await fleet.subscribe("/ok")
        event = await fleet.post("1")
        await fleet.kill(web, explains=False)
        await fleet.delivered(1, within_s=SWEEP_S + SLACK_S)
        assert [one.header("webhook-id") for one in fleet.receiver.requests] == [event]

    play(scenario)


def test_killed_at_random_moments_under_load_nothing_is_lost_or_doubled(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, _ = await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(3):
                await fleet.pause(0.2, 0.7)
                await fleet.kill(web, explains=False)
                web = await fleet.start_web()
        ledger = await settle(fleet, producer)
        assert ledger.repeats == 0
        assert any(one.status is None for one in producer.tries()), "no kill met a request"

    play(scenario)
