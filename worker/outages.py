"""What needs Redis goes on through any outage of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from redis.exceptions import RedisError

RECONNECT_S = (0.2, 0.5, 1.0, 2.0)  # then every 2 s
STEADY_S = 10.0  # after that long without a fault the pauses start small again

log = structlog.get_logger(__name__)


async def through_outages(what: str, work: Callable[[], Awaitable[None]], is_over: Callable[[], bool]) -> None:
    """Does `work` until `is_over`. Whenever Redis fails it, starts it anew, with growing pauses."""
    failures = 0
    clock = asyncio.get_running_loop().time
    while not is_over():
        started = clock()
        try:
            await work()
            continue
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("Redis does not answer; the sweep goes on without it", what=what, error=repr(error))
        except Exception:
            log.exception("what stands in Redis was too much; it starts anew", what=what)
        failures = 0 if clock() - started > STEADY_S else failures
        await asyncio.sleep(RECONNECT_S[min(failures, len(RECONNECT_S) - 1)])
        failures += 1
