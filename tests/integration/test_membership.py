"""Workers that come while others work: all have heard of each before it takes its part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import structlog

from core import settings
from core.ids import new_id
from core.storage.database import Database
from tests.platform import HANGS_S, environment, eventually, platform
from tests.receiver import Receiver
from tests.services import as_owner
from worker import main as worker
from worker import membership
from worker.membership import Membership

Test = Callable[[Database], Awaitable[None]]


def with_database(url: str, test: Test) -> None:
    async def run() -> None:
        database = Database(url)
        try:
            async with asyncio.timeout(HANGS_S):
                await test(database)
        finally:
            await database.close()

    asyncio.run(run())


async def arrive(database: Database, one: Membership) -> None:
    async with database.driver() as driver:
        await one.arrive(driver)


def test_the_only_worker_waits_for_nobody(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "ARRIVE_LOOK_S", 10 * HANGS_S)
    monkeypatch.setattr(membership, "ARRIVE_S", 100 * HANGS_S)

    async def test(database: Database) -> None:
        only = Membership()
        await arrive(database, only)
        assert only.count == 1

    with_database(database_url, test)


def test_workers_that_come_together_know_each_other(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "ARRIVE_S", 10 * HANGS_S)

    async def test(database: Database) -> None:
        pair = [Membership(), Membership()]
        there = 0

        async def arrive_and_work(one: Membership) -> None:
            nonlocal there
            await arrive(database, one)
            there += 1
            while there < 2 or one.count < 2:
                async with database.driver() as driver:
                    await one.beat(driver)

        await asyncio.gather(*(arrive_and_work(one) for one in pair))
        assert [one.count for one in pair] == [2, 2]
        ours = new_id()
        assert sorted(one.share(ours, 1) for one in pair) == [0, 1]

    with_database(database_url, test)


def test_a_worker_that_works_is_waited_for_and_one_that_was_killed_only_for_a_while(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(database: Database) -> None:
        first, killed, late = Membership(), Membership(), Membership()
        await arrive(database, first)
        monkeypatch.setattr(membership, "ARRIVE_S", 0.2)
        async with database.driver() as driver:
            await killed.beat(driver)
        await arrive(database, late)
        assert late.count == 3

        monkeypatch.setattr(membership, "ARRIVE_S", 10 * HANGS_S)
        async with database.driver() as driver:
            await killed.leave(driver)
        another = asyncio.create_task(arrive(database, Membership()))
        async with database.driver() as driver:
            while first.count < 3:
                assert not another.done()
                await first.beat(driver)
            while not another.done():
                await late.beat(driver)
                await first.beat(driver)
                await asyncio.sleep(0)
        await another

    with_database(database_url, test)


def test_a_worker_claims_nothing_in_a_database_of_an_earlier_release(
    database_url: str, owner_url: str, redis_url: str
) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            await p.subscribe(receiver.url("/ok"))
            await as_owner(owner_url, "ALTER TYPE finished_claim RENAME TO not_yet")
            with structlog.testing.capture_logs() as logs:
                async with worker.working(settings.load(environment(database_url, redis_url))):
                    await p.send()

                    async def said() -> bool:
                        return any("hookwright migrate" in entry.get("problem", "") for entry in logs)

                    await eventually(said, what="the log says what to do")
                    assert not receiver.requests
                    await as_owner(owner_url, "ALTER TYPE not_yet RENAME TO finished_claim")
                    await p.settled(1, "delivered")
        assert len(receiver.requests) == 1

    with Receiver() as receiver:
        asyncio.run(run(receiver))
