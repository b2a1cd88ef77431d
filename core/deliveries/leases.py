"""Claims under a lease, and their ends.

Whoever claims a delivery gets a lease: a token and an end. Whatever finishes or reschedules it matches both the state
and the token, so a worker that lost its lease changes nothing (fencing). Times are the database's: a worker whose
clock is wrong signs with a wrong timestamp, but claims and schedules rightly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg

from core import audit, ids, replay_items
from core.access.models import AuditEntry
from core.deliveries.conditions import DUE, RANK, in_states
from core.models import ItemOutcome, SubscriptionStatus
from core.replay_items import ItemResult
from core.states import PARKING, STATE_OF, DeadReason, DiscardReason, PendingReason, State
from core.storage import partitions

# Tuples, as in `core.events`: these are made for every delivery.


class Claimed(NamedTuple):
    """A delivery under this worker's lease, as it was at the claim: the columns that a claim returns."""

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
    due_for_s: float = 0.0  # how long it had been due

    @property
    def waiting_reason(self) -> PendingReason:
        """What it waits for when it is handed back untried."""
        if self.attempt_count:
            return PendingReason.RETRY
        return PendingReason.REPLAY if self.series else PendingReason.NEW


class Tried(NamedTuple):
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


_UNTRIED = (None,) * len(Tried._fields)


class Verdict(NamedTuple):
    """Where a claimed delivery goes next. `delay_s` counts from the moment of recording; None: never due again."""

    state: State
    reason: str | None = None
    delay_s: float | None = None
    disables: bool = False  # the receiver asked that its subscription be disabled


class Finish(NamedTuple):
    """The end of one claim: what was tried, if anything, and the verdict."""

    claimed: Claimed
    verdict: Verdict
    tried: Tried | None = None


# --- claiming ------------------------------------------------------------------------------------------------------


async def claim(
    driver: Any, delivery_ids: Sequence[UUID], *, margin_s: float, parked: bool = False, worker_id: UUID | None = None
) -> list[Claimed]:
    """Leases those of `delivery_ids` that are due: pending, or sending under a lease that has ended; or else those that
    are `parked`, which the caller found to have room.

    The lease lasts `margin_s` seconds beyond the subscription's timeout. Its token says whose it is (`under_lease`).
    """
    if not delivery_ids:
        return []
    token = uuid4()
    if worker_id is not None:
        token = UUID(bytes=worker_id.bytes[:_WORKER_BYTES] + token.bytes[_WORKER_BYTES:])
    statement = _CLAIM_PARKED if parked else _CLAIM
    rows = await driver.fetch(statement, list(delivery_ids), min(delivery_ids), max(delivery_ids), token, margin_s)
    return [Claimed._make(row) for row in rows]


async def under_lease(driver: Any, claimed_before: datetime, worker_ids: Iterable[UUID]) -> dict[UUID, dict[UUID, int]]:
    """How many of each subscription's deliveries are under leases that each of these workers took before that moment
    and that have not ended: by subscription, then by worker."""
    names = {one.hex[: 2 * _WORKER_BYTES]: one for one in worker_ids}
    found: dict[UUID, dict[UUID, int]] = {}
    for row in await driver.fetch(_UNDER_LEASE, claimed_before, list(names)):
        found.setdefault(row["subscription_id"], {})[names[row["worker"]]] = row["count"]
    return found


_WORKER_BYTES = 4  # of a worker's id, at the beginning of its tokens
# As the index of what is due has them: a lease has no reason, and its rank is that of first attempts.
_UNDER_LEASE = f"""
SELECT subscription_id, left(lease_token::text, {2 * _WORKER_BYTES}) AS worker, count(*) FROM deliveries
WHERE {DUE} AND {RANK} = 0 AND due_at > now() AND state = 'sending' AND updated_at < $1
  AND left(lease_token::text, {2 * _WORKER_BYTES}) = ANY($2::text[])
GROUP BY 1, 2
"""


