"""A tally's way into the database, for a process that has no loops of its own to do it."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from core.stats.tally import Tally
from core.storage.database import Database, is_unreachable

FLUSH_S = 3.0
CLOSE_S = 1.0  # for the last flush: a process that ends must not wait for a database that is away

log = structlog.get_logger(__name__)


class Keeper:
    """Flushes a tally every few seconds, and when it is closed."""

    def __init__(self, database: Database, tally: Tally, every_s: float = FLUSH_S) -> None:
        self._database = database
        self._tally = tally
        self._every_s = every_s
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """What the database does not take within `CLOSE_S` is not in the statistics."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_S)
            if self._task.cancel():
                await asyncio.wait([self._task])

    async def _run(self) -> None:
        ends = False
        while not ends:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._stop.wait()
            ends = self._stop.is_set()
            if self._tally.is_empty:
                continue
            try:
                async with self._database.driver() as driver:
                    await self._tally.flush(driver)
            except Exception as error:
                if is_unreachable(error):
                    log.warning("the database does not answer; statistics wait", error=repr(error))
                else:
                    log.exception("statistics could not be kept; it is tried again")
