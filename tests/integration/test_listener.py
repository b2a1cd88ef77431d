"""What a worker does with the hints in Redis, on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast
from uuid import UUID

import pytest

from core import hints
from core.hints import Hint
from core.ids import new_id
from tests.platform import eventually
from worker import listener
from worker.engine import Engine
from worker.listener import Listener
from worker.membership import Membership

TOO_LARGE = b"[" + b" " * listener.MAX_BATCH_BYTES + b"]"


class Told:
    """In an engine's place: notes what it is told, as long as it is `open`."""

    def __init__(self) -> None:
        self.batches: list[list[Hint]] = []
        self.others: dict[UUID, list[Hint]] = {}
        self.membership = Membership()
        self.open = asyncio.Event()
        self.open.set()

    async def take(self, batch: Iterable[Hint]) -> dict[UUID, list[Hint]]:
        await self.open.wait()
        self.batches.append(list(batch))
        return self.others


def listening(redis_url: str, test: Callable[[Listener, Told, Any], Awaitable[None]]) -> None:
    async def run() -> None:
        redis, told = hints.connect(redis_url), Told()
        one = Listener(redis_url, cast(Engine, told))
        try:
            await test(one, told, redis)
        finally:
            await redis.aclose(close_connection_pool=True)

    asyncio.run(run())


def batch() -> list[Hint]:
    return [Hint(new_id(), new_id(), new_id())]


async def waits(redis: Any) -> bool:
    return any(client["cmd"] == "blmpop" and "b" in client["flags"] for client in await redis.client_list())


def test_what_is_prompt_comes_before_what_is_not(redis_url: str) -> None:
    async def test(one: Listener, told: Told, redis: Any) -> None:
        each = [batch() for _ in range(4)]
        await redis.rpush(hints.BULK, *map(hints.pack, each[2:]))
        await redis.rpush(hints.PROMPT, *map(hints.pack, each[:2]))
        running = asyncio.create_task(one.run())
        await eventually(lambda: _have_come(told, 4), what="all four")
        assert told.batches == each
        one.end()
        await running

    listening(redis_url, test)


async def _have_come(told: Told, number: int) -> bool:
    return len(told.batches) >= number


def test_a_hint_that_comes_while_it_ends_is_left_to_others(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "TIMEOUT_S", 60.0)
    monkeypatch.setattr(listener, "NAP_S", 30.0)  # so that it is still waiting when the hint comes

    async def test(one: Listener, told: Told, redis: Any) -> None:
        running = asyncio.create_task(one.run())
        await eventually(lambda: waits(redis), what="it waits for hints")
        one.end()
        before = (await redis.info("commandstats")).get("cmdstat_lpush", {"calls": 0})["calls"]
        first, second = hints.pack(batch()), hints.pack(batch())
        await redis.rpush(hints.PROMPT, first, second)
        await running
        assert await redis.lrange(hints.PROMPT, 0, -1) == [first, second]
        assert await redis.ttl(hints.PROMPT) > 0
        assert (await redis.info("commandstats"))["cmdstat_lpush"]["calls"] == before + 1
        assert told.batches == []

    listening(redis_url, test)


def test_where_limits_can_not_be_looked_up_it_reads_no_further(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_TAKING", 2)

    async def test(one: Listener, told: Told, redis: Any) -> None:
        told.open.clear()
        each = [batch() for _ in range(5)]
        await redis.rpush(hints.PROMPT, *map(hints.pack, each))
        running = asyncio.create_task(one.run())

        async def two_are_taken() -> bool:
            return bool(await redis.llen(hints.PROMPT) == 3)

        await eventually(two_are_taken, what="two batches are taken")
        assert not await waits(redis)
        told.open.set()
        await eventually(lambda: _have_come(told, 5), what="all five")
        one.end()
        await running

    listening(redis_url, test)


def test_what_is_no_hint_or_no_list_is_dropped(redis_url: str) -> None:
    async def test(one: Listener, told: Told, redis: Any) -> None:
        good = batch()
        await redis.rpush(hints.PROMPT, b"{not json", b'[["order-1", null, 7]]', b"\xff\xfe", TOO_LARGE)
        await redis.rpush(hints.PROMPT, hints.pack(good))
        await redis.set(hints.BULK, "something else")
        running = asyncio.create_task(one.run())
        await eventually(lambda: _have_come(told, 1), what="the good one")
        assert told.batches == [good]

        async def is_gone() -> bool:
            return bool(await redis.type(hints.BULK) == b"none")

        await eventually(is_gone, what="what is no list is gone")
        one.end()
        await running

    listening(redis_url, test)


def test_what_another_worker_is_to_claim_is_passed_on_once(redis_url: str) -> None:
    async def test(one: Listener, told: Told, redis: Any) -> None:
        other, theirs = Told(), batch()
        told.others = {other.membership.id: theirs}
        other.others = {told.membership.id: theirs}  # it sees other workers than the first one does
        second = Listener(redis_url, cast(Engine, other))
        running = [asyncio.create_task(one.run()), asyncio.create_task(second.run())]
        await redis.rpush(hints.list_of(told.membership.id), hints.pack(batch()))
        await eventually(lambda: _have_come(told, 1), what="what was left for the first")
        assert not other.batches, "what was passed on is not passed on again"
        # Whichever reads it passes it to the other, which keeps it.
        await redis.rpush(hints.PROMPT, hints.pack(theirs))
        await eventually(lambda: _have_come(told, 2), what="the hint at the first")
        await eventually(lambda: _have_come(other, 1), what="the hint at the second")
        assert theirs in told.batches
        assert other.batches == [theirs]
        for listener_ in (one, second):
            listener_.end()
        await asyncio.gather(*running)
        assert (len(told.batches), len(other.batches)) == (2, 1)

    listening(redis_url, test)
