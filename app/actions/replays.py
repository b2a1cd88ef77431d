"""Jobs that send chosen deliveries again or discard them: look at one before it starts, start it, steer it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.caller import Caller
from core import replays
from core.limiting.breaker import BreakerSettings, BreakerState
from core.limiting.breakers import UNREACHABLE
from core.models import Replay, ReplayAction
from core.replay_preview import Group, Prepared, Preview

log = structlog.get_logger(__name__)

# operation of `core.replays.OPERATIONS` → what the audit log calls it
AUDITED = {"pause": "replay.paused", "resume": "replay.resumed", "cancel": "replay.cancelled"}


async def prepare(
    caller: Caller, organization_id: UUID, filters: Mapping[str, Any], rate_per_second: int, action: ReplayAction
) -> Prepared:
    """Changes nothing. Raises `ValidationFailed` as `core.replays.preview` does, and on a wrong rate."""
    replays.check_rate(rate_per_second)  # which else would promise too much
    frozen = replays.freeze(filters)
    async with caller.transaction() as session:
        preview = await replays.preview(session, organization_id, frozen, action)
    return Prepared(frozen, rate_per_second, preview, await _open(caller, preview))


async def _open(caller: Caller, preview: Preview) -> dict[UUID, int]:
    """Without Redis, which alone knows, none is."""
    if preview.details is None or not preview.details.targets:
        return {}
    try:
        breakers = await caller.services.breakers.all()
    except UNREACHABLE as error:
        log.warning("Redis does not answer; circuit breakers are not known", error=repr(error))
        return {}
    now_ms = time.time_ns() // 1_000_000
    found = {}
    for target in preview.details.targets:
        settings = BreakerSettings.of(target.circuit_breaker)
        breaker = breakers.get(target.subscription_id)
        if breaker is not None and breaker.state_at(settings, now_ms) is BreakerState.OPEN:
            found[target.subscription_id] = breaker.opens_until_ms(settings) or now_ms
    return found


async def create(
    caller: Caller,
    organization_id: UUID,
    filters: Mapping[str, Any],
    rate_per_second: int,
    action: ReplayAction,
    *,
    replay_id: UUID | None = None,
    expected: int | None = None,
) -> tuple[Replay, list[Group]]:
    """Starts a job, as `core.replays.create`. One that was started before under the same `replay_id` is given again,
    and no other: a form that was sent twice."""
    async with caller.transaction() as session:
        if replay_id is not None:
            earlier = await replays.reserve(session, organization_id, replay_id, created_by=caller.actor.id)
            if earlier is not None:
                return earlier, []
        replay, groups = await replays.create(
            session,
            organization_id,
            replays.freeze(filters),
            rate_per_second=rate_per_second,
            created_by=caller.actor.id,
            action=action,
            replay_id=replay_id,
            expected=expected,
        )
        shown = views.replay(replay)
        caller.audit(session, "replay.created", shown["id"], after=shown, organization_id=organization_id)
    return replay, groups


async def operate(caller: Caller, organization_id: UUID | None, replay_id: UUID, operation: str) -> Replay:
    """`organization_id`: None where it may be any's. Raises `NotFound`, or `Conflict` where its status forbids it."""
    async with caller.transaction() as session:
        locked = await replays.get(session, organization_id, replay_id, lock=True)
        before = views.replay(locked)
        replay = await replays.operate(session, locked.organization_id, replay_id, operation)
        _audit(caller, session, AUDITED[operation], before, replay)
    return replay


async def set_rate(caller: Caller, organization_id: UUID | None, replay_id: UUID, rate_per_second: int) -> Replay:
    """As `operate`. Raises `ValidationFailed`, `NotFound`, or `Conflict` where nothing is left to be done."""
    async with caller.transaction() as session:
        locked = await replays.get(session, organization_id, replay_id, lock=True)
        before = views.replay(locked)
        replay = await replays.set_rate(session, locked.organization_id, replay_id, rate_per_second)
        if replay.rate_per_second != before["rate_per_second"]:
            _audit(caller, session, "replay.updated", before, replay)
    return replay


def _audit(caller: Caller, session: AsyncSession, action: str, before: Mapping[str, Any], replay: Replay) -> None:
    after = views.replay(replay)
    of = replay.organization_id
    caller.audit(session, action, after["id"], before=before, after=after, organization_id=of)
