"""Claims under a lease, and their ends.

Whoever claims a delivery gets a lease: a token and an end. Whatever finishes or reschedules it matches both the state
and the token, so a worker that lost its lease changes nothing (fencing). Times are the database's: a worker whose
clock is wrong signs with a wrong timestamp, but claims and schedules rightly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from core import audit, ids, partitions, replay_items
from core.deliveries.conditions import in_states
from core.models import ItemOutcome, SubscriptionStatus
from core.models_access import AuditEntry
from core.replay_items import ItemResult
from core.states import PARKING, DeadReason, DiscardReason, PendingReason, State


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery under this worker's lease, as it was at the claim."""

    id: UUID
    organization_id: UUID
    subscription_id: UUID
    event_id: UUID
    event_type: str
    series: int
    attempt_count: int  # attempts of this series that are already recorded
    replay_id: UUID | None
    subscription_version: int
    subscription_status: str
    timeout_ms: int  # the subscription's, by which the lease was measured
    token: UUID

    @property
    def waiting_reason(self) -> PendingReason:
        """What it waits for when it is handed back untried."""
        if self.attempt_count:
            return PendingReason.RETRY
        return PendingReason.REPLAY if self.series else PendingReason.NEW


@dataclass(frozen=True, slots=True)
class Tried:
    """One HTTP try, as it is stored."""

    id: UUID
    started_at: datetime
    duration_ms: int
    status_code: int | None
    error_kind: str | None
    error_message: str | None
    url: str
    request_headers: str
    response_headers: str | None
    response_body: bytes | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a claimed delivery goes next. `delay_s` counts from the moment of recording; None: never due again."""

    state: State
    reason: str | None = None
    delay_s: float | None = None
    disables: bool = False  # the receiver asked that its subscription be disabled


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of one claim: what was tried, if anything, and the verdict."""

    claimed: Claimed
    verdict: Verdict
    tried: Tried | None = None


# --- claiming ------------------------------------------------------------------------------------------------------


async def claim(driver: Any, delivery_ids: Sequence[UUID], *, margin_s: float, parked: bool = False) -> list[Claimed]:
    """Leases those of `delivery_ids` that are due: pending, or sending under a lease that has ended; or else those that
    are `parked`, which the caller found to have room.

    The lease lasts `margin_s` seconds beyond the subscription's timeout.
    """
    if not delivery_ids:
        return []
    token = uuid4()
    statement = _CLAIM_PARKED if parked else _CLAIM
    rows = await driver.fetch(statement, list(delivery_ids), min(delivery_ids), max(delivery_ids), token, margin_s)
    return [Claimed(**row, token=token) for row in rows]


# Locks in the order of the ids, like every statement that touches many, so that no two wait for each other crosswise.
# What another holds, it is claiming or changing. The bounds on the id let PostgreSQL leave out other days' partitions.
_CLAIM_WHERE = """
WITH due AS (
    SELECT id FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND {condition}
    ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE deliveries d
SET state = 'sending', reason = NULL, lease_token = $4, updated_at = now(),
    due_at = now() + make_interval(secs => s.timeout_ms / 1000.0 + $5::float8)
FROM due, subscriptions s
WHERE d.id = due.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3 AND s.id = d.subscription_id
RETURNING d.id, d.organization_id, d.subscription_id, d.event_id, d.event_type, d.series, d.attempt_count, d.replay_id,
    s.version AS subscription_version, s.status AS subscription_status, s.timeout_ms
"""
_WAITING_FOR_ROOM = ", ".join(f"'{reason}'" for reason in PARKING)
_CLAIM = _CLAIM_WHERE.format(
    condition=f"{in_states(State.PENDING, State.SENDING)} AND due_at <= now()"
    f" AND (reason IS NULL OR reason NOT IN ({_WAITING_FOR_ROOM}))"
)
_CLAIM_PARKED = _CLAIM_WHERE.format(condition=f"{in_states(State.PENDING)} AND reason IN ({_WAITING_FOR_ROOM})")


# --- ending a claim ------------------------------------------------------------------------------------------------


async def finish(driver: Any, finishes: Sequence[Finish]) -> list[bool]:
    """Records attempts and moves their deliveries on, all in one transaction.

    Returns for each whether its delivery moved. One that did not had lost its lease: its attempt is recorded all the
    same, for it was made, but everything else is now another's to decide. What is recorded twice, because the answer
    to the first time was lost, stands once.
    """
    try:
        return await _finish_all(driver, finishes)
    except asyncpg.CheckViolationError as error:
        if not partitions.is_missing(error):
            raise
        await partitions.ensure(driver, {ids.day_of(one.tried.id) for one in finishes if one.tried})
        return await _finish_all(driver, finishes)


