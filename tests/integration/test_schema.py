"""The migrated database: equal to the models, refusing what is illegal, with an index for every list."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from alembic import command
from sqlalchemy import Connection
from sqlmodel import SQLModel

from core import ids, models, stats, subscriptions
from core.access.models import Role
from core.models import ItemOutcome, RateTier, ReplayAction, ReplayStatus, SubscriptionStatus
from core.states import DeadReason, DiscardReason, PendingReason, State
from core.storage import partitions, schema
from core.storage.database import Database
from tests.seeds import Seeds, seeded
from tests.services import Services

COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname <> 'alembic_version'
ORDER BY 1, 2
"""
CONSTRAINTS = """
SELECT c.relname, k.conname, k.contype::text, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> 'alembic_version'
ORDER BY 1, 2
"""
INDEXES = """
SELECT c.relname, i.relname, pg_get_indexdef(i.oid)
FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> 'alembic_version'
ORDER BY 1, 2
"""
PARTITIONING = """
SELECT c.relname, pg_get_partkeydef(c.oid) FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname <> 'alembic_version'
ORDER BY 1
"""
CATALOGUES = {"columns": COLUMNS, "constraints": CONSTRAINTS, "indexes": INDEXES, "partitioning": PARTITIONING}


async def catalogues(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    async with database.driver() as driver:
        return {name: [tuple(row) for row in await driver.fetch(query)] for name, query in CATALOGUES.items()}


def test_the_migrated_database_equals_the_models(services: Services, database_url: str) -> None:
    async def compare(by_models: str) -> None:
        migrated, modelled = Database(database_url), Database(by_models)
        try:
            async with modelled.engine.begin() as connection:
                await connection.run_sync(SQLModel.metadata.create_all)
            found, wanted = await catalogues(migrated), await catalogues(modelled)
            for name, rows in wanted.items():
                assert found[name] == rows, name
            assert ("deliveries", "RANGE (id)") in wanted["partitioning"]
        finally:
            await migrated.close()
            await modelled.close()

    by_models = services.create_database()
    try:
        asyncio.run(compare(by_models))
    finally:
        services.drop_database(by_models)


def test_migrating_again_changes_nothing(database_url: str) -> None:
    async def run() -> None:
        database = Database(database_url)
        try:
            before = await catalogues(database)
            await asyncio.gather(*(schema.migrate(database) for _ in range(3)))  # processes that start at once
            assert await catalogues(database) == before
            current, wanted = await schema.state(database)
            assert current == wanted
        finally:
            await database.close()

    asyncio.run(run())


def test_what_an_older_release_left_is_brought_up_with_all_its_rows(
    services: Services, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(old: str) -> None:
        database, fresh = Database(old), Database(database_url)

        def first(connection: Connection) -> None:
            settings = schema.config()
            settings.attributes["connection"] = connection
            command.upgrade(settings, "0001")

        try:
            async with database.engine.begin() as connection:
                await connection.run_sync(first)
            async with database.driver() as driver:
                today = datetime.now(UTC).date()
                low, high = ids.day_bounds(today)
                for table in partitions.TABLES:  # as that release did
                    name = partitions.name_of(table, today)
                    bounds = f"FOR VALUES FROM ('{low}') TO ('{high}')"
                    await driver.execute(f"CREATE TABLE {name} PARTITION OF {table} {bounds}")
                seeds = Seeds(database, driver)
                await seeds.prepare()
                one = await seeds.delivery(State.DEAD)
                monkeypatch.setattr(schema, "LOCK_WAIT_S", 0.1)
                monkeypatch.setattr(schema, "LOCK_TRIES", 2)
                async with driver.transaction():  # a call that does not end
                    await seeds.delivery()
                    with pytest.raises(schema.TablesBusy, match="run `hookwright migrate` again"):
                        await schema.migrate(database)
                assert (await schema.state(database))[0] == "0001"
                async with database.engine.begin() as connection:
                    await connection.run_sync(schema._upgrade, None)
                unchecked = "SELECT conname FROM pg_constraint WHERE NOT convalidated AND coninhcount = 0"
                assert await driver.fetchval(unchecked) == "ck_deliveries_reason"
                async with driver.transaction():  # while rows are read, everybody works
                    await seeds.delivery()
                    await schema.migrate(database)
                assert await driver.fetchval(unchecked) is None
                assert await seeds.state(one) == ("dead", "exhausted")
            assert await catalogues(database) == await catalogues(fresh)
            async with database.session() as session:
                found = await subscriptions.get(session, seeds.organization_id, seeds.subscription_id)
                assert (found.limits, found.circuit_breaker) == (None, None)
        finally:
            await database.close()
            await fresh.close()

    old = services.create_database()
    try:
        asyncio.run(run(old))
    finally:
        services.drop_database(old)


def test_what_was_delivered_before_the_upgrade_is_in_the_figures_of_the_installation(services: Services) -> None:
    kept = """
    INSERT INTO delivery_stats (organization_id, subscription_id, minute, error_kind, attempts, dead, duration_ms)
    VALUES ($1, $2, date_trunc('hour', now()) - make_interval(hours => $3), $4, 10, 1, 500)
    """

    async def run(old: str) -> None:
        database = Database(old)

        def third(connection: Connection) -> None:
            settings = schema.config()
            settings.attributes["connection"] = connection
            command.upgrade(settings, "0003")

        try:
            async with database.engine.begin() as connection:
                await connection.run_sync(third)
            async with database.driver() as driver:
                for seeds in (Seeds(database, driver), Seeds(database, driver)):
                    await seeds.prepare()
                    for kind, hours in (("", 2), ("", 3), ("status", 2), ("", 24 * 30)):
                        for whom in (seeds.subscription_id, stats.WHOLE):
                            await driver.execute(kept, seeds.organization_id, whom, hours, kind)
                await schema.migrate(database)
                now = datetime.now(UTC)
                found = await stats.history(driver, stats.INSTALLATION, stats.LAST_WEEK, now)
                assert (found.figures.attempts, found.figures.delivered, found.figures.dead) == (60, 40, 6)
                assert found.figures.average_ms == 50
                tally = stats.Tally()
                tally.accept({seeds.organization_id: 3})
                await tally.flush(driver)
                found = await stats.history(driver, stats.INSTALLATION, stats.LAST_WEEK, now)
                assert (found.figures.delivered, found.figures.accepted) == (40, 3)
        finally:
            await database.close()

    old = services.create_database()
    try:
        asyncio.run(run(old))
    finally:
        services.drop_database(old)


ENUMS: list[tuple[str, list[type[StrEnum]]]] = [
    ("ck_deliveries_state", [State]),
    ("ck_deliveries_reason", [State, PendingReason, DeadReason, DiscardReason]),
    ("ck_subscriptions_status", [SubscriptionStatus]),
    ("ck_replays_status", [ReplayStatus]),
    ("ck_replays_action", [ReplayAction]),
    ("ck_replay_items_outcome", [ItemOutcome]),
    ("ck_api_keys_tier", [RateTier]),
    ("ck_users_role", [Role]),
]


@pytest.mark.parametrize(("constraint", "enums"), ENUMS, ids=[name for name, _ in ENUMS])
def test_the_database_knows_the_same_words_as_the_code(
    database_url: str, constraint: str, enums: list[type[StrEnum]]
) -> None:
    async def run(seeds: Seeds) -> str:
        query = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1 AND conislocal LIMIT 1"
        found: str = await seeds.driver.fetchval(query, constraint)
        return found

    words = set(re.findall(r"'([a-z_]+)'", seeded(database_url, run)))
    expected = {str(word) for enum in enums for word in enum}
    if constraint == "ck_deliveries_reason":  # it names only the states that have a reason
        expected -= {State.SENDING, State.DELIVERED}
    assert words == expected


# --- illegal rows --------------------------------------------------------------------------------------------------

DUE = datetime.now(UTC)
ILLEGAL: dict[str, tuple[State, dict[str, Any]]] = {
    "a state that there is not": (State.DELIVERED, {"state": "lost"}),
    "sending without a lease": (State.SENDING, {"lease_token": None}),
    "sending without an end of its lease": (State.SENDING, {"due_at": None}),
    "sending with a reason": (State.SENDING, {"reason": "retry"}),
    "a lease on a pending one": (State.PENDING, {"lease_token": uuid4()}),
    "a lease on a delivered one": (State.DELIVERED, {"lease_token": uuid4()}),
    "pending that is never due": (State.PENDING, {"due_at": None}),
    "held, yet due": (State.PENDING, {"reason": "paused"}),
    "pending without a reason": (State.PENDING, {"reason": None}),
    "pending without a reason or a due time": (State.PENDING, {"reason": None, "due_at": None}),
    "pending for a dead one's reason": (State.PENDING, {"reason": "exhausted"}),
    "delivered, yet due": (State.DELIVERED, {"due_at": DUE}),
    "delivered with a reason": (State.DELIVERED, {"reason": "new"}),
    "dead, yet due": (State.DEAD, {"due_at": DUE}),
    "dead without a reason": (State.DEAD, {"reason": None}),
    "dead for a pending one's reason": (State.DEAD, {"reason": "retry"}),
    "discarded, yet due": (State.DISCARDED, {"due_at": DUE}),
    "discarded without a reason": (State.DISCARDED, {"reason": None}),
    "discarded for a dead one's reason": (State.DISCARDED, {"reason": "gone"}),
}


def test_the_database_refuses_every_illegal_delivery(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        refused_by: set[str] = set()
        for name, (state, columns) in ILLEGAL.items():
            with pytest.raises(asyncpg.CheckViolationError) as caught:
                await seeds.delivery(state, **columns)
            refused_by.add(caught.value.constraint_name)
            assert "ck_deliveries_" in str(caught.value), name
        assert refused_by == {f"ck_deliveries_{name}" for name in ("state", "lease", "due", "reason")}
        for state in State:
            await seeds.delivery(state)
        await seeds.delivery(State.PENDING, reason="paused", due_at=None)

    seeded(database_url, run)


def _user(columns: str, values: str) -> str:
    return f"INSERT INTO users (id, {columns}) VALUES (gen_random_uuid(), {values})"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE subscriptions SET status = 'asleep'", "ck_subscriptions_status"),
        ("UPDATE subscriptions SET timeout_ms = 999", "ck_subscriptions_timeout_ms"),
        ("UPDATE subscriptions SET timeout_ms = 30001", "ck_subscriptions_timeout_ms"),
        ("UPDATE subscriptions SET events = '{}'", "ck_subscriptions_events"),
        ("UPDATE organizations SET name = ''", "ck_organizations_name"),
        ("UPDATE organizations SET name = repeat('x', 201)", "ck_organizations_name"),
        ("UPDATE replays SET status = 'lost'", "ck_replays_status"),
        ("UPDATE replays SET action = 'lose'", "ck_replays_action"),
        ("UPDATE replays SET action = 'discard', sent = 1", "ck_replays_discard"),
        ("UPDATE replays SET rate_per_second = 0", "ck_replays_rate_per_second"),
        ("UPDATE replays SET rate_per_second = 10001", "ck_replays_rate_per_second"),
        ("UPDATE replay_items SET outcome = 'lost'", "ck_replay_items_outcome"),
        (
            "INSERT INTO subscription_secrets (id, subscription_id, sealed)"
            " SELECT gen_random_uuid(), id, '' FROM subscriptions, generate_series(1, 2)",
            "uq_subscription_secrets_current",
        ),
        (
            "INSERT INTO api_keys (id, name, prefix, hash, hash_key_id, tier)"
            " VALUES (gen_random_uuid(), 'x', 'x', '', '', '')",
            "ck_api_keys_tier",
        ),
        (_user("email, role", "'a@example.com', 'owner'"), "ck_users_role"),
        (_user("email, role", "'A@example.com', 'admin'"), "ck_users_email"),
        (_user("email, role", "'a', 'admin'"), "ck_users_email"),
        (_user("email, role, oidc_issuer", "'a@example.com', 'admin', 'https://id.example.com'"), "ck_users_oidc"),
    ],
)
def test_the_database_refuses_other_illegal_rows(database_url: str, statement: str, constraint: str) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.driver.execute(
            "INSERT INTO replays (id, organization_id, rate_per_second, status) VALUES ($1, $1, 1, 'queued')",
            seeds.organization_id,
        )
        await seeds.driver.execute(
            "INSERT INTO replay_items (replay_id, delivery_id) VALUES ($1, $1)", seeds.organization_id
        )
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=constraint):
            await seeds.driver.execute(statement)

    seeded(database_url, run)


