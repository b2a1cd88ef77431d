"""Acceptance: what was answered with yes is stored, and what could not be stored was not answered with yes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog

from core import acceptance, events, ids
from core.acceptance import Acceptance, Answer, Request
from core.access import api_keys
from core.errors import AuthenticationFailed, NotFound, Unavailable
from core.events import NewEvent
from core.hints import Hint
from core.matching import matcher
from core.secrets.sealing import Sealer
from core.storage import partitions
from core.storage.database import Database
from tests.platform import SECRET_KEY, Platform, platform
from tests.seeds import Seeds, seeded
from tests.services import as_owner

SEALER = Sealer([SECRET_KEY])


class Door:
    """An acceptance with a key to call it by, and the hints that it gave."""

    def __init__(self, seeds: Seeds, key_id: UUID, database: Database) -> None:
        self.seeds = seeds
        self.key_id = key_id
        self.hinted: list[Hint] = []
        self.acceptance = Acceptance(database, self.hinted.extend, SEALER)

    def event(self, **fields: Any) -> NewEvent:
        given = {"event_type": "order.paid", "data": {"total": 1}} | fields
        return events.build(organization_id=self.seeds.organization_id, **given)

    async def post(self, *new: NewEvent, organization_id: UUID | None = None) -> Answer:
        owner = organization_id or self.seeds.organization_id
        return await self.acceptance.accept(Request(new, owner, self.key_id))


def through(database_url: str, test: Any) -> None:
    """Runs `test(door)` with a started acceptance."""

    async def run(seeds: Seeds) -> None:
        async with seeds.database.session() as session:
            key, _ = await api_keys.create(session, SEALER, organization_id=seeds.organization_id, name="test")
        door = Door(seeds, key.id, seeds.database)
        door.acceptance.start()
        try:
            await test(door)
        finally:
            await door.acceptance.close()

    seeded(database_url, run)


async def stored(door: Door) -> set[UUID]:
    return {row["id"] for row in await door.seeds.driver.fetch("SELECT id FROM events")}


def test_what_is_accepted_is_stored_with_its_deliveries_before_the_answer(database_url: str) -> None:
    async def test(door: Door) -> None:
        new = door.event()
        answer = await door.post(new)
        assert answer.data[0]["matched_subscriptions"] == 1
        assert await stored(door) == {new.id}
        [delivery] = await door.seeds.driver.fetch("SELECT * FROM deliveries")
        assert (delivery["event_id"], delivery["state"], delivery["reason"]) == (new.id, "pending", "new")
        assert [hint.delivery_id for hint in door.hinted] == [delivery["id"]]

    through(database_url, test)


def test_requests_that_come_together_share_a_transaction(database_url: str) -> None:
    async def test(door: Door) -> None:
        await asyncio.gather(*(door.post(door.event()) for _ in range(200)))
        rows = await door.seeds.driver.fetch("SELECT xmin::text, count(*) FROM events GROUP BY 1")
        assert sum(row["count"] for row in rows) == 200
        assert len(rows) <= 5
        assert len(door.hinted) == 200

    through(database_url, test)


@pytest.mark.parametrize("external", [False, True], ids=["one statement", "with keys, in a transaction"])
def test_an_event_that_cannot_be_stored_fails_none_of_its_neighbours(database_url: str, external: bool) -> None:
    async def test(door: Door) -> None:
        new = [door.event(external_id=f"order {n}" if external else None) for n in range(20)]
        new[7] = new[7]._replace(event_type="nul \0")
        outcomes = await asyncio.gather(*(door.post(one) for one in new), return_exceptions=True)
        assert isinstance(outcomes.pop(7), Exception)
        assert all(isinstance(outcome, Answer) for outcome in outcomes)
        assert await stored(door) == {one.id for one in new} - {new[7].id}
        # Each has its delivery, and none is there twice, although the batch was tried first.
        found = await door.seeds.driver.fetch("SELECT event_id FROM deliveries")
        assert sorted(row["event_id"] for row in found) == sorted(await stored(door))

    through(database_url, test)


def test_a_batch_is_accepted_whole_or_not_at_all(database_url: str) -> None:
    async def test(door: Door) -> None:
        good, bad = door.event(), door.event()._replace(event_type="nul \0")
        with pytest.raises(Exception, match="0x00"):
            await door.post(good, bad)
        assert await stored(door) == set()

    through(database_url, test)


def test_a_refused_request_fails_none_of_its_neighbours(database_url: str) -> None:
    async def test(door: Door) -> None:
        good = [door.event() for _ in range(3)]
        stranger = Request([door.event()], door.seeds.organization_id, ids.new_id())
        nowhere = door.post(door.event(), organization_id=ids.new_id())
        outcomes = await asyncio.gather(
            *(door.post(one) for one in good), door.acceptance.accept(stranger), nowhere, return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Answer, Answer, Answer, AuthenticationFailed, NotFound]
        assert await stored(door) == {one.id for one in good}

    through(database_url, test)


def test_a_refused_request_does_not_wait_for_the_garbage_collector(database_url: str) -> None:
    """Else its body would, which may be large, and a client can have as many refused as it likes."""

    async def test(door: Door) -> None:
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(NotFound):
                await door.post(door.event(), organization_id=ids.new_id())
            for _ in range(10):  # until the loop has let go of what it ran
                await asyncio.sleep(0)
            assert [one for one in gc.get_objects() if type(one) in {Request, NewEvent}] == []
        finally:
            gc.enable()

    through(database_url, test)


def test_the_same_event_id_is_the_same_event_whoever_posts_it_first(database_url: str) -> None:
    async def test(door: Door) -> None:
        other = Door(door.seeds, door.key_id, door.seeds.database)  # another web process
        other.acceptance.start()
        posts = [one.post(one.event(external_id="order 1")) for _ in range(10) for one in (door, other)]
        answers: Sequence[Answer] = await asyncio.gather(*posts)
        await other.acceptance.close()
        assert len({answer.data[0]["event_id"] for answer in answers}) == 1
        assert [answer.duplicate for answer in answers].count(False) == 1
        assert len(await stored(door)) == 1
        assert await door.seeds.driver.fetchval("SELECT count(*) FROM deliveries") == 1

    through(database_url, test)


def test_processes_that_post_the_same_event_ids_crosswise_do_not_lock_each_other_out(database_url: str) -> None:
    async def test(door: Door) -> None:
        other = Door(door.seeds, door.key_id, door.seeds.database)
        other.acceptance.start()
        names = [f"order {n}" for n in range(50)]
        await asyncio.gather(
            door.post(*[door.event(external_id=name) for name in names]),
            other.post(*[other.event(external_id=name) for name in reversed(names)]),
        )
        await other.acceptance.close()
        assert len(await stored(door)) == 50

    through(database_url, test)


@pytest.mark.parametrize("external", [False, True], ids=["one statement", "with keys, in a transaction"])
def test_an_event_whose_day_has_no_partition_is_accepted_all_the_same(
    database_url: str, owner_url: str, external: bool
) -> None:
    async def test(door: Door) -> None:
        today = datetime.now(UTC).date()
        await as_owner(owner_url, *(f"DROP TABLE {partitions.name_of(table, today)}" for table in partitions.TABLES))
        new = [door.event(external_id=f"order {n}" if external else None) for n in range(5)]
        await asyncio.gather(*(door.post(one) for one in new))
        assert await stored(door) == {one.id for one in new}
        assert await door.seeds.driver.fetchval("SELECT count(*) FROM deliveries") == 5

    through(database_url, test)


def test_an_event_of_a_clock_that_is_ahead_is_accepted(database_url: str) -> None:
    async def test(door: Door) -> None:
        far = date.today() + timedelta(days=400)
        moment = datetime(far.year, far.month, far.day, tzinfo=UTC)
        new = door.event(event_id=ids.lowest_at(moment))
        await door.post(new)
        assert await stored(door) == {new.id}

    through(database_url, test)


def test_without_a_database_nothing_is_accepted_and_the_log_says_why_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptance, "COMPLAIN_EVERY_S", 3600.0)

    async def test(door: Door) -> None:
        away = Database("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
        shut = Door(door.seeds, door.key_id, away)
        shut.acceptance.start()
        with structlog.testing.capture_logs() as said:
            outcomes = await asyncio.gather(*(shut.post(shut.event()) for _ in range(20)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        [line] = [one for one in said if one["event"] == "events could not be stored"]
        assert (line["requests"], "Connect" in line["error"]) == (1, True), line
        assert shut.hinted == []
        await shut.acceptance.close()
        await away.close()

    through(database_url, test)


def test_an_event_id_that_a_stopped_process_holds_hinders_no_stranger(database_url: str) -> None:
    async def test(door: Door) -> None:
        driver = door.seeds.driver
        async with driver.transaction():  # of a web process that then stood still
            await driver.executemany(
                "INSERT INTO event_keys (organization_id, external_id, event_id) VALUES ($1, $2, $3)",
                [(door.seeds.organization_id, name, ids.new_id()) for name in ("held 1", "held 2")],
            )
            held = [asyncio.create_task(door.post(door.event(external_id=f"held {n}"))) for n in (1, 2)]
            others = [door.post(door.event()) for _ in range(100)]
            others += [door.post(door.event(external_id=f"order {n}")) for n in range(100)]
            async with asyncio.timeout(3.5):  # less than the pool's lock_timeout
                assert {type(one) for one in await asyncio.gather(*others)} == {Answer}
                refused = await asyncio.gather(*held, return_exceptions=True)
            assert {type(one) for one in refused} == {Unavailable}
            began = time.monotonic()
            await door.post(door.event())
            assert time.monotonic() - began < 0.5

    through(database_url, test)


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
def test_an_acceptance_that_gave_way_to_another_transaction_is_tried_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    genuine = acceptance._insert
    tried = 0

    async def giving_way(*given: Any) -> list[UUID]:
        nonlocal tried
        tried += 1
        if tried < acceptance.TRIES:
            raise error("could not")
        return await genuine(*given)

    monkeypatch.setattr(acceptance, "_insert", giving_way)

    async def test(door: Door) -> None:
        await door.post(new := door.event(external_id="order 1"))
        assert await stored(door) == {new.id}

    through(database_url, test)


def test_a_missing_partition_is_known_in_any_language(database_url: str) -> None:
    async def test(door: Door) -> None:
        driver = door.seeds.driver
        nowhere = "INSERT INTO deliveries SELECT '{}', o, o, o, 'a', '{}', 'new', now() FROM gen_random_uuid() o"
        far = ids.lowest_at(datetime(2199, 1, 1, tzinfo=UTC))
        with pytest.raises(asyncpg.CheckViolationError) as missing:
            await driver.execute(nowhere.format(far, "pending"))
        with pytest.raises(asyncpg.CheckViolationError) as wrong:
            await driver.execute(nowhere.format(ids.new_id(), "nonsense"))
        assert (partitions.is_missing(missing.value), partitions.is_missing(wrong.value)) == (True, False)

    through(database_url, test)


def test_a_connection_cut_within_the_transaction_is_no_acceptance(database_url: str) -> None:
    async def test(door: Door) -> None:
        await door.post(door.event())  # the pool holds a connection now
        async with door.seeds.driver.transaction():
            await door.seeds.driver.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            new = door.event()
            posting = asyncio.create_task(door.post(new))
            ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            async with asyncio.timeout(5), door.seeds.database.driver() as other:
                while not await other.fetch(ending):  # noqa: ASYNC110 - it happens in another process
                    await asyncio.sleep(0.01)
            with pytest.raises(Unavailable):
                await posting
        assert new.id not in await stored(door)
        # And the next one finds a connection that works.
        await door.post(later := door.event())
        assert later.id in await stored(door)

    through(database_url, test)


def test_a_database_that_stands_still_is_answered_with_503_in_time(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.acceptance.ACCEPT_TIMEOUT_S", 0.3)

    async def run() -> None:
        async with platform(database_url, redis_url, with_worker=False) as p, p.database.driver() as driver:
            transaction = driver.transaction()
            await transaction.start()
            await driver.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            body = {"event_type": "order.paid", "data": {}, "event_id": "order 1"}
            refused = await p.call("POST", "/v1/events", body, 503)
            assert refused["error"]["code"] == "UNAVAILABLE"
            await transaction.rollback()
            # Whether it was stored is unknown to the caller; with its event_id it may simply be sent again.
            monkeypatch.setattr("core.acceptance.ACCEPT_TIMEOUT_S", 10)
            await _once(p, body)

    async def _once(p: Platform, body: dict[str, Any]) -> None:
        await p.call("POST", "/v1/events", body)
        await p.call("POST", "/v1/events", body, 200)
        [row] = await p.sql("SELECT count(*) AS n FROM events")
        assert row["n"] == 1

    asyncio.run(run())


def test_a_subscription_made_by_another_process_gets_the_very_next_event(database_url: str) -> None:
    async def test(door: Door) -> None:
        first = await door.post(door.event())
        assert first.data[0]["matched_subscriptions"] == 1
        await door.seeds.subscription()
        await door.seeds.driver.execute("UPDATE organizations SET subscriptions_version = subscriptions_version + 1")
        second = await door.post(door.event())
        assert second.data[0]["matched_subscriptions"] == 2

    through(database_url, test)


def test_an_event_whose_matching_takes_long_keeps_no_other_waiting_and_is_matched_by_the_latest(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its organization alone has to wait: it is stored apart. Filters are compiled once for each version of theirs."""
    compiled: list[Any] = []
    genuine = matcher.compile_stored
    monkeypatch.setattr(matcher, "compile_stored", lambda spec: compiled.append(spec) or genuine(spec))
    spec = {"b.c": {"$in": [number + 0.5 for number in range(200)]}}

    async def test(door: Door) -> None:
        made = [await door.seeds.subscription() for _ in range(60)]
        change = "UPDATE subscriptions SET events = '{big.*}', filters = $2, version = version + 1 WHERE id = ANY($1)"
        raised = "UPDATE organizations SET subscriptions_version = subscriptions_version + 1"
        await door.seeds.driver.execute(change, made, json.dumps(spec))
        await door.seeds.driver.execute(raised)
        stranger = ids.new_id()
        await door.seeds.driver.execute("INSERT INTO organizations (id, name) VALUES ($1, 'Another')", stranger)
        async with door.seeds.database.session() as session:
            key, _ = await api_keys.create(session, SEALER, organization_id=stranger, name="test")
        order: list[UUID] = []

        async def post(event: NewEvent, key_id: UUID) -> int:
            answer = await door.acceptance.accept(Request([event], event.organization_id, key_id))
            order.append(event.organization_id)
            return int(answer.data[0]["matched_subscriptions"])

        async def post_big(elements: int = 25_000) -> int:
            data = {"b": [{"c": 1}] * elements}
            return await post(door.event(event_type="big.one", data=data), door.key_id)

        small = events.build(organization_id=stranger, event_type="order.paid", data={})
        with structlog.testing.capture_logs() as logs:
            assert await asyncio.gather(post_big(), post(small, key.id)) == [1, 0]
        assert order == [stranger, door.seeds.organization_id]
        [line] = [line for line in logs if "filters may look at" in line["event"]]
        assert 10 < line["subscriptions"] < 15
        assert len(compiled) == 60

        await door.seeds.driver.execute(change, made[:1], json.dumps({"b.0.c": 1}))
        await door.seeds.driver.execute(raised)
        assert await post_big(1) == 2
        assert compiled[60:] == [{"b.0.c": 1}]

    through(database_url, test)
