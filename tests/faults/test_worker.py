"""A worker is killed, stopped, or asked to end, while it sends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import LEASE_MARGIN_S, SLACK_S, SWEEP_S, until

Play = Callable[[Scenario], None]

PATIENT_MS = 3_000  # of a request that is under way while something is done to its worker


def test_killed_in_mid_send_another_delivers_once_the_lease_ends(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, worker = await fleet.start()
        await fleet.subscribe("/hang", timeout_ms=PATIENT_MS)
        event = await fleet.post("1")
        await fleet.received(1)
        claimed_at = time.monotonic()
        await fleet.kill(worker)
        fleet.receiver.set("/hang", 200)
        await fleet.start_worker()
        remaining_s = claimed_at + PATIENT_MS / 1_000 + LEASE_MARGIN_S - time.monotonic()
        await fleet.delivered(1, within_s=max(0.0, remaining_s) + SWEEP_S + SLACK_S)
        assert [one.header("webhook-id") for one in fleet.receiver.requests] == [event, event]
        # The killed one's attempt is not recorded: there was nobody to do it.
        assert [row["number"] for row in await fleet.query("SELECT number FROM attempts")] == [1]

    play(scenario)


def test_killed_at_random_moments_loses_nothing(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(2):
                await fleet.pause(0.3, 1.0)
                await fleet.kill(worker)
                worker = await fleet.start_worker()
        print(await settle(fleet, producer))

    play(scenario)


def test_stopped_past_its_lease_it_does_not_record(play: Play) -> None:
    """Fencing. The stale worker comes back while another holds the delivery; its own outcome, a timeout of the only
    attempt, would be a dead letter."""

    async def scenario(fleet: Fleet) -> None:
        _, stale = await fleet.start()
        subscription_id = await fleet.subscribe("/hang", retry_policy={"max_attempts": 1}, timeout_ms=PATIENT_MS)
        event = await fleet.post("1")
        await fleet.received(1)
        stale.send(signal.SIGSTOP)
        await fleet.move(subscription_id, "/slow/0.8")
        await fleet.start_worker()
        await fleet.received(2, within_s=PATIENT_MS / 1_000 + LEASE_MARGIN_S + SWEEP_S + SLACK_S)
        stale.send(signal.SIGCONT)

        async def both_tell_of_their_attempt() -> bool:
            return len(await fleet.query("SELECT 1 FROM attempts")) == 2

        await until(both_tell_of_their_attempt, SLACK_S, "two attempts are recorded")
        kinds = [row["error_kind"] for row in await fleet.query("SELECT error_kind FROM attempts ORDER BY started_at")]
        assert kinds == ["timeout", None]
        [delivery] = await fleet.query("SELECT state, attempt_count, status_code FROM deliveries")
        assert tuple(delivery) == ("delivered", 1, 200)
        assert [one.header("webhook-id") for one in fleet.receiver.requests] == [event, event]
        assert "a lease was lost" in fleet.logs()
        assert stale.exit_code is None

    play(scenario)


@pytest.mark.parametrize("path", ["/ok", "/slow/0.4"])
def test_asked_to_end_under_load_it_hands_back_and_doubles_nothing(play: Play, seed: int, path: str) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, worker = await fleet.start()
        await fleet.subscribe(path)
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for _ in range(2):
                await fleet.pause(0.3, 0.8)
                asked_at = time.monotonic()
                worker.send(signal.SIGTERM)
                assert await worker.wait() == 0
                assert time.monotonic() - asked_at < 10
                assert "sending" not in await fleet.states(), "it left claims behind that only a lease's end frees"
                worker = await fleet.start_worker()
        ledger = await settle(fleet, producer)
        assert ledger.repeats == 0

    play(scenario)
