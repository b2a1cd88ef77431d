"""A subscription's circuit breaker: look at it, reset it, and refuse what makes no sense while it is open."""

from __future__ import annotations

import math
import time
from uuid import UUID

import structlog

from app.caller import Caller
from core import ids, subscriptions
from core.errors import CircuitBreakerOpen, Unavailable
from core.limiting import breaker_changes
from core.limiting.breaker import Breaker, BreakerSettings, BreakerState
from core.limiting.breaker_changes import Change
from core.limiting.breakers import UNREACHABLE
from core.models import Subscription
from core.storage.database import driver_of

log = structlog.get_logger(__name__)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def get(caller: Caller, subscription: Subscription) -> Breaker:
    """Raises `Unavailable` when Redis does not answer."""
    try:
        return await caller.services.breakers.get(subscription.id)
    except UNREACHABLE as error:
        raise _away() from error


async def known(caller: Caller, subscription: Subscription) -> Breaker | None:
    """The breaker; None when Redis does not answer."""
    try:
        return await caller.services.breakers.get(subscription.id)
    except UNREACHABLE as error:
        log.warning("Redis does not answer; a circuit breaker is not known", error=repr(error))
        return None


async def reset(
    caller: Caller, organization_id: UUID, subscription_id: UUID, moment_ms: int
) -> tuple[Subscription, Breaker]:
    """To HALF_OPEN, from whatever it is. Raises `NotFound`, and `Unavailable` when Redis does not answer."""
    async with caller.transaction() as session:
        subscription = await subscriptions.get(session, organization_id, subscription_id)
        # The entry first, and Redis last before the commit: if Redis fails, neither is there.
        caller.audit(
            session,
            "circuit_breaker.reset",
            ids.show(ids.SUBSCRIPTION, subscription.id),
            after={"state": BreakerState.HALF_OPEN},
            organization_id=organization_id,
        )
        await session.flush()
        before = await get(caller, subscription)
        if before.state is not BreakerState.HALF_OPEN:
            change = Change(ids.new_id(), subscription.id, BreakerState.HALF_OPEN, before.failures)
            await breaker_changes.store(await driver_of(session), [change])
        try:
            breaker = await caller.services.breakers.reset(subscription.id, moment_ms)
        except UNREACHABLE as error:
            raise _away() from error
    return subscription, breaker


def _away() -> Unavailable:
    return Unavailable("Redis does not answer, and the state of circuit breakers is kept there; try again")


async def refuse_open(caller: Caller, subscription: Subscription) -> None:
    """Raises `CircuitBreakerOpen` while nothing would be sent. Not when Redis is away: what may be sent, is tried."""
    breaker = await known(caller, subscription)
    settings = BreakerSettings.of(subscription.circuit_breaker)
    moment = now_ms()
    if breaker is None or breaker.state_at(settings, moment) is not BreakerState.OPEN:
        return
    until_ms = breaker.opens_until_ms(settings) or moment
    shown = ids.show(ids.SUBSCRIPTION, subscription.id)
    raise CircuitBreakerOpen(
        "The receiver fails, so its circuit breaker is open and nothing is sent to it for now. Wait for Retry-After, or"
        f" once it is mended POST /v1/webhooks/subscriptions/{shown}/circuit-breaker/reset",
        retry_after_s=max(1, math.ceil((until_ms - moment) / 1000)),
    )


def forget(caller: Caller, subscription: Subscription) -> None:
    """Once the call is committed: what was known is of another receiver, or of none."""

    async def work() -> None:
        try:
            await caller.services.breakers.forget(subscription.id)
        except UNREACHABLE as error:
            log.warning("Redis does not answer; a circuit breaker is not forgotten", error=repr(error))

    caller.after_commit(work)
