"""Who else works: each worker says so in the database every few seconds, and counts those that did.

So limits that hold for all workers together are divided without a word between them: of a subscription's whole number
each worker takes a part, by an order of the workers that is another for each subscription (rendezvous hashing). All
see the same list, so the parts add up.

A worker that comes takes its part once the others have heard of it. What they began before, when their parts were
larger, it leaves them until it has ended: that is looked up with each beat, as long as there is some.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from core import deliveries
from core.workers import GONE_AFTER_S

SAY_SO_S = 2.0
ARRIVE_S = SAY_SO_S + 0.5  # for the others to say so again; one that was killed never will
ARRIVE_LOOK_S = 0.1


class Membership:
    """This worker among all of them. Alone until `beat` said otherwise; while the database is away, as before."""

    def __init__(self, worker_id: UUID | None = None) -> None:
        self.id = worker_id or uuid4()
        self._all: tuple[UUID, ...] = (self.id,)
        self._arrived_at: datetime | None = None  # while requests may be open that others began before
        self._open_before: Mapping[UUID, int] = {}

    @property
    def count(self) -> int:
        return len(self._all)

    async def arrive(self, driver: Any) -> None:
        """Says that this worker lives, and waits until the others have heard of it: up to `ARRIVE_S` seconds."""
        await self._say_so(driver)
        arrived_at = await driver.fetchval(_NOW)  # whoever says so from now on sees this worker
        until = time.monotonic() + ARRIVE_S
        while True:
            have_heard = [seen_at > arrived_at for seen_at in await self._say_so(driver)]
            if all(have_heard) or time.monotonic() > until:
                break
            await asyncio.sleep(ARRIVE_LOOK_S)
        if any(have_heard):
            self._arrived_at = await driver.fetchval(_NOW)
            await self.beat(driver)

    async def beat(self, driver: Any) -> None:
        """Says that this worker lives, and sees who else does."""
        await self._say_so(driver)
        if self._arrived_at is not None:
            self._open_before = await deliveries.under_lease(driver, self._arrived_at)
            if not self._open_before:
                self._arrived_at = None

    async def _say_so(self, driver: Any) -> list[datetime]:
        """Returns when each of the others did."""
        rows = await driver.fetch(_SAY_SO, self.id, GONE_AFTER_S)
        self._all = tuple(sorted({self.id, *(row["id"] for row in rows)}))
        return [row["seen_at"] for row in rows if row["id"] != self.id]

    async def leave(self, driver: Any) -> None:
        await driver.execute("DELETE FROM workers WHERE id = $1", self.id)

    def first(self, subscription_id: UUID) -> UUID:
        """Which worker has a part of this subscription's however small numbers."""
        return min(self._all, key=lambda one: _rank(subscription_id, one, self._all))

    def share(self, subscription_id: UUID, whole: int) -> int:
        """This worker's part of `whole`. The parts of all workers add up to it; some may be 0."""
        count = len(self._all)
        if count == 1:
            return whole
        return whole // count + (_rank(subscription_id, self.id, self._all) < whole % count)

    def may_open(self, subscription_id: UUID, whole: int) -> int:
        """How many of `whole` requests at once this worker may have: its part, where others leave it so many that they
        began before it came."""
        if len(self._all) == 1:
            return whole
        left = whole - self._open_before.get(subscription_id, 0) if self._open_before else whole
        return min(self.share(subscription_id, whole), max(0, left))


@lru_cache(maxsize=65_536)
def _rank(subscription_id: UUID, worker_id: UUID, workers: tuple[UUID, ...]) -> int:
    """The place of `worker_id` in this subscription's order of `workers`."""

    def weight(one: UUID) -> bytes:
        return hashlib.blake2b(subscription_id.bytes + one.bytes, digest_size=8).digest()

    return sorted(workers, key=weight).index(worker_id)


_SAY_SO = """
WITH said AS (
    INSERT INTO workers (id, seen_at) VALUES ($1, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()
), swept AS (
    DELETE FROM workers WHERE seen_at < now() - interval '1 hour'
)
SELECT id, seen_at FROM workers WHERE seen_at > now() - make_interval(secs => $2::float8)
"""
_NOW = "SELECT now()"
