"""arq's side of a worker: the jobs that one worker of all is to do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from arq import Retry, cron
from redis.exceptions import RedisError

from core import hints
from core.storage.database import is_unreachable
from worker import loops
from worker.outages import through_outages
from worker.picker import Ended, Picker

POLL_S = 0.5
JOB_TIMEOUT_S = 120
HOUSEKEEPING_RETRY_S, HOUSEKEEPING_TRIES = 60, 30
JOB_END_S = 0.5  # for jobs that have nothing left to do but to say so to Redis


async def keep_house(ctx: dict[str, Any]) -> None:
    """The hourly cron job; arq lets one worker of all run it. Tried again in a minute when the database is away."""
    try:
        await loops.keep_house(ctx["database"], ctx["retention_days"])
        await loops.forget_breakers(ctx["database"], ctx["breakers"])
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise Retry(defer=HOUSEKEEPING_RETRY_S) from error


class Jobs:
    """Picks and runs them until `end`. `ctx` is what they are given."""

    def __init__(self, redis_url: str, ctx: dict[str, Any]) -> None:
        self._redis_url = redis_url
        self._ctx = ctx
        self._worker: Picker | None = None
        self._picking = True
        self._ending = False

    def pick_no_more(self) -> None:
        """Leaves further jobs in the queue for other workers; those under way go on."""
        self._picking = False
        if self._worker is not None:
            self._worker.allow_pick_jobs = False

    def end(self) -> None:
        """Ends `run` between two polls."""
        self._ending = True
        if self._worker is not None:
            self._worker.ending = True

    async def run(self) -> None:
        await through_outages("jobs", self._run_once, lambda: self._ending)

    async def _run_once(self) -> None:
        pool = hints.connect(self._redis_url)
        worker = Picker(
            cron_jobs=[
                cron(keep_house, minute={7}, run_at_startup=True, timeout=JOB_TIMEOUT_S, max_tries=HOUSEKEEPING_TRIES)
            ],
            queue_name=hints.JOBS,
            redis_pool=pool,
            handle_signals=False,
            poll_delay=POLL_S,
            keep_result=0,
            job_serializer=hints.serialize,
            job_deserializer=hints.deserialize,
            ctx=dict(self._ctx),
            log_results=False,
        )
        worker.allow_pick_jobs, worker.ending = self._picking, self._ending
        self._worker = worker
        try:
            with contextlib.suppress(Ended):
                await worker.async_run()
        finally:
            if worker.tasks:
                # arq shields what it writes when a job ends; cut off from its pool, that would fail unseen.
                await asyncio.wait(worker.tasks.values(), timeout=JOB_END_S)
            for task in worker.tasks.values():
                task.cancel()
            await asyncio.gather(*worker.tasks.values(), return_exceptions=True)
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await pool.aclose(close_connection_pool=True)
