"""arq's worker, hardened: whatever stands in Redis and wherever the wall clock jumps, it goes on.

| what | arq's own worker | here |
|---|---|---|
| a job that can't be read so far as to say whose it is | ends | drops it |
| an id that is no UTF-8 | ends, at each look | drops it |
| a score of 0 or less | never runs it and never removes it; a hundred of them hide all other jobs | removes it |
| a queue that is no sorted set | ends, at each look | deletes it |
| the wall clock is set back by an hour | says nothing of its health for an hour | goes by the monotonic clock |
| ten thousand jobs that fail or have expired | logs each | logs the first few of each minute |
| nothing to do | looks every `poll_delay` | sleeps until a hint wakes it, or for `NAP_S` |

Nothing is lost by dropping a job: it is a hint, and the sweep finds what it named.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import redis.exceptions
import structlog
from arq.worker import Worker

from core import hints

NAP_S = 0.4  # below the time after which the client gives up on Redis
HEALTH_S = 2  # how often the worker says that it lives; /readyz looks for it
LOG_LINES = 10
LOG_PERIOD_S = 60.0

log = structlog.get_logger(__name__)


class Sparing(logging.Filter):
    """Lets the first `LOG_LINES` of each `LOG_PERIOD_S` through."""

    def __init__(self) -> None:
        super().__init__()
        self._since = -LOG_PERIOD_S
        self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since >= LOG_PERIOD_S:
            self._since, self._lines = now, 0
        self._lines += 1
        return self._lines <= LOG_LINES


_sparing = {name: Sparing() for name in ("arq.worker", __name__)}


class Ended(Exception):
    """The loop was asked to end, and did so between two polls: nothing was cut off in the middle of a command."""


class Picker(Worker):
    """See the module. `ending` ends its loop, with `Ended`, before the next poll."""

    ending = False

    def __init__(self, **options: Any) -> None:
        super().__init__(health_check_interval=HEALTH_S, **options)
        self._said_so_at = 0.0
        self._found = False
        for name, sparing in _sparing.items():
            logging.getLogger(name).addFilter(sparing)  # once: the same filter is not added again

    async def main(self) -> None:
        self.ctx["redis"] = self.pool
        await self._tidy()
        while not self.ending:
            self._found = False
            await self._poll_iteration()
            await self._nap()
        raise Ended

    async def _nap(self) -> None:
        """Waits for a hint (`core.hints` pushes a value to a list), so that an idle worker asks Redis twice a second
        instead of a hundred times, and a new delivery still waits for nothing."""
        if self._found or not self.allow_pick_jobs:
            await asyncio.sleep(self.poll_delay_s)  # what was found stays in the queue until it is done
        else:
            redis: Any = self.pool  # its annotations mix the blocking client's with its own
            await redis.brpop([hints.WAKE], timeout=NAP_S)

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        self._found = bool(job_ids)
        unreadable = [job_id for job_id in job_ids if not _is_text(job_id)]
        if unreadable:
            log.warning("jobs whose ids are no text were dropped", jobs=len(unreadable))
            await self.pool.zrem(self.queue_name, *unreadable)
        await super().start_jobs([job_id for job_id in job_ids if job_id not in unreadable])

    async def run_job(self, job_id: str, score: int) -> None:
        try:
            await super().run_job(job_id, score)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError):
            raise
        except Exception as error:
            log.warning("a job that can't be run was dropped", job=job_id[:64], error=repr(error)[:200])
            await self.finish_failed_job(job_id, None)

    async def record_health(self) -> None:
        now = self.loop.time()
        if now - self._said_so_at < HEALTH_S:
            return
        self._said_so_at = now
        await self._tidy()
        self._last_health_check = 0.0  # by which arq would see whether it is time, on the wall clock
        await super().record_health()

    async def _tidy(self) -> None:
        for key, kind in ((self.queue_name, b"zset"), (hints.WAKE, b"list")):
            found = await self.pool.type(key)
            if found not in (kind, b"none"):
                log.warning("a queue in Redis was something else and was deleted", key=key, kind=found.decode())
                await self.pool.delete(key)
        await self.pool.zremrangebyscore(self.queue_name, "-inf", 0)
        redis: Any = self.pool
        await redis.ltrim(hints.WAKE, 0, hints.MAX_WAKINGS - 1)


def _is_text(job_id: bytes) -> bool:
    try:
        job_id.decode()
    except UnicodeDecodeError:
        return False
    return True