def is_entangled(one: Finish) -> bool:
    """Whether recording it changes more than its delivery: a replay's counters, or the state of its subscription.

    Others may hold those rows for a while. Such outcomes are recorded apart, so that nobody else's wait for them.
    """
    return one.claimed.replay_id is not None or one.verdict.disables


ENTANGLED_LOCK_TIMEOUT_MS = 1_000


async def _finish_all(driver: Any, finishes: Sequence[Finish]) -> list[bool]:
    if not any(map(is_entangled, finishes)):  # a single statement is its own transaction: one round trip
        return await _finish(driver, finishes)
    async with driver.transaction():
        await driver.execute(f"SET LOCAL lock_timeout = '{ENTANGLED_LOCK_TIMEOUT_MS}ms'")
        moved = await _finish(driver, finishes)
        counting = [one for one, has in zip(finishes, moved, strict=True) if has]
        await replay_items.record(driver, [_item_result(one) for one in counting if _counts(one)])
        # Only what was sent under the subscription as it still is: one that was meanwhile given another URL, or
        # resumed by a person, is not disabled by the answer to an earlier attempt.
        told = [one.claimed for one in counting if one.verdict.disables]
        if told:
            disabled = await driver.fetch(
                _DISABLE, [one.subscription_id for one in told], [one.subscription_version for one in told]
            )
            await audit.store(driver, [_disabling(row) for row in disabled])
    return moved


async def _finish(driver: Any, finishes: Sequence[Finish]) -> list[bool]:
    claims = [one.claimed for one in finishes]
    verdicts = [one.verdict for one in finishes]
    tried = [(one.claimed, one.tried) for one in finishes if one.tried]
    delivery_ids = [claimed.id for claimed in claims]
    rows = await driver.fetch(
        _FINISH,
        delivery_ids,
        min(delivery_ids),
        max(delivery_ids),
        [claimed.token for claimed in claims],
        [str(verdict.state) for verdict in verdicts],
        [verdict.reason for verdict in verdicts],
        [verdict.delay_s for verdict in verdicts],
        [one.claimed.attempt_count + (one.tried is not None) for one in finishes],
        [one.tried and one.tried.status_code for one in finishes],
        [one.tried and one.tried.error_kind for one in finishes],
        [one.tried and one.tried.error_message for one in finishes],
        [one.id for _, one in tried],
        [claimed.id for claimed, _ in tried],
        [claimed.organization_id for claimed, _ in tried],
        [claimed.series for claimed, _ in tried],
        [claimed.attempt_count + 1 for claimed, _ in tried],
        [claimed.replay_id for claimed, _ in tried],
        [one.started_at for _, one in tried],
        [one.duration_ms for _, one in tried],
        [one.status_code for _, one in tried],
        [one.error_kind for _, one in tried],
        [one.error_message for _, one in tried],
        [one.url for _, one in tried],
        [one.request_headers for _, one in tried],
        [one.response_headers for _, one in tried],
        [one.response_body for _, one in tried],
    )
    # By id and token: a worker that stood still may hold two claims of one delivery in one batch.
    moved = {(row["id"], row["token"]) for row in rows}
    return [(claimed.id, claimed.token) in moved for claimed in claims]


def _disabling(row: Any) -> AuditEntry:
    after = {name: row[name] for name in ("status", "status_reason", "version")}
    return audit.entry(
        audit.WORKER,
        "subscription.disabled",
        ids.show(ids.SUBSCRIPTION, row["id"]),
        organization_id=row["organization_id"],
        before={"status": row["was"], "status_reason": None, "version": row["version"] - 1},
        after=after,
    )


def _counts(one: Finish) -> bool:
    """A delivery handed back untried has no outcome yet."""
    return one.claimed.replay_id is not None and (one.tried is not None or one.verdict.state is not State.PENDING)


def _item_result(one: Finish) -> ItemResult:
    outcome = {State.DELIVERED: ItemOutcome.SUCCEEDED, State.DISCARDED: ItemOutcome.SKIPPED}
    assert one.claimed.replay_id is not None  # nosec B101 # noqa: S101 - for the type checker; _counts has looked
    return ItemResult(one.claimed.replay_id, one.claimed.id, outcome.get(one.verdict.state, ItemOutcome.FAILED))


