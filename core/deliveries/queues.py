"""What to claim next: what is due, and what waits until its subscription has room.

Two queues, each with an index that holds nothing else. **Due**: new deliveries whose hint was lost, retries and
replays whose time has come, claims whose worker died. **Parked**: due as well, but their subscription is slow, over its
limits or behind an open circuit breaker; a worker looks for them by subscription, and only where there is room. So
a million deliveries that can't be sent stand in nobody's way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

from core.deliveries.conditions import DUE, PARKED, RANK, in_states
from core.deliveries.leases import Claimed, claim
from core.states import PendingReason, State


class Due(NamedTuple):
    """A delivery that may be claimed. `rank`: 0 first attempts and lost claims, 1 retries, 2 replays."""

    id: UUID
    organization_id: UUID
    subscription_id: UUID
    rank: int


class Choice(Enum):
    CLAIM = "claim"
    LEAVE = "leave"


class Park(NamedTuple):
    """Wait for room, under this reason. `delay_s`: when there may be some, as people are shown it."""

    reason: PendingReason
    delay_s: float


Chooser = Callable[[Sequence[Due]], Awaitable[Sequence[Choice | Park]]]


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did. `more`: there may be more that is due; None: another worker is sweeping at this moment."""

    claims: list[Claimed]
    parked: list[Due]
    more: bool | None


async def sweep(
    driver: Any, look: int, choose: Chooser, *, margin_s: float, grace_s: float = 0.0, worker_id: UUID | None = None
) -> Swept:
    """Looks at up to `look` due first attempts, half as many retries and a quarter as many replays, the longest due
    first; claims or parks them as `choose` says. New ones are left to their hint for `grace_s` seconds.

    One worker sweeps at a time, so that two do not park or look at the same deliveries; what another process is
    claiming at this moment is passed over.
    """
    shares = shares_of(look)
    async with driver.transaction():
        await driver.execute(_IN_ORDER)
        if not await driver.fetchval(_TRY_LOCK):
            return Swept([], [], None)
        due = [Due._make(row) for row in await driver.fetch(_DUE, *shares, grace_s)]
        choices = list(zip(due, await choose(due), strict=True))
        parked = [(one, choice) for one, choice in choices if isinstance(choice, Park)]
        if parked:
            await _park(driver, parked)
        chosen = [one.id for one, choice in choices if choice is Choice.CLAIM]
        claims = await claim(driver, chosen, margin_s=margin_s, worker_id=worker_id)
        found = Counter(one.rank for one in due)
        full = any(found[rank] >= share for rank, share in enumerate(shares))
        more = bool(claims or parked) and (full or len(claims) + len(parked) < len(due))
        return Swept(claims, [one for one, _ in parked], more)


def shares_of(look: int) -> tuple[int, int, int]:
    """How many of each rank a sweep looks at."""
    return look, max(1, look // 2), max(1, look // 4)


_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('hookwright sweep', 0))"
# Statistics lag behind a backlog. From stale ones PostgreSQL would read all that is due and sort it, at each sweep;
# without sorting it reads the index in order and stops after `limit` rows.
# And whoever stands still in such a transaction, holding its locks, is cut off soon.
_IN_ORDER = "SET LOCAL enable_sort = off; SET LOCAL idle_in_transaction_session_timeout = '3s'"
_DUE = f"""
SELECT due.* FROM (VALUES (0, $1::int, $4::float8), (1, $2::int, 0), (2, $3::int, 0)) AS queue(rank, look, grace_s)
CROSS JOIN LATERAL (
    SELECT d.id, d.organization_id, d.subscription_id, queue.rank FROM deliveries d
    WHERE {DUE} AND {RANK} = queue.rank AND d.due_at <= now() - make_interval(secs => queue.grace_s)
    ORDER BY d.due_at LIMIT queue.look
    FOR UPDATE SKIP LOCKED
) due
"""


async def _park(driver: Any, parked: Sequence[tuple[Due, Park]]) -> None:
    delivery_ids = [one.id for one, _ in parked]
    await driver.execute(
        _PARK,
        delivery_ids,
        min(delivery_ids),
        max(delivery_ids),
        [park.reason for _, park in parked],
        [park.delay_s for _, park in parked],
    )