# Locks in the order of the ids, like every statement that touches many, so that no two wait for each other crosswise.
# What another holds, it is claiming or changing. The bounds on the id let PostgreSQL leave out other days' partitions.
_CLAIM_WHERE = """
WITH due AS (
    SELECT id, due_at FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND {condition}
    ORDER BY id FOR UPDATE SKIP LOCKED
)
UPDATE deliveries d
SET state = 'sending', reason = NULL, lease_token = $4, updated_at = now(),
    due_at = now() + make_interval(secs => s.timeout_ms / 1000.0 + $5::float8)
FROM due, subscriptions s
WHERE d.id = due.id AND d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3 AND s.id = d.subscription_id
RETURNING d.id, d.organization_id, d.subscription_id, d.event_id, d.event_type, d.series, d.attempt_count, d.replay_id,
    s.version AS subscription_version, s.status AS subscription_status, s.timeout_ms, d.lease_token AS token,
    extract(epoch FROM now() - due.due_at)::float8 AS due_for_s
"""
_WAITING_FOR_ROOM = ", ".join(f"'{reason}'" for reason in PARKING)
_CLAIM = _CLAIM_WHERE.format(
    condition=f"{in_states(State.PENDING, State.SENDING)} AND due_at <= now()"
    f" AND (reason IS NULL OR reason NOT IN ({_WAITING_FOR_ROOM}))"
)
_CLAIM_PARKED = _CLAIM_WHERE.format(condition=f"{in_states(State.PENDING)} AND reason IN ({_WAITING_FOR_ROOM})")


# --- ending a claim ------------------------------------------------------------------------------------------------


async def finish(driver: Any, finishes: Sequence[Finish], *, wait: bool = True) -> list[bool | None]:
    """Records attempts and moves their deliveries on, all in one transaction.

    Returns for each whether its delivery moved; without `wait`, None where another transaction holds the delivery, and
    then nothing is recorded for it. One that did not had lost its lease: its attempt is recorded all the
    same, for it was made, but everything else is now another's to decide. What is recorded twice, because the answer
    to the first time was lost, stands once.
    """
    try:
        return await _finish_all(driver, finishes, wait)
    except asyncpg.CheckViolationError as error:
        if not partitions.is_missing(error):
            raise
        await partitions.ensure(driver, {ids.day_of(one.tried.id) for one in finishes if one.tried})
        return await _finish_all(driver, finishes, wait)


def is_entangled(one: Finish) -> bool:
    """Whether recording it changes more than its delivery: a replay's counters, or the state of its subscription.

    Others may hold those rows for a while. Such outcomes are recorded apart, so that nobody else's wait for them.
    """
    return one.claimed.replay_id is not None or one.verdict.disables


ENTANGLED_LOCK_TIMEOUT_MS = 1_000


async def _finish_all(driver: Any, finishes: Sequence[Finish], wait: bool) -> list[bool | None]:
    if not any(map(is_entangled, finishes)):  # a single statement is its own transaction: one round trip
        return _have_moved(finishes, *await _finish(driver, finishes, wait))
    async with driver.transaction():
        await driver.execute(f"SET LOCAL lock_timeout = '{ENTANGLED_LOCK_TIMEOUT_MS}ms'")
        states, held = await _finish(driver, finishes, wait)
        await replay_items.record(driver, _item_results(finishes, states))
        # Only what was sent under the subscription as it still is: one that was meanwhile given another URL, or
        # resumed by a person, is not disabled by the answer to an earlier attempt.
        told = [one.claimed for one, state in zip(finishes, states, strict=True) if state and one.verdict.disables]
        if told:
            disabled = await driver.fetch(
                _DISABLE, [one.subscription_id for one in told], [one.subscription_version for one in told]
            )
            await audit.store(driver, [_disabling(row) for row in disabled])
    return _have_moved(finishes, states, held)


def _have_moved(finishes: Sequence[Finish], states: Sequence[State | None], held: set[UUID]) -> list[bool | None]:
    return [None if one.claimed.id in held else state is not None for one, state in zip(finishes, states, strict=True)]


async def _finish(driver: Any, finishes: Sequence[Finish], wait: bool) -> tuple[list[State | None], set[UUID]]:
    """Returns where each delivery is now, None where the lease was lost; and those that others hold."""
    delivery_ids = [one.claimed.id for one in finishes]
    rows = await driver.fetch(
        _FINISH if wait else _FINISH_WITHOUT_WAITING,
        delivery_ids,
        min(delivery_ids),
        max(delivery_ids),
        [_row(one) for one in finishes],
    )
    # By id and token: a worker that stood still may hold two claims of one delivery in one batch.
    moved = {(row["id"], row["token"]): STATE_OF[row["state"]] for row in rows if row["state"]}
    held = set(delivery_ids) - {row["id"] for row in rows}
    if held:  # or gone, with their organization or their day
        held = (
            {row["id"] for row in await driver.fetch(_THERE, list(held), min(held), max(held))} if not wait else set()
        )
    return [moved.get((one.claimed.id, one.claimed.token)) for one in finishes], held


