"""A subscription is deleted, paused, rotated or moved while its deliveries are in flight: those end as what they are,
and the rest follow the new state."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
import standardwebhooks

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.platform import Platform, eventually, platform
from tests.receiver import Receiver, Recorded
from worker import gates

Play = Callable[[Scenario], None]


IN_FLIGHT = 4  # what the worker has slots for
WAITING = 8  # what has to wait behind them
# What one worker has claimed it sends, however soon after that the subscription changes.
CLAIMED_WITHIN_S = 1.0
POLICY = {"backoff_strategy": "fixed", "base_delay_ms": 300, "max_attempts": 3}


@pytest.fixture(autouse=True)
def _window(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the subscription had been delivered to for a while: so many may be in flight, and though the receiver holds
    them none is slow. Else a machine that takes a second to claim them all would leave some in the slow lane, which has
    fewer slots."""

    class Proven(gates.Gate):
        def __init__(self, subscription_id: UUID) -> None:
            super().__init__(subscription_id)
            self.window, self.proven = IN_FLIGHT, True

    monkeypatch.setattr(gates, "Gate", Proven)
    monkeypatch.setattr(gates, "SLOW_S", 3_600.0)


class Held:
    """A platform whose worker has all its slots taken by requests that the receiver holds, and more waiting."""

    def __init__(self, it: Platform, receiver: Receiver, subscription: dict[str, Any]) -> None:
        self.it = it
        self.receiver = receiver
        self.subscription = subscription
        self.path = f"/v1/webhooks/subscriptions/{subscription['subscription_id']}"
        self.in_flight: set[str] = set()

    async def call(self, method: str, suffix: str = "", body: Any = None) -> dict[str, Any]:
        """Changes the subscription."""
        answer = await self.it.call(method, self.path + suffix, body)
        data: dict[str, Any] = (answer or {}).get("data") or {}
        return data

    def requests(self, path: str) -> list[Recorded]:
        return [one for one in self.receiver.requests if one.path == path]

    async def outcomes(self, **wanted: int) -> None:
        """Waits until the deliveries are in exactly these states."""

        async def there() -> bool:
            rows = await self.it.sql("SELECT state, count(*) FROM deliveries GROUP BY state")
            return {row["state"]: row["count"] for row in rows} == wanted

        await eventually(there, what=f"deliveries are {wanted}")

    async def reasons(self, state: str) -> set[str | None]:
        return {row["reason"] for row in await self.it.sql("SELECT reason FROM deliveries WHERE state = $1", state)}

    async def attempts(self) -> int:
        """Attempts recorded; as many requests have come in."""
        rows = await self.it.sql("SELECT 1 FROM attempts")
        assert len(rows) == len(self.receiver.requests), "requests are not attempts"
        return len(rows)


async def _has_room(it: Platform) -> bool:
    assert it.engine is not None
    return it.engine.under_way == 0


def holding(database_url: str, redis_url: str, scenario: Callable[[Held], Awaitable[None]]) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, WORKER_MAX_IN_FLIGHT=str(IN_FLIGHT)) as it:
            subscription = await it.subscribe(receiver.url("/hold"), timeout_ms=30_000, retry_policy=POLICY)
            held = Held(it, receiver, subscription)
            for _ in range(IN_FLIGHT + WAITING):
                await it.send()
            receiver_has = asyncio.to_thread(receiver.wait_for, IN_FLIGHT)
            held.in_flight = {str(one.header("webhook-id")) for one in await receiver_has}
            await held.outcomes(sending=IN_FLIGHT, pending=WAITING)
            await scenario(held)
            states = await it.sql("SELECT 1 FROM deliveries WHERE state IN ('sending', 'pending')")
            assert not states
            await eventually(lambda: _has_room(it), what="all slots are given back")

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_deleted_what_is_in_flight_ends_and_the_rest_is_discarded(database_url: str, redis_url: str) -> None:
    async def scenario(held: Held) -> None:
        await held.call("DELETE")
        await held.outcomes(sending=IN_FLIGHT, discarded=WAITING)
        held.receiver.release()
        await held.outcomes(delivered=IN_FLIGHT, discarded=WAITING)
        assert await held.reasons("discarded") == {"subscription_deleted"}
        assert await held.attempts() == IN_FLIGHT

    holding(database_url, redis_url, scenario)


def test_deleted_what_fails_in_flight_is_not_tried_again(database_url: str, redis_url: str) -> None:
    async def scenario(held: Held) -> None:
        await held.call("DELETE")
        held.receiver.release(500)
        await held.outcomes(discarded=IN_FLIGHT + WAITING)
        assert await held.reasons("discarded") == {"subscription_deleted"}
        assert await held.attempts() == IN_FLIGHT

    holding(database_url, redis_url, scenario)


@pytest.mark.parametrize("status", [200, 500])
def test_paused_what_is_in_flight_ends_and_the_rest_waits_for_the_resume(
    database_url: str, redis_url: str, status: int
) -> None:
    async def scenario(held: Held) -> None:
        await held.call("POST", "/pause")
        held.receiver.release(status)
        ended = IN_FLIGHT if status == 200 else 0
        waiting = IN_FLIGHT + WAITING - ended

        async def all_held() -> bool:
            rows = await held.it.sql("SELECT 1 FROM deliveries WHERE state = 'pending' AND reason = 'paused'")
            return len(rows) == waiting

        await eventually(all_held, what="all that is left is held")
        assert await held.attempts() == IN_FLIGHT
        held.receiver.release()
        await held.call("POST", "/resume")
        await held.outcomes(delivered=IN_FLIGHT + WAITING)
        assert await held.attempts() == IN_FLIGHT + waiting

    holding(database_url, redis_url, scenario)


