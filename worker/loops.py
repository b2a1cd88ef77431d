"""What a worker does at intervals, and the housekeeping that one of all does each hour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from uuid import UUID

import structlog

from core import erasure, idempotency, redaction, replays, settling, stats
from core.access import sign_in
from core.limiting import breaker_changes
from core.limiting.breakers import UNREACHABLE, Breakers
from core.secrets import expired_secrets
from core.storage import partitions
from core.storage.database import Database, is_unreachable
from worker.engine import Engine

ARRIVE_AGAIN_S = 0.5

log = structlog.get_logger(__name__)


async def every(interval_s: float, name: str, work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
    """Does `work` again and again until `stop`, whatever befalls it: these loops are what recovers everything else."""
    while not stop.is_set():
        try:
            await work()
        except Exception as error:
            if is_unreachable(error):
                log.warning("the database does not answer", loop=name, error=repr(error))
            else:
                log.exception("a loop failed; it goes on", loop=name)
        try:
            async with asyncio.timeout(interval_s):
                await stop.wait()
        except TimeoutError:
            continue


async def sweep(engine: Engine) -> None:
    """Takes what is due: lost hints, dead workers' deliveries and scheduled retries, all by the same claim."""
    engine.sweep()


async def arrive(database: Database, engine: Engine) -> None:
    """Says that this worker lives, and returns once the others have heard of it. Tries until that succeeds: without the
    database there is nothing to claim, and what was sent could not be recorded in that of an earlier release."""
    told = ""
    while True:
        try:
            async with database.driver() as driver:
                if await driver.fetchval(_IS_OF_THIS_RELEASE):
                    await engine.membership.arrive(driver)
                    return
            problem = "its schema is of an earlier release; run: hookwright migrate"
        except Exception as error:
            problem = repr(error)
        if problem != told:
            log.warning("the worker can't begin before the database lets it", problem=problem)
            told = problem
        await asyncio.sleep(ARRIVE_AGAIN_S)


# A type of the latest migration that this release can't do without (0006).
_IS_OF_THIS_RELEASE = "SELECT to_regtype('finished_claim') IS NOT NULL"


async def meet(database: Database, engine: Engine) -> None:
    """Says that this worker lives, and sees who else does."""
    async with database.driver() as driver:
        await engine.membership.beat(driver)


async def leave(database: Database, engine: Engine) -> None:
    """Says that this worker ends, so that the others take its share at once."""
    async with database.driver() as driver:
        await engine.membership.leave(driver)


async def advance_replays(database: Database, engine: Engine, interval_s: float) -> None:
    """Takes running replays a step further and sends what became due."""
    due = await replays.tick(database, interval_s)
    if due:
        await engine.take(due, replays=True)


async def settle(database: Database) -> None:
    """Finishes what a process that resumed or deleted a subscription did not live to finish."""
    await settling.settle_all(database)


async def redact(database: Database) -> None:
    """Finishes redactions that took their caller too long."""
    await redaction.finish_all(database)


class Erasing:
    """Erases what deleted organizations had, for a part of each second, by turns."""

    def __init__(self, database: Database, breakers: Breakers) -> None:
        self._database = database
        self._breakers = breakers
        self._last: UUID | None = None

    async def advance(self) -> None:
        self._last = await erasure.advance(self._database, self._breakers, behind=self._last)


async def keep_house(database: Database, retention_days: int) -> None:
    """Makes partitions ahead, drops expired ones and forgets old idempotency keys, statistics, changes of
    circuit breakers and sessions.

    The day is the database's: a worker whose clock is years ahead would drop all history.
    """
    async with database.driver() as driver:
        today = await driver.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date")
    await partitions.ensure_ahead(database, today)
    for day in await partitions.drop_expired(database, today, retention_days):
        log.info("retention dropped a day", day=str(day))
    async with database.driver() as driver:
        await idempotency.drop_expired(driver)
        await expired_secrets.forget(driver)
        await stats.prune(driver, retention_days)
        await breaker_changes.prune(driver, retention_days)
        await sign_in.drop_expired(driver)


async def forget_breakers(database: Database, breakers: Breakers) -> None:
    """Removes the circuit breakers of subscriptions that are deleted: an outcome that was on its way may have brought
    one back. Without Redis, the next time."""
    with contextlib.suppress(*UNREACHABLE):
        known = await breakers.all()
        async with database.driver() as driver:
            deleted = await driver.fetch(_DELETED, list(known))
        await breakers.forget(*(row["id"] for row in deleted))


_DELETED = """
SELECT given.id FROM unnest($1::uuid[]) AS given(id)
WHERE NOT EXISTS (SELECT FROM subscriptions s WHERE s.id = given.id AND s.status <> 'deleted')
"""
