"""Bringing the database to the schema that this code needs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

import migrations
from core import partitions, roles
from core.database import Database

log = structlog.get_logger(__name__)


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    settings = Config()
    # ConfigParser would take a percent sign in the path for an interpolation.
    settings.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return settings


async def migrate(database: Database, application_role: str | None = None) -> None:
    """Applies every migration that is missing, one process at a time, then makes partitions ahead.

    With `application_role`, `database` is reached as the schema's owner, and that role is given what the application
    needs (`core.roles`). Raises `WrongRoles` when it owns the schema itself.

    A schema that a newer release has left is not touched: migrations add, or say what they take away, so that two
    releases can work side by side, and whoever goes back a release needs it to start. They may take long on large
    tables: `database` should have no `command_timeout_s`.
    """
    async with database.engine.begin() as connection:
        await connection.run_sync(_upgrade, application_role)
    await partitions.ensure_ahead(database, datetime.now(UTC).date())


def _upgrade(connection: Connection, application_role: str | None) -> None:
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7236832)")
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
