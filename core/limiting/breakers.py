"""All circuit breakers, in Redis, where every worker and the web see the same.

One hash: the subscription's id (hex) and its record; what is blank is not stored. Losing it means that all are CLOSED:
deliveries to a receiver that is down are tried until its breaker opens again. Values that are no records count as
absent, and the next change replaces them. Where the hash itself is something else, `all` deletes it.

Every function raises what the client raises (`UNREACHABLE`) when Redis does not answer; callers decide what then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import structlog
from arq.connections import ArqRedis
from redis.exceptions import RedisError, ResponseError

from core.limiting.breaker import Breaker

KEY: Final = "hookwright:breakers"
UNREACHABLE: Final[tuple[type[Exception], ...]] = (RedisError, OSError, TimeoutError)

log = structlog.get_logger(__name__)

Change = tuple[UUID, Breaker, Breaker]  # the subscription, what is believed to stand, what is to stand


class Breakers:
    """The breakers, over a client of `core.hints.connect`."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis: Any = redis  # its annotations mix the blocking client's with its own
        self._script = self._redis.register_script(_SWAP)
        self._read: dict[bytes, tuple[bytes, UUID, Breaker]] = {}  # by field: the value, and what was read from it

    async def all(self) -> dict[UUID, Breaker]:
        """Every record that is not blank. Reads again only those that have changed since the last time."""
        stored = await self._stored()
        before, self._read = self._read, {}
        for field, value in stored.items():
            known = before.get(field)
            entry = known if known is not None and known[0] == value else _entry(field, value)
            if entry is not None:
                self._read[field] = entry
        return {subscription_id: breaker for _, subscription_id, breaker in self._read.values()}

    async def _stored(self) -> dict[bytes, bytes]:
        try:
            stored: dict[bytes, bytes] = await self._redis.hgetall(KEY)
        except ResponseError:
            kind = await self._redis.type(KEY)
            if kind in (b"hash", b"none"):
                raise
            log.warning("the circuit breakers in Redis were something else and were deleted", kind=kind.decode())
            await self._redis.delete(KEY)
            return {}
        return stored

    async def of(self, subscription_ids: Sequence[UUID]) -> dict[UUID, Breaker]:
        """Of these, blank or not."""
        if not subscription_ids:
            return {}
        stored = await self._redis.hmget(KEY, [one.hex for one in subscription_ids])
        return {one: Breaker.from_bytes(value or b"") for one, value in zip(subscription_ids, stored, strict=True)}

    async def get(self, subscription_id: UUID) -> Breaker:
        return Breaker.from_bytes(await self._redis.hget(KEY, subscription_id.hex) or b"")

    async def swap(self, changes: Sequence[Change]) -> list[Breaker]:
        """Makes each change whose subscription stands as believed. One round trip.

        Returns for each what stands now: the new record, or another's where somebody else came first; then the caller
        works out its change from that one and tries again. Where two make the very same record of outcomes within the
        same millisecond, it stands for both: one of them is not counted, which opens a breaker one failure later.
        """
        if not changes:
            return []
        asked = [(one.hex.encode(), believed.to_bytes(), new.to_bytes()) for one, believed, new in changes]
        stands = await self._script(keys=[KEY], args=[part for one in asked for part in one])
        read = [Breaker.from_bytes(value) for value in stands]
        # What is no record reads as blank, but can't equal it. It is believed as it is, once.
        spoilt = [at for at, value in enumerate(stands) if value != read[at].to_bytes() and read[at] == changes[at][1]]
        if spoilt:
            args = [part for at in spoilt for part in (asked[at][0], stands[at], asked[at][2])]
            for at, value in zip(spoilt, await self._script(keys=[KEY], args=args), strict=True):
                read[at] = Breaker.from_bytes(value)
        return read

    async def reset(self, subscription_id: UUID, now_ms: int) -> Breaker:
        """To HALF_OPEN, whatever stands: a person asks. Returns the new record."""
        new = (await self.get(subscription_id)).reset(now_ms)
        await self._redis.hset(KEY, subscription_id.hex, new.to_bytes())
        return new

    async def forget(self, *subscription_ids: UUID) -> None:
        """CLOSED, with nothing counted."""
        if subscription_ids:
            await self._redis.hdel(KEY, *(one.hex for one in subscription_ids))


def _entry(field: bytes, value: bytes) -> tuple[bytes, UUID, Breaker] | None:
    breaker = Breaker.from_bytes(value)
    try:
        return None if breaker.is_blank else (value, UUID(hex=field.decode()), breaker)
    except ValueError:  # no id
        return None


# Compares and sets each of field, believed, new; an empty value is an absent field. Returns what then stands.
_SWAP = """
local stands = {}
for at = 1, #ARGV, 3 do
    local field, believed, new = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    local current = redis.call('HGET', KEYS[1], field) or ''
    if current == believed then
        if new == '' then
            redis.call('HDEL', KEYS[1], field)
        else
            redis.call('HSET', KEYS[1], field, new)
        end
        current = new
    end
    stands[#stands + 1] = current
end
return stands
"""
