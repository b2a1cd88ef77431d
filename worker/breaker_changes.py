"""Changes of circuit breakers that this worker made, on their way to the database.

Beside the sending, and never waited for: what can't be stored now is kept for the next time. A receiver that comes and
goes may change state ten times a second. Of each subscription `BURST` changes are stored at once, and then one every
`EVERY_S`; of those in between the last, so that the history ends with what is so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from core import ids
from core.limiting import breaker_changes
from core.limiting.breaker import Breaker
from core.limiting.breaker_changes import Change
from core.storage.database import Database

BURST = 4
EVERY_S = 15.0
MAX_STORED = 1_000  # by one statement; the rest with the next


class BreakerChanges:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[UUID, list[Change]] = {}
        self._spent: dict[UUID, tuple[float, float]] = {}  # of the burst; and when that was worked out

    def note(self, subscription_id: UUID, breaker: Breaker) -> None:
        """It is in this state since now."""
        change = Change(ids.new_id(), subscription_id, breaker.state, breaker.failures)
        waiting = self._waiting.setdefault(subscription_id, [])
        if len(waiting) >= self._room(subscription_id):
            waiting[-1:] = [change]
        else:
            waiting.append(change)

    async def flush(self, database: Database) -> None:
        """Stores what waits and may be stored. When that fails, nothing is lost."""
        self._forget()
        chosen: list[Change] = []
        for subscription_id, waiting in self._waiting.items():
            if len(chosen) >= MAX_STORED:
                break
            chosen += waiting[: self._room(subscription_id)]
        if not chosen:
            return
        async with database.driver() as driver:
            await breaker_changes.store(driver, chosen)
        stored = set(chosen)
        for one, count in Counter(change.subscription_id for change in chosen).items():
            self._spend(one, count)
            left = [change for change in self._waiting.pop(one) if change not in stored]
            if left:
                self._waiting[one] = left

    def _room(self, subscription_id: UUID) -> int:
        """How many may be stored now."""
        return int(BURST - self._spent_of(subscription_id))

    def _spent_of(self, subscription_id: UUID) -> float:
        spent, at = self._spent.get(subscription_id, (0.0, 0.0))
        return max(0.0, spent - (self._clock() - at) / EVERY_S)

    def _spend(self, subscription_id: UUID, count: int) -> None:
        self._spent[subscription_id] = (self._spent_of(subscription_id) + count, self._clock())

    def _forget(self) -> None:
        for one in [one for one in self._spent if not self._spent_of(one)]:
            del self._spent[one]
