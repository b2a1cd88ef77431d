"""The database's two roles: the owner of the schema, who migrates it, and the application's, which only works in it.

```
owner         owns tables, triggers and functions; used by `hookwright migrate` alone
application   SELECT, INSERT, UPDATE, DELETE; of audit_log no UPDATE; of alembic_version only SELECT;
              makes and drops days of events by calling functions of the owner's (core.storage.partitions)
```

So whoever gets hold of the application's connection still can't rewrite the audit log: for that one must own its table.
With one role for everything the log rests on its triggers, which that role could disable.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import core.access.models
import core.models  # noqa: F401 - fills the metadata
from core.errors import HookwrightError

_EVERYTHING = "SELECT, INSERT, UPDATE, DELETE"
_LESS = {"audit_log": "SELECT, INSERT, DELETE", "alembic_version": "SELECT"}
FUNCTIONS = ("make_partition(text, date)", "drop_partitions(date)")


class WrongRoles(HookwrightError):
    """The database's roles are not apart as they should be"""


def grant(connection: Connection, role: str) -> None:
    """Gives `role`, which must exist, what the application needs, and takes what it needs not. Call it as the owner."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    schema, to = quote(connection.exec_driver_sql("SELECT current_schema()").scalar_one()), quote(role)
    tables = [*sorted(SQLModel.metadata.tables), "alembic_version"]
    every = ", ".join(f"{schema}.{quote(table)}" for table in tables)
    statements = [
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {to}",
        f"GRANT USAGE ON SCHEMA {schema} TO {to}",
        f"REVOKE ALL ON {every} FROM PUBLIC, {to}",
        *(f"GRANT {_LESS.get(table, _EVERYTHING)} ON {schema}.{quote(table)} TO {to}" for table in tables),
        *(f"GRANT EXECUTE ON FUNCTION {schema}.{function} TO {to}" for function in FUNCTIONS),
    ]
    for statement in statements:
        connection.exec_driver_sql(statement)


def refuse_owner(connection: Connection, role: str) -> None:
    """Raises `WrongRoles` when the tables that are there already belong to `role`, or the schema or the database does,
    so that grants would be in vain."""
    owner = connection.exec_driver_sql("SELECT current_user").scalar_one()
    if owner == role:
        raise WrongRoles(
            f"HOOKWRIGHT_DATABASE_URL and HOOKWRIGHT_DATABASE_OWNER_URL name the same role {role}; give the application"
            " a role of its own: CREATE ROLE … LOGIN PASSWORD …"
        )
    found = connection.execute(text(_BELONGS_TO), {"role": role}).scalar_one()
    if found == "superuser":
        raise WrongRoles(f"The role {role} in HOOKWRIGHT_DATABASE_URL is a superuser; give the application another one")
    if found == "above":
        raise WrongRoles(
            f"The role {role} in HOOKWRIGHT_DATABASE_URL owns the database or its schema, or belongs to the role that"
            " does, so it could drop every table. As a superuser, in this database:"
            f" REASSIGN OWNED BY {role} TO {owner}"
        )
    if found:
        raise WrongRoles(
            f"The role {role} in HOOKWRIGHT_DATABASE_URL owns tables of the application, or belongs to the role that"
            f" does. As a superuser, in this database: REASSIGN OWNED BY {role} TO {owner}"
        )


# Who owns the database is a member of pg_database_owner, to whom the schema `public` belongs.
_ABOVE = """EXISTS (
        SELECT FROM pg_namespace n, pg_database d
        WHERE n.oid = current_schema()::regnamespace AND d.datname = current_database()
            AND (pg_has_role(r.oid, n.nspowner, 'MEMBER') OR pg_has_role(r.oid, d.datdba, 'MEMBER'))
    )"""
_BELONGS_TO = f"""
SELECT CASE
    WHEN r.rolsuper THEN 'superuser'
    WHEN EXISTS (
        SELECT FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND pg_has_role(r.oid, c.relowner, 'MEMBER')
    ) THEN 'owner'
    WHEN {_ABOVE} THEN 'above'
    ELSE '' END
FROM pg_roles r WHERE r.rolname = :role
"""


async def why_unguarded(driver: Any) -> str | None:
    """Why the role of this connection could rewrite the audit log if it chose to, in words; None when it can't."""
    row = await driver.fetchrow(_MAY)
    if row["superuser"]:
        return f"the role {row['role']} is a superuser"
    if row["owner"]:
        return f"the role {row['role']} owns the table"
    if row["above"]:
        return f"the role {row['role']} owns the database or its schema and could drop the table"
    if row["granted"]:
        return f"the role {row['role']} was granted more than it needs"
    return None


_MAY = f"""
SELECT r.rolname AS role, r.rolsuper AS superuser, pg_has_role(r.oid, c.relowner, 'MEMBER') AS owner,
    {_ABOVE} AS above,
    has_table_privilege(r.oid, c.oid, 'UPDATE, TRUNCATE, TRIGGER, REFERENCES')
        OR has_any_column_privilege(r.oid, c.oid, 'UPDATE')
        OR has_schema_privilege(r.oid, c.relnamespace, 'CREATE') AS granted
FROM pg_roles r, pg_class c WHERE r.rolname = current_user AND c.oid = 'audit_log'::regclass
"""
