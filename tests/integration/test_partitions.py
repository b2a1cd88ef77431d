"""Daily partitions: made ahead or at the last moment, dropped by retention, never with work that is unfinished."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from core import idempotency, ids, replays
from core.models import ItemOutcome
from core.replay_items import ItemResult, record
from core.states import State
from core.storage import partitions
from core.storage.database import Database
from tests.integration.test_deliveries import blocked
from tests.seeds import Seeds, seeded
from tests.services import as_owner

TODAY = datetime.now(UTC).date()
RETENTION_DAYS = 30
OLD = TODAY - timedelta(days=40)


def noon(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


async def present(seeds: Seeds, table: str = "deliveries") -> dict[str, str]:
    """Partition names and their bounds."""
    rows = await seeds.driver.fetch(
        "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits"
        " JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = $1::text::regclass",
        table,
    )
    return {row["relname"]: row["bounds"] for row in rows}


async def dropped(seeds: Seeds) -> list[date]:
    return await partitions.drop_expired(seeds.database, TODAY, RETENTION_DAYS)


# --- making --------------------------------------------------------------------------------------------------------


def test_a_partition_is_named_and_bounded_by_its_day(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        day = date(2024, 2, 29)
        await partitions.ensure(seeds.driver, [day])
        for table in partitions.TABLES:
            bounds = (await present(seeds, table))[f"{table}_p20240229"]
            low, high = ids.day_bounds(day)
            assert bounds == f"FOR VALUES FROM ('{low}') TO ('{high}')"
            assert ids.day_bounds(date(2024, 3, 1))[0] == high

    seeded(database_url, run)


def test_a_partition_made_later_has_all_that_the_table_asks_for(database_url: str, owner_url: str) -> None:
    """Defaults, constraints and indexes are those of a partition that PostgreSQL makes by itself."""

    async def run(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [OLD])
        next_day = OLD + timedelta(days=1)
        low, high = ids.day_bounds(next_day)
        for table in partitions.TABLES:
            other = partitions.name_of(table, next_day)
            await as_owner(
                owner_url, f"CREATE TABLE {other} PARTITION OF {table} FOR VALUES FROM ('{low}') TO ('{high}')"
            )
            described = []
            for name in (partitions.name_of(table, OLD), other):
                columns = await seeds.driver.fetch(
                    "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attstorage::text,"
                    " pg_get_expr(adbin, adrelid)"
                    " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
                    " WHERE attrelid = $1::text::regclass AND attnum > 0 ORDER BY attnum",
                    name,
                )
                constraints = await seeds.driver.fetch(
                    "SELECT pg_get_constraintdef(oid) AS d FROM pg_constraint"
                    " WHERE conrelid = $1::text::regclass ORDER BY 1",
                    name,
                )
                indexes = await seeds.driver.fetch(
                    "SELECT pg_get_indexdef(indexrelid) AS d FROM pg_index WHERE indrelid = $1::text::regclass", name
                )
                shapes = sorted(row["d"].split(" USING ")[1] for row in indexes)
                described.append((list(map(tuple, columns)), [row["d"] for row in constraints], shapes))
            assert described[0] == described[1], table

    seeded(database_url, run)


def test_making_partitions_again_changes_nothing(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        before = await present(seeds)
        await partitions.ensure_ahead(seeds.database, TODAY)
        assert await present(seeds) == before
        await partitions.ensure(seeds.driver, [])

    seeded(database_url, run)


def test_several_processes_may_make_the_same_partitions_at_once(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        days = [OLD + timedelta(days=n) for n in range(5)]

        async def ensure(chosen: list[date]) -> None:
            async with seeds.database.driver() as driver:
                await partitions.ensure(driver, chosen)

        await asyncio.gather(*(ensure(days[n % 2 :]) for n in range(5)))
        assert {partitions.name_of("deliveries", day) for day in days} <= (await present(seeds)).keys()

    seeded(database_url, run)


def test_making_partitions_waits_for_nobody_and_nobody_for_it(database_url: str) -> None:
    """A backup reads for hours; a partition must come all the same, and must not stop the traffic meanwhile."""

    async def run(seeds: Seeds) -> None:
        await seeds.delivery()
        async with seeds.database.driver() as backup, seeds.database.driver() as writer:
            reading, writing = backup.transaction(), writer.transaction()
            await reading.start()
            await writing.start()
            for table in partitions.TABLES:
                await backup.execute(f"SELECT count(*) FROM {table}")
            await writer.execute("UPDATE deliveries SET updated_at = now()")
            async with asyncio.timeout(2):
                await partitions.ensure(seeds.driver, [OLD])
            await reading.rollback()
            await writing.rollback()
        assert partitions.name_of("deliveries", OLD) in await present(seeds)

    seeded(database_url, run)


def test_a_name_that_is_not_ours_has_no_day() -> None:
    assert partitions.day_in("deliveries_p20260128") == date(2026, 1, 28)
    for name in ("deliveries_default", "deliveries_p", "deliveries_p20261301", "p"):
        assert partitions.day_in(name) is None


# --- dropping ------------------------------------------------------------------------------------------------------


def test_retention_drops_what_is_older_and_keeps_the_rest(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        days = [TODAY - timedelta(days=n) for n in (RETENTION_DAYS + 2, RETENTION_DAYS + 1, RETENTION_DAYS)]
        await partitions.ensure(seeds.driver, days)
        finished = (State.DELIVERED, State.DEAD, State.DISCARDED)
        rows = {day: [await seeds.delivery(state, at=noon(day)) for state in finished] for day in days}
        for day in days:
            await seeds.event(at=noon(day))
        assert await dropped(seeds) == days[:2]
        for table in partitions.TABLES:
            names = await present(seeds, table)
            assert [partitions.name_of(table, day) in names for day in days] == [False, False, True]
        left = {row["id"] for row in await seeds.driver.fetch("SELECT id FROM deliveries")}
        assert left == set(rows[days[2]])
        assert await seeds.driver.fetchval("SELECT count(*) FROM events") == 1
        assert await dropped(seeds) == []

    seeded(database_url, run)


@pytest.mark.parametrize("kind", ["pending", "held", "sending"])
def test_retention_never_drops_what_is_unfinished(database_url: str, kind: str) -> None:
    async def run(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [OLD, OLD + timedelta(days=1)])
        columns: dict[str, Any] = {"reason": "paused", "due_at": None} if kind == "held" else {}
        state = State.SENDING if kind == "sending" else State.PENDING
        delivery_id = await seeds.delivery(state, at=noon(OLD), **columns)
        await seeds.event(at=noon(OLD))
        assert await dropped(seeds) == [OLD + timedelta(days=1)]
        assert (await seeds.row(delivery_id))["state"] == state
        assert await seeds.driver.fetchval("SELECT count(*) FROM events") == 1
        # Once it has ended, its day goes.
        await seeds.driver.execute(
            "UPDATE deliveries SET state = 'delivered', reason = NULL, due_at = NULL, lease_token = NULL"
        )
        assert await dropped(seeds) == [OLD]

    seeded(database_url, run)


def test_a_replay_that_comes_between_the_look_and_the_drop_keeps_its_day(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [OLD])
        delivery_id = await seeds.delivery(State.DEAD, at=noon(OLD))
        genuine = partitions._forget

        async def overtaken(driver: Any, low: UUID, high: UUID) -> None:
            await genuine(driver, low, high)
            if (await seeds.row(delivery_id))["state"] == State.DEAD:
                async with seeds.database.session() as session:
                    await replays.replay_one(session, seeds.organization_id, delivery_id, created_by="test")

        monkeypatch.setattr(partitions, "_forget", overtaken)
        assert await dropped(seeds) == []
        assert await seeds.state(delivery_id) == ("pending", "replay")

    seeded(database_url, run)


def test_retention_does_not_stop_the_traffic_behind_a_long_reader(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [OLD])
        async with seeds.database.driver() as backup, seeds.database.driver() as worker:
            transaction = backup.transaction()
            await transaction.start()
            await backup.execute("SELECT count(*) FROM deliveries")
            dropping = asyncio.create_task(dropped(seeds))
            await blocked(seeds)
            async with asyncio.timeout(3):  # waits behind the drop, which gives up soon
                await worker.fetch("SELECT FROM deliveries LIMIT 1")
            assert await dropping == []
            await transaction.rollback()
        assert await dropped(seeds) == [OLD]

    seeded(database_url, run)


def test_days_that_lost_one_of_their_tables_are_dropped_too(database_url: str, owner_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [OLD])
        await as_owner(
            owner_url,
            f"DROP TABLE {partitions.name_of('deliveries', OLD)}",
            "CREATE TABLE deliveries_mine PARTITION OF deliveries DEFAULT",
        )
        assert await dropped(seeds) == [OLD]
        assert partitions.name_of("events", OLD) not in await present(seeds, "events")

    seeded(database_url, run)


def test_retention_forgets_what_refers_to_dropped_days(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "BULK", 2)

    async def run(seeds: Seeds) -> None:
        kept_day = OLD + timedelta(days=1)
        await partitions.ensure(seeds.driver, [OLD, kept_day])
        await seeds.delivery(at=noon(kept_day))  # unfinished: its day stays

        async def key(name: str, event_id: UUID) -> None:
            await seeds.driver.execute(
                "INSERT INTO event_keys (organization_id, external_id, event_id) VALUES ($1, $2, $3)",
                seeds.organization_id,
                name,
                event_id,
            )

        for n in range(5):
            await key(f"old {n}", ids.lowest_at(noon(OLD)))
        await key("before any day", ids.lowest_at(noon(OLD - timedelta(days=9))))
        await key("kept", ids.lowest_at(noon(kept_day)))
        await key("new", ids.new_id())
        assert await dropped(seeds) == [OLD]
        left = {row["external_id"] for row in await seeds.driver.fetch("SELECT external_id FROM event_keys")}
        assert left == {"kept", "new"}

    seeded(database_url, run)


def test_a_replay_over_dropped_days_counts_them_as_skipped_and_completes(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [OLD])
        for _ in range(2):
            await seeds.delivery(State.DEAD, at=noon(OLD))
        old = [row["id"] for row in await seeds.driver.fetch("SELECT id FROM deliveries")]
        new = await seeds.delivery(State.DEAD, at=datetime.now(UTC) - timedelta(minutes=1))
        async with seeds.database.session() as session:
            replay, _ = await replays.create(
                session, seeds.organization_id, replays.freeze({}), rate_per_second=1000, created_by="test"
            )
        async with seeds.driver.transaction():  # one of the old ones was answered long ago
            await record(seeds.driver, [ItemResult(replay.id, old[0], ItemOutcome.SUCCEEDED)])
        assert await dropped(seeds) == [OLD]
        items = {row["delivery_id"] for row in await seeds.driver.fetch("SELECT delivery_id FROM replay_items")}
        assert items == {old[1], new}  # what still waits is not forgotten, or the counters would never add up
        assert [hint.delivery_id for hint in await replays.tick(seeds.database)] == [new]
        row = await seeds.driver.fetchrow("SELECT * FROM replays")
        assert (row["total"], row["sent"], row["succeeded"], row["skipped"]) == (3, 2, 1, 1)
        await seeds.driver.execute("UPDATE replays SET status = 'completed'")
        await dropped(seeds)
        items = {row["delivery_id"] for row in await seeds.driver.fetch("SELECT delivery_id FROM replay_items")}
        assert items == {new}

    seeded(database_url, run)


# --- idempotency keys ----------------------------------------------------------------------------------------------


class Plain:
    """No sealing: what is kept is not under test here."""

    def seal(self, plain: bytes, context: str) -> bytes:
        return plain

    def open(self, blob: bytes, context: str) -> bytes:
        return blob


def test_an_idempotency_key_is_good_for_a_day_and_then_forgotten(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        call = idempotency.call(seeds.organization_id, "POST", "/v1/events", "key", b"{}")
        other = idempotency.call(seeds.organization_id, "POST", "/v1/events", "fresh", b"{}")

        async def claim() -> Any:
            async with seeds.driver.transaction():
                [outcome] = await idempotency.claim(seeds.driver, [call], Plain())
                return outcome

        async def age(hours: float) -> None:
            await seeds.driver.execute(
                "UPDATE idempotency_keys SET created_at = now() - make_interval(secs => $1) WHERE key = 'key'",
                hours * 3600,
            )

        await idempotency.store(seeds.driver, [(call, {"n": 1}), (other, {})], Plain())
        assert (await claim()).data == {"n": 1}
        await age(23.9)
        await idempotency.drop_expired(seeds.driver)
        assert (await claim()).data == {"n": 1}
        await age(24.1)
        assert await claim() is None  # free again, even before it is cleared away
        await idempotency.store(seeds.driver, [(call, {"n": 2})], Plain())
        assert (await claim()).data == {"n": 2}
        await age(24.1)
        await idempotency.drop_expired(seeds.driver)
        assert await seeds.driver.fetchval("SELECT array_agg(key) FROM idempotency_keys") == ["fresh"]

    seeded(database_url, run)


def test_dropping_and_making_at_once_do_not_lock_each_other_out(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        days = [OLD + timedelta(days=n) for n in range(4)]
        await partitions.ensure(seeds.driver, days)

        async def make(driver_of: Database) -> None:
            async with driver_of.driver() as driver:
                await partitions.ensure(driver, [TODAY + timedelta(days=n) for n in range(20, 24)])

        work: list[Awaitable[Any]] = [dropped(seeds), make(seeds.database), dropped(seeds)]
        await asyncio.gather(*work)
        await dropped(seeds)
        assert not {partitions.name_of("deliveries", day) for day in days} & (await present(seeds)).keys()

    seeded(database_url, run)
