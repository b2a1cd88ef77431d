"""One bad endpoint is its own problem: limits, circuit breakers, lanes and turns, by a whole worker on real parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from core import hints, ids, settings
from core.limiting.breakers import KEY
from tests.platform import Platform, environment, eventually, platform
from tests.receiver import Receiver
from worker import engine, room
from worker import main as worker

ONCE = {"backoff_strategy": "fixed", "max_attempts": 1}
OFTEN = {"backoff_strategy": "fixed", "base_delay_ms": 10, "max_attempts": 50, "jitter": False}
SELDOM_S = 60  # between sweeps: what comes before was hinted
SELDOM = {"SWEEP_INTERVAL_S": str(SELDOM_S)}

Test = Callable[[Platform, Receiver], Awaitable[None]]


def delivering(database_url: str, redis_url: str, test: Test, **more: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, **more) as p:
            await test(p, receiver)

    with Receiver() as receiver:
        asyncio.run(run(receiver))


async def breaker(p: Platform, subscription: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (
        await p.call("GET", f"/v1/webhooks/subscriptions/{subscription['subscription_id']}/circuit-breaker")
    )["data"]
    return found


async def opened(p: Platform, subscription: dict[str, Any], state: str = "OPEN") -> None:
    async def there() -> bool:
        return bool((await breaker(p, subscription))["state"] == state)

    await eventually(there, what=f"the breaker is {state}")


# --- circuit breaker -----------------------------------------------------------------------------------------------


def test_five_failures_open_the_breaker_and_what_waits_spends_no_attempt(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        broken = await p.subscribe(receiver.url("/status/500"), ["broken"], retry_policy=OFTEN)
        await p.subscribe(receiver.url("/ok"), ["well"])
        for _ in range(8):
            await p.send("broken")
        await opened(p, broken)

        async def parked() -> bool:
            found = await p.deliveries(event_type="broken")
            reasons = {one["reason"] for one in found}  # those that were slow before it opened keep that reason
            return "breaker_open" in reasons and reasons <= {"breaker_open", "rate_limited"}

        await eventually(parked, what="all are parked")
        [spent] = await p.sql(
            "SELECT sum(attempt_count) AS attempts,"
            " min(due_at) FILTER (WHERE reason = 'breaker_open') > now() AS later FROM deliveries"
        )
        requests = len([one for one in receiver.requests if one.path == "/status/500"])
        assert 5 <= spent["attempts"] == requests <= 8
        assert spent["later"]
        for _ in range(10):
            await p.send("well")
        await p.settled(10, "delivered", event_type="well", within_s=5)
        assert len([one for one in receiver.requests if one.path == "/status/500"]) == requests

    delivering(database_url, redis_url, test)


def test_a_breaker_tries_again_after_its_time_and_closes_by_successes(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        receiver.set("/later", 503)
        found = await p.subscribe(receiver.url("/later"), retry_policy=OFTEN, circuit_breaker={"timeout_ms": 1500})
        for _ in range(20):
            await p.send()
        await opened(p, found)
        receiver.set("/later", 200)
        await p.settled(20, "delivered")
        await opened(p, found, "CLOSED")  # what a worker counts others know half a second later

    delivering(database_url, redis_url, test)


async def mended_behind_an_open_breaker(p: Platform, receiver: Receiver) -> dict[str, Any]:
    """A subscription with six deliveries, whose receiver answers again and whose breaker is open."""
    receiver.set("/mended", 500)
    found = await p.subscribe(receiver.url("/mended"), retry_policy=OFTEN)
    for _ in range(6):
        await p.send()
    await opened(p, found)
    receiver.set("/mended", 200)
    return found


def test_a_person_resets_a_breaker(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        found = await mended_behind_an_open_breaker(p, receiver)
        await p.call("POST", f"/v1/webhooks/subscriptions/{found['subscription_id']}/circuit-breaker/reset")
        await p.settled(6, "delivered")

    delivering(database_url, redis_url, test)


def test_breakers_start_closed_when_redis_was_emptied(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        found = await mended_behind_an_open_breaker(p, receiver)
        redis = hints.connect(redis_url)
        await redis.delete(KEY)
        await redis.aclose(close_connection_pool=True)
        await p.settled(6, "delivered")
        assert (await breaker(p, found))["state"] == "CLOSED"

    delivering(database_url, redis_url, test)


def test_two_workers_share_a_breaker(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        found = await p.subscribe(receiver.url("/status/500"), retry_policy=ONCE)
        async with worker.working(settings.load(environment(database_url, redis_url))) as second:
            for _ in range(12):
                await p.send()
            await opened(p, found)

            async def both() -> bool:
                one = ids.parse(ids.SUBSCRIPTION, found["subscription_id"])
                assert p.engine is not None
                return all(one in one_of_them._room.circuits._known for one_of_them in (p.engine, second))

            await eventually(both, what="both know")

    delivering(database_url, redis_url, test)


# --- limits --------------------------------------------------------------------------------------------------------


def test_limits_too_small_to_be_shared_wait_for_no_sweep(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        assert p.engine is not None
        async with worker.working(settings.load(environment(database_url, redis_url, **SELDOM))) as second:
            both = (p.engine, second)

            async def have_met() -> bool:
                return all(one.membership.count == 2 for one in both)

            await eventually(have_met, what="both know of each other")
            for _ in range(6):
                await p.subscribe(receiver.url("/ok"), limits={"max_in_flight": 1})
                await p.subscribe(receiver.url("/ok"), limits={"per_second": 1.5})
            await p.send()
            await p.settled(12, "delivered", within_s=SELDOM_S / 2)

    delivering(database_url, redis_url, test, **SELDOM)


def test_a_burst_waits_for_its_rate_and_for_no_sweep(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/ok"), limits={"per_second": 20})
        for _ in range(12):
            await p.send()
        await p.settled(12, "delivered", within_s=SELDOM_S / 2)
        assert {row["attempt_count"] for row in await p.sql("SELECT attempt_count FROM deliveries")} == {1}

    delivering(database_url, redis_url, test, **SELDOM)


def test_no_more_are_in_flight_than_the_subscription_takes(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/slow/0.05"), limits={"max_in_flight": 3})
        async with worker.working(
            settings.load(environment(database_url, redis_url))
        ):  # the limit is for both together

            async def know_each_other() -> bool:
                assert p.engine is not None
                return p.engine.membership.count == 2

            await eventually(know_each_other, what="the workers know each other")
            for _ in range(60):
                await p.send()
            await p.settled(60, "delivered", within_s=30)
        assert receiver.most_slow <= 3

    delivering(database_url, redis_url, test)


def test_a_worker_that_comes_leaves_the_others_what_they_have_open(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SAY_SO_S", 0.2)

    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/slow/1.5"), limits={"max_in_flight": 3})
        for _ in range(9):
            await p.send()
        async with worker.working(settings.load(environment(database_url, redis_url))) as second:
            await p.settled(9, "delivered", within_s=30)
            assert second.membership.count == 2
        assert receiver.most_slow == 3

    delivering(database_url, redis_url, test)


def test_a_rate_is_kept_and_what_waits_holds_up_nobody(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        receiver.set("/metered", 200)
        await p.subscribe(receiver.url("/metered"), ["metered"], limits={"per_second": 10})
        await p.subscribe(receiver.url("/ok"), ["free"])
        for _ in range(25):
            await p.send("metered")
        for _ in range(10):
            await p.send("free")
        await p.settled(10, "delivered", event_type="free", within_s=5)
        await p.settled(25, "delivered", event_type="metered", within_s=20)
        at = sorted(one.monotonic for one in receiver.requests if one.path == "/metered")
        assert at[-1] - at[0] >= 2.2
        for first, eleventh in zip(at, at[12:], strict=False):
            assert eleventh - first > 0.9
        assert [one["attempt_count"] for one in await p.deliveries(event_type="metered")] == [1] * 25

    delivering(database_url, redis_url, test)


def test_limits_that_change_count_from_the_next_delivery_on(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        found = await p.subscribe(receiver.url("/ok"), limits={"per_second": 0.1})
        for _ in range(5):
            await p.send()
        await p.settled(1, "delivered")
        await p.call("PATCH", f"/v1/webhooks/subscriptions/{found['subscription_id']}", {"limits": None})
        await p.settled(5, "delivered", within_s=8)

    delivering(database_url, redis_url, test)


# --- lanes and turns -----------------------------------------------------------------------------------------------


def test_endpoints_that_hang_take_no_slot_of_the_others(database_url: str, redis_url: str) -> None:
    """Eight slots, and twelve endpoints that never answer."""

    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/ok"), ["well"])
        await p.send("well")
        await p.settled(1, "delivered", event_type="well")
        for number in range(12):
            await p.subscribe(receiver.url(f"/hang/{number}"), ["stuck"], timeout_ms=20_000)
        for _ in range(5):
            await p.send("stuck")

        async def hanging() -> bool:
            return len({one.path for one in receiver.requests}) >= 3

        await eventually(hanging, what="they hang")
        for _ in range(20):
            await p.send("well")
        await p.settled(21, "delivered", event_type="well", within_s=8)

    delivering(database_url, redis_url, test, WORKER_MAX_IN_FLIGHT="8")


async def crowd(p: Platform, receiver: Receiver, number: int) -> None:
    """Subscriptions whose endpoints never answer, of the platform's organization."""
    for at in range(number):
        await p.subscribe(receiver.url(f"/hang/{at}"), ["stuck"], timeout_ms=20_000)