def _row(one: Finish) -> tuple[Any, ...]:
    """As the type `finished_claim` has it."""
    claimed, verdict, tried = one
    return (
        claimed.id,
        claimed.token,
        claimed.series,
        claimed.replay_id,
        claimed.attempt_count + (tried is not None),
        verdict.state,
        verdict.reason,
        verdict.delay_s,
        *(tried or _UNTRIED),
    )


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


def _item_results(finishes: Sequence[Finish], states: Sequence[State | None]) -> list[ItemResult]:
    """What came of those that a replay sent. One that was handed back untried has no outcome yet."""
    results = []
    for one, state in zip(finishes, states, strict=True):
        if one.claimed.replay_id is None or state is None or (one.tried is None and state is State.PENDING):
            continue
        # By the verdict: an attempt that failed has failed, though the delivery was discarded for its event's sake.
        outcome = _OUTCOMES.get(one.verdict.state if one.tried else state, ItemOutcome.FAILED)
        results.append(ItemResult(one.claimed.replay_id, one.claimed.id, outcome))
    return results


_OUTCOMES = {State.DELIVERED: ItemOutcome.SUCCEEDED, State.DISCARDED: ItemOutcome.SKIPPED}


# What is given meets what is locked first, and the two together their deliveries: PostgreSQL hashes a join of two. Of
# three it takes two for a single row and walks through the third for each, a third of the time for 100 deliveries.
# Rows instead of arrays, since asyncpg asks of each element of an array whether it is one: 4 µs a row instead of 7.
_FINISH = f"""
WITH locked AS (  -- in the order of the ids, as a claim does; whoever redacts an event is waited for, and then seen
    SELECT id, organization_id, redacted_at IS NOT NULL AS redacted FROM deliveries
    WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 ORDER BY id FOR UPDATE
), given AS MATERIALIZED (
    SELECT given.*, locked.organization_id, locked.redacted
    FROM unnest($4::finished_claim[]) AS given JOIN locked USING (id)
), moved AS (
    UPDATE deliveries d
    SET state = CASE WHEN given.redacted AND given.state = 'pending' THEN 'discarded' ELSE given.state END,
        reason = CASE WHEN given.redacted AND given.state = 'pending' THEN 'event_redacted' ELSE given.reason END,
        due_at = CASE WHEN NOT given.redacted OR given.state <> 'pending'
            THEN now() + make_interval(secs => given.delay_s) END,
        lease_token = NULL, updated_at = now(), attempt_count = given.attempt_count,
        status_code = CASE WHEN given.attempt_id IS NULL THEN d.status_code ELSE given.status_code END,
        error_kind = CASE WHEN given.attempt_id IS NULL THEN d.error_kind ELSE given.error_kind END,
        error_message = CASE WHEN given.attempt_id IS NULL THEN d.error_message ELSE given.error_message END
    FROM given
    WHERE d.id = ANY($1::uuid[]) AND d.id BETWEEN $2 AND $3 AND d.id = given.id
      AND d.{in_states(State.SENDING)} AND d.lease_token = given.token
    RETURNING d.id, given.token, d.state
), tried AS (  -- none of a delivery that is no more: its organization was erased
    INSERT INTO attempts (
        id, delivery_id, organization_id, series, number, replay_id, started_at, duration_ms, status_code, error_kind,
        error_message, url, request_headers, response_headers, response_body
    )
    SELECT attempt_id, id, organization_id, series, attempt_count, replay_id, started_at, duration_ms, status_code,
        error_kind, error_message, url, request_headers, CASE WHEN NOT redacted THEN response_headers END,
        CASE WHEN NOT redacted THEN response_body END
    FROM given WHERE attempt_id IS NOT NULL
    ON CONFLICT (id) DO NOTHING
)
SELECT id, token, state FROM moved
UNION ALL
SELECT id, NULL, NULL FROM locked WHERE id NOT IN (SELECT id FROM moved)
"""
# One delivery that somebody holds for long keeps nobody else's outcome waiting.
_FINISH_WITHOUT_WAITING = _FINISH.replace("ORDER BY id FOR UPDATE", "ORDER BY id FOR UPDATE SKIP LOCKED")
_THERE = "SELECT id FROM deliveries WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3"

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
        finishes = [
            Finish(claimed, Verdict(State.PENDING, PendingReason.PAUSED))
            if claimed.subscription_id in paused
            else Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, STEERED_DELAY_S))
            for claimed in claims
        ]
        await replay_items.record(driver, _item_results(finishes, (await _finish(driver, finishes, wait=True))[0]))


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
