"""Bringing the database to the schema that this code needs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

import migrations
from core.errors import HookwrightError
from core.storage import partitions, roles
from core.storage.database import Database

# For tables in use. Whoever comes later waits behind us meanwhile, so it is a fraction of what an acceptance waits for
# a lock (0.5 s) and of PostgreSQL's default deadlock_timeout (1 s): of two that wait for each other this one gives way.
LOCK_WAIT_S = 0.1
LOCK_TRIES = 50
PAUSE_S = (0.1, 0.5)  # between tries, drawn at random: those who waited behind us get their turn
_BUSY = ("55P03", "40P01")  # lock_not_available, deadlock_detected

log = structlog.get_logger(__name__)


class TablesBusy(HookwrightError):
    """A table that a migration changes was in use all the time"""


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    settings = Config()
    # ConfigParser would take a percent sign in the path for an interpolation.
    settings.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return settings


async def migrate(database: Database, application_role: str | None = None) -> None:
    """Applies every migration that is missing, one process at a time, then makes partitions ahead.

    With `application_role`, `database` is reached as the schema's owner, and that role is given what the application
    needs (`core.storage.roles`). Raises `WrongRoles` when it owns the schema itself, and `TablesBusy` when none of
    `LOCK_TRIES` tries had all its locks within `LOCK_WAIT_S` each; called again, it goes on.

    A schema that a newer release has left is not touched: migrations add, or say what they take away, so that two
    releases can work side by side, and whoever goes back a release needs it to start. They may take long on large
    tables: `database` should have no `command_timeout_s`.
    """
    await _with_locks(database, partial(_upgrade, application_role=application_role))
    await partitions.ensure_ahead(database, datetime.now(UTC).date())
    await _with_locks(database, _validate)


async def _with_locks(database: Database, step: Callable[[Connection], None]) -> None:
    """Takes the step in a transaction of its own, again for as long as it can't have a lock that it needs."""
    for one in range(LOCK_TRIES):
        try:
            async with database.engine.begin() as connection:
                await connection.run_sync(step)
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _BUSY:
                raise
            refused = error
        log.info("a table to be changed is in use", tries=one + 1)
        await asyncio.sleep(random.uniform(*PAUSE_S))  # nosec B311 # noqa: S311 - not a secret
    raise TablesBusy(
        f"A table that must be changed was in use at each of {LOCK_TRIES} tries; run `hookwright migrate` again, or,"
        " should that go on, end what holds a transaction open (pg_stat_activity)"
    ) from refused


def _take_turn(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7236832)")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_WAIT_S * 1000:.0f}")


def _validate(connection: Connection) -> None:
    """Looks at the rows that constraints of migrations have not been held against yet, in a transaction of its own: a
    migration holds locks that nobody can work beside, and this needs none of them."""
    _take_turn(connection)
    if is_newer(MigrationContext.configure(connection).get_current_revision()):
        return
    for table, constraint in connection.exec_driver_sql(_NOT_VALID).all():
        connection.exec_driver_sql(f"ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}")


_NOT_VALID = """
SELECT k.conrelid::regclass::text, quote_ident(k.conname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE k.contype = 'c' AND NOT k.convalidated AND k.coninhcount = 0 AND c.relnamespace = current_schema()::regnamespace
ORDER BY 1, 2
"""


def _upgrade(connection: Connection, application_role: str | None) -> None:
    _take_turn(connection)
    if application_role is not None:
        roles.refuse_owner(connection, application_role)
    settings = config()
    current = MigrationContext.configure(connection).get_current_revision()
    if is_newer(current):
        log.warning("the schema is of a newer release; it is left as it is", revision=current)
        return
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")
    if application_role is not None:
        roles.grant(connection, application_role)


def is_newer(revision: str | None) -> bool:
    """Whether a release after this one has made the schema."""
    known = {one.revision for one in ScriptDirectory.from_config(config()).walk_revisions()}
    return revision is not None and revision not in known


async def state(database: Database) -> tuple[str | None, str | None]:
    """The revision the database is at, and the one this code needs."""
    async with database.engine.connect() as connection:
        current: Any = await connection.run_sync(lambda c: MigrationContext.configure(c).get_current_revision())
    return current, ScriptDirectory.from_config(config()).get_current_head()
