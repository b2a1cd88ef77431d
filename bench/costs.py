"""What deliveries cost PostgreSQL: on disk, in WAL and in processor time; claims from a backlog; very wide events."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from bench import history
from bench.platform import BenchError, Platform
from cli import target
from core import deliveries, events, ids
from core.acceptance import Acceptance, Request
from core.deliveries import Choice, Claimed, Due, Finish, Park, Tried, Verdict
from core.hints import Hint
from core.secrets.sealing import Sealer
from core.states import DeadReason, PendingReason, State
from core.storage.database import Database
from worker import room

MARGIN_S = 10.0
CLAIM, CLAIM_TARGET_MS, CLAIMS = room.MAX_CLAIM, 20.0, 200
WIDE_TARGET_MS = 500.0
BATCH = 100  # deliveries a claim and a finish, as a hint names them
TABLES = ("events", "deliveries", "attempts")


@asynccontextmanager
async def connected(platform: Platform) -> AsyncIterator[Any]:
    """A connection of asyncpg's own, without the timeouts of the platform's."""
    connection = await asyncpg.connect(platform.database_url)
    try:
        yield connection
    finally:
        await connection.close()


def percentile(values: Sequence[float], percent: int) -> float:
    """The least value that so many percent of the values do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


# --- on disk -------------------------------------------------------------------------------------------------------


async def sizes(platform: Platform) -> None:
    """Bytes a row of the three tables as they lie there, heap and indexes apart."""
    await platform.query(f"ANALYZE {', '.join(TABLES)}")
    for table in TABLES:
        [row] = await platform.query(
            "SELECT sum(reltuples)::float8 AS rows, sum(pg_table_size(c.oid))::float8 AS heap,"
            " sum(pg_indexes_size(c.oid))::float8 AS indexes"
            " FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid"
            f" WHERE i.inhparent = '{table}'::regclass AND c.reltuples > 0"
        )
        if row["rows"]:
            print(
                f"{table:10} {row['rows']:12,.0f} rows, {row['heap'] / row['rows']:5.0f} B a row and"
                f" {row['indexes'] / row['rows']:5.0f} B in its indexes; {(row['heap'] + row['indexes']) / 1e9:.1f} GB"
            )


# --- the three writes ----------------------------------------------------------------------------------------------


async def writes(platform: Platform, count: int, rounds: int, without: str) -> None:
    """Prints WAL bytes and PostgreSQL's processor time a delivery, of insert, claim and finish, one event each.

    Rounds alternate between all indexes and those `without`. Every hundredth delivery ends dead, every fiftieth waits
    for a retry.
    """
    platform.signal_workers(signal.SIGSTOP)
    names = [one for one in without.split(",") if one]
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    try:
        async with connected(platform) as driver:
            definitions = {
                # Of the partitions too, not of their parent ONLY.
                name: (await driver.fetchval("SELECT pg_get_indexdef($1::regclass)", name)).replace(" ON ONLY ", " ON ")
                for name in names
            }
            for number in range(rounds * (2 if names else 1)):
                reduced = number % 2 == 1
                for name, definition in definitions.items():
                    await driver.execute(f"DROP INDEX IF EXISTS {name}")
                    if not reduced:
                        await driver.execute(definition)
                await driver.execute(f"TRUNCATE {', '.join(TABLES)}")
                await driver.execute("CHECKPOINT")
                label = f"without {without}" if reduced else "with all indexes"
                found.setdefault(label, []).append(await _write_round(platform, driver, count))
                if number == 0:
                    await sizes(platform)
            for definition in definitions.values():
                await driver.execute(definition.replace("CREATE INDEX", "CREATE INDEX IF NOT EXISTS"))
            await driver.execute(f"TRUNCATE {', '.join(TABLES)}")
    finally:
        platform.signal_workers(signal.SIGCONT)
    print(f"\nwrites of {count:,} deliveries, median of {rounds} rounds: WAL bytes and PostgreSQL's CPU µs a delivery")
    for label, of_label in found.items():
        told = []
        for step in of_label[0]:
            wal = statistics.median(one[step][0] for one in of_label)
            cpu = statistics.median(one[step][1] for one in of_label)
            told.append(f"{step} {wal:5.0f} B {cpu:5.0f} µs")
        print(f"  {label:44} {'; '.join(told)}")


