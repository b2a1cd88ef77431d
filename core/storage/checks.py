"""Is what the settings name as it must be? `hookwright check` asks, and the settings page. Nothing here changes it.

Each says in words what it found, or raises `Fault`.
"""

from __future__ import annotations

from typing import Any

from core.errors import HookwrightError
from core.storage import roles
from core.storage.database import Database

MIN_POSTGRESQL = 15
MIN_REDIS = 7  # BLMPOP, by which workers take hints


class Fault(HookwrightError):
    """Something is not as it must be"""


async def look_at_postgresql(driver: Any) -> str:
    version = str(await driver.fetchval("SHOW server_version"))
    if int(await driver.fetchval("SHOW server_version_num")) < MIN_POSTGRESQL * 10_000:
        raise Fault(f"PostgreSQL is {version}; {MIN_POSTGRESQL} or newer is needed")
    if await driver.fetchval("SHOW fsync") != "on":
        raise Fault("PostgreSQL runs with fsync off: accepted events would not survive a power cut; turn it on")
    return f"PostgreSQL {version}"


async def look_at_schema(database: Database) -> str:
    from core.storage import schema  # with Alembic, which the processes that serve do without

    current, needed = await schema.state(database)
    if schema.is_newer(current):
        return f"schema at revision {current}, of a newer release; this one was made for {needed}"
    if current != needed:
        raise Fault(f"The schema is at {current or 'nothing'} and must be at {needed}; run: hookwright migrate")
    return f"schema at revision {current}"


async def look_at_roles(driver: Any) -> str:
    """Not a fault: whoever has one role for everything has chosen so."""
    weak = await roles.why_unguarded(driver)
    if weak is None:
        return "audit log: only ever added to; the application's role could not rewrite it"
    return (
        f"audit log: kept by triggers alone, since {weak}; to give it more, set HOOKWRIGHT_DATABASE_OWNER_URL"
        " (docs/operations.md)"
    )


async def look_at_redis(redis: Any) -> str:
    """What the server says of itself. Its client's errors pass through."""
    info = await redis.info("server")
    kind = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    if int(version.partition(".")[0]) < MIN_REDIS:
        raise Fault(f"{kind} is {version}; {MIN_REDIS} or newer is needed")
    return f"{kind} {version}"
