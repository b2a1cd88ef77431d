"""What the installation is made of, and how its parts are: for the settings page. Nothing here changes anything."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from redis.exceptions import RedisError

from core.errors import HookwrightError
from core.secrets import reseal
from core.secrets.reseal import Survey
from core.secrets.sealing import Sealer
from core.storage import checks, partitions
from core.storage.database import UNREACHABLE, Database
from core.workers import GONE_AFTER_S

_AWAY: tuple[type[BaseException], ...] = (*UNREACHABLE, RedisError)
LOOK_S = 2.0  # for each of the parts; who does not answer by then is said not to


class Finding(NamedTuple):
    """What was found of one part, in words."""

    part: str
    said: str
    is_fine: bool


class Worker(NamedTuple):
    id: UUID
    seen_at: datetime


class Days(NamedTuple):
    """The days that a table has partitions for, and what they take on the disk, indexes included."""

    table: str
    first: date
    last: date
    days: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Parts:
    """`workers`, `days` and `keys` are None where they could not be read in time."""

    findings: Sequence[Finding]
    workers: Sequence[Worker] | None
    days: Sequence[Days] | None
    keys: Survey | None


async def look(database: Database, redis: Any, sealer: Sealer) -> Parts:
    """Looks at one part after the other: other requests want connections too."""
    findings = [
        await _found("PostgreSQL", _with(database, checks.look_at_postgresql)),
        await _found("Schema", checks.look_at_schema(database)),
        await _found("Audit log", _with(database, checks.look_at_roles)),
        await _found("Redis", checks.look_at_redis(redis)),
    ]
    workers = await _read(_with(database, _workers))
    findings += [_alive(workers), Finding("Python", f"Python {platform.python_version()}", True)]
    return Parts(findings, workers, await _read(_with(database, _days)), await _read(reseal.survey(database, sealer)))


def _alive(workers: Sequence[Worker] | None) -> Finding:
    if workers is None:
        return Finding("Workers", "It could not be read which workers live", False)
    if not workers:
        return Finding("Workers", f"No worker has been seen in the last {GONE_AFTER_S:g} s", False)
    return Finding("Workers", f"{len(workers)} worker{'' if len(workers) == 1 else 's'} alive", True)


async def _found(part: str, looking: Awaitable[str]) -> Finding:
    try:
        async with asyncio.timeout(LOOK_S):
            return Finding(part, await looking, True)
    except HookwrightError as error:
        return Finding(part, error.message, False)
    except _AWAY as error:  # by its kind alone: its text may name more than a page should show
        return Finding(part, f"It does not answer ({type(error).__name__})", False)


async def _read(reading: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(LOOK_S):
            return await reading
    except UNREACHABLE:
        return None


async def _with(database: Database, look: Any) -> Any:
    async with database.driver() as driver:
        return await look(driver)


async def _workers(driver: Any) -> list[Worker]:
    return [Worker(**row) for row in await driver.fetch(_WORKERS, GONE_AFTER_S)]


_WORKERS = """
SELECT id, seen_at FROM workers WHERE seen_at > now() - make_interval(secs => $1::float8) ORDER BY id
"""


async def _days(driver: Any) -> list[Days]:
    found: list[Days] = []
    sizes = await partitions.sizes(driver)
    for table in partitions.TABLES:
        days = {day: size for (name, day), size in sizes.items() if name == table}
        if days:
            found.append(Days(table, min(days), max(days), len(days), sum(days.values())))
    return found
