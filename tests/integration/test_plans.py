"""Every list and every hot statement is served by an index, on 100,000 deliveries over a week of partitions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event

from core import events, ids, replay_preview
from core.deliveries import bulk, leases, queues, requests
from core.storage import partitions
from core.storage.database import Database
from tests.platform import Platform, platform
from tests.seeds import Seeds, seeded
from tests.services import Services

DELIVERIES = 100_000
DAYS = 5
REPLAY = UUID("01907000-0000-7000-8000-000000000000")
SMALL = 2_000  # rows; scanning so small a partition is no worse than its index
# Statements of a batch, as they come: a sweep that recovers old ones reaches over several days.
BATCH = 100

# A version 7 UUID of a moment within the day `day` days ago.
_ID = """
(lpad(to_hex((extract(epoch FROM date_trunc('day', now() AT TIME ZONE 'UTC')) * 1000)::bigint
    - 86400000::bigint * {day} + n * 37), 12, '0') || '7' || substr(md5('head' || n), 1, 3)
    || '8' || substr(md5('{salt}' || n), 4, 15))::uuid
"""


def _plant(day: int) -> list[str]:
    """One day's events, deliveries and attempts. Nearly all are delivered; some are dead, some wait, a few are due."""
    count = DELIVERIES // DAYS
    return [
        f"""
        INSERT INTO events (
            id, organization_id, event_type, occurred_at, payload, data_at, matched_subscriptions
        )
        SELECT {_ID.format(day=day, salt="e")}, o.id, 'order.paid', now(), '{{"data":{{}}}}', 8, 1
        FROM generate_series(1, {count}) n JOIN planted_organizations o ON o.k = n % 10
        """,
        f"""
        INSERT INTO deliveries (
            id, organization_id, subscription_id, event_id, event_type, state, reason, due_at, error_kind, replay_id
        )
        SELECT {_ID.format(day=day, salt="d")}, s.organization_id, s.id, {_ID.format(day=day, salt="e")}, 'order.paid',
            CASE WHEN n % 100 = 0 THEN 'dead' WHEN n % 20 = 1 THEN 'pending' ELSE 'delivered' END,
            CASE WHEN n % 100 = 0 THEN 'exhausted' WHEN n % 20 = 1 THEN 'retry' END,
            CASE WHEN n % 20 = 1 THEN now() + (n % 1000 - 100) * interval '1 minute' END,
            CASE WHEN n % 100 = 0 THEN 'status' END, CASE WHEN n % 500 = 2 THEN '{REPLAY}'::uuid END
        FROM generate_series(1, {count}) n
        JOIN planted_organizations o ON o.k = n % 10 JOIN planted_subscriptions s ON s.k = n % 100
        """,
        f"""
        INSERT INTO attempts (
            id, delivery_id, organization_id, series, number, started_at, duration_ms, url, request_headers
        )
        SELECT {_ID.format(day=day, salt="a")}, {_ID.format(day=day, salt="d")}, o.id, 0, 1, now(), 5, 'u', '[]'
        FROM generate_series(1, {count}) n JOIN planted_organizations o ON o.k = n % 10
        """,
    ]


@pytest.fixture(scope="module")
def planted(services: Services, template: str) -> Iterator[str]:
    url = services.create_database(template)

    async def plant(seeds: Seeds) -> None:
        driver = seeds.driver
        today = datetime.now(UTC).date()
        await partitions.ensure(driver, [today - timedelta(days=n) for n in range(DAYS + 1)])
        await driver.execute("SET synchronous_commit = off")
        await driver.execute(
            """
            CREATE TEMP TABLE planted_organizations AS
            SELECT gen_random_uuid() AS id, n AS k FROM generate_series(0, 9) n;
            CREATE TEMP TABLE planted_subscriptions AS
            SELECT gen_random_uuid() AS id, o.id AS organization_id, n AS k
            FROM generate_series(0, 99) n JOIN planted_organizations o ON o.k = n % 10;
            INSERT INTO organizations (id, name) SELECT id, 'planted' FROM planted_organizations;
            INSERT INTO subscriptions (id, organization_id, url, events)
            SELECT id, organization_id, 'https://example.com', '{*}' FROM planted_subscriptions;
            """
        )
        for day in range(1, DAYS + 1):
            for statement in _plant(day):
                await driver.execute(statement)
        await driver.execute("ANALYZE")

    seeded(url, plant)
    yield services.application_url(url)
    services.drop_database(url)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@asynccontextmanager
