"""Which subscriptions are not well, and what is known of each.

All are not judged one by one: the statistics say which had failures within the hour, and the circuit breakers whom they
still count failures of. Whoever is in neither is healthy. What is asked further is asked of the few that are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from core import health, ids, stats
from core.failures import UNREACHED
from core.health import HEALTHY_PERCENT, Health
from core.limiting.breaker import Breaker, BreakerSettings
from core.models import OFF_PATH, SubscriptionStatus
from core.stats import Figures, Waiting

HOUR: Final = timedelta(hours=1)
LOOK_BACK: Final = timedelta(days=7)  # for when it began
MOST_SHOWN: Final = 10
# The worst first.
ORDER: Final[tuple[Health, ...]] = (Health.FAILING, Health.DEGRADED, Health.DISABLED, Health.PAUSED)


@dataclass(frozen=True, slots=True)
class Unwell:
    """A subscription that is not healthy."""

    id: UUID
    organization_id: UUID
    organization: str  # its name
    url: str
    health: Health
    status_reason: str | None  # of one that the receiver disabled
    # Failing or degraded: the minute of the first failure after the last one that it delivered in, none where it still
    # delivers now and then; else when it was stopped.
    since: datetime | None
    delivered_at: datetime | None  # the minute of the last successful attempt, within `LOOK_BACK`
    failed: int  # attempts within the hour
    attempts: int
    # Of the latest event whose delivery failed last time.
    failed_delivery_id: UUID | None
    error_kind: str | None
    status_code: int | None
    error_message: str | None
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Judged:
    """All subscriptions by health, and the worst of those that are not healthy."""

    counts: Mapping[Health, int]
    unwell: Sequence[Unwell]  # `MOST_SHOWN` at most

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def not_shown(self) -> int:
        return self.total - self.counts[Health.HEALTHY] - len(self.unwell)


async def judge(
    driver: Any, breakers: Mapping[UUID, Breaker] | None, now: datetime, organization_id: UUID | None = None
) -> Judged:
    """All subscriptions, or an organization's. `breakers` is None where they are not known, for Redis is away."""
    by_status = await driver.fetch(_BY_STATUS, organization_id)
    counts = Counter({row["status"]: row["count"] for row in by_status})
    candidates = await driver.fetch(
        _CANDIDATES, organization_id, now - HOUR, HEALTHY_PERCENT + 0.1, list(breakers or ())
    )
    now_ms = round(now.timestamp() * 1000)
    worst = sorted(
        (
            (ORDER.index(state), -row["failed"], row["id"], row["organization_id"], state)
            for row in candidates
            if (state := _state(row, breakers, now_ms)) is not Health.HEALTHY
        ),
    )
    found = Counter(state for *_, state in worst)
    by_health = {
        Health.HEALTHY: counts[SubscriptionStatus.ACTIVE] - found.total(),
        Health.DEGRADED: found[Health.DEGRADED],
        Health.FAILING: found[Health.FAILING],
        Health.PAUSED: counts[SubscriptionStatus.PAUSED],
        Health.DISABLED: counts[SubscriptionStatus.DISABLED],
    }
    shown: list[tuple[UUID, UUID, Health]] = [(one, whose, state) for _, _, one, whose, state in worst[:MOST_SHOWN]]
    if len(shown) < MOST_SHOWN and counts[SubscriptionStatus.PAUSED] + counts[SubscriptionStatus.DISABLED]:
        stopped = await driver.fetch(_STOPPED, organization_id, MOST_SHOWN - len(shown))
        shown += [(row["id"], row["organization_id"], Health(row["status"])) for row in stopped]
    return Judged(by_health, await _details(driver, shown, now))


def _state(row: Any, breakers: Mapping[UUID, Breaker] | None, now_ms: int) -> Health:
    hour = Figures(row["failed"] + row["delivered"], row["delivered"], 0, 0, 0, 0, None, None)
    breaker = None if breakers is None else breakers.get(row["id"], Breaker())
    return health.judge(SubscriptionStatus.ACTIVE, breaker, BreakerSettings.of(row["circuit_breaker"]), hour, now_ms)


async def _details(driver: Any, shown: Sequence[tuple[UUID, UUID, Health]], now: datetime) -> list[Unwell]:
    if not shown:
        return []
    asked = [one for one, _, _ in shown], [whose for _, whose, _ in shown], now - LOOK_BACK, now - HOUR
    stopped = [ids.show(ids.SUBSCRIPTION, one) for one, _, state in shown if state in (Health.PAUSED, Health.DISABLED)]
    rows = {row["id"]: row for row in await driver.fetch(_DETAILS, *asked)}
    stopped_at = {row["resource"]: ids.time_of(row["id"]) for row in await driver.fetch(_STOPPED_AT, stopped)}
    waiting = await stats.waiting(driver, [(whose, one) for one, whose, _ in shown])
    found = []
    for one, _, state in shown:
        row = rows.get(one)
        if row is None:
            continue  # its organization was erased meanwhile
        fails = state in (Health.FAILING, Health.DEGRADED)
        found.append(
            Unwell(
                id=one,
                organization_id=row["organization_id"],
                organization=row["organization"],
                url=row["url"],
                health=state,
                status_reason=row["status_reason"],
                since=row["since"] if fails else stopped_at.get(ids.show(ids.SUBSCRIPTION, one)),
                delivered_at=row["delivered_at"],
                failed=row["failed"],
                attempts=row["attempts"],
                failed_delivery_id=row["failed_delivery_id"],
                error_kind=row["error_kind"],
                status_code=row["status_code"],
                error_message=row["error_message"],
                waiting=waiting[one],
            )
        )
    return found


