"""The application's database role: enough for all that the platform does, and no way to rewrite the audit log."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from cli.embedded import EmbeddedPostgres, find_running
from cli.embedded.postgres import OWNER_PASSWORD_FILE, PASSWORD_FILE, ROLE
from core import audit, ids
from core.storage import partitions, schema
from core.storage.database import Database
from tests.commands import Running, data_folder, hookwright
from tests.platform import environment
from tests.receiver import Receiver
from tests.seeds import Seeds, seeded
from tests.services import Services, as_owner, plain_url

FORBIDDEN = (
    "UPDATE audit_log SET actor = 'somebody else'",
    "DELETE FROM audit_log",
    "TRUNCATE audit_log",
    "TRUNCATE organizations CASCADE",
    "DROP TABLE audit_log CASCADE",
    "ALTER TABLE audit_log DISABLE TRIGGER ALL",
    "ALTER TABLE audit_log ADD COLUMN more text",
    "ALTER TABLE audit_log OWNER TO CURRENT_USER",
    "DROP TRIGGER append_only ON audit_log",
    "CREATE TRIGGER more BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE more AS ON INSERT TO audit_log DO INSTEAD NOTHING",
    "SET session_replication_role = replica",
    "CREATE FUNCTION ours() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    "CREATE TABLE ours (id int)",
    "CREATE SCHEMA ours",
    "SET ROLE hookwright",
    f"ALTER ROLE {ROLE} SUPERUSER",
    "CREATE ROLE another",
    "UPDATE alembic_version SET version_num = '0001'",
    "COPY audit_log TO '/tmp/out'",
)


async def an_entry(seeds: Seeds) -> Any:
    one = audit.entry(audit.COMMAND_LINE, "thing.done", "thing", organization_id=seeds.organization_id, after={"a": 1})
    await audit.store(seeds.driver, [one])
    return await seeds.driver.fetchrow("SELECT * FROM audit_log")


def test_the_applications_role_adds_to_the_log_and_can_do_nothing_else_to_it(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        entry = await an_entry(seeds)
        assert await seeds.driver.fetchval("SELECT current_user") == ROLE
        await seeds.driver.execute(
            "GRANT UPDATE ON audit_log TO PUBLIC"
        )  # PostgreSQL only warns that nothing was granted
        for statement in FORBIDDEN:
            try:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await seeds.driver.execute(statement)
            except pytest.fail.Exception as passed:
                raise AssertionError(statement) from passed
        assert await seeds.driver.fetch("SELECT * FROM audit_log") == [entry]

    seeded(database_url, run)


def test_entries_go_only_with_their_organization_which_is_then_deleted_for_good(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await an_entry(seeds)
        # The trigger looks at the real table, not at one of that name which comes first in the caller's search path.
        async with seeds.database.driver() as other:
            await other.execute("CREATE TEMP TABLE organizations AS SELECT * FROM public.organizations")
            await other.execute("UPDATE pg_temp.organizations SET deleted_at = now()")
            await other.execute("SET search_path = pg_temp, public")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await other.execute("DELETE FROM public.audit_log")
            await other.execute("RESET search_path")
            await other.execute("DROP TABLE pg_temp.organizations")
        none = audit.entry(audit.COMMAND_LINE, "thing.done", "of the installation", organization_id=None)
        await audit.store(seeds.driver, [none])
        await seeds.driver.execute("UPDATE organizations SET deleted_at = now()")
        for undone in ("NULL", "now() + interval '1 day'"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="stays deleted"):
                await seeds.driver.execute(f"UPDATE organizations SET deleted_at = {undone}")
        await seeds.driver.execute("DELETE FROM audit_log WHERE organization_id = $1", seeds.organization_id)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await seeds.driver.execute("DELETE FROM audit_log")
        left = await seeds.driver.fetch("SELECT resource, action FROM audit_log ORDER BY id")
        shown = ids.show(ids.ORGANIZATION, seeds.organization_id)
        assert list(map(tuple, left)) == [("of the installation", "thing.done"), (shown, "audit_log.erased")]

    seeded(database_url, run)


REFERENCES = """
SELECT conrelid::regclass::text AS table, a.attname AS column FROM pg_constraint
JOIN pg_attribute a ON a.attrelid = conrelid AND a.attnum = conkey[1]
WHERE contype = 'f' AND confrelid = 'organizations'::regclass AND conparentid = 0
"""


def test_who_erases_a_living_organizations_entries_leaves_one_that_says_so(database_url: str) -> None:
    """Deleting it in one transaction, and making it again as it was, with all that refers to it."""

    async def run(seeds: Seeds) -> None:
        driver, ours, stand_in = seeds.driver, seeds.organization_id, ids.new_id()
        await an_entry(seeds)
        await audit.store(driver, [audit.entry(audit.WORKER, "x", "x", organization_id=ours) for _ in range(2)])
        references = await driver.fetch(REFERENCES)
        assert len(references) >= 3
        before = await driver.fetchrow("SELECT * FROM organizations")
        columns = ", ".join(name for name in before.keys() if name != "id")  # noqa: SIM118 - a Record's

        async def copy(source: Any, to: Any) -> None:
            values = f"SELECT $2, {columns} FROM organizations WHERE id = $1"
            await driver.execute(f"INSERT INTO organizations (id, {columns}) {values}", source, to)
            for table, column in references:
                await driver.execute(f"UPDATE {table} SET {column} = $2 WHERE {column} = $1", source, to)

        async with driver.transaction():
            await copy(ours, stand_in)
            await driver.execute("UPDATE organizations SET deleted_at = now() WHERE id = $1", ours)
            await driver.execute("DELETE FROM audit_log WHERE organization_id = $1", ours)
            await driver.execute("DELETE FROM organizations WHERE id = $1", ours)
            await copy(stand_in, ours)
            await driver.execute("DELETE FROM organizations WHERE id = $1", stand_in)
        assert await driver.fetchrow("SELECT * FROM organizations") == before

        [mark] = await driver.fetch("SELECT * FROM audit_log")
        assert (mark["organization_id"], mark["actor"], mark["action"]) == (None, "database", "audit_log.erased")
        assert (mark["resource"], mark["after"]) == (ids.show(ids.ORGANIZATION, ours), {"entries": 3})
        assert abs(datetime.now(UTC) - ids.time_of(mark["id"])) < timedelta(minutes=1)
        assert (mark["id"].version, mark["id"].variant) == (7, "specified in RFC 4122")
        # Not even with a table of one's own, whose types' conversions would run with the owner's rights.
        await driver.execute("CREATE TEMP TABLE mine (organization_id uuid)")
        for statement in (
            "DELETE FROM audit_log",
            "CREATE TRIGGER t AFTER DELETE ON mine REFERENCING OLD TABLE AS gone"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_log_says_what_was_erased()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await driver.execute(statement)

    seeded(database_url, run)


SCANS = "SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'deliveries_p20240229'"


def test_the_functions_make_and_drop_days_and_nothing_else(database_url: str, owner_url: str) -> None:
    day = date(2024, 2, 29)

    async def run(seeds: Seeds) -> None:
        driver = seeds.driver
        tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
        before = await driver.fetch(tables)
        for parent in ("audit_log", "organizations", "events; DROP TABLE audit_log", 'events" (', "", None):
            if parent is None:
                await driver.execute("SELECT make_partition($1, $2)", None, day)
            else:
                with pytest.raises(asyncpg.InvalidParameterValueError):
                    await driver.execute("SELECT make_partition($1, $2)", parent, day)
        for odd in ("infinity", "-infinity", "1969-12-31", "12000-01-01"):
            with pytest.raises((asyncpg.InvalidParameterValueError, asyncpg.DatetimeFieldOverflowError)):
                await driver.execute(f"SELECT make_partition('events', '{odd}')")
        # A table of ours is looked up before any of the caller's.
        await driver.execute("CREATE TEMP TABLE events (mine int)")
        await partitions.ensure(driver, [day])
        made = [name for name in await driver.fetch(tables) if name not in before]
        assert {"events_p20240229", "deliveries_p20240229", "attempts_p20240229"} <= {row["relname"] for row in made}
        rights = await driver.fetch("SELECT relname, relacl FROM pg_class WHERE relname LIKE '%_p20240229'")
        assert len(rights) == 3
        for row in rights:
            assert row["relacl"] is None, "it is reached through its table alone"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await driver.execute(f"SELECT FROM {row['relname']}")
        # What is named like a partition and is none, or holds unfinished work, is not dropped.
        await as_owner(owner_url, "CREATE TABLE public.events_p20240301 (id int)")
        assert await driver.fetchval("SELECT drop_partitions($1)", day + timedelta(days=1)) is True
        moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
        await seeds.delivery(at=moment)
        for state in ("state", "'sending', reason = NULL, lease_token = gen_random_uuid()"):
            await driver.execute(f"UPDATE deliveries SET state = {state}")
            async with driver.transaction():
                whole, by_index = await driver.fetchrow(SCANS)
                assert await driver.fetchval("SELECT drop_partitions($1)", day) is False
                after = await driver.fetchrow(SCANS)
                assert after["seq_scan"] == whole, "the whole day is not read while everybody waits"
                assert after["idx_scan"] > by_index
        await driver.execute(
            "UPDATE deliveries SET lease_token = NULL, state = 'delivered', reason = NULL, due_at = NULL"
        )
        assert await driver.fetchval("SELECT drop_partitions($1)", day) is True
        left = [row["relname"] for row in await driver.fetch(tables) if row not in before]
        assert left == ["events_p20240301"]

    seeded(database_url, run)


# --- roles of an operator's own --------------------------------------------------------------------------------------


@pytest.fixture
def two_roles(services: Services) -> Iterator[tuple[str, str]]:
    """An empty database's URLs: by a role that owns it and is no superuser, and by one that may nothing yet."""
    admin, word = services.create_database(), secrets.token_hex(4)
    names = [f"owner_{word}", f"app_{word}"]
    database = make_url(admin).database
    asyncio.run(
        as_owner(
            admin,
            *(f"CREATE ROLE {name} LOGIN PASSWORD 'p'" for name in names),
            f'ALTER DATABASE "{database}" OWNER TO {names[0]}',
        )
    )
    owner, application = (
        make_url(admin).set(username=name, password="p").render_as_string(hide_password=False) for name in names
    )
    yield owner, application
    services.drop_database(admin)
    asyncio.run(as_owner(services.database_url, *(f"DROP ROLE {name}" for name in names)))


