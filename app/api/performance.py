"""How deliveries go, and how a subscription's receiver is doing, from the statistics per minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from app import views
from app.actions import breakers
from app.api.calls import Call
from app.api.replies import Reply
from core import health, ids, stats, subscriptions
from core.limiting.breaker import BreakerSettings
from core.states import State

DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)


async def of_organization(call: Call) -> Reply:
    return await _performance(call, None)


async def of_subscription(call: Call) -> Reply:
    subscription_id = call.path_id(ids.SUBSCRIPTION)
    async with call.transaction() as session:
        await subscriptions.get(session, call.organization_id, subscription_id)
    return await _performance(call, subscription_id)


async def _performance(call: Call, subscription_id: UUID | None) -> Reply:
    since = datetime.now(UTC) - DAY
    async with call.services.database.driver() as driver:
        day = await stats.figures(driver, call.organization_id, subscription_id, since)
    return Reply(views.performance(day))


async def health_of(call: Call) -> Reply:
    async with call.transaction() as session:
        subscription = await subscriptions.get(session, call.organization_id, call.path_id(ids.SUBSCRIPTION))
    breaker = await breakers.known(call, subscription)
    now = datetime.now(UTC)
    async with call.services.database.driver() as driver:
        hour = await stats.figures(driver, call.organization_id, subscription.id, now - HOUR)
        day = await stats.figures(driver, call.organization_id, subscription.id, now - DAY)
        pending = await stats.count(driver, subscription.id, State.PENDING)
        dead = await stats.count(driver, subscription.id, State.DEAD)
    moment = breakers.now_ms()
    settings = BreakerSettings.of(subscription.circuit_breaker)
    status = health.judge(subscription.status, breaker, settings, hour, moment)
    return Reply(views.health(subscription, status, breaker, moment, hour, day, (pending, dead)))