async def undone(driver: Any) -> AsyncIterator[None]:
    """What is changed in the block is not changed after it."""
    transaction = driver.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def large(driver: Any) -> set[str]:
    """Partitions where a scan would hurt."""
    rows = await driver.fetch("SELECT relname FROM pg_class WHERE relispartition AND reltuples >= $1", SMALL)
    return {row["relname"] for row in rows if row["relname"].partition("_p")[0] in partitions.TABLES}


async def faults(driver: Any, plan: Any, *, by: str = "", whole_index: str | None = None) -> list[str]:
    """What in a plan reads a whole large partition: by itself, or through an index without a condition. `by` must be
    part of the condition. `whole_index` names an index that may be read whole: a small part of its table."""
    found = []
    partitions_ = await large(driver)
    for node in nodes(plan[0]["Plan"]):
        index = node.get("Index Name", "")
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in partitions_:
            found.append(f"Seq Scan on {node['Relation Name']}")
        elif (
            node["Node Type"] in {"Index Scan", "Index Only Scan"}
            and node["Relation Name"] in partitions_
            and ("Index Cond" not in node or by not in node["Index Cond"])
            and not (whole_index and whole_index in index)
        ):
            found.append(f"all of {index}")
    return found


def walks(plan: Any) -> list[str]:
    """What is walked through again for each row of something else, as no index leads to it: a batch for each of a
    batch, which costs its square."""
    inner = [node["Plans"][1] for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "Nested Loop"]
    walked = [node["Plans"][0] if node["Node Type"] == "Materialize" else node for node in inner]
    found = [node["Node Type"] for node in walked if node["Node Type"] in {"CTE Scan", "Function Scan"}]
    return found + [
        node["Filter"]
        for node in nodes(plan[0]["Plan"])
        if "SubPlan" in node.get("Filter", "") and "hashed" not in node["Filter"]
    ]


# --- hot statements ------------------------------------------------------------------------------------------------


def _batch(rows: list[UUID]) -> str:
    return "ARRAY[" + ",".join(f"'{one}'" for one in rows) + "]::uuid[]"


def _span(rows: list[UUID]) -> str:
    return f"{_batch(rows)}, '{min(rows)}', '{max(rows)}'"


def _finish_values(rows: list[UUID]) -> str:
    finished = [
        f"ROW('{one}', '{UUID(int=1)}', 0, NULL, 1, 'delivered', NULL, NULL,"
        f" '{ids.new_id()}', now(), 1, 200, NULL, NULL, 'x', 'x', NULL, NULL)::finished_claim"
        for one in rows
    ]
    return f"{_span(rows)}, ARRAY[{', '.join(finished)}]"


# Statement, values for a batch, and what its rows must be found by.
HOT = {
    "claim": (leases._CLAIM, lambda rows: f"{_span(rows)}, '{UUID(int=1)}', 10.0", "id = ANY"),
    "finish": (leases._FINISH, _finish_values, "id = ANY"),
    "under lease": (leases._UNDER_LEASE, lambda _: "now(), ARRAY['00000000']", "due_at > "),
    "due": (queues._DUE, lambda _: "250, 125, 60, 0.5", "due_at <= "),
    "replay": (requests._REPLAY, lambda rows: f"{_span(rows)}, '{UUID(int=1)}'", "id = ANY"),
    "discard pending": (bulk._DISCARD_PENDING, _span, "id = ANY"),
    "release held": (bulk._RELEASE_HELD, _span, "id = ANY"),
    "stored events": (events._STORED, _span, "id = ANY"),
}


@pytest.mark.parametrize("days", [1, 3])
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_reads_only_the_rows_it_names(planted: str, name: str, mode: str, days: int) -> None:
    statement, values, by = HOT[name]

    async def run(seeds: Seeds) -> None:
        driver = seeds.driver
        chosen: list[UUID] = []
        for day in range(1, days + 1):
            low, high = ids.day_bounds(datetime.now(UTC).date() - timedelta(days=day))
            rows = await driver.fetch(
                "SELECT id FROM deliveries WHERE id >= $1 AND id < $2 LIMIT $3", low, high, BATCH // days
            )
            chosen += [row["id"] for row in rows]
        await driver.execute(f"SET plan_cache_mode = {mode}")
        await driver.execute(f"PREPARE hot AS {statement}")
        plan = await driver.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE hot({values(chosen)})")
        assert not await faults(driver, plan, by=by), json.dumps(plan, indent=1)
        if mode == "force_generic_plan":  # as the processes' connections have it
            assert not walks(plan), json.dumps(plan, indent=1)

    seeded(planted, run)