def test_migrations_run_as_the_owner_and_give_the_application_what_it_needs(
    two_roles: tuple[str, str], redis_url: str, services: Services
) -> None:
    owner, application = two_roles
    names = [make_url(url).username for url in two_roles]
    alone, both = environment(owner, redis_url), environment(application, redis_url, DATABASE_OWNER_URL=owner)
    assert "permission denied" in hookwright("migrate", env=environment(application, redis_url), code=1)
    database = make_url(owner).database
    admin = make_url(services.database_url).set(database=database).render_as_string(hide_password=False)
    asyncio.run(as_owner(admin, f'ALTER DATABASE "{database}" OWNER TO {names[1]}'))
    above = hookwright("migrate", env=environment(application, redis_url, DATABASE_OWNER_URL=admin), code=1)
    assert "owns the database or its schema, or belongs to the role that does, so it could drop every table" in above
    asyncio.run(as_owner(admin, f'ALTER DATABASE "{database}" OWNER TO {names[0]}'))
    same = hookwright("migrate", env=alone | {"HOOKWRIGHT_DATABASE_OWNER_URL": owner}, code=1)
    assert "name the same role" in same
    only = {name: value for name, value in both.items() if name != "HOOKWRIGHT_DATABASE_URL"}
    assert "is set without HOOKWRIGHT_DATABASE_URL" in hookwright("migrate", env=only, code=2)

    hookwright("migrate", env=alone)  # one role at first, as before
    assert f"kept by triggers alone, since the role {names[0]} owns the table" in hookwright("check", env=alone)
    for _ in range(2):
        hookwright("migrate", env=both)
    assert "could not rewrite it" in hookwright("check", env=both)
    asyncio.run(as_owner(admin, f'ALTER DATABASE "{database}" OWNER TO {names[1]}'))
    assert f"{names[1]} owns the database or its schema and could drop the table" in hookwright("check", env=both)
    asyncio.run(as_owner(admin, f'ALTER DATABASE "{database}" OWNER TO {names[0]}'))
    organization = hookwright("org", "create", "Acme", env=both).strip()
    assert organization in hookwright("audit", "export", env=both)

    # Who had one role and makes it the application's is told what is left to do.
    swapped = environment(owner, redis_url, DATABASE_OWNER_URL=admin)
    assert f"REASSIGN OWNED BY {names[0]} TO hookwright" in hookwright("migrate", env=swapped, code=1)


