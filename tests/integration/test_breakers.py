"""Circuit breakers in a real Valkey: compared and set, shared, and unharmed by whatever else stands there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest
from redis.exceptions import RedisError

from core import hints
from core.limiting.breaker import BLANK, Breaker, BreakerSettings, BreakerState
from core.limiting.breakers import KEY, UNREACHABLE, Breakers

NOW = 1_800_000_000_000
SETTINGS = BreakerSettings()


def failed(breaker: Breaker, times: int = 1) -> Breaker:
    for _ in range(times):
        breaker = breaker.after(SETTINGS, False, NOW)
    return breaker


def with_breakers(redis_url: str, test: Callable[[Breakers, hints.ArqRedis], Awaitable[None]]) -> None:
    async def run() -> None:
        redis = hints.connect(redis_url)
        try:
            await test(Breakers(redis), redis)
        finally:
            await redis.aclose(close_connection_pool=True)

    asyncio.run(run())


def test_a_change_is_made_only_where_what_stands_is_what_was_believed(redis_url: str) -> None:
    async def test(breakers: Breakers, _: hints.ArqRedis) -> None:
        one, other = uuid4(), uuid4()
        once, twice = failed(BLANK), failed(BLANK, 2)
        assert await breakers.swap([(one, BLANK, once), (other, BLANK, twice)]) == [once, twice]
        assert await breakers.all() == {one: once, other: twice}
        # Who believes what no longer stands is told what does, and changes nothing; its neighbour in the call goes on.
        opened = failed(BLANK, 5)
        assert await breakers.swap([(one, BLANK, opened), (other, twice, opened)]) == [once, opened]
        assert await breakers.get(one) == once
        assert await breakers.all() == {one: once, other: opened}
        assert await breakers.swap([]) == []

    with_breakers(redis_url, test)


def test_a_blank_record_takes_no_room(redis_url: str) -> None:
    async def test(breakers: Breakers, redis: hints.ArqRedis) -> None:
        one, never = uuid4(), uuid4()
        once = failed(BLANK)
        await breakers.swap([(one, BLANK, once)])
        assert await breakers.swap([(one, once, BLANK), (never, BLANK, BLANK)]) == [BLANK, BLANK]
        assert await breakers.get(one) == await breakers.get(never) == BLANK
        assert not await redis.exists(KEY)
        assert await breakers.all() == {}

    with_breakers(redis_url, test)


def test_outcomes_of_workers_at_the_same_moment_all_count(redis_url: str) -> None:
    """Each does as the engine does: works its change out anew from what stands, until it is made."""
    lenient = BreakerSettings(failure_threshold=1000)

    async def test(_: Breakers, redis: hints.ArqRedis) -> None:
        one = uuid4()

        async def worker(clock_ms: int) -> None:
            breakers, believed = Breakers(redis), BLANK
            for _ in range(20):
                while True:
                    new = believed.after(lenient, False, clock_ms)
                    [stands] = await breakers.swap([(one, believed, new)])
                    believed = stands
                    if stands == new:
                        break

        await asyncio.gather(*(worker(NOW + number) for number in range(5)))
        final = await Breakers(redis).get(one)
        assert final.failures == sum(calls for _, calls, _ in final.steps) == 100

    with_breakers(redis_url, test)


def test_a_reset_wins_over_what_stands_and_forgetting_over_both(redis_url: str) -> None:
    async def test(breakers: Breakers, _: hints.ArqRedis) -> None:
        one = uuid4()
        opened = failed(BLANK, 5)
        await breakers.swap([(one, BLANK, opened)])
        reset = await breakers.reset(one, NOW + 1)
        assert reset.state is BreakerState.HALF_OPEN
        assert await breakers.get(one) == reset
        assert await breakers.swap([(one, opened, BLANK)]) == [reset]  # a worker that has not seen it
        await breakers.forget(one)
        assert await breakers.get(one) == BLANK
        assert (await breakers.reset(one, NOW)).state is BreakerState.HALF_OPEN  # from nothing, too

    with_breakers(redis_url, test)


@pytest.mark.parametrize("poison", [b"\x00\xff", b"{}", b"[1,2", b'[1,"CLOSED",0,0,0,0,0,[]]', b"", b"[" * 5000])
def test_poison_counts_as_absent_and_is_replaced(redis_url: str, poison: bytes) -> None:
    async def test(breakers: Breakers, redis: hints.ArqRedis) -> None:
        one, healthy = uuid4(), uuid4()
        once = failed(BLANK)
        await breakers.swap([(healthy, BLANK, once)])
        await redis.hset(KEY, one.hex, poison)
        await redis.hset(KEY, b"\xff no id", once.to_bytes())
        await redis.hset(KEY, "", poison)
        assert await breakers.all() == {healthy: once}
        assert await breakers.get(one) == BLANK
        assert await breakers.swap([(one, BLANK, once), (healthy, once, BLANK)]) == [once, BLANK]
        assert await breakers.all() == {one: once}

    with_breakers(redis_url, test)


def test_a_record_in_another_spelling_can_be_changed(redis_url: str) -> None:
    async def test(breakers: Breakers, redis: hints.ArqRedis) -> None:
        one, once = uuid4(), failed(BLANK)
        await redis.hset(KEY, one.hex, once.to_bytes().replace(b",", b", "))
        assert await breakers.all() == {one: once}
        assert await breakers.swap([(one, once, failed(once))]) == [failed(once)]

    with_breakers(redis_url, test)


def test_what_is_read_again_is_what_has_changed(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(breakers: Breakers, _: hints.ArqRedis) -> None:
        once = failed(BLANK)
        ids = [UUID(int=n) for n in range(1, 51)]
        await breakers.swap([(one, BLANK, once) for one in ids])
        assert set(await breakers.all()) == set(ids)
        read: list[bytes] = []
        genuine = Breaker.from_bytes

        def noting(stored: bytes) -> Breaker:
            read.append(stored)
            return genuine(stored)

        await breakers.swap([(ids[0], once, failed(once))])
        await breakers.forget(ids[1])
        monkeypatch.setattr(Breaker, "from_bytes", noting)
        found = await breakers.all()
        assert read == [failed(once).to_bytes()]
        assert set(found) == set(ids) - {ids[1]}
        assert found[ids[0]] == failed(once)

    with_breakers(redis_url, test)


def test_emptied_redis_means_closed_and_scripts_are_loaded_again(redis_url: str) -> None:
    async def test(breakers: Breakers, redis: hints.ArqRedis) -> None:
        one, once = uuid4(), failed(BLANK)
        await breakers.swap([(one, BLANK, once)])
        await redis.flushall()
        await redis.script_flush()
        assert await breakers.all() == {}
        assert await breakers.swap([(one, once, failed(once))]) == [BLANK]
        assert await breakers.swap([(one, BLANK, once)]) == [once]

    with_breakers(redis_url, test)


def test_errors_are_the_callers() -> None:
    async def away(breakers: Breakers, _: hints.ArqRedis) -> None:
        one, once = uuid4(), failed(BLANK)
        for work in (
            breakers.all(),
            breakers.get(one),
            breakers.swap([(one, BLANK, once)]),
            breakers.reset(one, NOW),
            breakers.forget(one),
        ):
            with pytest.raises(UNREACHABLE):
                await work

    with_breakers("redis://127.0.0.1:1/0", away)


def test_what_is_no_hash_is_deleted_by_whoever_reads_all(redis_url: str) -> None:
    async def test(breakers: Breakers, redis: hints.ArqRedis) -> None:
        one, once = uuid4(), failed(BLANK)
        await redis.set(KEY, "no hash")
        with pytest.raises(RedisError):
            await breakers.swap([(one, BLANK, once)])
        assert await breakers.all() == {}
        assert await breakers.swap([(one, BLANK, once)]) == [once]
        assert await breakers.all() == {one: once}

    with_breakers(redis_url, test)