_BY_STATUS = """
SELECT status, count(*) FROM subscriptions
WHERE status <> 'deleted' AND ($1::uuid IS NULL OR organization_id = $1)
GROUP BY status
"""
# For each subscription a range of the primary key, and of that only what failed; what it delivered is asked of those
# alone that failed at all. It costs by the number of subscriptions, however much each of them is sent. The breakers are
# joined, for in an outage they are as many.
_CANDIDATES = """
SELECT s.id, s.organization_id, s.circuit_breaker, failing.attempts AS failed, fine.attempts AS delivered
FROM subscriptions s
LEFT JOIN unnest($4::uuid[]) AS breaker(id) ON breaker.id = s.id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(attempts), 0)::bigint AS attempts FROM delivery_stats kept
    WHERE kept.organization_id = s.organization_id AND kept.subscription_id = s.id AND minute >= $2
        AND error_kind > ''
) AS failing
CROSS JOIN LATERAL (
    SELECT coalesce(sum(attempts), 0)::bigint AS attempts FROM delivery_stats kept
    WHERE kept.organization_id = s.organization_id AND kept.subscription_id = s.id AND minute >= $2
        AND error_kind = '' AND (failing.attempts > 0 OR breaker.id IS NOT NULL)
) AS fine
WHERE s.status = 'active' AND ($1::uuid IS NULL OR s.organization_id = $1)
    AND (
        breaker.id IS NOT NULL
        OR failing.attempts > 0 AND 100.0 * fine.attempts < $3::float8 * (failing.attempts + fine.attempts)
    )
"""
_STOPPED = """
SELECT id, organization_id, status FROM subscriptions
WHERE status IN ('disabled', 'paused') AND ($1::uuid IS NULL OR organization_id = $1)
ORDER BY status, updated_at DESC, id LIMIT $2
"""
_STOPPED_AT = """
SELECT asked.resource, latest.id FROM unnest($1::text[]) AS asked(resource)
CROSS JOIN LATERAL (
    SELECT id FROM audit_log
    WHERE resource = asked.resource AND action IN ('subscription.paused', 'subscription.disabled')
    ORDER BY id DESC LIMIT 1
) AS latest
"""
_DETAILS = f"""
SELECT s.id, s.organization_id, s.url, s.status_reason, o.name AS organization, delivered.at AS delivered_at,
    since.at AS since, hour.*, latest.*
FROM unnest($1::uuid[], $2::uuid[]) AS asked(id, organization_id)
JOIN subscriptions s ON s.id = asked.id
JOIN organizations o ON o.id = s.organization_id
CROSS JOIN LATERAL (
    SELECT max(minute) AS at FROM delivery_stats kept
    WHERE kept.organization_id = s.organization_id AND kept.subscription_id = s.id AND minute >= $3
        AND error_kind = '' AND attempts > 0
) AS delivered
CROSS JOIN LATERAL (
    SELECT min(minute) AS at FROM delivery_stats kept
    WHERE kept.organization_id = s.organization_id AND kept.subscription_id = s.id
        AND minute >= $3 AND (delivered.at IS NULL OR minute > delivered.at) AND error_kind > ''
) AS since
CROSS JOIN LATERAL (
    SELECT coalesce(sum(attempts), 0)::bigint AS attempts,
        coalesce(sum(attempts) FILTER (WHERE error_kind <> ''), 0)::bigint AS failed
    FROM delivery_stats kept
    WHERE kept.organization_id = s.organization_id AND kept.subscription_id = s.id AND minute >= $4
) AS hour
LEFT JOIN LATERAL (
    SELECT id AS failed_delivery_id, error_kind, status_code, error_message FROM deliveries d
    WHERE d.organization_id = s.organization_id AND d.subscription_id = s.id AND ({OFF_PATH})
        AND error_kind IS NOT NULL
    ORDER BY d.id DESC LIMIT 1
) AS latest ON true
"""


# --- is it us? -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reach:
    """How many subscriptions were tried within the last minutes, and how many of these were hardly ever reached."""

    tried: int
    unreached: int

    @property
    def is_ours(self) -> bool:
        """Whether so many fail at once, in a way that tells nothing of the receivers, that it is our network."""
        return self.unreached >= UNREACHED_LEAST and 2 * self.unreached > self.tried


UNREACHED_LEAST: Final = 3
REACH_SPAN: Final = timedelta(minutes=5)


async def reach(driver: Any, now: datetime) -> Reach:
    """Of all organizations, over `REACH_SPAN`."""
    row = await driver.fetchrow(_REACH, now - REACH_SPAN, list(UNREACHED), stats.WHOLE)
    return Reach(row["tried"], row["unreached"])


_REACH = """
SELECT count(*) AS tried, count(*) FILTER (WHERE 2 * unreached > attempts) AS unreached
FROM (
    SELECT sum(attempts) AS attempts, sum(attempts) FILTER (WHERE error_kind = ANY($2::text[])) AS unreached
    FROM delivery_stats WHERE minute >= $1 AND subscription_id <> $3 GROUP BY subscription_id
) AS subscription
WHERE attempts > 0
"""
