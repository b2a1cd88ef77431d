"""Who else works: each worker says so in the database every few seconds, and counts those that did.

So limits that hold for all workers together are divided without a word between them: of a subscription's whole number
each worker takes a part, by an order of the workers that is another for each subscription (rendezvous hashing). All
see the same list, so the parts add up; for some seconds after a worker came or went they may not quite.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from core.workers import GONE_AFTER_S

SAY_SO_S = 2.0


class Membership:
    """This worker among all of them. Alone until `beat` said otherwise; while the database is away, as before."""

    def __init__(self, worker_id: UUID | None = None) -> None:
        self.id = worker_id or uuid4()
        self._all: tuple[UUID, ...] = (self.id,)

    @property
    def count(self) -> int:
        return len(self._all)

    async def beat(self, driver: Any) -> None:
        """Says that this worker lives, and sees who else does."""
        rows = await driver.fetch(_BEAT, self.id, GONE_AFTER_S)
        self._all = tuple(sorted({self.id, *(row["id"] for row in rows)}))

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


@lru_cache(maxsize=65_536)
def _rank(subscription_id: UUID, worker_id: UUID, workers: tuple[UUID, ...]) -> int:
    """The place of `worker_id` in this subscription's order of `workers`."""

    def weight(one: UUID) -> bytes:
        return hashlib.blake2b(subscription_id.bytes + one.bytes, digest_size=8).digest()

    return sorted(workers, key=weight).index(worker_id)


_BEAT = """
WITH said AS (
    INSERT INTO workers (id, seen_at) VALUES ($1, now()) ON CONFLICT (id) DO UPDATE SET seen_at = now()
), swept AS (
    DELETE FROM workers WHERE seen_at < now() - interval '1 hour'
)
SELECT id FROM workers WHERE seen_at > now() - make_interval(secs => $2::float8)
"""
