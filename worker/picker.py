"""arq's worker, hardened: whatever stands in Redis and wherever the wall clock jumps, it goes on.

| what | arq's own worker | here |
|---|---|---|
| a job that can't be read so far as to say whose it is | ends | drops it |
| an id that is no UTF-8 | ends, at each look | drops it |
| a score of 0 or less | never runs it and never removes it; a hundred of them hide all other jobs | removes it |
| a queue that is no sorted set | ends, at each look | deletes it |
| the wall clock is set back by an hour | says nothing of its health for an hour | goes by the monotonic clock |
| ten thousand jobs that fail or have expired | logs each | logs the first few of each minute |

Nothing is lost by dropping a job: all there are is the housekeeping, which is queued anew each hour.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.exceptions
import structlog
from arq.worker import Worker

from worker.sparing import spare

HEALTH_S = 2  # how often the worker says that it lives; /readyz looks for it

log = structlog.get_logger(__name__)


class Ended(Exception):
    """The loop was asked to end, and did so between two polls: nothing was cut off in the middle of a command."""


class Picker(Worker):
    """See the module. `ending` ends its loop, with `Ended`, before the next poll."""

    ending = False

    def __init__(self, **options: Any) -> None:
        super().__init__(health_check_interval=HEALTH_S, **options)
        self._said_so_at = 0.0
        spare("arq.worker", __name__)

    async def main(self) -> None:
        self.ctx["redis"] = self.pool
        await self._tidy()
        while not self.ending:
            await self._poll_iteration()
            await asyncio.sleep(self.poll_delay_s)
        raise Ended

    async def start_jobs(self, job_ids: list[bytes]) -> None:
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
        found = await self.pool.type(self.queue_name)
        if found not in (b"zset", b"none"):
            log.warning("a queue in Redis was something else and was deleted", key=self.queue_name, kind=found.decode())
            await self.pool.delete(self.queue_name)
        await self.pool.zremrangebyscore(self.queue_name, "-inf", 0)


def _is_text(job_id: bytes) -> bool:
    try:
        job_id.decode()
    except UnicodeDecodeError:
        return False
    return True