# --- the embedded database -------------------------------------------------------------------------------------------


async def _leave_as_an_earlier_release(data_dir: Path) -> None:
    """One role, which owns everything, and an entry of what was done then."""
    postgres = EmbeddedPostgres(data_dir)
    await postgres.start()
    try:
        database = Database(postgres.owner_url, pool_size=2)
        await schema.migrate(database)
        async with database.session() as session:
            audit.record(session, audit.COMMAND_LINE, "thing.done", "long ago", organization_id=None)
        await database.close()
        await as_owner(postgres.owner_url, f"DROP ROLE {ROLE}")
        (postgres.place.home / PASSWORD_FILE).unlink()
    finally:
        await postgres.stop()


def test_a_data_folder_of_an_earlier_release_gets_its_second_role_and_works_by_it() -> None:
    egress = {"HOOKWRIGHT_EGRESS_ALLOW": "127.0.0.0/8", "HOOKWRIGHT_EGRESS_ALLOW_HTTP": "true"}
    with data_folder() as data_dir:
        asyncio.run(_leave_as_an_earlier_release(data_dir))
        with Receiver() as receiver, Running("up", "--port", "0", "--data-dir", data_dir, env=egress) as platform:
            url = platform.wait_for("ready").removeprefix("ready ")
            at = ("--data-dir", data_dir)
            key = hookwright("key", "create", "--org", hookwright("org", "create", "Acme", *at).strip(), *at).strip()
            client = {"HOOKWRIGHT_URL": url, "HOOKWRIGHT_API_KEY": key}
            hookwright("subscription", "create", receiver.url("/ok"), "--events", "*", env=client)
            hookwright("event", "send", "order.paid", "--data", "{}", env=client)
            receiver.wait_for(1)
            assert "could not rewrite it" in hookwright("check", *at)
            exported = hookwright("audit", "export", *at)
            for said in ("long ago", "organization.created", "api_key.created", "subscription.created"):
                assert said in exported
            hookwright("migrate", *at)  # by itself, it finds the owner too

            running = find_running(data_dir)
            assert running is not None
            assert running.database_url is not None
            assert make_url(running.database_url).username == ROLE
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                asyncio.run(as_owner(plain_url(running.database_url), "UPDATE audit_log SET actor = 'x'"))
            password = make_url(running.database_owner_url or "").password
            assert password
            for pid in platform.descendants():
                environ = Path(f"/proc/{pid}/environ").read_bytes()
                assert password.encode() not in environ, f"process {pid} knows the owner's password"
            for file in (OWNER_PASSWORD_FILE, PASSWORD_FILE):
                [found] = [*data_dir.glob(file), *Path("/var/lib/hookwright").glob(f"*/{file}")][:1]
                assert found.stat().st_mode & 0o777 == 0o600
            assert platform.stop() == 0


def test_an_id_of_the_log_says_its_time() -> None:
    entry = audit.entry(audit.WORKER, "thing.done", "thing", organization_id=None)
    assert abs(datetime.now(UTC) - ids.time_of(entry.id)) < timedelta(minutes=1)
