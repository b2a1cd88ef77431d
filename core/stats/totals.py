"""What happened over some time, as figures: of a subscription, an organization or the installation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.stats import durations
from core.stats.tally import WHOLE


@dataclass(frozen=True, slots=True)
class Figures:
    """One subscription, one organization or the installation, over some time. Shares are percentages; None where
    nothing happened."""

    attempts: int
    delivered: int  # attempts that succeeded, each of which ended its delivery
    delivered_retried: int  # of these, by a second or later attempt
    dead: int  # deliveries given up
    dead_retried: int  # of these, after more than one attempt
    delivered_ms: int  # what the successful attempts took, together
    delivered_at: datetime | None  # the minute of the last successful attempt
    failed_at: datetime | None  # and of the last failed one
    durations: Sequence[int] = ()  # the histogram of the successful attempts (core.stats.durations)
    accepted: int = 0  # events; of an organization or the installation

    @property
    def delivery_success_rate(self) -> float | None:
        """Of the deliveries that came to an end, how many were delivered."""
        return _percentage(self.delivered, self.delivered + self.dead)

    @property
    def retry_success_rate(self) -> float | None:
        """Of the deliveries that came to an end after more than one attempt, how many were delivered."""
        return _percentage(self.delivered_retried, self.delivered_retried + self.dead_retried)

    @property
    def attempt_success_rate(self) -> float | None:
        """Of the attempts, how many succeeded. Unlike deliveries, which may be retried for days, they tell at once."""
        return _percentage(self.delivered, self.attempts)

    @property
    def average_ms(self) -> int | None:
        """What a successful attempt took."""
        return round(self.delivered_ms / self.delivered) if self.delivered else None

    @property
    def failed(self) -> int:
        """Attempts that did not succeed."""
        return self.attempts - self.delivered

    def taken_ms(self, share: float) -> int | None:
        """What `share` of the successful attempts took at most: 0.5 for the median."""
        return durations.quantile(self.durations, share)


def _percentage(part: int, whole: int) -> float | None:
    """To one decimal, and 100 or 0 only where it is exactly that: 12 failures in a million are not none."""
    if not whole:
        return None
    if part in (0, whole):
        return 100.0 * part / whole
    return min(99.9, max(0.1, round(100 * part / whole, 1)))


async def figures(driver: Any, organization_id: UUID, subscription_id: UUID | None, since: datetime) -> Figures:
    """What happened in the minutes from `since` on. Reads one range of the primary key: at most as many rows as
    minutes times kinds of error, however many deliveries or subscriptions there were. Without `subscription_id` of the
    whole organization; of the whole installation where that is `INSTALLATION`."""
    row = dict(await driver.fetchrow(_FIGURES, organization_id, subscription_id or WHOLE, since))
    return Figures(**row | {"durations": tuple(durations.trimmed(row["durations"]))})


HISTOGRAM = f"ARRAY[{', '.join(f'coalesce(sum(durations[{n}]), 0)' for n in range(1, durations.BUCKETS + 1))}]"
_FIGURES = f"""
SELECT coalesce(sum(attempts), 0)::bigint AS attempts,
    coalesce(sum(attempts) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered,
    coalesce(sum(retries) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered_retried,
    coalesce(sum(dead), 0)::bigint AS dead,
    coalesce(sum(dead_retried), 0)::bigint AS dead_retried,
    coalesce(sum(duration_ms) FILTER (WHERE error_kind = ''), 0)::bigint AS delivered_ms,
    max(minute) FILTER (WHERE error_kind = '' AND attempts > 0) AS delivered_at,
    max(minute) FILTER (WHERE error_kind <> '') AS failed_at,
    {HISTOGRAM} AS durations,
    coalesce(sum(accepted), 0)::bigint AS accepted
FROM delivery_stats
WHERE organization_id = $1 AND subscription_id = $2 AND minute >= $3
"""
