"""Workers that come while others work: all have heard of each before it takes its part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from core.ids import new_id
from core.storage.database import Database
from tests.platform import HANGS_S
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
