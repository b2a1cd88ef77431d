"""The history of circuit breakers: written by workers and by people, read through the API, pruned and erased."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core import erasure, ids, workers
from core.audit import COMMAND_LINE
from core.ids import new_id
from core.limiting import breaker_changes
from core.limiting.breaker import Breaker, BreakerState
from core.limiting.breaker_changes import Change
from core.storage.database import Database
from tests.api import SUBSCRIPTIONS, client, error_of, make_key, run
from tests.platform import Platform, eventually, platform
from tests.receiver import Receiver
from worker.breaker_changes import BURST, EVERY_S, BreakerChanges

OPEN, HALF_OPEN, CLOSED = BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED
QUICK = {"failure_threshold": 1, "timeout_ms": 100, "half_open_success_threshold": 2}
AGAIN = {"backoff_strategy": "fixed", "base_delay_ms": 50, "max_attempts": 20}


async def history(p: Platform, subscription: dict[str, Any], query: str = "") -> list[dict[str, Any]]:
    path = f"{SUBSCRIPTIONS}/{subscription['id']}/circuit-breaker/history{query}"
    found: list[dict[str, Any]] = (await p.call("GET", path))["data"]
    return found


def test_a_real_worker_writes_what_becomes_of_a_failing_receiver(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            receiver.set("/hook", 500)
            made = await p.subscribe(receiver.url("/hook"), circuit_breaker=QUICK, retry_policy=AGAIN)
            begun = datetime.now(UTC)
            await p.send()

            async def opened() -> Any:
                return await history(p, made)

            [first] = await eventually(opened, what="the row of the opening")
            assert first["state"] == "OPEN"
            assert first["failure_count"] >= 1, "more, where trials failed before the row was written"
            assert begun - timedelta(seconds=1) <= datetime.fromisoformat(first["at"]) <= datetime.now(UTC)
            # It is tried again and again, and fails: OPEN goes on, and no row comes of it.
            await eventually(lambda: _count(receiver, 3), 15, "further trials")
            assert [one["state"] for one in await history(p, made)] == ["OPEN"]
            receiver.set("/hook", 200)
            await p.send()
            await p.settled(2, "delivered")

            async def closed() -> Any:
                found = await history(p, made)
                return found if found[0]["state"] == "CLOSED" else None

            states = [one["state"] for one in await eventually(closed, what="the row of the closing")]
            assert states in (["CLOSED", "HALF_OPEN", "OPEN"], ["CLOSED", "OPEN"])  # both trials may come in one sync
            assert [one["state"] for one in await history(p, made, "?sort=created_at&limit=1")] == ["OPEN"]

    run(database_url, redis_url, check, with_worker=True)


async def _count(receiver: Receiver, least: int) -> bool:
    return len(receiver.requests) >= least


def test_a_late_failure_of_an_earlier_url_opens_nothing(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        assert p.engine is not None
        later = {"backoff_strategy": "fixed", "base_delay_ms": 3_600_000, "max_attempts": 2}
        with Receiver() as receiver:
            made = await p.subscribe(receiver.url("/hold"), circuit_breaker=QUICK, retry_policy=later)
            await p.send()
            await eventually(lambda: _count(receiver, 1), what="the request to the earlier URL")
            path = f"{SUBSCRIPTIONS}/{made['id']}"
            await p.call("PATCH", path, {"url": receiver.url("/ok")})
            receiver.release(500)

            async def recorded() -> bool:
                [row] = await p.sql("SELECT attempt_count FROM deliveries")
                return bool(row["attempt_count"])

            await eventually(recorded, what="its failure")
            await p.engine.sync_breakers(p.services.breakers)
            assert (await p.call("GET", f"{path}/circuit-breaker"))["data"]["state"] == "CLOSED"
            assert not await p.services.breakers.all()
            assert not await history(p, made)
            await p.send()
            await p.settled(1, "delivered")

    run(database_url, redis_url, check, with_worker=True)


def test_people_are_in_it_too(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made, other = await p.subscribe("https://one.example.com/"), await p.subscribe("https://two.example.com/")
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        await p.call("POST", f"{path}/circuit-breaker/reset")
        await p.call("POST", f"{path}/circuit-breaker/reset")
        assert [one["state"] for one in await history(p, made)] == ["HALF_OPEN"], "the second changed nothing"
        await p.call("PATCH", path, {"description": "the same URL"})
        assert len(await history(p, made)) == 1
        await p.call("PATCH", path, {"url": "https://three.example.com/"})
        assert [one["state"] for one in await history(p, made)] == ["CLOSED", "HALF_OPEN"]
        await p.call("PATCH", f"{SUBSCRIPTIONS}/{other['id']}", {"url": "https://four.example.com/"})
        assert await history(p, other) == [], "it was closed all the time"

        stranger = await make_key(p, None)
        async with client(p.app, stranger) as somebody:
            headers = {"X-Organization-ID": ids.show(ids.ORGANIZATION, new_id())}
            error_of(await somebody.get(f"{path}/circuit-breaker/history", headers=headers), 404, "NOT_FOUND")
        error_of(await p.client.get(f"{path}/circuit-breaker/history?filters[state]=OPEN"), 400, "VALIDATION_FAILED")

    run(database_url, redis_url, check)


def test_it_is_pruned_with_retention_and_erased_with_its_organization(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe("https://one.example.com/")
        subscription_id = ids.parse(ids.SUBSCRIPTION, made["id"])
        now = datetime.now(UTC)
        rows = [
            Change(ids.lowest_at(now - timedelta(days=days)), subscription_id, OPEN, days)
            for days in (0, 5, 29, 31, 90)
        ]
        async with p.database.driver() as driver:
            await breaker_changes.store(driver, rows)
            await breaker_changes.prune(driver, 30)
        assert [one["failure_count"] for one in await history(p, made)] == [0, 5, 29]
        async with p.database.session() as session:
            await erasure.mark(session, p.organization_id, COMMAND_LINE)
        async with p.database.driver() as driver:
            late = Change(new_id(), subscription_id, CLOSED, 0)
            await breaker_changes.store(driver, [late])
        assert len(await p.sql("SELECT FROM breaker_changes")) == 3, "a worker's last words come too late"
        await erasure.advance(p.database, p.services.breakers, work_s=5, late_s=0)
        assert await p.sql("SELECT FROM breaker_changes") == []

    run(database_url, redis_url, check)


def test_a_receiver_that_comes_and_goes_fills_no_table(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe("https://one.example.com/")
        subscription_id = ids.parse(ids.SUBSCRIPTION, made["id"])
        now = 0.0
        changes = BreakerChanges(lambda: now)

        async def flap(times: int) -> int:
            for number in range(times):
                changes.note(subscription_id, Breaker(OPEN if number % 2 else CLOSED, failures=number))
            await changes.flush(p.database)
            return len(await p.sql("SELECT FROM breaker_changes"))

        assert await flap(100) == BURST
        assert (await history(p, made))[0]["failure_count"] == 99, "the last is always kept"
        assert await flap(100) == BURST
        now += EVERY_S
        assert await flap(0) == BURST + 1
        now += 10 * EVERY_S
        assert await flap(100) == 2 * BURST + 1
        assert (await history(p, made))[0]["failure_count"] == 99

    run(database_url, redis_url, check)


def test_an_answer_that_was_lost_does_not_end_the_history(database_url: str, redis_url: str) -> None:
    class Lost(Database):
        """Whose first answer does not arrive, though all was stored."""

        lost = False

        @asynccontextmanager
        async def driver(self) -> AsyncIterator[Any]:
            async with super().driver() as driver:
                yield driver
            if not self.lost:
                self.lost = True
                raise ConnectionError

    async def check(p: Platform) -> None:
        subscription_id = ids.parse(ids.SUBSCRIPTION, (await p.subscribe("https://one.example.com/"))["id"])
        changes = BreakerChanges(lambda: 0.0)
        changes.note(subscription_id, Breaker(OPEN, failures=1))
        database = Lost(database_url)
        try:
            with pytest.raises(ConnectionError):
                await changes.flush(database)
            changes.note(subscription_id, Breaker(CLOSED, failures=0))
            await changes.flush(database)
        finally:
            await database.close()
        assert [row["state"] for row in await p.sql("SELECT state FROM breaker_changes ORDER BY id")] == [OPEN, CLOSED]

    run(database_url, redis_url, check)


def test_a_worker_leaves_though_its_history_can_not_be_stored(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        database = Database(database_url)

        async def alive() -> int:
            async with database.driver() as driver:
                return await workers.alive(driver)

        async def fail() -> None:
            raise ConnectionError

        try:
            async with platform(database_url, redis_url) as p:
                assert p.engine is not None
                monkeypatch.setattr(p.engine, "flush_breaker_changes", fail)
                await eventually(alive, what="a worker")
            assert await alive() == 0
        finally:
            await database.close()

    asyncio.run(check())