async def _write_round(platform: Platform, driver: Any, count: int) -> dict[str, tuple[float, float]]:
    settings = target.settings(platform.data_dir, keys=True)
    database = Database(settings.database_url, pool_size=4)
    made: dict[str, tuple[float, float]] = {}
    try:
        [organization] = await driver.fetch("SELECT id FROM organizations WHERE name = 'bench'")
        [key] = await driver.fetch("SELECT id FROM api_keys WHERE organization_id = $1", organization["id"])
        if not await driver.fetchval(
            "SELECT EXISTS (SELECT FROM subscriptions WHERE organization_id = $1)", organization["id"]
        ):
            await driver.execute(
                "INSERT INTO subscriptions (id, organization_id, url, events)"
                " VALUES ($1, $2, 'http://127.0.0.1:9/', '{*}')",
                ids.new_id(),
                organization["id"],
            )
        hinted: list[Hint] = []
        acceptance = Acceptance(database, hinted.extend, Sealer(settings.secret_keys))
        acceptance.start()

        async def accept_all() -> None:
            for _ in range(-(-count // BATCH)):
                await asyncio.gather(
                    *(
                        acceptance.accept(Request([_event(organization["id"])], organization["id"], key["id"]))
                        for _ in range(BATCH)
                    )
                )

        claimed: list[Any] = []

        async def claim_all() -> None:
            for start in range(0, len(hinted), BATCH):
                named = [hint.delivery_id for hint in hinted[start : start + BATCH]]
                async with database.driver() as connection:
                    claimed.extend(await deliveries.claim(connection, named, margin_s=600))

        async def finish_all() -> None:
            for start in range(0, len(claimed), BATCH):
                ends = [_end(number, one) for number, one in enumerate(claimed[start : start + BATCH])]
                async with database.driver() as connection:
                    assert all(await deliveries.finish(connection, ends))  # nosec B101 # the benchmark is wrong otherwise, and must not go on

        for name, work in (("insert", accept_all), ("claim", claim_all), ("finish", finish_all)):
            made[name] = await _cost(platform, driver, work, count)
        await acceptance.close()
    finally:
        await database.close()
    made["together"] = (sum(one[0] for one in made.values()), sum(one[1] for one in made.values()))
    return made


async def _cost(platform: Platform, driver: Any, work: Any, count: int) -> tuple[float, float]:
    """WAL bytes and CPU µs of PostgreSQL a delivery, while `work` runs."""
    lsn = await driver.fetchval("SELECT pg_current_wal_insert_lsn()")
    cpu_s = platform.cpu_s()["postgres"]
    await work()
    wal = await driver.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)::float8", lsn)
    return wal / count, (platform.cpu_s()["postgres"] - cpu_s) / count * 1e6


def _event(organization_id: UUID) -> events.NewEvent:
    return events.build(organization_id=organization_id, event_type="order.paid", data={"text": "x" * 1_000})


def _end(number: int, claimed: Any) -> Finish:
    verdict, status = Verdict(State.DELIVERED), 200
    if number == 0:
        verdict, status = Verdict(State.DEAD, DeadReason.EXHAUSTED), 503
    elif number in {1, 2}:
        verdict, status = Verdict(State.PENDING, PendingReason.RETRY, 3600.0), 503
    return Finish(
        claimed,
        verdict,
        Tried(
            id=ids.new_id(),
            started_at=ids.time_of(claimed.id),
            duration_ms=12,
            status_code=status,
            error_kind="status" if status == 503 else None,
            error_message="The receiver answered 503" if status == 503 else None,
            url="https://receiver.example.com/webhooks/orders",
            request_headers='[["content-type","application/json"],["webhook-id","x"],["webhook-signature","v1,'
            + "x" * 44
            + '"]]',
            response_headers='[["Content-Length","2"],["Date","Sat, 21 Nov 2026 09:00:00 GMT"]]',
            response_body=b"ok",
        ),
    )


# --- a backlog -----------------------------------------------------------------------------------------------------


async def _first(due: Sequence[Due]) -> list[Choice | Park]:
    """A claim's worth, as a worker with that many free slots chooses."""
    return [Choice.CLAIM if at < CLAIM else Choice.LEAVE for at in range(len(due))]


async def claims(platform: Platform, pending: int) -> bool:
    """Times claims from `pending` due deliveries, as a sweep and as hints make them. Whether both stay in bounds."""
    platform.signal_workers(signal.SIGSTOP)
    database = Database(target.settings(platform.data_dir).database_url, pool_size=2)
    fine = True
    count = min(CLAIMS, pending // (4 * CLAIM))  # of each kind; together they take half of what is due
    try:
        async with connected(platform) as driver:
            await history.make_due(driver, pending)
            rows = await driver.fetch(
                "SELECT id FROM deliveries WHERE state = 'pending' AND due_at <= now() ORDER BY due_at DESC LIMIT $1",
                CLAIM * count,
            )
        hinted = [row["id"] for row in rows]
        found = {}
        async with database.driver() as driver:

            async def swept(_: int) -> list[Claimed]:
                return (await deliveries.sweep(driver, room.MAX_LOOK, _first, margin_s=MARGIN_S)).claims

            async def named(number: int) -> list[Claimed]:
                chosen = hinted[number * CLAIM : (number + 1) * CLAIM]
                return await deliveries.claim(driver, chosen, margin_s=MARGIN_S)

            for name, claim in (("sweep", swept), ("claim", named)):
                taken = []
                cpu_s = platform.cpu_s()["postgres"]
                for number in range(count):
                    started = time.perf_counter()
                    got = len(await claim(number))
                    taken.append((time.perf_counter() - started) * 1000)
                    if got != CLAIM:
                        raise BenchError(f"a claim found {got} of {CLAIM}")
                found[name] = (taken, (platform.cpu_s()["postgres"] - cpu_s) / count * 1000)
    finally:
        await database.close()
        platform.signal_workers(signal.SIGCONT)
    print(f"\nclaims of {CLAIM} with {pending:,} due, worker stopped; target {CLAIM_TARGET_MS:.0f} ms at p95")
    for name, (taken, cpu_ms) in found.items():
        fine &= percentile(taken, 95) <= CLAIM_TARGET_MS
        print(
            f"  {name:10} first {taken[0]:6.1f}  p50 {statistics.median(taken):6.1f}  p95 {percentile(taken, 95):6.1f}"
            f"  max {max(taken):6.1f} ms; PostgreSQL's CPU {cpu_ms:5.1f} ms"
        )
    return fine


# --- wide events ---------------------------------------------------------------------------------------------------


async def wide(platform: Platform, subscriptions: int, posts: int = 10) -> bool:
    """Posts events that `subscriptions` subscriptions want, and another organization's all the while: the times of
    both, and those of the other's alone. The worker is stopped: it is acceptance that is measured."""
    platform.signal_workers(signal.SIGSTOP)
    try:
        organization, key = await platform.make_tenant("wide")
        async with connected(platform) as driver:
            await driver.execute(
                "INSERT INTO subscriptions (id, organization_id, url, events)"
                " SELECT uuidv7(), $1, 'http://127.0.0.1:9/' || n, '{wide.*}' FROM generate_series(1, $2::int) n",
                ids.parse(ids.ORGANIZATION, organization),
                subscriptions,
            )
        async with httpx.AsyncClient(base_url=platform.url, trust_env=False, timeout=60) as client:
            alone = await _post_each(client, platform.key, "narrow.event", posts * 20, 0.01)
            first = await _post(client, key, "wide.event")  # loads and compiles the subscriptions
            others = asyncio.create_task(_post_each(client, platform.key, "narrow.event", None, 0.01))
            taken = await _post_each(client, key, "wide.event", posts, 0.2)
            others.cancel()
            beside = await others
    finally:
        platform.signal_workers(signal.SIGCONT)
    print(f"\nevents that {subscriptions:,} subscriptions want, one each 0.2 s and its answer; ms to the 202")
    print(f"  the first, which loads the subscriptions {first:.0f}")
    for name, times in (("wide", taken), ("another's, alone", alone), ("another's, beside them", beside)):
        print(
            f"  {name:24} {len(times):4}: p50 {statistics.median(times):6.1f}  p95 {percentile(times, 95):6.1f}"
            f"  max {max(times):6.1f}"
        )
    return max(taken) <= WIDE_TARGET_MS


async def _post_each(client: httpx.AsyncClient, key: str, kind: str, count: int | None, pause_s: float) -> list[float]:
    """`count` posts one after the other; without one, until cancelled."""
    taken: list[float] = []
    try:
        while count is None or len(taken) < count:
            taken.append(await _post(client, key, kind))
            await asyncio.sleep(pause_s)
    except asyncio.CancelledError:
        if count is not None:
            raise
    return taken


async def _post(client: httpx.AsyncClient, key: str, kind: str) -> float:
    """The milliseconds until the answer."""
    started = time.perf_counter()
    body = {"event_type": kind, "data": {"text": "x" * 1_000}}
    answer = await client.post("/v1/events", headers={"X-API-Key": key}, json=body)
    if answer.status_code != 202:
        raise BenchError(f"an event was refused: {answer.status_code} {answer.text[:500]}")
    return (time.perf_counter() - started) * 1000
