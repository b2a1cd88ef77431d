"""A subscription's circuit breaker: show it, its history, and reset it."""

from __future__ import annotations

from sqlmodel import col

from app import views
from app.actions import breakers as actions
from app.actions.breakers import now_ms
from app.api import answers, lists
from app.api.calls import Call
from app.api.inputs import Nothing
from app.api.replies import Reply
from core import ids, subscriptions
from core.errors import ValidationFailed
from core.models import BreakerChange, Subscription


async def show(call: Call) -> Reply:
    subscription = await _get(call)
    breaker = await actions.get(call, subscription)
    return Reply(views.circuit_breaker(subscription, breaker, now_ms()))


async def reset(call: Call) -> Reply:
    call.read(Nothing)
    moment = now_ms()
    subscription, breaker = await actions.reset(call, call.organization_id, call.path_id(ids.SUBSCRIPTION), moment)
    data = views.circuit_breaker(subscription, breaker, moment)
    return Reply(data, message="Circuit breaker reset to HALF_OPEN; the next deliveries decide")


async def history(call: Call) -> Reply:
    query = lists.parse(call.request, answers.CircuitBreakerChange)
    if query.filters:
        raise ValidationFailed.of("filters", "This list has no filters")
    subscription = await _get(call)
    conditions = [col(BreakerChange.subscription_id) == subscription.id]
    async with call.transaction() as session:
        return await lists.run(session, query, BreakerChange, conditions, views.circuit_breaker_change)


async def _get(call: Call) -> Subscription:
    async with call.transaction() as session:
        return await subscriptions.get(session, call.organization_id, call.path_id(ids.SUBSCRIPTION))