async def other_organization(p: Platform, url: str) -> dict[str, str]:
    """The headers that act for it. It has one subscription, to everything."""
    organization = (await p.call("POST", "/v1/organizations", {"name": "other"}, X_API_Key=p.platform_key))["data"]
    headers = {"X_API_Key": p.platform_key, "X_Organization_ID": organization["organization_id"]}
    await p.call("POST", "/v1/webhooks/subscriptions", {"url": url, "events": ["*"]}, 201, **headers)
    return headers


def test_what_is_due_for_a_crowd_of_dead_endpoints_stands_before_nobody(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight slots, forty endpoints that never answer; of what is due a sweep sees ten."""
    monkeypatch.setattr(room, "MAX_LOOK", 10)

    async def test(p: Platform, receiver: Receiver) -> None:
        headers = await other_organization(p, receiver.url("/ok"))
        await crowd(p, receiver, 40)
        hint, p.services.acceptance._hint = p.services.acceptance._hint, lambda _: None
        for _ in range(2):
            await p.send("stuck")
        await p.call("POST", "/v1/events", {"event_type": "one", "data": {}}, **headers)
        p.services.acceptance._hint = hint

        async def arrived() -> bool:
            return any(one.path == "/ok" for one in receiver.requests)

        await eventually(arrived, what="the other organization's event")

    delivering(database_url, redis_url, test, WORKER_MAX_IN_FLIGHT="8")


def test_a_worker_that_starts_before_a_crowd_that_is_parked_keeps_slots_for_others(
    database_url: str, redis_url: str
) -> None:
    """Nothing has answered it yet, and for forty endpoints that never will something is parked."""

    async def test(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            headers = await other_organization(p, receiver.url("/ok"))
            await crowd(p, receiver, 40)
            for _ in range(2):
                await p.send("stuck")
            await p.sql("UPDATE deliveries SET reason = 'rate_limited'")
            async with worker.working(settings.load(environment(database_url, redis_url, WORKER_MAX_IN_FLIGHT="8"))):

                async def hanging() -> bool:
                    return len(receiver.requests) >= 3

                await eventually(hanging, what="they hang")
                for number in range(1, 4):
                    await p.call("POST", "/v1/events", {"event_type": "one", "data": {}}, **headers)

                    async def arrived(number: int = number) -> bool:
                        return len([one for one in receiver.requests if one.path == "/ok"]) == number

                    await eventually(arrived, what="the other organization's event")

    with Receiver() as receiver:
        asyncio.run(test(receiver))


def test_more_subscriptions_than_are_looked_through_at_once_are_all_found(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is parked for them was parked by another worker, which is gone."""
    monkeypatch.setattr(engine, "PARKED_PAGE", 2)
    monkeypatch.setattr(engine, "FIND_PARKED_S", 0.0)

    async def test(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            stuck = [await p.subscribe(receiver.url("/ok"), ["some"], limits={"per_second": 0.001}) for _ in range(5)]
            await p.subscribe(receiver.url("/ok"), ["some"])
            for _ in range(2):
                await p.send("some")
            await p.sql("UPDATE deliveries SET reason = 'rate_limited'")
            async with worker.working(settings.load(environment(database_url, redis_url))):
                await p.settled(len(stuck) + 2, "delivered")

    with Receiver() as receiver:
        asyncio.run(test(receiver))


def test_what_is_parked_again_and_again_leaves_retries_their_share(database_url: str, redis_url: str) -> None:
    """A rate that new deliveries alone use up."""

    async def test(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            await p.subscribe(receiver.url("/ok"), ["new", "retried"], limits={"per_second": 20})
            await p.send("retried")
            for _ in range(2):
                await p.call("POST", "/v1/events/batch", {"events": [{"event_type": "new", "data": {}}] * 500})
            await p.sql("UPDATE deliveries SET reason = 'rate_limited'")
            await p.sql("UPDATE deliveries SET attempt_count = 1 WHERE event_type = 'retried'")
            async with worker.working(settings.load(environment(database_url, redis_url))):
                await p.settled(1, "delivered", event_type="retried")
            assert receiver.count < 500

    with Receiver() as receiver:
        asyncio.run(test(receiver))


def test_a_flood_of_one_organization_delays_no_other(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/slow/0.05"), ["flood"])
        headers = await other_organization(p, receiver.url("/ok"))
        flood = {"events": [{"event_type": "flood", "data": {}}] * 1000}
        for _ in range(3):
            await p.call("POST", "/v1/events/batch", flood)
        between = []
        for number in range(5):
            before = receiver.count
            await p.call("POST", "/v1/events", {"event_type": "one", "data": {}}, **headers)

            async def arrived(number: int = number) -> bool:
                return len([one for one in receiver.requests if one.path == "/ok"]) > number

            await eventually(arrived, what="the other organization's event")
            between.append(receiver.count - before)
        [left] = await p.sql("SELECT count(*) FROM deliveries WHERE event_type = 'flood' AND state <> 'delivered'")
        assert left["count"] > 0, "the flood was over before it could delay anybody"
        assert sorted(between)[2] < 500, f"of a flood of 3,000 so many went before: {between}"

    delivering(database_url, redis_url, test, WORKER_MAX_IN_FLIGHT="10")


def test_a_backlog_of_one_does_not_hold_up_the_retries_of_another(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        receiver.script("/twice", [503, 503, 200])
        await p.subscribe(receiver.url("/twice"), ["retried"], retry_policy=OFTEN)
        slow = await p.subscribe(receiver.url("/slow/0.2"), ["backlog"], limits={"max_in_flight": 2})
        await p.call("POST", f"/v1/webhooks/subscriptions/{slow['subscription_id']}/pause")
        for _ in range(2):
            await p.call("POST", "/v1/events/batch", {"events": [{"event_type": "backlog", "data": {}}] * 1000})
        await p.call("POST", f"/v1/webhooks/subscriptions/{slow['subscription_id']}/resume")
        await p.send("retried")
        await p.settled(1, "delivered", event_type="retried", within_s=8)

        async def parked() -> bool:
            rows = await p.sql(
                "SELECT DISTINCT reason FROM deliveries WHERE event_type = 'backlog' AND reason IS NOT NULL"
            )
            return {row["reason"] for row in rows} == {"rate_limited"}

        await eventually(parked, what="what waits is parked")

    delivering(database_url, redis_url, test)