BY_SUBSCRIPTION = {"look for held": bulk._HELD, "look for pending": bulk._PENDING}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", BY_SUBSCRIPTION)
def test_what_waits_for_a_subscription_is_found_without_its_history(planted: str, name: str, mode: str) -> None:
    async def run(seeds: Seeds) -> None:
        driver = seeds.driver
        one = await driver.fetchval("SELECT subscription_id FROM deliveries LIMIT 1")
        await driver.execute(f"SET plan_cache_mode = {mode}")
        await driver.execute(f"PREPARE look AS {BY_SUBSCRIPTION[name]}")
        plan = await driver.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE look('{one}', 5000)")
        assert not await faults(driver, plan, whole_index="due_at_idx"), plan

    seeded(planted, run)


# --- what the API asks ---------------------------------------------------------------------------------------------


def lists(subscription: str, delivery: str, happened: str) -> dict[str, str]:
    return {
        "deliveries": "/v1/deliveries",
        "oldest first": "/v1/deliveries?sort=created_at",
        "of a subscription": f"/v1/deliveries?filters[subscription_id]={subscription}",
        "of a subscription, by its path": f"/v1/webhooks/subscriptions/{subscription}/deliveries",
        "of an event": f"/v1/deliveries?filters[event_id]={happened}",
        "of an event, by its path": f"/v1/events/{happened}/deliveries",
        "dead": "/v1/deliveries?filters[status]=dead",
        "dead of a subscription": f"/v1/deliveries?filters[status]=dead&filters[subscription_id]={subscription}",
        "dead by error": "/v1/deliveries?filters[status]=dead&filters[error]=timeout",
        "by error": "/v1/deliveries?filters[error]=timeout",
        "by reason": "/v1/deliveries?filters[reason]=aborted",
        "by status code": "/v1/deliveries?filters[status_code]=404",
        "dead by event type": "/v1/deliveries?filters[status]=dead&filters[event_type]=order.none",
        "by error of a subscription": f"/v1/deliveries?filters[error]=timeout&filters[subscription_id]={subscription}",
        "by event type": "/v1/deliveries?filters[event_type]=order.paid",
        "pending": "/v1/deliveries?filters[status]=pending",
        "one with its attempts": f"/v1/deliveries/{delivery}",
        "with attempts": f"/v1/deliveries?include=attempts&filters[subscription_id]={subscription}",
        "of a replay": f"/v1/deliveries?filters[replay_id]={ids.show(ids.REPLAY, REPLAY)}",
        "events": "/v1/events",
        "events by type": "/v1/events?filters[event_type]=order.none",
        "events by the producer's id": "/v1/events?filters[external_id]=order 1",
        "one event": f"/v1/events/{happened}",
    }


# Conditions that an index must hold, beside any other.
BY = {
    "of a replay": "replay_id",
    "events by the producer's id": "id =",
    "events by type": "event_type =",
    "dead by error": "error_kind =",
    "by error": "error_kind =",
    "by reason": "reason =",
    "by status code": "status_code =",
    "dead by event type": "event_type =",
    "by error of a subscription": "error_kind =",
}


def test_every_list_the_api_offers_is_served_by_an_index(planted: str, redis_url: str) -> None:
    async def asked(p: Platform, path: str) -> list[tuple[str, Any]]:
        statements: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            statements.append((statement, values))

        engine = p.database.engine.sync_engine
        event.listen(engine, "before_cursor_execute", note)
        try:
            first = await p.call("GET", path)
            more = path + ("&" if "?" in path else "?")
            pagination = first["meta"].get("pagination", {})
            if cursor := pagination.get("nextCursor"):
                await p.call("GET", f"{more}after_key={cursor}")
        finally:
            event.remove(engine, "before_cursor_execute", note)
        return [one for one in statements if "FROM deliveries" in one[0] or "FROM events" in one[0]]

    async def run() -> None:
        async with platform(planted, redis_url, with_worker=False) as p:
            [row] = await p.sql("SELECT * FROM deliveries WHERE state = 'dead' ORDER BY id DESC LIMIT 1")
            # The platform's key acts for the organization that has the most.
            p.client.headers["X-API-Key"] = p.platform_key
            p.client.headers["X-Organization-ID"] = ids.show(ids.ORGANIZATION, row["organization_id"])
            paths = lists(
                ids.show(ids.SUBSCRIPTION, row["subscription_id"]),
                ids.show(ids.DELIVERY, row["id"]),
                ids.show(ids.EVENT, row["event_id"]),
            )
            for name, path in paths.items():
                statements = await asked(p, path)
                assert statements, name
                async with p.database.driver() as driver:
                    for statement, values in statements:
                        plan = await driver.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *values)
                        # Where a list checks row by row, a statement before it finds how far it may walk: by ids alone.
                        by = BY.get(name, "") if ".event_type," in statement.partition("FROM")[0] else ""
                        assert not await faults(driver, plan, by=by), f"{name}: {statement}\n{plan}"

    asyncio.run(run())


