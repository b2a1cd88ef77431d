"""Dead letters by cause: their groups are those that counting one by one finds, whichever way they are found."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from core import ids
from core.failures import ErrorKind
from core.listing import dead_letters
from core.listing.dead_letters import Group, TooMany
from core.states import State
from tests.seeds import Seeds, seeded

Key = tuple[UUID, UUID, str | None]


async def plant(seeds: Seeds, count: int = 300) -> dict[Key, list[UUID]]:
    """Deliveries in random states over several days, of two organizations and one that was deleted. Returns the dead
    ones of the first two, by their group and in order."""
    chance = random.Random(7)
    organizations = [seeds.organization_id, ids.new_id(), ids.new_id()]
    await seeds.driver.execute("INSERT INTO organizations (id, name) VALUES ($1, 'Two')", organizations[1])
    await seeds.driver.execute(
        "INSERT INTO organizations (id, name, deleted_at) VALUES ($1, '3', now())", organizations[2]
    )
    subscriptions: list[tuple[UUID, UUID]] = []
    for organization_id in organizations:
        for _ in range(3):
            subscription_id = await seeds.subscription()
            moved = "UPDATE subscriptions SET organization_id = $2 WHERE id = $1"
            await seeds.driver.execute(moved, subscription_id, organization_id)
            subscriptions.append((organization_id, subscription_id))
    dead: dict[Key, list[UUID]] = {}
    for _ in range(count):
        organization_id, subscription_id = chance.choice(subscriptions)
        kind = chance.choice(["status", "timeout", "dns", None])
        state = chance.choice([State.DEAD, State.DEAD, State.DELIVERED, State.DISCARDED, State.PENDING])
        delivery_id = await seeds.delivery(
            state,
            at=datetime.now(UTC) - timedelta(minutes=chance.randrange(60 * 20)),
            organization_id=organization_id,
            subscription_id=subscription_id,
            error_kind=kind,
            status_code=500 if kind == "status" else None,
            error_message=f"It said {chance.random()}",
        )
        if state is State.DEAD and organization_id != organizations[2]:
            dead.setdefault((organization_id, subscription_id, kind), []).append(delivery_id)
    return {key: sorted(found) for key, found in dead.items()}


async def look(seeds: Seeds, **asked: Any) -> list[Group]:
    """All pages."""
    found: list[Group] = []
    for page in range(1, 100):
        one = await dead_letters.groups(seeds.driver, page=page, size=3, **asked)
        found += one.rows
        if not one.more:
            return found
    raise AssertionError("no end")


def narrowed(seeds: Seeds, dead: dict[Key, list[UUID]]) -> list[tuple[dict[str, Any], set[Key]]]:
    """What may be asked, and which groups belong to it."""
    some = next(key for key in dead if key[0] != seeds.organization_id)
    return [
        ({}, set(dead)),
        ({"organization_id": seeds.organization_id}, {one for one in dead if one[0] == seeds.organization_id}),
        ({"subscription_id": some[1]}, {one for one in dead if one[1] == some[1]}),
        ({"organization_id": seeds.organization_id, "subscription_id": some[1]}, set()),
        ({"error": "timeout"}, {one for one in dead if one[2] == "timeout"}),
        ({"error": "none"}, {one for one in dead if one[2] is None}),
        ({"subscription_id": ids.new_id()}, set()),
    ]


def key_of(group: Group) -> Key:
    return group.organization_id, group.subscription_id, group.error_kind


@pytest.mark.parametrize("leaping", [False, True])
def test_groups_are_exact(database_url: str, monkeypatch: pytest.MonkeyPatch, leaping: bool) -> None:
    async def run(seeds: Seeds) -> None:
        dead = await plant(seeds)
        assert len(dead) == 24
        if leaping:
            refuse_to_count(monkeypatch)
        for asked, expected in narrowed(seeds, dead):
            found = await look(seeds, **asked)
            assert Counter(map(key_of, found)) == Counter(expected), asked
            for group in found:
                of_it = dead[key_of(group)]
                assert (group.count, group.is_exact) == (len(of_it), True)
                assert (group.first_at, group.last_at) == (ids.time_of(of_it[0]), ids.time_of(of_it[-1]))
                latest = await seeds.row(of_it[-1])
                assert (group.last_status_code, group.last_error_message) == (
                    latest["status_code"],
                    latest["error_message"],
                )
            whole = await dead_letters.groups(seeds.driver, size=3, **asked)
            if leaping and found:
                assert (whole.groups, whole.letters) == (None, None)
            elif not leaping:
                assert (whole.groups, whole.letters) == (len(expected), sum(len(dead[one]) for one in expected))
                assert [one.count for one in found] == sorted((one.count for one in found), reverse=True)

    seeded(database_url, run)


def refuse_to_count(monkeypatch: pytest.MonkeyPatch, *, leaping_too: bool = False) -> None:
    """As if each count took longer than it may."""
    genuine = dead_letters._in_time

    async def refused(driver: Any, timeout_ms: int, statement: str, *values: Any) -> list[Any]:
        if leaping_too or statement is dead_letters._COUNTED:
            raise asyncpg.QueryCanceledError
        return await genuine(driver, timeout_ms, statement, *values)

    monkeypatch.setattr(dead_letters, "_in_time", refused)


def test_more_than_can_be_counted_says_so(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(seeds: Seeds) -> None:
        for kind, count in (("status", 4), ("dns", 2), (None, 3)):
            for _ in range(count):
                await seeds.delivery(State.DEAD, error_kind=kind)
        refuse_to_count(monkeypatch)
        monkeypatch.setattr(dead_letters, "MOST_COUNTED", 2)
        found = await dead_letters.groups(seeds.driver)
        assert {(one.error, one.count, one.is_exact) for one in found.rows} == {
            ("status", 2, False),
            ("dns", 2, True),
            ("none", 2, False),
        }
        refuse_to_count(monkeypatch, leaping_too=True)
        with pytest.raises(TooMany):
            await dead_letters.groups(seeds.driver)

    seeded(database_url, run)


def test_a_count_that_takes_too_long_is_given_up(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(seeds: Seeds) -> None:
        with pytest.raises(asyncpg.QueryCanceledError):
            await dead_letters._in_time(seeds.driver, 50, "SELECT pg_sleep($1)", 30.0)
        assert await seeds.driver.fetchval("SHOW statement_timeout") == "0", "and it holds for that count alone"

    seeded(database_url, run)


def test_groups_are_counted_in_an_index_that_holds_nothing_else(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await plant(seeds)
        for organization_id in (None, seeds.organization_id):
            async with seeds.driver.transaction():
                # Of a few hundred rows reading all of them is the cheapest; of millions it is not.
                await seeds.driver.execute("SET LOCAL plan_cache_mode = force_custom_plan")
                await seeds.driver.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
                asked = (organization_id, None, None, 50, 0)
                plan = [row[0] for row in await seeds.driver.fetch(f"EXPLAIN {dead_letters._COUNTED}", *asked)]
            partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'deliveries'::regclass"
            days = await seeds.driver.fetchval(partitions)
            alone = [line for line in plan if "Index Only Scan" in line and "_error__idx" in line]
            assert len(alone) >= days > 2, plan
            assert not [line for line in plan if "Seq Scan on deliveries" in line]

    seeded(database_url, run)


def test_each_kind_of_error_is_leapt_to(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(seeds: Seeds) -> None:
        for kind in ErrorKind:
            await seeds.delivery(State.DEAD, error_kind=kind)
        refuse_to_count(monkeypatch)
        assert {one.error_kind for one in await look(seeds)} == set(ErrorKind)

    seeded(database_url, run)
