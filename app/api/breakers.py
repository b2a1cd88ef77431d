"""A subscription's circuit breaker: show it, reset it, and refuse what makes no sense while it is open."""

from __future__ import annotations

import math
import time

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.api.calls import Call
from app.api.inputs import Nothing
from app.api.replies import Reply
from core import ids, subscriptions
from core.breaker import Breaker, BreakerSettings, BreakerState
from core.breakers import UNREACHABLE
from core.errors import CircuitBreakerOpen, Unavailable
from core.models import Subscription

log = structlog.get_logger(__name__)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def show(call: Call) -> Reply:
    subscription = await _get(call)
    try:
        breaker = await call.services.breakers.get(subscription.id)
    except UNREACHABLE as error:
        raise _away() from error
    return Reply(views.circuit_breaker(subscription, breaker, now_ms()))


async def reset(call: Call) -> Reply:
    call.read(Nothing)
    moment = now_ms()
    async with call.transaction() as session:
        subscription = await _find(call, session)
        # The entry first, and Redis last before the commit: if Redis fails, neither is there.
        call.audit(
            session,
            "circuit_breaker.reset",
            ids.show(ids.SUBSCRIPTION, subscription.id),
            after={"state": BreakerState.HALF_OPEN},
        )
        await session.flush()
        try:
            breaker = await call.services.breakers.reset(subscription.id, moment)
        except UNREACHABLE as error:
            raise _away() from error
    data = views.circuit_breaker(subscription, breaker, moment)
    return Reply(data, message="Circuit breaker reset to HALF_OPEN; the next deliveries decide")


async def _get(call: Call) -> Subscription:
    async with call.transaction() as session:
        return await _find(call, session)


async def _find(call: Call, session: AsyncSession) -> Subscription:
    return await subscriptions.get(session, call.organization_id, call.path_id(ids.SUBSCRIPTION))


def _away() -> Unavailable:
    return Unavailable("Redis does not answer, and the state of circuit breakers is kept there; try again")


async def known(call: Call, subscription: Subscription) -> Breaker | None:
    """The breaker; None when Redis does not answer."""
    try:
        return await call.services.breakers.get(subscription.id)
    except UNREACHABLE as error:
        log.warning("Redis does not answer; a circuit breaker is not known", error=repr(error))
        return None


async def refuse_open(call: Call, subscription: Subscription) -> None:
    """Raises `CircuitBreakerOpen` while nothing would be sent. Not when Redis is away: what may be sent, is tried."""
    breaker = await known(call, subscription)
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


def forget(call: Call, subscription: Subscription) -> None:
    """Once the call is committed: what was known is of another receiver, or of none."""

    async def work() -> None:
        try:
            await call.services.breakers.forget(subscription.id)
        except UNREACHABLE as error:
            log.warning("Redis does not answer; a circuit breaker is not forgotten", error=repr(error))

    call.after_commit(work)