def test_a_preview_of_dead_letters_is_counted_in_indexes(planted: str) -> None:
    async def run(seeds: Seeds) -> None:
        one, organization_id = await seeds.driver.fetchrow(
            "SELECT id, organization_id FROM deliveries WHERE state = 'dead' LIMIT 1"
        )
        await seeds.driver.execute("UPDATE deliveries SET redacted_at = now() WHERE id = $1", one)
        statements: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            if "FROM deliveries" in statement:
                statements.append((statement, values))

        sync_engine = seeds.database.engine.sync_engine
        event.listen(sync_engine, "before_cursor_execute", note)
        async with seeds.database.session() as session:
            made = await replay_preview.preview(session, organization_id, {"status": "dead"})
        event.remove(sync_engine, "before_cursor_execute", note)
        await seeds.driver.execute("UPDATE deliveries SET redacted_at = NULL WHERE id = $1", one)
        assert made.details
        assert made.details.skipped == 1
        (first, whose), (both, values) = statements
        # Which way through an index is cheaper depends on how far autovacuum came; what the index holds does not.
        await seeds.driver.execute("SET enable_bitmapscan = off")
        await seeds.driver.execute(f"SET plan_cache_mode = force_generic_plan; PREPARE first AS {first}")
        explain_first = "EXPLAIN (FORMAT JSON) EXECUTE first ({})".format(", ".join(f"'{one}'" for one in whose))
        none = await seeds.driver.fetchval(explain_first)
        # Where nearly all are redacted, those of others, one that is might seem to be found sooner in the table.
        async with undone(seeds.driver):
            await seeds.driver.execute(
                "UPDATE deliveries SET redacted_at = now() WHERE organization_id <> $1", organization_id
            )
            await seeds.driver.execute("ANALYZE deliveries")
            many = await seeds.driver.fetchval(explain_first)
        both = await seeds.driver.fetchval(f"EXPLAIN (FORMAT JSON) {both}", *values)
        counted, redacted = both[0]["Plan"]["Plans"]
        partitions_ = await large(seeds.driver)
        for plan, kind, indexed in (
            (none[0]["Plan"], "Index Only Scan", "redacted_at IS NOT NULL"),
            (many[0]["Plan"], "Index Only Scan", "redacted_at IS NOT NULL"),
            (redacted, "Index Scan", "redacted_at IS NOT NULL"),
            (counted, "Index Only Scan", "(organization_id, subscription_id, error_kind, id)"),
        ):
            found = list(nodes(plan))
            read = {node["Node Type"] for node in found if node.get("Relation Name") in partitions_}
            assert read == {kind}, json.dumps(plan, indent=1)
            for name in {node["Index Name"] for node in found if "Index Name" in node}:
                assert indexed in await seeds.driver.fetchval("SELECT pg_get_indexdef($1::regclass)", name)

    seeded(planted, run)


def test_claiming_the_due_takes_time_by_what_is_due_and_not_by_what_there_is(planted: str) -> None:
    async def run(seeds: Seeds) -> None:
        database: Database = seeds.database
        async with database.driver() as driver:
            transaction = driver.transaction()
            await transaction.start()
            await driver.execute(queues._IN_ORDER)
            plan = await driver.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {queues._DUE}", 50, 25, 12, 0.5)
            await transaction.rollback()
        read = sum(
            node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            for node in nodes(plan[0]["Plan"])
            if "Index Name" in node
        )
        assert read <= 50 + 2 * DAYS

    seeded(planted, run)
