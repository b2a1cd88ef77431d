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
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from core import deliveries
from core.workers import GONE_AFTER_S

SAY_SO_S = 2.0
ARRIVE_S = SAY_SO_S + 1.0  # for the others to say so again; one that was killed never will
ARRIVE_LOOK_S = 0.1


class Membership:
    """This worker among all of them. Alone until `beat` said otherwise; while the database is away, as before."""

    def __init__(self, worker_id: UUID | None = None) -> None:
        self.id = worker_id or uuid4()
        self._all: tuple[UUID, ...] = (self.id,)
        self._arrived_at = datetime.min.replace(tzinfo=UTC)
        self._before: set[UUID] = set()  # others that may have requests open which they began before that
        self._open_before: Mapping[UUID, Mapping[UUID, int]] = {}  # by subscription, then by worker

    @property
    def count(self) -> int:
        return len(self._all)

    async def arrive(self, driver: Any) -> None:
        """Says that this worker lives, and waits until the others have heard of it: up to `ARRIVE_S` seconds."""
        await self._say_so(driver)
        said_at = await driver.fetchval(_NOW)  # whoever says so from now on sees this worker
        until = time.monotonic() + ARRIVE_S
        while True:
            others = await self._say_so(driver)
            if all(seen_at > said_at for seen_at in others.values()) or time.monotonic() > until:
                break
            await asyncio.sleep(ARRIVE_LOOK_S)
        self._before = {one for one, seen_at in others.items() if seen_at > said_at}
        self._arrived_at = await driver.fetchval(_NOW)
        await self.beat(driver)

    async def beat(self, driver: Any) -> None:
        """Says that this worker lives, and sees who else does."""
        await self._say_so(driver)
        if self._before:
            alive = self._before.intersection(self._all)
            self._open_before = await deliveries.under_lease(driver, self._arrived_at, alive)
            if not self._open_before:
                self._before = set()

    async def _say_so(self, driver: Any) -> dict[UUID, datetime]:
        """Returns when each of the others did."""
        rows = await driver.fetch(_SAY_SO, self.id, GONE_AFTER_S)
        self._all = tuple(sorted({self.id, *(row["id"] for row in rows)}))
        return {row["id"]: row["seen_at"] for row in rows if row["id"] != self.id}

    async def leave(self, driver: Any) -> None:
        await driver.execute("DELETE FROM workers WHERE id = $1", self.id)

    def first(self, subscription_id: UUID) -> UUID:
        """Which worker has a part of this subscription's however small numbers."""
        return min(self._all, key=lambda one: _rank(subscription_id, one, self._all))

    def share(self, subscription_id: UUID, whole: int) -> int:
        """This worker's part of `whole`. The parts of all workers add up to it; some may be 0."""
        return whole if len(self._all) == 1 else self._share_of(self.id, subscription_id, whole)

    def may_open(self, subscription_id: UUID, whole: int) -> int:
        """How many of `whole` requests at once this worker may have: its part, less what others still have beyond
        theirs, since they began it before this one came."""
        mine = self.share(subscription_id, whole)
        if self._open_before:
            for worker_id, count in self._open_before.get(subscription_id, {}).items():
                if worker_id in self._all:
                    mine -= max(0, count - self._share_of(worker_id, subscription_id, whole))
        return max(0, mine)

    def _share_of(self, worker_id: UUID, subscription_id: UUID, whole: int) -> int:
        count = len(self._all)
        return whole // count + (_rank(subscription_id, worker_id, self._all) < whole % count)


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