@pytest.mark.parametrize("status", [200, 500])
def test_moved_the_rest_goes_to_the_new_address_alone(database_url: str, redis_url: str, status: int) -> None:
    async def scenario(held: Held) -> None:
        await held.call("PATCH", "", {"url": held.receiver.url("/ok")})
        held.receiver.release(status)
        await held.outcomes(delivered=IN_FLIGHT + WAITING)
        assert len(held.requests("/hold")) == IN_FLIGHT
        ended = IN_FLIGHT if status == 200 else 0
        moved = Counter(str(one.header("webhook-id")) for one in held.requests("/ok"))
        assert set(moved.values()) == {1}
        assert len(moved) == IN_FLIGHT + WAITING - ended
        assert held.in_flight & set(moved) == (set() if status == 200 else held.in_flight)
        await held.attempts()
        urls = {row["url"] for row in await held.it.sql("SELECT url FROM attempts WHERE status_code = 500")}
        assert urls <= {held.receiver.url("/hold")}, "history was rewritten"

    holding(database_url, redis_url, scenario)


def test_moved_a_late_farewell_from_the_old_address_disables_nothing(database_url: str, redis_url: str) -> None:
    async def scenario(held: Held) -> None:
        await held.call("PATCH", "", {"url": held.receiver.url("/ok")})
        held.receiver.release(410)
        await held.outcomes(dead=IN_FLIGHT, delivered=WAITING)
        assert await held.reasons("dead") == {"gone"}
        assert (await held.call("GET"))["status"] == "active"
        await held.attempts()

    holding(database_url, redis_url, scenario)


@pytest.mark.parametrize("grace_s", [0, 3600])
def test_rotated_the_rest_is_signed_with_the_new_secret(database_url: str, redis_url: str, grace_s: int) -> None:
    def verifies(secret: str, request: Recorded) -> bool:
        try:
            standardwebhooks.Webhook(secret).verify(request.body, dict(request.headers))
        except standardwebhooks.WebhookVerificationError:
            return False
        return True

    async def scenario(held: Held) -> None:
        old = held.subscription["secret_key"]
        new = (await held.call("POST", "/secret/rotate", {"grace_period_s": grace_s}))["secret_key"]
        assert old != new
        held.receiver.release()
        await held.outcomes(delivered=IN_FLIGHT + WAITING)
        for request in held.receiver.requests:
            before = request.header("webhook-id") in held.in_flight
            assert verifies(old, request) is (before or grace_s > 0)
            assert verifies(new, request) is not before
        assert await held.attempts() == IN_FLIGHT + WAITING

    holding(database_url, redis_url, scenario)


def test_changed_again_and_again_under_load_everything_arrives_once(play: Play, seed: int) -> None:
    """The books, where one subscription is paused, resumed, rotated and moved between two addresses. An address that
    it has left gets only what was claimed before."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.start_worker()
        paths = ["/slow/0.03?a", "/slow/0.03?b"]
        subscription_id = await fleet.subscribe(paths[0], timeout_ms=5_000)
        base = f"/v1/webhooks/subscriptions/{subscription_id}"
        left: list[tuple[str, float, float]] = []  # an address, when it was left, when it was returned to
        at, since = 0, 0.0
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            for number in range(14):
                await fleet.pause(0.05, 0.25)
                match ["move", "pause", "rotate", "resume"][number % 4]:
                    case "move":
                        returned = time.monotonic()
                        if since:
                            left.append((paths[1 - at], since, returned))
                        at = 1 - at
                        await fleet.move(subscription_id, paths[at])
                        since = time.monotonic()
                    case "rotate":
                        await fleet._call("POST", f"{base}/secret/rotate", {"grace_period_s": 0}, 200)
                    case change:
                        await fleet._call("POST", f"{base}/{change}", {}, 200)
            await fleet._call("POST", f"{base}/resume", {}, 200)
        left.append((paths[1 - at], since, float("inf")))
        ledger = await settle(fleet, producer)
        assert ledger.repeats == 0
        assert ledger.dead == 0
        for path, gone_at, back_at in left:
            late = [
                one
                for one in fleet.receiver.requests
                if one.path == path and gone_at + CLAIMED_WITHIN_S < one.monotonic < back_at
            ]
            assert not late, f"{len(late)} requests came to an address that was left"
        assert {one.status for one in producer.tries()} <= {200, 202}
        print(ledger)

    play(scenario)


def test_deleted_under_load_nothing_is_sent_any_more(play: Play, seed: int) -> None:
    """Deleted for one of two subscriptions, while the other goes on."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        doomed = await fleet.subscribe("/slow/0.03", timeout_ms=5_000)
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await producer.accepts(40)
            await fleet._call("DELETE", f"/v1/webhooks/subscriptions/{doomed}", {}, 200)
            deleted_at = time.monotonic()
            await producer.accepts(40)

        async def quiet() -> bool:
            states = await fleet.states()
            return not states.get("pending") and not states.get("sending")

        await eventually(quiet, what="quiet")
        states = await fleet.states()
        assert set(states) <= {"delivered", "discarded"}
        by_path = Counter(one.path for one in fleet.receiver.requests)
        assert by_path["/ok"] == len(producer.accepted)
        assert states["delivered"] == by_path["/ok"] + by_path["/slow/0.03"]
        late = [
            one.monotonic - deleted_at
            for one in fleet.receiver.requests
            if one.path == "/slow/0.03" and one.monotonic > deleted_at + CLAIMED_WITHIN_S
        ]
        assert not late
        print(states, by_path)

    play(scenario)
