"""The worker process: hints from Redis tell what is new, the sweep finds whatever they missed, arq runs the rest.

Redis may be away for any time, or hold anything. Only the listener to hints and arq's loop notice: they end, and are
started again with growing pauses, while the sweep goes on delivering from PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError

from core import hints
from core.egress import EgressPolicy
from core.limiting.breakers import Breakers
from core.secrets.sealing import Sealer
from core.settings import Settings
from core.storage.database import Database
from worker import loops
from worker.circuits import SYNC_S
from worker.engine import Engine
from worker.jobs import JOB_END_S, Jobs
from worker.lanes import slow_slots
from worker.listener import Listener
from worker.membership import SAY_SO_S
from worker.plans import Plans
from worker.transport import EgressTransport

STOP_S = 7.0  # of the 10 s that a graceful stop may take
STATISTICS_S = 3.0
BREAKER_CHANGES_S = 1.0
ERASE_S = 1.0

log = structlog.get_logger(__name__)


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
    stop, gone = asyncio.Event(), asyncio.Event()
    redis = hints.connect(settings.redis_url, max_connections=2)
    breakers = Breakers(redis)
    ctx = {"database": database, "breakers": breakers, "retention_days": settings.retention_days}
    jobs, listener = Jobs(settings.redis_url, ctx), Listener(settings.redis_url, engine)
    looping: list[asyncio.Task[None]] = []
    running: list[asyncio.Task[None]] = []

    async def begin() -> None:
        await loops.arrive(database, engine)
        engine.start()
        # While this one ends, the others know of what it still has open.
        looping.append(
            asyncio.create_task(loops.every(SAY_SO_S, "membership", lambda: loops.meet(database, engine), gone))
        )
        looping.extend(
            asyncio.create_task(loops.every(every_s, name, work, stop))
            for every_s, name, work in _rounds(database, engine, breakers, settings.sweep_interval_s)
        )
        running.append(asyncio.create_task(listener.run()))

    beginning = asyncio.create_task(begin())
    running.append(asyncio.create_task(jobs.run()))
    try:
        yield engine
    finally:
        beginning.cancel()
        stop.set()
        jobs.pick_no_more()
        listener.end()
        await engine.stop(STOP_S)
        gone.set()
        jobs.end()
        await asyncio.wait([beginning, *looping, *running], timeout=1.0)
        if late := [task for task in running if task.cancel()]:  # Redis is away, say
            await asyncio.wait(late, timeout=JOB_END_S * 2)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await redis.aclose(close_connection_pool=True)
        with contextlib.suppress(Exception):  # the others notice by themselves, only later
            async with asyncio.timeout(JOB_END_S):
                await engine.flush_statistics()
                await loops.leave(database, engine)
                await engine.flush_breaker_changes()  # last, for nothing depends on it
        await transport.aclose()
        await database.close()


def _rounds(
    database: Database, engine: Engine, breakers: Breakers, interval_s: float
) -> Sequence[tuple[float, str, Callable[[], Awaitable[None]]]]:
    """What a worker does again and again: how often, its name, and the work. `interval_s`: that of what is due."""
    return (
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
