"""The worker process: arq runs jobs from Redis' hints, the sweep finds whatever hints missed.

Redis may be away for any time, or hold anything. Only arq's loop notices: it ends, and is started again with growing
pauses, while the sweep goes on delivering from PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from arq import Retry, cron
from arq.worker import func
from redis.exceptions import RedisError

from core import hints
from core.egress import EgressPolicy
from core.limiting.breakers import Breakers
from core.secrets.sealing import Sealer
from core.settings import Settings
from core.storage.database import Database, is_unreachable
from worker import loops
from worker.circuits import SYNC_S
from worker.engine import Engine
from worker.lanes import slow_slots
from worker.membership import SAY_SO_S
from worker.picker import Ended, Picker
from worker.plans import Plans
from worker.transport import EgressTransport

POLL_S = 0.01  # between two looks into a queue that has something in it
MAX_JOBS = 10
MOST_HINTS = 10 * hints.MAX_IDS  # of one hint, should a later version send larger ones; the sweep finds the rest
JOB_TIMEOUT_S = 120
HOUSEKEEPING_RETRY_S, HOUSEKEEPING_TRIES = 60, 30
RECONNECT_S = (0.2, 0.5, 1.0, 2.0)  # then every 2 s
STEADY_S = 10.0  # after that long without a fault the pauses start small again
STOP_S = 7.0  # of the 10 s that a graceful stop may take
STATISTICS_S = 3.0
BREAKER_CHANGES_S = 1.0
ERASE_S = 1.0
JOB_END_S = 0.5  # for jobs that have nothing left to do but to say so to Redis

log = structlog.get_logger(__name__)


async def deliver(ctx: dict[str, Any], packed: list[list[str]]) -> None:
    """The job: send these, if they are still due."""
    engine: Engine = ctx["engine"]
    await engine.take(hints.unpack(packed)[:MOST_HINTS])


async def keep_house(ctx: dict[str, Any]) -> None:
    """The hourly cron job; arq lets one worker of all run it. Tried again in a minute when the database is away."""
    try:
        await loops.keep_house(ctx["database"], ctx["retention_days"])
        await loops.forget_breakers(ctx["database"], ctx["breakers"])
    except Exception as error:
        if not is_unreachable(error):
            raise
        raise Retry(defer=HOUSEKEEPING_RETRY_S) from error


async def run(settings: Settings) -> None:
    """Works until SIGTERM or SIGINT, then finishes what is under way or hands it back."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with working(settings):
        log.info("worker started", max_in_flight=settings.worker_max_in_flight)
        await stop.wait()
        log.info("worker stopping")


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[Engine]:
    """A whole worker inside this process, for as long as the block lasts."""
    policy = EgressPolicy(allow=settings.egress_allow, deny=settings.egress_deny, allow_http=settings.egress_allow_http)
    database = Database(settings.database_url, pool_size=settings.database_pool_size, name="hookwright-worker")
    # More connections than slots: waiting for one would count against an attempt's deadline.
    most = settings.worker_max_in_flight + 2 * slow_slots(settings.worker_max_in_flight)
    transport = EgressTransport(
        policy,
        ca_file=settings.egress_ca_file,
        client_cert_file=settings.egress_client_cert_file,
        client_key_file=settings.egress_client_key_file,
        proxy_url=settings.egress_proxy_url,
        limit=most + 64,
    )
    engine = Engine(
        database,
        transport,
        Plans(database, Sealer(settings.secret_keys), policy),
        max_in_flight=settings.worker_max_in_flight,
        margin_s=settings.lease_margin_s,
    )
    with contextlib.suppress(Exception):  # then it takes its share from the first beat on
        async with asyncio.timeout(JOB_END_S):
            await loops.meet(database, engine)
    engine.start()
    stop = asyncio.Event()
    interval_s = settings.sweep_interval_s
    redis = hints.connect(settings.redis_url, max_connections=2)
    breakers = Breakers(redis)
    looping = [
        asyncio.create_task(loops.every(every_s, name, work, stop))
        for every_s, name, work in (
            (SAY_SO_S, "membership", lambda: loops.meet(database, engine)),
            (interval_s, "sweep", lambda: loops.sweep(engine)),
            (interval_s, "parked", engine.find_parked),
            (interval_s, "replays", lambda: loops.advance_replays(database, engine, interval_s)),
            (interval_s, "settling", lambda: loops.settle(database)),
            (ERASE_S, "redaction", lambda: loops.redact(database)),
            (ERASE_S, "erasure", loops.Erasing(database, breakers).advance),
            (STATISTICS_S, "statistics", engine.flush_statistics),
            (SYNC_S, "breakers", lambda: engine.sync_breakers(breakers)),
            (BREAKER_CHANGES_S, "breaker changes", engine.flush_breaker_changes),
        )
    ]
    ctx = {"engine": engine, "database": database, "breakers": breakers, "retention_days": settings.retention_days}
    jobs = Jobs(settings.redis_url, ctx)
    running = asyncio.create_task(jobs.run())
    try:
        yield engine
    finally:
        stop.set()
        jobs.pick_no_more()
        await engine.stop(STOP_S)
        jobs.end()
        await asyncio.wait([*looping, running], timeout=1.0)
        if running.cancel():  # Redis is away
            await asyncio.wait([running], timeout=JOB_END_S * 2)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await redis.aclose(close_connection_pool=True)
        with contextlib.suppress(Exception):  # the others notice by themselves, only later
            async with asyncio.timeout(JOB_END_S):
                await engine.flush_statistics()
                await loops.leave(database, engine)
                await engine.flush_breaker_changes()  # last, for nothing depends on it
        await transport.aclose()
        await database.close()


class Jobs:
    """arq's side of a worker, through any outage of Redis."""

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
        """Runs until `end`. Whenever Redis fails, starts anew, with growing pauses."""
        failures = 0
        clock = asyncio.get_running_loop().time
        while not self._ending:
            started = clock()
            try:
                await self._run_once()
            except Ended:
                return
            except (RedisError, OSError, TimeoutError) as error:
                log.warning("Redis does not answer; the sweep goes on without it", error=repr(error))
            except Exception:
                log.exception("arq failed over what it found in Redis; it starts anew")
            failures = 0 if clock() - started > STEADY_S else failures
            await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
            failures += 1

    async def _run_once(self) -> None:
        pool = hints.connect(self._redis_url)
        worker = Picker(
            functions=[func(deliver, name=hints.JOB, max_tries=1, keep_result=0, timeout=JOB_TIMEOUT_S)],
            cron_jobs=[
                cron(keep_house, minute={7}, run_at_startup=True, timeout=JOB_TIMEOUT_S, max_tries=HOUSEKEEPING_TRIES)
            ],
            queue_name=hints.QUEUE,
            redis_pool=pool,
            handle_signals=False,
            max_jobs=MAX_JOBS,
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