# A lost claim is parked as well: its worker changes nothing any more, for the token is gone.
_PARK = f"""
UPDATE deliveries d
SET state = 'pending', reason = park.reason, due_at = now() + make_interval(secs => park.delay_s), lease_token = NULL,
    updated_at = now()
FROM unnest($1::uuid[], $4::text[], $5::float8[]) AS park(id, reason, delay_s)
WHERE d.id = park.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3
  AND {in_states(State.PENDING, State.SENDING)}
"""


class ParkedRoom(NamedTuple):
    """`size` deliveries of what is parked for a subscription may be claimed, those of `first_rank` before others."""

    subscription_id: UUID
    size: int
    first_rank: int = 0


async def claim_parked(
    driver: Any, room: Sequence[ParkedRoom], *, margin_s: float, worker_id: UUID | None = None
) -> list[Claimed]:
    """Leases up to `size` of the deliveries parked for each subscription: first attempts before retries before replays,
    the oldest events first. Whoever asks again and again, for less than there is, lets another rank be first now and
    then, or it would wait for ever."""
    async with driver.transaction():
        await driver.execute(_IN_ORDER)
        found = []
        for statement, wanted in (
            (_PARKED, [(one, size) for one, size, rank in room if rank == 0]),
            (_PARKED_RANKED, [one for one in room if one.first_rank]),
        ):
            if wanted:
                found += await driver.fetch(statement, *(list(column) for column in zip(*wanted, strict=True)))
        return await claim(driver, [row["id"] for row in found], margin_s=margin_s, parked=True, worker_id=worker_id)


PARKED_RANK = "CASE WHEN attempt_count > 0 THEN 1 WHEN series > 0 THEN 2 ELSE 0 END"
_PARKED = f"""
SELECT parked.id FROM unnest($1::uuid[], $2::int[]) AS wanted(subscription_id, size)
CROSS JOIN LATERAL (
    SELECT d.id FROM deliveries d WHERE {PARKED} AND d.subscription_id = wanted.subscription_id
    ORDER BY {PARKED_RANK}, d.id LIMIT wanted.size
    FOR UPDATE SKIP LOCKED
) parked
"""
_PARKED_RANKED = f"""
SELECT parked.id FROM unnest($1::uuid[], $2::int[], $3::int[]) AS wanted(subscription_id, size, first_rank)
CROSS JOIN LATERAL (
    SELECT of_rank.id
    FROM unnest(
        CASE first_rank WHEN 1 THEN '{{1,2,0}}' ELSE '{{2,1,0}}' END::int[]
    ) AS turn(rank)
    CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries d
        WHERE {PARKED} AND d.subscription_id = wanted.subscription_id AND {PARKED_RANK} = turn.rank
        ORDER BY d.id LIMIT wanted.size
        FOR UPDATE SKIP LOCKED
    ) of_rank
    LIMIT wanted.size
) parked
"""


@dataclass(frozen=True, slots=True)
class ParkedFor:
    """A subscription that something is parked for, as it is now. `first`: whether first attempts are among it; looked
    up only where it has a limit a second, and true of all others."""

    id: UUID
    organization_id: UUID
    version: int
    status: str
    first: bool


async def parked_subscriptions(driver: Any, after: UUID, limit: int) -> list[ParkedFor]:
    """Up to `limit` subscriptions that something is parked for, in the order of their ids, from behind `after` on."""
    return [ParkedFor(**row) for row in await driver.fetch(_PARKED_SUBSCRIPTIONS, after, limit)]


# Leaps from one subscription to the next: it costs by the number of subscriptions, however much is parked for each.
_PARKED_SUBSCRIPTIONS = f"""
WITH RECURSIVE leap(id, number) AS (
    SELECT $1::uuid, 0
    UNION ALL
    SELECT (
        SELECT d.subscription_id FROM deliveries d
        WHERE {PARKED} AND d.subscription_id > leap.id ORDER BY d.subscription_id LIMIT 1
    ), number + 1
    FROM leap WHERE leap.id IS NOT NULL AND number < $2
)
SELECT s.id, s.organization_id, s.version, s.status, CASE WHEN s.limits->>'per_second' IS NULL THEN true ELSE EXISTS (
    SELECT FROM deliveries d WHERE {PARKED} AND d.subscription_id = s.id AND {PARKED_RANK} = 0
) END AS first
FROM leap JOIN subscriptions s USING (id)
WHERE number > 0 ORDER BY id
"""
