"""Breakers as workers see them: each by itself at once, all together within a sync, over a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import pytest
from asyncpg import ConnectionDoesNotExistError

from core import hints
from core.ids import new_id
from core.limiting.breaker import BreakerSettings, BreakerState
from core.limiting.breakers import KEY, Breakers
from worker.circuits import Circuits

SETTINGS = BreakerSettings(timeout_ms=1_000)
ONE = new_id()
URL, ELSEWHERE = "https://one.example.com/", "https://elsewhere.example.com/"


class Scene:
    def __init__(self, redis_url: str) -> None:
        self.now_ms = 1_800_000_000_000
        self.redis = hints.connect(redis_url)
        self.store = Breakers(self.redis)
        self.a, self.b = Circuits(lambda: self.now_ms), Circuits(lambda: self.now_ms)
        self.urls = {ONE: URL}

    async def urls_now(self, subscription_ids: Sequence[UUID]) -> dict[UUID, str]:
        return {one: self.urls[one] for one in subscription_ids if one in self.urls}

    def fail(self, worker: Circuits, times: int) -> None:
        for _ in range(times):
            worker.record(ONE, SETTINGS, URL, ok=False)

    async def sync(self) -> None:
        for worker in (self.a, self.b, self.a):
            await worker.sync(self.store, self.urls_now)

    @property
    def states(self) -> tuple[BreakerState, BreakerState]:
        return self.a.state(ONE, SETTINGS), self.b.state(ONE, SETTINGS)


def playing(redis_url: str, test: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene(redis_url)
        await scene.redis.delete(KEY)
        try:
            await test(scene)
        finally:
            await scene.redis.delete(KEY)
            await scene.redis.aclose(close_connection_pool=True)

    asyncio.run(run())


def test_what_a_worker_sees_counts_for_it_at_once_and_for_all_soon(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        scene.fail(scene.a, 5)
        assert scene.states == (BreakerState.OPEN, BreakerState.CLOSED)
        assert scene.a.opens_in_s(ONE, SETTINGS) == 1.0
        await scene.sync()
        assert scene.states == (BreakerState.OPEN, BreakerState.OPEN)
        scene.now_ms += 1_000
        assert scene.states == (BreakerState.HALF_OPEN, BreakerState.HALF_OPEN)
        assert scene.a.opens_in_s(ONE, SETTINGS) == 0.0

    playing(redis_url, test)


def test_failures_of_several_workers_add_up(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        scene.fail(scene.a, 3)
        scene.fail(scene.b, 2)
        assert scene.states == (BreakerState.CLOSED, BreakerState.CLOSED)
        await scene.sync()
        assert scene.states == (BreakerState.OPEN, BreakerState.OPEN)

    playing(redis_url, test)


def test_successes_of_one_worker_close_it_for_all(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        scene.fail(scene.a, 5)
        await scene.sync()
        scene.now_ms += 1_500
        for _ in range(2):
            scene.b.record(ONE, SETTINGS, URL, ok=True)
        await scene.b.sync(scene.store, scene.urls_now)
        await scene.sync()
        assert scene.states == (BreakerState.CLOSED, BreakerState.CLOSED)
        assert await scene.store.all() == {}

    playing(redis_url, test)


def test_an_emptied_redis_closes_it_for_all(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        scene.fail(scene.a, 5)
        await scene.sync()
        await scene.redis.delete(KEY)
        await scene.sync()
        assert scene.states == (BreakerState.CLOSED, BreakerState.CLOSED)

    playing(redis_url, test)


def test_without_redis_each_goes_by_what_it_sees_and_tells_it_later(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(scene: Scene) -> None:
        async def away() -> None:
            raise ConnectionRefusedError

        with monkeypatch.context() as patch:
            patch.setattr(scene.store, "all", away)
            scene.fail(scene.a, 5)
            await scene.a.sync(scene.store, scene.urls_now)
            await scene.b.sync(scene.store, scene.urls_now)
            assert scene.states == (BreakerState.OPEN, BreakerState.CLOSED)
        await scene.sync()
        assert scene.states == (BreakerState.OPEN, BreakerState.OPEN)

    playing(redis_url, test)


def test_who_comes_second_adds_to_what_the_first_wrote(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading and writing, another worker writes."""

    async def test(scene: Scene) -> None:
        genuine = scene.store.all

        async def overtaken() -> object:
            stands = await genuine()
            monkeypatch.setattr(scene.store, "all", genuine)
            scene.fail(scene.b, 2)
            await scene.b.sync(scene.store, scene.urls_now)
            return stands

        scene.fail(scene.a, 3)
        monkeypatch.setattr(scene.store, "all", overtaken)
        await scene.a.sync(scene.store, scene.urls_now)
        assert scene.a.state(ONE, SETTINGS) is BreakerState.OPEN  # its own three, on top of the other's two
        await scene.sync()
        assert scene.states == (BreakerState.OPEN, BreakerState.OPEN)

    playing(redis_url, test)


def test_what_happens_during_a_sync_is_not_forgotten(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(scene: Scene) -> None:
        genuine = scene.store.swap

        async def meanwhile(changes: object) -> object:
            scene.fail(scene.a, 2)
            return await genuine(changes)  # type: ignore[arg-type]

        scene.fail(scene.a, 3)
        with monkeypatch.context() as patch:
            patch.setattr(scene.store, "swap", meanwhile)
            await scene.a.sync(scene.store, scene.urls_now)
        assert scene.a.state(ONE, SETTINGS) is BreakerState.OPEN
        await scene.sync()
        assert scene.states == (BreakerState.OPEN, BreakerState.OPEN)

    playing(redis_url, test)


def test_who_is_well_is_never_heard_of(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        for _ in range(1_000):
            scene.a.record(ONE, SETTINGS, URL, ok=True)
        assert not scene.a._outcomes
        await scene.sync()
        assert await scene.store.all() == {}

    playing(redis_url, test)


def test_what_came_of_requests_to_an_earlier_url_does_not_count(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        scene.fail(scene.a, 4)
        scene.urls[ONE] = ELSEWHERE
        scene.fail(scene.a, 1)
        assert scene.a.state(ONE, SETTINGS) is BreakerState.OPEN  # it has not heard of the move
        await scene.sync()
        assert scene.states == (BreakerState.CLOSED, BreakerState.CLOSED)
        assert await scene.store.all() == {}
        del scene.urls[ONE]  # nor where the subscription is gone
        scene.fail(scene.b, 5)
        await scene.sync()
        assert scene.states == (BreakerState.CLOSED, BreakerState.CLOSED)

    playing(redis_url, test)


def test_outcomes_wait_for_a_database_that_does_not_answer(redis_url: str) -> None:
    async def test(scene: Scene) -> None:
        async def away(_: Sequence[UUID]) -> dict[UUID, str]:
            raise ConnectionDoesNotExistError("connection was closed in the middle of operation")

        scene.fail(scene.a, 3)
        with pytest.raises(ConnectionDoesNotExistError):
            await scene.a.sync(scene.store, away)
        scene.fail(scene.a, 2)
        await scene.sync()
        assert scene.states == (BreakerState.OPEN, BreakerState.OPEN)

    playing(redis_url, test)
