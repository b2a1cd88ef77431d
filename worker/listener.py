"""Takes the hints that web processes leave in Redis (`core.hints`), whatever else stands there.

What can't be read is dropped, and a list that is no list is deleted: the sweep finds what they named.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import structlog
from redis.exceptions import RedisError, ResponseError

from core import hints
from core.hints import Hint
from worker.engine import Engine
from worker.outages import through_outages
from worker.sparing import spare

NAP_S = 0.4  # below the time after which the client gives up on Redis
MAX_BATCH_BYTES = 65_536  # `hints.MAX_IDS` hints are some 11,000; to read a megabyte would hold up everything else
AT_ONCE = 4  # batches: to ask for each costs a turn of a loop that has much else to do, but others may be idle
MAX_TAKING = 10  # batches that wait for the limits of subscriptions which are new to this worker

log = structlog.get_logger(__name__)


class Listener:
    """Hands hints to `engine` as they come, until `end`."""

    def __init__(self, redis_url: str, engine: Engine) -> None:
        self._redis_url = redis_url
        self._engine = engine
        self._ending = False
        self._taking: set[asyncio.Task[None]] = set()
        spare(__name__)

    def end(self) -> None:
        """Leaves further hints to other workers. `run` ends within `NAP_S`, or with its pause while Redis is away."""
        self._ending = True

    def _is_over(self) -> bool:
        return self._ending

    async def run(self) -> None:
        try:
            await through_outages("hints", self._listen, self._is_over)
        finally:
            for task in self._taking:
                task.cancel()
            await asyncio.gather(*self._taking, return_exceptions=True)

    async def _listen(self) -> None:
        # Its annotations mix two clients. One connection waits, over the other hints are passed on.
        redis: Any = hints.connect(self._redis_url, max_connections=2)
        own = hints.list_of(self._engine.membership.id)
        try:
            while not self._is_over():
                try:
                    count = min(AT_ONCE, MAX_TAKING - len(self._taking))
                    found = await redis.blmpop(
                        NAP_S, 1 + len(hints.LISTS), own, *hints.LISTS, direction="LEFT", count=count
                    )
                except ResponseError as error:
                    if not str(error).startswith("WRONGTYPE"):
                        raise
                    await _tidy(redis, own)
                    continue
                if found is None:
                    continue
                name, batches = found[0].decode(), found[1]
                while batches and not self._is_over():
                    # What an organization creates beyond its prompt hints does not come before those of others.
                    await self._take(batches.pop(0), redis, passes_on=name == hints.PROMPT)
                if batches:  # they came while we were about to end: another worker takes them
                    name = hints.PROMPT if name == own else name
                    await redis.pipeline().lpush(name, *reversed(batches)).expire(name, hints.EXPIRES_S).execute()
        finally:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await redis.aclose(close_connection_pool=True)

    async def _take(self, packed: bytes, redis: Any, *, passes_on: bool) -> None:
        if len(packed) > MAX_BATCH_BYTES:
            log.warning("hints that are too many were dropped", bytes=len(packed))
            return
        try:
            batch = hints.unpack(packed)
        except (ValueError, TypeError) as error:
            log.warning("hints that can't be read were dropped", error=repr(error)[:200])
            return
        task = asyncio.create_task(self._hand_over(batch, redis, passes_on))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        while len(self._taking) >= MAX_TAKING and not self._is_over():
            await asyncio.wait(self._taking, timeout=NAP_S, return_when=asyncio.FIRST_COMPLETED)

    async def _hand_over(self, batch: list[Hint], redis: Any, passes_on: bool) -> None:
        others = await self._engine.take(batch)
        if not others or not passes_on:  # once and no more: where workers differ in who there is, it would go on
            return
        pipe = redis.pipeline(transaction=False)
        for worker_id, theirs in others.items():
            hints.put(pipe, hints.list_of(worker_id), theirs)
        try:
            for answer in await pipe.execute(raise_on_error=False):  # it would write the whole batch before the reason
                if isinstance(answer, RedisError):
                    raise answer
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("hints could not be passed on; the sweep will find their deliveries", error=repr(error))


async def _tidy(redis: Any, own: str) -> None:
    for name in (own, *hints.LISTS):
        kind = await redis.type(name)
        if kind not in (b"list", b"none"):
            log.warning("a list of hints in Redis was something else and was deleted", key=name, kind=kind.decode())
            await redis.delete(name)
