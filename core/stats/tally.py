"""What workers have recorded, added to the statistics every few seconds.

Each outcome counts for its subscription and once more for its organization as a whole, whose rows have `WHOLE` for the
subscription: ten thousand subscriptions need not be added up to show one figure.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from core.deliveries import Finish
from core.states import State

WHOLE: Final = UUID(int=0)  # instead of a subscription: the whole organization

# In the order of the table's columns.
_ATTEMPTS, _RETRIES, _DEAD, _DEAD_RETRIED, _DURATION_MS = range(5)
_NOTHING: Final = (0, 0, 0, 0, 0)

Key = tuple[UUID, UUID, str]  # organization, subscription, kind of error


class Tally:
    """One worker's outcomes since the last flush."""

    def __init__(self) -> None:
        self._counts: dict[Key, list[int]] = {}

    def add(self, finish: Finish) -> None:
        """Counts one recorded outcome. Only for a finish whose delivery moved: one that had lost its lease is counted
        by the worker that took over."""
        claimed, tried, state = finish.claimed, finish.tried, finish.verdict.state
        dead = state is State.DEAD
        if tried is None and not dead:
            return  # handed back or dropped: nothing came of it
        key = (claimed.organization_id, claimed.subscription_id, (tried and tried.error_kind) or "")
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [*_NOTHING]
        if tried is not None:
            counts[_ATTEMPTS] += 1
            counts[_DURATION_MS] += tried.duration_ms
            if claimed.attempt_count:
                counts[_RETRIES] += 1
        if dead:
            counts[_DEAD] += 1
            made = claimed.attempt_count + (tried is not None)  # it may die untried
            if made > 1:
                counts[_DEAD_RETRIED] += 1

    async def flush(self, driver: Any) -> None:
        """Adds what was counted to the table, in one statement. When that fails, nothing is lost from the tally.

        The minute is the database's at this moment, so flush several times a minute.
        """
        taken, self._counts = self._counts, {}
        if not taken:
            return
        rows = sorted(_with_organizations(taken).items())
        try:
            await driver.execute(
                _ADD,
                *([key[at] for key, _ in rows] for at in range(3)),
                *([counts[at] for _, counts in rows] for at in range(len(_NOTHING))),
            )
        except BaseException:  # a cancellation too
            for key, counts in taken.items():
                _add(self._counts, key, counts)
            raise


def _with_organizations(counted: dict[Key, list[int]]) -> dict[Key, list[int]]:
    rows = dict(counted)
    for (organization_id, _, kind), counts in counted.items():
        _add(rows, (organization_id, WHOLE, kind), counts)
    return rows


def _add(rows: dict[Key, list[int]], key: Key, counts: list[int]) -> None:
    rows[key] = [a + b for a, b in zip(rows.get(key, _NOTHING), counts, strict=True)]


# In the order of the keys, like every statement that touches many rows, so that no two workers wait crosswise.
_ADD = """
INSERT INTO delivery_stats AS kept (
    organization_id, subscription_id, minute, error_kind, attempts, retries, dead, dead_retried, duration_ms
)
SELECT organization_id, subscription_id, date_trunc('minute', now()), error_kind, attempts, retries, dead,
    dead_retried, duration_ms
FROM unnest(
    $1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[], $8::bigint[]
) AS given(organization_id, subscription_id, error_kind, attempts, retries, dead, dead_retried, duration_ms)
WHERE EXISTS (SELECT FROM organizations WHERE id = organization_id AND deleted_at IS NULL)
ORDER BY organization_id, subscription_id, error_kind
ON CONFLICT (organization_id, subscription_id, minute, error_kind) DO UPDATE
SET attempts = kept.attempts + excluded.attempts, retries = kept.retries + excluded.retries,
    dead = kept.dead + excluded.dead, dead_retried = kept.dead_retried + excluded.dead_retried,
    duration_ms = kept.duration_ms + excluded.duration_ms
"""
