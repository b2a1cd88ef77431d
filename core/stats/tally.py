"""What a process has seen happen, added to the statistics every few seconds.

Each outcome counts for its subscription, once more for its organization as a whole, whose rows have `WHOLE` for the
subscription, and once more for the whole installation, whose rows have `INSTALLATION` for the organization: ten
thousand subscriptions need not be added up to show one figure. Accepted events count for the last two.

The installation's rows say how many, how long and what kind of error, and nothing of anybody's. So they keep what an
organization added that is erased afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from core.deliveries import Finish
from core.states import State
from core.stats import durations

WHOLE: Final = UUID(int=0)  # instead of a subscription: the whole organization
INSTALLATION: Final = UUID(int=0)  # instead of an organization: all of them

# In the order of the table's columns; from `_DURATIONS` on the histogram.
_ATTEMPTS, _RETRIES, _DEAD, _DEAD_RETRIED, _DURATION_MS, _ACCEPTED, _DURATIONS = range(7)
_NOTHING: Final = (0,) * (_DURATIONS + durations.BUCKETS)

Key = tuple[UUID, UUID, str]  # organization, subscription, kind of error
Rows = dict[Key, list[int]]


class Tally:
    """One process's outcomes, or what it accepted, since the last flush."""

    def __init__(self) -> None:
        self._counts: Rows = {}
        self._accepted: dict[UUID, int] = defaultdict(int)

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
            if tried.error_kind is None:
                counts[_DURATIONS + durations.bucket_of(tried.duration_ms)] += 1
            if claimed.attempt_count:
                counts[_RETRIES] += 1
        if dead:
            counts[_DEAD] += 1
            made = claimed.attempt_count + (tried is not None)  # it may die untried
            if made > 1:
                counts[_DEAD_RETRIED] += 1

    @property
    def is_empty(self) -> bool:
        return not self._counts and not self._accepted

    def accept(self, events: Mapping[UUID, int]) -> None:
        """Counts events that were stored: how many by organization."""
        for organization_id, count in events.items():
            self._accepted[organization_id] += count

    async def flush(self, driver: Any) -> None:
        """Adds what was counted to the table, in one statement. When that fails, nothing is lost from the tally.

        The minute is the database's at this moment, so flush several times a minute.
        """
        if self.is_empty:
            return
        taken, self._counts = self._counts, {}
        accepted, self._accepted = self._accepted, defaultdict(int)
        rows = sorted(_with_wholes(taken, accepted).items())
        try:
            await driver.execute(
                _ADD,
                *([key[at] for key, _ in rows] for at in range(3)),
                *([counts[at] for _, counts in rows] for at in range(_DURATIONS)),
                [_histogram(counts[_DURATIONS:]) for _, counts in rows],
            )
        except BaseException:  # a cancellation too
            for key, counts in taken.items():
                _add(self._counts, key, counts)
            self.accept(accepted)
            raise


def _with_wholes(counted: Rows, accepted: Mapping[UUID, int]) -> Rows:
    """With rows of the organizations and of the installation."""
    of_organizations: Rows = {}
    for (organization_id, _, kind), counts in counted.items():
        _add(of_organizations, (organization_id, WHOLE, kind), counts)
    for organization_id, events in accepted.items():
        counts = [*_NOTHING]
        counts[_ACCEPTED] = events
        _add(of_organizations, (organization_id, WHOLE, ""), counts)
    of_installation: Rows = {}
    for (_, _, kind), counts in of_organizations.items():
        _add(of_installation, (INSTALLATION, WHOLE, kind), counts)
    return counted | of_organizations | of_installation


def _add(rows: Rows, key: Key, counts: list[int]) -> None:
    rows[key] = [a + b for a, b in zip(rows.get(key, _NOTHING), counts, strict=True)]


def _histogram(counts: list[int]) -> str | None:
    """As PostgreSQL reads an array; None where there is nothing in it, as in all rows of failures."""
    kept = durations.trimmed(counts)
    return f"{{{','.join(map(str, kept))}}}" if kept else None


# In one order everywhere, like every statement that touches many rows, so that no two processes wait crosswise. The
# installation's come last: all processes share them, and they are locked for the shortest time so.
_ADD = f"""
INSERT INTO delivery_stats AS kept (
    organization_id, subscription_id, minute, error_kind, attempts, retries, dead, dead_retried, duration_ms, accepted,
    durations
)
SELECT organization_id, subscription_id, date_trunc('minute', now()), error_kind, attempts, retries, dead,
    dead_retried, duration_ms, accepted, durations::integer[]
FROM unnest(
    $1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::integer[], $8::bigint[],
    $9::integer[], $10::text[]
) AS given(
    organization_id, subscription_id, error_kind, attempts, retries, dead, dead_retried, duration_ms, accepted,
    durations
)
WHERE organization_id = '{INSTALLATION}'
    OR EXISTS (SELECT FROM organizations WHERE id = organization_id AND deleted_at IS NULL)
ORDER BY organization_id = '{INSTALLATION}', organization_id, subscription_id, error_kind
ON CONFLICT (organization_id, subscription_id, minute, error_kind) DO UPDATE
SET attempts = kept.attempts + excluded.attempts, retries = kept.retries + excluded.retries,
    dead = kept.dead + excluded.dead, dead_retried = kept.dead_retried + excluded.dead_retried,
    duration_ms = kept.duration_ms + excluded.duration_ms, accepted = kept.accepted + excluded.accepted,
    durations = CASE
        WHEN kept.durations IS NULL THEN excluded.durations
        WHEN excluded.durations IS NULL THEN kept.durations
        ELSE ARRAY(
            SELECT coalesce(a, 0) + coalesce(b, 0)
            FROM unnest(kept.durations, excluded.durations) WITH ORDINALITY AS bucket(a, b, place) ORDER BY place
        )
    END
"""