def test_every_check_constraint_is_met_by_one_of_these_tests(database_url: str) -> None:
    """So that a new one is not forgotten."""
    met = {
        "ck_deliveries_state",
        "ck_deliveries_lease",
        "ck_deliveries_due",
        "ck_deliveries_reason",
        "ck_subscriptions_status",
        "ck_subscriptions_timeout_ms",
        "ck_subscriptions_events",
        "ck_organizations_name",
        "ck_replays_status",
        "ck_replays_action",
        "ck_replays_discard",
        "ck_replays_rate_per_second",
        "ck_replay_items_outcome",
        "ck_api_keys_tier",
        "ck_users_role",
        "ck_users_email",
        "ck_users_oidc",
    }

    async def run(seeds: Seeds) -> set[str]:
        rows = await seeds.driver.fetch("SELECT DISTINCT conname FROM pg_constraint WHERE conname LIKE 'ck\\_%'")
        return {row["conname"] for row in rows}

    assert seeded(database_url, run) == met


def test_partitions_are_made_for_yesterday_up_to_a_week_ahead(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        rows = await seeds.driver.fetch("SELECT inhrelid::regclass::text AS name FROM pg_inherits")
        today = datetime.now(UTC).date()
        days = [today + timedelta(days=n) for n in range(-1, 8)]
        names = {row["name"] for row in rows}
        assert {partitions.name_of(table, day) for table in partitions.TABLES for day in days} <= names

    seeded(database_url, run)


def test_every_model_that_is_partitioned_has_its_partitions_made() -> None:
    daily = {
        name for name, table in SQLModel.metadata.tables.items() if table.dialect_options["postgresql"]["partition_by"]
    }
    assert daily == set(partitions.TABLES)
    assert models.DAILY["postgresql_partition_by"] == "RANGE (id)"
