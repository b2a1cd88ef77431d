"""Circuit breaker, health and performance through the API, on states that a worker would have left."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from arq.connections import ArqRedis

from app.api import breakers as breakers_api
from core import ids
from core.deliveries import Claimed, Finish, Verdict
from core.limiting.breaker import BLANK, Breaker, BreakerSettings
from core.limiting.breakers import KEY
from core.stats import Tally
from tests.api import SUBSCRIPTIONS, TIME, URL, error_of, run, success_of
from tests.platform import Platform
from tests.seeds import EXHAUSTED, LATER, SUCCESS, tried

NO_REDIS = "redis://127.0.0.1:1/0"
DEFAULTS = BreakerSettings().to_json()


def id_of(subscription: dict[str, Any]) -> UUID:
    return ids.parse(ids.SUBSCRIPTION, subscription["id"])


def path_of(subscription: dict[str, Any], what: str) -> str:
    return f"{SUBSCRIPTIONS}/{subscription['id']}/{what}"


async def failed(p: Platform, subscription: dict[str, Any], times: int = 5, ago_ms: int = 0) -> Breaker:
    """As a worker whose attempts failed just now leaves it."""
    settings = BreakerSettings.of(subscription["circuit_breaker"])
    breaker = BLANK
    for _ in range(times):
        breaker = breaker.after(settings, False, breakers_api.now_ms() - ago_ms)
    assert await p.services.breakers.swap([(id_of(subscription), BLANK, breaker)]) == [breaker]
    return breaker


def moment(shown: str) -> datetime:
    assert TIME.fullmatch(shown)
    return datetime.fromisoformat(shown)


def test_a_breaker_is_shown_in_each_of_its_states(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)

        async def shown() -> dict[str, Any]:
            data: dict[str, Any] = success_of(await p.client.get(path_of(made, "circuit-breaker")), 200)["data"]
            return data

        closed = {
            "subscription_id": made["id"],
            "state": "CLOSED",
            "failure_count": 0,
            "success_count": 0,
            "opened_at": None,
            "half_open_at": None,
            "next_attempt_at": None,
            "last_failure_at": None,
            "settings": DEFAULTS,
        }
        assert await shown() == closed
        opened = await failed(p, made)
        found = await shown()
        assert (found["state"], found["failure_count"], found["half_open_at"]) == ("OPEN", 5, None)
        assert moment(found["next_attempt_at"]) - moment(found["opened_at"]) == timedelta(minutes=1)
        assert abs(moment(found["opened_at"]) - datetime.now(UTC)) < timedelta(seconds=30)
        assert found["last_failure_at"] == found["opened_at"]
        # Its time is up.
        long_ago = replace(opened, opened_at_ms=opened.opened_at_ms - 60_000)
        await p.services.breakers.swap([(id_of(made), opened, long_ago)])
        found = await shown()
        assert (found["state"], found["next_attempt_at"]) == ("HALF_OPEN", None)
        assert moment(found["half_open_at"]) - moment(found["opened_at"]) == timedelta(minutes=1)
        trial = long_ago.after(BreakerSettings(), True, breakers_api.now_ms())
        await p.services.breakers.swap([(id_of(made), long_ago, trial)])
        found = await shown()
        assert (found["state"], found["success_count"], found["failure_count"]) == ("HALF_OPEN", 1, 0)

    run(database_url, redis_url, check)


def test_a_reset_is_half_open_whatever_it_was(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        for times in (5, 2, 0):
            made = await p.subscribe(URL)
            await failed(p, made, times)
            answer = await p.client.post(path_of(made, "circuit-breaker/reset"))
            reset = success_of(answer, 200)["data"]
            assert (reset["state"], reset["failure_count"]) == ("HALF_OPEN", times)
            assert abs(moment(reset["half_open_at"]) - datetime.now(UTC)) < timedelta(seconds=30)
            assert (await p.call("GET", path_of(made, "circuit-breaker")))["data"] == reset

    run(database_url, redis_url, check)


def test_a_reset_with_an_idempotency_key_resets_once(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path = path_of(made, "circuit-breaker/reset")
        first = await p.call("POST", path, {}, Idempotency_Key="k")
        await p.services.breakers.forget(id_of(made))
        again = await p.call("POST", path, {}, Idempotency_Key="k")
        assert again["data"] == first["data"]
        assert again["meta"]["idempotent"]
        assert await p.services.breakers.get(id_of(made)) == BLANK

    run(database_url, redis_url, check)


def test_settings_of_the_subscription_decide_what_its_record_means(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, circuit_breaker={"timeout_ms": 3_600_000})
        await failed(p, made, ago_ms=60_000)
        found = (await p.call("GET", path_of(made, "circuit-breaker")))["data"]
        assert (found["state"], found["settings"]) == ("OPEN", DEFAULTS | {"timeout_ms": 3_600_000})
        await p.call("PATCH", f"{SUBSCRIPTIONS}/{made['id']}", {"circuit_breaker": None})
        found = (await p.call("GET", path_of(made, "circuit-breaker")))["data"]
        assert (found["state"], found["settings"]) == ("HALF_OPEN", DEFAULTS)

    run(database_url, redis_url, check)


def test_another_url_is_another_receiver(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made, other = await p.subscribe(URL), await p.subscribe(URL)
        opened, others = await failed(p, made), await failed(p, other)
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        for change in ({"description": "the same receiver"}, {"url": URL}):
            await p.call("PATCH", path, change)
            assert await p.services.breakers.get(id_of(made)) == opened
        error_of(
            await p.client.patch(path, json={"url": "https://example.org/", "timeout_ms": 1}), 400, "VALIDATION_FAILED"
        )
        assert await p.services.breakers.get(id_of(made)) == opened
        await p.call("PATCH", path, {"url": "https://example.org/hook"})
        assert await p.services.breakers.all() == {id_of(other): others}
        await p.call("DELETE", f"{SUBSCRIPTIONS}/{other['id']}")
        assert await p.services.breakers.all() == {}

    run(database_url, redis_url, check)


def test_a_test_event_is_refused_while_nothing_is_sent(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, circuit_breaker={"timeout_ms": 100_000})
        opened = await failed(p, made, ago_ms=30_000)
        answer = await p.client.post(path_of(made, "test"), headers={"Idempotency-Key": "k"})
        error = error_of(answer, 503, "CIRCUIT_BREAKER_OPEN")
        assert 60 <= int(answer.headers["retry-after"]) <= 70
        assert path_of(made, "circuit-breaker/reset") in error["message"]
        assert await p.deliveries() == []
        await p.call("POST", path_of(made, "circuit-breaker/reset"))
        first = await p.client.post(path_of(made, "test"), headers={"Idempotency-Key": "k"})
        assert success_of(first, 202)["data"]["delivery_id"]
        # A repeat gets the first answer, whatever has become of the breaker.
        await p.services.breakers.forget(id_of(made))
        await p.services.breakers.swap([(id_of(made), BLANK, opened)])
        again = await p.client.post(path_of(made, "test"), headers={"Idempotency-Key": "k"})
        assert success_of(again, 200)["data"] == success_of(first, 202)["data"]
        await p.services.breakers.forget(id_of(made))
        await p.call("POST", path_of(made, "test"), expect=202)
        assert len(await p.deliveries()) == 2

    run(database_url, redis_url, check)


@pytest.mark.parametrize("value", ["[]", "\x00", '[1,"OPEN",5,0,99999999999999999999,0,0,[]]'])
def test_poison_in_redis_is_closed(database_url: str, redis_url: str, value: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        redis: ArqRedis = p.services.redis
        await redis.hset(KEY, id_of(made).hex, value)
        assert (await p.call("GET", path_of(made, "circuit-breaker")))["data"]["state"] == "CLOSED"
        await p.call("POST", path_of(made, "test"), expect=202)

    run(database_url, redis_url, check)


def test_without_redis_only_what_it_keeps_is_unknown(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        for method, what in (("GET", "circuit-breaker"), ("POST", "circuit-breaker/reset")):
            answer = await p.client.request(method, path_of(made, what))
            error = error_of(answer, 503, "UNAVAILABLE")
            assert "Redis" in error["message"]
            assert answer.headers["retry-after"]
        health = success_of(await p.client.get(path_of(made, "health")), 200)["data"]
        unknown = (health["circuit_breaker"], health["consecutive_failures"], health["status"])
        assert unknown == (None, None, "healthy")
        await p.call("POST", path_of(made, "test"), expect=202)
        changed = await p.call("PATCH", f"{SUBSCRIPTIONS}/{made['id']}", {"url": "https://example.org/hook"})
        assert changed["data"]["webhook_url"] == "https://example.org/hook"
        await p.call("DELETE", f"{SUBSCRIPTIONS}/{made['id']}", expect=200)

    run(database_url, NO_REDIS, check)


# --- health and performance ----------------------------------------------------------------------------------------


async def recorded(p: Platform, subscription: dict[str, Any], *verdicts: tuple[Verdict, int, int]) -> None:
    """As a worker leaves it: each verdict with the attempts before it and the milliseconds it took."""
    tally = Tally()
    for verdict, attempts_before, ms in verdicts:
        claimed = Claimed(
            id=uuid4(),
            organization_id=p.organization_id,
            subscription_id=id_of(subscription),
            event_id=uuid4(),
            event_type="order.paid",
            series=0,
            attempt_count=attempts_before,
            replay_id=None,
            subscription_version=1,
            subscription_status="active",
            timeout_ms=15_000,
            token=uuid4(),
        )
        how = tried(200, None, duration_ms=ms) if verdict is SUCCESS else tried(duration_ms=ms)
        tally.add(Finish(claimed, verdict, how))
    async with p.database.driver() as driver:
        await tally.flush(driver)


async def performance(p: Platform, path: str) -> dict[str, Any]:
    data = success_of(await p.client.get(path), 200)["data"]
    assert list(data) == ["webhook_performance"]
    figures: dict[str, Any] = data["webhook_performance"]
    return figures


def test_performance_as_promised_for_one_and_for_all(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        good, bad = await p.subscribe(URL), await p.subscribe(URL)
        nothing = {
            "delivery_success_rate": None,
            "average_delivery_time_ms": None,
            "p50_delivery_time_ms": None,
            "p95_delivery_time_ms": None,
            "failed_deliveries_24h": 0,
            "retry_success_rate": None,
        }
        assert await performance(p, "/v1/webhooks/performance") == nothing
        await recorded(p, good, (SUCCESS, 0, 100), (LATER, 0, 9_000), (SUCCESS, 1, 200), (SUCCESS, 0, 135))
        await recorded(p, bad, (EXHAUSTED, 4, 50))
        assert await performance(p, path_of(good, "performance")) == {
            "delivery_success_rate": 100.0,
            "average_delivery_time_ms": 145,
            "p50_delivery_time_ms": 125,
            "p95_delivery_time_ms": 235,
            "failed_deliveries_24h": 0,
            "retry_success_rate": 100.0,
        }
        assert await performance(p, path_of(bad, "performance")) == nothing | {
            "delivery_success_rate": 0.0,
            "failed_deliveries_24h": 1,
            "retry_success_rate": 0.0,
        }
        assert await performance(p, "/v1/webhooks/performance") == {
            "delivery_success_rate": 75.0,
            "average_delivery_time_ms": 145,
            "p50_delivery_time_ms": 125,
            "p95_delivery_time_ms": 235,
            "failed_deliveries_24h": 1,
            "retry_success_rate": 50.0,
        }
        await p.sql("UPDATE delivery_stats SET minute = minute - interval '24 hours 1 minute'")
        assert await performance(p, "/v1/webhooks/performance") == nothing

    run(database_url, redis_url, check)


def test_health_says_how_the_receiver_is_doing(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)

        async def health() -> dict[str, Any]:
            data: dict[str, Any] = success_of(await p.client.get(path_of(made, "health")), 200)["data"]
            return data

        none = {"attempts": 0, "success_rate": None, "average_time_ms": None}
        assert await health() == {
            "subscription_id": made["id"],
            "status": "healthy",
            "circuit_breaker": "CLOSED",
            "consecutive_failures": 0,
            "last_hour": none,
            "last_24h": none,
            "last_success_at": None,
            "last_failure_at": None,
            "pending_deliveries": 0,
            "dead_deliveries": 0,
        }
        await recorded(p, made, (LATER, 0, 30_000))
        await p.sql("UPDATE delivery_stats SET minute = minute - interval '2 hours'")
        await recorded(p, made, *[(SUCCESS, 0, 100)] * 9, (LATER, 0, 30_000))
        await p.send()
        await p.send()
        await p.sql(
            "UPDATE deliveries SET state = 'dead', reason = 'exhausted', due_at = NULL"
            " WHERE id = (SELECT id FROM deliveries LIMIT 1)"
        )
        found = await health()
        assert (found["status"], found["pending_deliveries"], found["dead_deliveries"]) == ("degraded", 1, 1)
        assert found["last_hour"] == {"attempts": 10, "success_rate": 90.0, "average_time_ms": 100}
        assert found["last_24h"] == {"attempts": 11, "success_rate": 81.8, "average_time_ms": 100}
        assert moment(found["last_success_at"]) == moment(found["last_failure_at"])
        await failed(p, made)
        found = await health()
        assert (found["status"], found["circuit_breaker"], found["consecutive_failures"]) == ("failing", "OPEN", 5)
        await p.call("POST", path_of(made, "circuit-breaker/reset"))
        assert (await health())["circuit_breaker"] == "HALF_OPEN"
        await p.call("POST", path_of(made, "pause"))
        assert (await health())["status"] == "paused"
        await p.sql("UPDATE subscriptions SET status = 'disabled'")
        assert (await health())["status"] == "disabled"

    run(database_url, redis_url, check)
