"""How many requests an API key may make: a token bucket for each, in Redis, shared by all web processes.

A bucket holds up to `burst` requests and is filled again by `per_minute` / 60 a second. It is stored as one number, the
moment at which it will be full (the generic cell rate algorithm): each request moves that moment on by what refilling
one takes, and is refused where it would lie further ahead than filling an empty bucket takes. With 1000/100 a request
is worth 60 ms and an empty bucket 6 s. A bucket that is full is not stored.

The clock is Redis': those of several web hosts differ, and a bucket would jump with each that asks. All requests that
wait at the same moment share one round trip, and one connection, however many they are. While Redis is away nothing is
limited: taking events must never depend on it.

The library `limits` counts in windows, which have no burst of their own, and asks Redis once for each request. The
script below is shorter than what would fit it in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError

from core.errors import RateLimitExceeded, Unavailable
from core.limiting.rates import WINDOW_S, Rate, parse
from core.models import RateTier
from core.settings import Settings
from core.storage.group_commit import GroupCommit

KEY: Final = "hookwright:rate:"
INGEST: Final = "ingest"  # the tier of what accepts events, whatever tier the key has
WAIT_S: Final = 0.05  # for Redis; then requests pass unlimited
TURNS: Final = 8  # of the event loop, from reading an answer to having it
FAILURES: Final = 2  # in a row, until Redis is left alone: one may be a moment in which the machine was busy
REST_S: Final = 1.0  # for how long
MAX_BATCH: Final = 200  # requests a round trip
MAX_WAITING: Final = 10_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a bucket said to one request, in the words of the `X-RateLimit-…` headers (docs/api.md)."""

    allowed: bool
    limit: int  # requests a minute
    remaining: int  # requests that would pass at once now
    reset_at: int  # Unix time, in seconds, at which the bucket is full again
    retry_after_s: int  # 0 where it was allowed

    def check(self) -> None:
        """Raises `RateLimitExceeded` for a request that was not allowed."""
        if not self.allowed:
            raise RateLimitExceeded(self.limit, WINDOW_S, self.retry_after_s)


class _Take(NamedTuple):
    key: str
    rate: Rate


class RateLimits:
    """The buckets of every key. Use it between `start` and `close`."""

    def __init__(self, redis: ArqRedis, rates: Mapping[str, Rate | None]) -> None:
        """`rates` by tier, and by `INGEST`; None: no limit."""
        self._rates = dict(rates)
        self._script: Any = redis.register_script(_TAKE)
        self._takes: GroupCommit[_Take, Verdict | None] = GroupCommit(
            self._flush, max_batch=MAX_BATCH, max_waiting=MAX_WAITING
        )
        self._failures = 0  # in a row
        self._rests_until = 0.0
        self._late: set[asyncio.Future[Any]] = set()

    @classmethod
    def of(cls, settings: Settings, redis: ArqRedis) -> RateLimits:
        return cls(
            redis,
            {
                RateTier.DEFAULT: parse(settings.rate_limit_default),
                RateTier.PREMIUM: parse(settings.rate_limit_premium),
                RateTier.BULK: parse(settings.rate_limit_bulk),
                INGEST: parse(settings.rate_limit_ingest),
            },
        )

    def start(self) -> None:
        self._takes.start()

    async def close(self) -> None:
        await self._takes.close()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def take(self, key_id: UUID, tier: str) -> Verdict | None:
        """One request of that API key out of its bucket. None, at once, where the tier has no limit, and within
        `WAIT_S` or so where Redis does not answer."""
        rate = self._rates[tier]
        if rate is None or asyncio.get_running_loop().time() < self._rests_until:
            return None
        # Taking events has a bucket of its own, so that neither uses up the other.
        name = f"{KEY}{key_id.hex}:ingest" if tier == INGEST else f"{KEY}{key_id.hex}"
        try:
            return await self._takes.submit(_Take(name, rate))
        except Unavailable:  # more wait than Redis can be asked for
            return None

    async def _flush(self, takes: list[_Take]) -> Sequence[Verdict | None]:
        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            return [None] * len(takes)
        arguments = [value for take in takes for value in (take.rate.interval_us, take.rate.burst)]
        try:
            said = await self._soon(self._script([take.key for take in takes], arguments))
        except (RedisError, OSError, TimeoutError) as error:
            self._failures += 1
            if self._failures < FAILURES:
                return [None] * len(takes)
            log.warning("Redis does not answer; requests are not limited meanwhile", error=repr(error))
            self._rests_until = loop.time() + REST_S
            return [None] * len(takes)
        self._failures = 0
        now_us = int(said[0])
        pairs = zip(said[1::2], said[2::2], strict=True)
        return [
            _verdict(take.rate, bool(allowed), int(used_us), now_us)
            for take, (allowed, used_us) in zip(takes, pairs, strict=True)
        ]

    async def _soon(self, asked: Coroutine[Any, Any, Any]) -> Any:
        """What Redis answers within `WAIT_S`. Raises TimeoutError.

        That may be less than one turn of a busy loop: then the answer lies there and was not looked at. So some turns
        are waited for in any case, or whoever keeps us busy enough would have no limit.
        """
        task = asyncio.ensure_future(asked)
        await asyncio.wait({task}, timeout=WAIT_S)
        for _ in range(TURNS):
            if task.done():
                return task.result()
            await asyncio.sleep(0)
        # It ends within `hints.TIMEOUT_S`. To cancel it would close the connection, and the next would take longer.
        self._late.add(task)
        task.add_done_callback(self._ended)
        raise TimeoutError(f"no answer within {WAIT_S} s")

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, or asyncio complains


def _verdict(rate: Rate, allowed: bool, used_us: int, now_us: int) -> Verdict:
    """`used_us`: how far ahead the moment lies at which the bucket is full."""
    left_us = rate.burst * rate.interval_us - used_us
    return Verdict(
        allowed=allowed,
        limit=rate.per_minute,
        # What refills within the microsecond that was cut off counts as there.
        remaining=max(0, int((left_us + 1) // rate.interval_us)) if allowed else 0,
        reset_at=math.ceil((now_us + used_us) / 1_000_000),
        retry_after_s=0 if allowed else max(1, math.ceil((rate.interval_us - left_us) / 1_000_000)),
    )


# For each key: takes one request out of its bucket where it can. KEYS are buckets, ARGV for each what a request takes
# to refill, in µs, and the burst. Returns the time, in µs, and for each bucket whether it could and how far ahead of
# now, in µs, it is full. What a clock that was set back left behind counts as an empty bucket and no less.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local said = {now}
for at, key in ipairs(KEYS) do
    local interval = tonumber(ARGV[at * 2 - 1])
    local span = interval * ARGV[at * 2]
    local used = tonumber(redis.call('GET', key) or now) - now
    used = math.min(math.max(used, 0), span)
    local allowed = used + interval <= span + 1
    if allowed then
        used = used + interval
        redis.call('SET', key, string.format('%.2f', now + used), 'PX', math.ceil(used / 1000))
    end
    said[#said + 1] = allowed and 1 or 0
    said[#said + 1] = math.floor(used)
end
return said
"""
