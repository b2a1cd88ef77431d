"""Replays: durable bulk jobs that send chosen deliveries again, or discard them, at a rate; they can be paused and
cancelled.

The selection is frozen when the replay is created: one row per delivery in `replay_items`. Workers advance every
running replay once a second (`tick`), each step one transaction, so a restart goes on where the last step ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Uuid, bindparam, func, insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import deliveries, ids
from core.errors import Conflict, NotFound, ValidationFailed
from core.hints import Hint
from core.listing import selection
from core.models import UNFINISHED, Delivery, Replay, ReplayAction, ReplayItem, ReplayStatus
from core.replay_preview import COUNT_TIMEOUT_MS, MAX_SELECTION, Group, in_time, preview, until
from core.storage.database import Database, driver_of, spares_others

__all__ = [
    "COUNT_TIMEOUT_MS",
    "MAX_SELECTION",
    "Group",
    "create",
    "freeze",
    "get",
    "operate",
    "preview",
    "replay_one",
    "set_rate",
    "tick",
    "until",
]

log = structlog.get_logger(__name__)

DEFAULT_RATE, MAX_RATE = 50, 10_000
# A worker that was away does not make up for it with a flood: a step sends at most what this time allows, or two
# intervals of ticks where those are longer.
MAX_STEP_S = 2.0

FORM_LIVES, CLOCKS_DIFFER = timedelta(days=1), timedelta(minutes=5)

# operation → (statuses that allow it, status afterwards)
OPERATIONS: Mapping[str, tuple[frozenset[ReplayStatus], ReplayStatus]] = {
    "pause": (frozenset({ReplayStatus.QUEUED, ReplayStatus.RUNNING}), ReplayStatus.PAUSED),
    "resume": (frozenset({ReplayStatus.PAUSED}), ReplayStatus.RUNNING),
    "cancel": (
        frozenset({ReplayStatus.QUEUED, ReplayStatus.RUNNING, ReplayStatus.PAUSED}),
        ReplayStatus.CANCELLED,
    ),
}


def freeze(filters: Mapping[str, Any]) -> dict[str, Any]:
    """`filters` with their defaults spelled out: dead letters, up to now. Posted again, they choose no newer ones."""
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    return {"status": "dead", "created_before": now, **filters}


class CountChanged(Conflict):
    """Another number of deliveries is chosen by now than was confirmed"""


async def create(
    session: AsyncSession,
    organization_id: UUID,
    filters: Mapping[str, Any],
    *,
    rate_per_second: int,
    created_by: str,
    action: ReplayAction = ReplayAction.REPLAY,
    replay_id: UUID | None = None,
    expected: int | None = None,
) -> tuple[Replay, list[Group]]:
    """Freezes the selection and queues the job. `replay_id`: what it is to be called, if that was decided before.

    Raises `ValidationFailed` on a wrong filter, too large a choice, or where choosing takes longer than
    `COUNT_TIMEOUT_MS`; `CountChanged` when there are not as many as `expected`.
    """
    check_rate(rate_per_second)
    conditions = selection.conditions(organization_id, filters)
    replay_id = replay_id or ids.new_id()
    with selection.turn_for(filters):
        async with in_time(session):
            await selection.plan_by_value(session)
            groups = await _freeze_items(session, replay_id, conditions)
    total = sum(group.count for group in groups)
    if total > MAX_SELECTION:
        raise ValidationFailed.of(
            "filters",
            f"They choose more than {MAX_SELECTION} deliveries; narrow them, by created_before perhaps, and replay in"
            " steps. A dry_run counts any number",
        )
    if expected not in (None, total):
        raise CountChanged(
            f"They were {expected} and are {total} by now; nothing was done",
            details={"expected": expected, "total": total},
        )
    replay = Replay(
        id=replay_id,
        organization_id=organization_id,
        action=action,
        filters=dict(filters),
        rate_per_second=rate_per_second,
        status=ReplayStatus.QUEUED,
        total=total,
        created_by=created_by,
    )
    if total == 0:
        replay.status, replay.finished_at = ReplayStatus.COMPLETED, datetime.now(UTC)
    session.add(replay)
    await session.flush()
    return replay, groups


async def reserve(session: AsyncSession, organization_id: UUID, replay_id: UUID, *, created_by: str) -> Replay | None:
    """For a job whose id was decided when its form was shown, so that sending the form twice makes one job. Returns
    the job if it is there already, and else holds up whoever else asks for it, until the transaction ends.

    Raises `Conflict` when the form is older than `FORM_LIVES`, or somebody else's.
    """
    driver = await driver_of(session)
    await driver.execute(_RESERVE, str(replay_id))
    replay = (await session.exec(select(Replay).where(Replay.id == replay_id))).one_or_none()
    if replay is not None:
        if (replay.organization_id, replay.created_by) != (organization_id, created_by):
            raise Conflict("This form was sent by somebody else already; nothing was done")
        return replay
    age = datetime.now(UTC) - ids.time_of(replay_id)
    if not -CLOCKS_DIFFER < age < FORM_LIVES:
        raise Conflict("This preview is a day old, so nothing was done. Look at a new one")
    return None


_RESERVE = "SELECT pg_advisory_xact_lock(hashtextextended('replay form ' || $1, 0))"


def check_rate(rate_per_second: int) -> None:
    """Raises `ValidationFailed`."""
    if not 1 <= rate_per_second <= MAX_RATE:
        raise ValidationFailed.of("rate_per_second", f"Must be from 1 to {MAX_RATE}")


async def _freeze_items(
    session: AsyncSession, replay_id: UUID, conditions: Sequence[selection.Condition]
) -> list[Group]:
    """Stores the items and counts them, in one statement and so at one moment. One too many is enough to know."""
    chosen = (
        select(col(Delivery.id), col(Delivery.subscription_id), col(Delivery.error_kind))
        .where(*conditions)
        .limit(MAX_SELECTION + 1)
        .cte("chosen")
    )
    items = select(bindparam("replay", replay_id, Uuid), chosen.c.id)
    stored = insert(ReplayItem).from_select(["replay_id", "delivery_id"], items).cte("stored")
    query = (
        select(chosen.c.subscription_id, chosen.c.error_kind, func.count())
        .group_by(chosen.c.subscription_id, chosen.c.error_kind)
        .order_by(func.count().desc())
        .add_cte(stored)
    )
    return [Group(*row) for row in (await session.exec(query)).all()]


async def replay_one(session: AsyncSession, organization_id: UUID, delivery_id: UUID, *, created_by: str) -> Replay:
    """Sends one delivery again at once. Raises `NotFound`, or `Conflict` when its state or subscription forbids it."""
    replay = Replay(
        id=ids.new_id(),
        organization_id=organization_id,
        filters={"ids": [ids.show(ids.DELIVERY, delivery_id)]},
        rate_per_second=1,
        status=ReplayStatus.RUNNING,
        total=1,
        created_by=created_by,
        started_at=datetime.now(UTC),
    )
    session.add(replay)
    session.add(ReplayItem(replay_id=replay.id, delivery_id=delivery_id))
    await session.flush()
    driver = await driver_of(session)
    owned = "SELECT 1 FROM deliveries WHERE id = $1 AND organization_id = $2"
    if not await driver.fetchval(owned, delivery_id, organization_id):
        raise await deliveries.refusal(driver, "replay", organization_id, delivery_id)
    if not await deliveries.replay(driver, [delivery_id], replay.id):
        raise await _why_not(driver, organization_id, delivery_id)
    await session.refresh(replay)
    return replay


async def _why_not(driver: Any, organization_id: UUID, delivery_id: UUID) -> NotFound | Conflict:
    row = await driver.fetchrow(
        "SELECT s.status, d.redacted_at FROM subscriptions s JOIN deliveries d ON d.subscription_id = s.id"
        " WHERE d.id = $1",
        delivery_id,
    )
    if row is not None and row["redacted_at"] is not None:
        return Conflict("Its event was redacted, so there is no payload left to send")
    status = row and row["status"]
    if status in {"active", "paused"}:
        return await deliveries.refusal(driver, "replay", organization_id, delivery_id)
    hint = "; resume it first" if status == "disabled" else ""
    return Conflict(f"Its subscription is {status}, so nothing can be sent to it{hint}")


async def get(session: AsyncSession, organization_id: UUID | None, replay_id: UUID, *, lock: bool = False) -> Replay:
    """Raises `NotFound` when there is none in this organization; None: in any."""
    query = select(Replay).where(Replay.id == replay_id)
    if organization_id is not None:
        query = query.where(Replay.organization_id == organization_id)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no replay {ids.show(ids.REPLAY, replay_id)}")
    return found


async def operate(session: AsyncSession, organization_id: UUID, replay_id: UUID, operation: str) -> Replay:
    """Applies `pause`, `resume` or `cancel`. What was sent stays sent. Raises `NotFound` or `Conflict`."""
    replay = await get(session, organization_id, replay_id, lock=True)
    allowed, after = OPERATIONS[operation]
    if replay.status not in allowed:
        raise Conflict(
            f"Can't {operation} a replay that is {replay.status}; it must be: {', '.join(sorted(allowed))}",
            details={"status": replay.status, "allowed": sorted(allowed)},
        )
    replay.status = after
    replay.paced_at = None  # the time it stood still is not made up for
    if after is ReplayStatus.CANCELLED:
        replay.finished_at = datetime.now(UTC)
    session.add(replay)
    return replay


async def set_rate(session: AsyncSession, organization_id: UUID, replay_id: UUID, rate_per_second: int) -> Replay:
    """What is left goes at this rate. Raises `ValidationFailed`, `NotFound`, or `Conflict` when nothing is left."""
    check_rate(rate_per_second)
    replay = await get(session, organization_id, replay_id, lock=True)
    if replay.status not in UNFINISHED:
        raise Conflict(
            f"A replay that is {replay.status} has no rate to change; it must be: {', '.join(sorted(UNFINISHED))}",
            details={"status": replay.status, "allowed": sorted(UNFINISHED)},
        )
    replay.rate_per_second = rate_per_second
    session.add(replay)
    return replay


# --- advancing -----------------------------------------------------------------------------------------------------


async def tick(database: Database, interval_s: float = 1.0) -> list[Hint]:
    """Takes every running replay one step further. Returns the deliveries that are now due. `interval_s`: the time
    between two calls.

    Workers share the work: a replay that another one is advancing is passed over. One that fails does not hold up
    the others.
    """
    async with database.driver() as driver:
        running = [row["id"] for row in await driver.fetch(_RUNNING)]
    due: list[Hint] = []
    for replay_id in running:
        try:
            async with database.driver() as driver, driver.transaction():
                sent = await _step(driver, replay_id, max(MAX_STEP_S, 2 * interval_s))
        except _Steered:
            continue
        except Exception as error:
            if not spares_others(error):
                raise
            log.exception("a replay could not be advanced; it is tried again", replay=ids.show(ids.REPLAY, replay_id))
            continue
        due += sent
    return due


class _Steered(Exception):
    """It was paused or cancelled while we advanced it: nothing of this step counts."""


async def _step(driver: Any, replay_id: UUID, max_s: float) -> list[Hint]:
    # An advisory lock keeps other workers off. The row itself is locked last, by the counters: see replay_items.
    if not await driver.fetchval(_TRY_LOCK, str(replay_id)):
        return []
    replay = await driver.fetchrow(_PACING, replay_id)  # a statement of its own: it sees the last step, which is over
    if replay is None:
        return []
    rate, elapsed_s = replay["rate_per_second"], min(replay["elapsed_s"], max_s)
    allowed = int(rate * elapsed_s)
    if allowed < 1:
        return []  # too soon: the time keeps counting from the last step
    chosen = [row["delivery_id"] for row in await driver.fetch(_WAITING, replay_id, allowed)]
    moved = await _act(driver, replay_id, replay["action"], chosen) if chosen else []
    is_open = await driver.fetchval(_OPEN, replay_id)
    if chosen or not is_open:
        left_s = elapsed_s - allowed / rate  # a fraction of a delivery's time, saved for the next step
        if await driver.fetchval(_PACE if is_open else _COMPLETE, replay_id, left_s) is None:
            raise _Steered
    return moved


async def _act(driver: Any, replay_id: UUID, action: str, chosen: Sequence[UUID]) -> list[Hint]:
    """Returns those that are now due."""
    match action:
        case ReplayAction.REPLAY:
            return await deliveries.replay(driver, chosen, replay_id)
        case ReplayAction.DISCARD:
            await deliveries.discard_many(driver, chosen, replay_id)
            return []
    raise ValueError(f"a replay of an unknown action: {action}")  # of a later release, which is being rolled out


# Those that have something waiting, or nothing open any more. The others wait for the outcomes of what they sent.
_RUNNING = """
SELECT id FROM replays
WHERE status IN ('queued', 'running') AND (sent + skipped < total OR succeeded + failed + skipped >= total)
ORDER BY id
"""
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(hashtextextended('replay ' || $1, 0))"
_PACING = """
SELECT action, rate_per_second,
    extract(epoch FROM now() - coalesce(paced_at, now() - interval '1 second'))::float8 AS elapsed_s
FROM replays WHERE id = $1 AND status IN ('queued', 'running')
"""
_WAITING = """
SELECT delivery_id FROM replay_items
WHERE replay_id = $1 AND outcome = 'waiting' ORDER BY delivery_id LIMIT $2
"""
_OPEN = "SELECT EXISTS (SELECT FROM replay_items WHERE replay_id = $1 AND outcome IN ('waiting', 'sent'))"
_PACE = """
UPDATE replays
SET status = 'running', started_at = coalesce(started_at, now()), paced_at = now() - make_interval(secs => $2)
WHERE id = $1 AND status IN ('queued', 'running')
RETURNING id
"""
_COMPLETE = """
UPDATE replays
SET status = 'completed', started_at = coalesce(started_at, now()), paced_at = now() - make_interval(secs => $2),
    finished_at = now()
WHERE id = $1 AND status IN ('queued', 'running')
RETURNING id
"""