_FINISH = f"""
WITH verdict AS (
    SELECT * FROM unnest(
        $1::uuid[], $4::uuid[], $5::text[], $6::text[], $7::float8[], $8::smallint[],
        $9::smallint[], $10::text[], $11::text[]
    ) AS verdict(id, token, state, reason, delay_s, attempt_count, status_code, error_kind, error_message)
), locked AS (  -- in the order of the ids, as a claim does
    SELECT id FROM deliveries WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 ORDER BY id FOR UPDATE
), moved AS (
    UPDATE deliveries d
    SET state = verdict.state, reason = verdict.reason, due_at = now() + make_interval(secs => verdict.delay_s),
        lease_token = NULL, updated_at = now(), attempt_count = verdict.attempt_count,
        status_code = CASE WHEN verdict.attempt_count = d.attempt_count THEN d.status_code ELSE verdict.status_code END,
        error_kind = CASE WHEN verdict.attempt_count = d.attempt_count THEN d.error_kind ELSE verdict.error_kind END,
        error_message =
            CASE WHEN verdict.attempt_count = d.attempt_count THEN d.error_message ELSE verdict.error_message END
    FROM verdict, locked
    WHERE d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3 AND d.id = locked.id
      AND d.id = verdict.id AND d.{in_states(State.SENDING)} AND d.lease_token = verdict.token
    RETURNING d.id, verdict.token
), tried AS (
    INSERT INTO attempts (
        id, delivery_id, organization_id, series, number, replay_id, started_at, duration_ms, status_code, error_kind,
        error_message, url, request_headers, response_headers, response_body
    )
    SELECT * FROM unnest(
        $12::uuid[], $13::uuid[], $14::uuid[], $15::smallint[], $16::smallint[], $17::uuid[], $18::timestamptz[],
        $19::integer[], $20::smallint[], $21::text[], $22::text[], $23::text[], $24::text[], $25::text[], $26::bytea[]
    )
    ON CONFLICT (id) DO NOTHING
)
SELECT id, token FROM moved
"""

# Locks subscriptions, then organizations, each in the order of their ids: no two of these wait crosswise.
_DISABLE = """
WITH disabling AS (
    SELECT s.id, s.status FROM subscriptions s
    JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::integer[])) AS asked(id, version) USING (id, version)
    WHERE s.status IN ('active', 'paused')
    ORDER BY s.id FOR UPDATE OF s
), disabled AS (
    UPDATE subscriptions s
    SET status = 'disabled', status_reason = 'the receiver asked for it', version = version + 1, updated_at = now()
    FROM disabling WHERE s.id = disabling.id
    RETURNING s.id, s.organization_id, disabling.status AS was, s.status, s.status_reason, s.version
), raising AS (
    SELECT id FROM organizations WHERE id IN (SELECT organization_id FROM disabled) ORDER BY id FOR UPDATE
), raised AS (
    UPDATE organizations o SET subscriptions_version = subscriptions_version + 1 FROM raising WHERE o.id = raising.id
)
SELECT * FROM disabled
"""

STEERED_DELAY_S = 1.0  # by then whoever is changing the subscription has mostly finished


async def hold(driver: Any, claims: Sequence[Claimed]) -> None:
    """Puts claimed deliveries of a paused subscription aside until it is resumed.

    The share lock settles the race with a resume: it has to wait for us and then releases what we hold. Where it came
    first, we don't wait for it, since other subscriptions' deliveries may wait behind us: the deliveries stay
    pending, and come back in a moment.
    """
    async with driver.transaction():
        subscriptions = sorted({claimed.subscription_id for claimed in claims})
        paused = {row["id"] for row in await driver.fetch(_PAUSED, subscriptions)}
        await _finish(
            driver,
            [
                Finish(claimed, Verdict(State.PENDING, PendingReason.PAUSED))
                if claimed.subscription_id in paused
                else Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, STEERED_DELAY_S))
                for claimed in claims
            ],
        )


_PAUSED = "SELECT id FROM subscriptions WHERE id = ANY($1) AND status = 'paused' FOR SHARE SKIP LOCKED"


def verdict_without_sending(claimed: Claimed) -> Verdict | None:
    """Where a delivery goes whose subscription does not take deliveries; None when it does, or holds them."""
    match claimed.subscription_status:
        case SubscriptionStatus.DELETED:
            return Verdict(State.DISCARDED, DiscardReason.SUBSCRIPTION_DELETED)
        case SubscriptionStatus.DISABLED:
            return Verdict(State.DEAD, DeadReason.SUBSCRIPTION_DISABLED)
        case _:
            return None
