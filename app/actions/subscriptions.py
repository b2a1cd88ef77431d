"""Subscriptions: create, change, pause, resume, rotate, reveal, test, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.actions import breakers
from app.caller import Caller
from core import audit, events, ids, settling, subscriptions
from core.acceptance import Answer, Request
from core.errors import Conflict
from core.events import Accepted
from core.idempotency import IdempotentCall
from core.limiting import breaker_changes
from core.matching import catch_up
from core.models import Subscription, SubscriptionSecret, SubscriptionStatus
from core.storage.database import driver_of


def shown(caller: Caller, subscription: Subscription) -> dict[str, Any]:
    return views.subscription(subscription, list(headers_of(caller, subscription)))


def headers_of(caller: Caller, subscription: Subscription) -> dict[str, str]:
    return subscriptions.open_headers(caller.services.sealer, subscription.id, subscription.headers)


async def shown_with_secrets(caller: Caller, session: AsyncSession, subscription: Subscription) -> dict[str, Any]:
    """The subscription, and which secrets sign for it and until when; not what they are."""
    secrets = await subscriptions.live_secrets(session, subscription.id, datetime.now(UTC))
    return shown(caller, subscription) | {"secrets": [views.secret(one) for one in secrets]}


async def create(caller: Caller, organization_id: UUID, values: Mapping[str, Any]) -> tuple[Subscription, str]:
    """Returns it with its first secret. Raises as `core.subscriptions.create` does."""
    async with caller.transaction() as session:
        subscription, secret = await subscriptions.create(session, caller.services.rules, organization_id, values)
        after = shown(caller, subscription)
        caller.audit(session, "subscription.created", after["id"], after=after, organization_id=organization_id)
    return subscription, secret


async def update(
    caller: Caller, organization_id: UUID, subscription_id: UUID, values: Mapping[str, Any]
) -> Subscription:
    """Changes what `values` names. Raises as `core.subscriptions.update_fields` does, and `Conflict` when the caller
    has seen another version."""
    async with caller.transaction() as session:
        subscription = await _locked(caller, session, organization_id, subscription_id)
        url = subscription.url
        if values:
            before, headers = shown(caller, subscription), headers_of(caller, subscription)
            await subscriptions.update_fields(session, caller.services.rules, subscription, values)
            after = shown(caller, subscription) | {"headers": _marked(headers, headers_of(caller, subscription))}
            caller.audit(
                session,
                "subscription.updated",
                before["id"],
                before=before,
                after=after,
                organization_id=organization_id,
            )
        if subscription.url != url:
            await breaker_changes.close(await driver_of(session), subscription.id)
    if subscription.url != url:
        breakers.forget(caller, subscription)
    return subscription


def _marked(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Custom headers for the audit log: a value is never shown, but that it is another one is."""
    return {
        name: "•••• (changed)" if before.get(name, value) != value else views.HIDDEN for name, value in after.items()
    }


async def _locked(caller: Caller, session: AsyncSession, organization_id: UUID, subscription_id: UUID) -> Subscription:
    """Raises `Conflict` when the caller has seen another version."""
    subscription = await subscriptions.get(session, organization_id, subscription_id, lock=True)
    caller.check_version(subscription.version)
    return subscription


async def delete(caller: Caller, organization_id: UUID, subscription_id: UUID) -> Subscription:
    async with caller.transaction() as session:
        subscription = await _locked(caller, session, organization_id, subscription_id)
        before = shown(caller, subscription)
        await subscriptions.delete(session, subscription)
        caller.audit(session, "subscription.deleted", before["id"], before=before, organization_id=organization_id)
    _settle(caller, subscription)
    breakers.forget(caller, subscription)
    return subscription


def _settle(caller: Caller, subscription: Subscription) -> None:
    """Releases what was held, or discards what waits, once the change itself is committed."""

    async def settle() -> None:
        async with caller.services.database.driver() as driver:
            await settling.settle(driver, subscription.id)

    caller.after_commit(settle)


async def pause(caller: Caller, organization_id: UUID, subscription_id: UUID) -> Subscription:
    async with caller.transaction() as session:
        subscription = await _locked(caller, session, organization_id, subscription_id)
        before = shown(caller, subscription)
        await subscriptions.pause(session, subscription)
        _audit_status(caller, session, "subscription.paused", before, subscription)
    return subscription


def _audit_status(
    caller: Caller,
    session: AsyncSession,
    action: str,
    before: Mapping[str, Any],
    subscription: Subscription,
    **more: Any,
) -> None:
    """Unless it was so already, and nothing `more` was done."""
    after = shown(caller, subscription)
    if after != before or more:
        caller.audit(
            session,
            action,
            after["id"],
            before=before,
            after=after | more,
            organization_id=subscription.organization_id,
        )


async def resume(
    caller: Caller,
    organization_id: UUID,
    subscription_id: UUID,
    *,
    sync_from: datetime | None = None,
    first: bool = False,
) -> tuple[Subscription, int]:
    """Sends what was held, and with `sync_from` what it missed since then. Returns how many deliveries that made.

    Raises as `core.matching.catch_up.create_missed` does."""
    missed: Sequence[UUID] = ()
    async with caller.transaction() as session:
        subscription = await _locked(caller, session, organization_id, subscription_id)
        before = shown(caller, subscription)
        await subscriptions.resume(session, subscription)
        if sync_from is not None:
            await session.flush()
            since = max(sync_from, ids.time_of(organization_id))  # no event is older than its organization
            missed = await catch_up.create_missed(await driver_of(session), subscription, since, first=first)
        made = {"missed_deliveries_created": len(missed)} if missed else {}
        _audit_status(caller, session, "subscription.resumed", before, subscription, **made)
    _settle(caller, subscription)
    return subscription, len(missed)


class Rotated(NamedTuple):
    subscription: Subscription
    shown: Mapping[str, Any]  # with its secrets, as `shown_with_secrets`
    secret: str


async def rotate_secret(
    caller: Caller, organization_id: UUID, subscription_id: UUID, *, grace_s: int, secret: str | None = None
) -> Rotated:
    """Raises as `core.subscriptions.rotate_secret` does."""
    async with caller.transaction() as session:
        subscription = await _locked(caller, session, organization_id, subscription_id)
        before = await shown_with_secrets(caller, session, subscription)
        new = await subscriptions.rotate_secret(
            session, caller.services.rules, subscription, grace_s=grace_s, secret=secret
        )
        after = await shown_with_secrets(caller, session, subscription)
        caller.audit(
            session,
            "subscription.secret_rotated",
            after["id"],
            before=before,
            after=after,
            organization_id=organization_id,
        )
    return Rotated(subscription, after, new)


async def reveal_secret(
    caller: Caller, organization_id: UUID, subscription_id: UUID
) -> tuple[Subscription, list[tuple[SubscriptionSecret, str]]]:
    """The secrets that sign now, the current one first; the audit log says to whom they were shown."""
    async with caller.transaction() as session:
        subscription = await subscriptions.get(session, organization_id, subscription_id)
        live = await subscriptions.live_secrets(session, subscription.id, datetime.now(UTC))
        caller.audit(
            session,
            "subscription.secret_revealed",
            ids.show(ids.SUBSCRIPTION, subscription.id),
            after={"secrets": [ids.show(ids.SECRET, one.id) for one in live]},
            organization_id=organization_id,
        )
    sealer = caller.services.sealer
    return subscription, [(one, subscriptions.open_secret(sealer, one.id, one.sealed)) for one in live]


async def send_test(
    caller: Caller,
    subscription: Subscription,
    event_type: str,
    data: Mapping[str, Any] | None = None,
    *,
    api_key_id: UUID | None = None,
    idempotent: IdempotentCall | None = None,
) -> Answer:
    """Sends an event to this subscription alone, by the same way as every other.

    Raises `Conflict` unless it is active, and `CircuitBreakerOpen`."""
    if subscription.status != SubscriptionStatus.ACTIVE:
        raise Conflict(f"The subscription is {subscription.status}; resume it first")
    await breakers.refuse_open(caller, subscription)
    event = events.build(
        organization_id=subscription.organization_id,
        event_type=event_type,
        data=TEST_DATA if data is None else data,
        branch_id=subscription.branch_id,
        only_for=subscription.id,
    )

    def render(accepted: Sequence[Accepted], delivery_ids: Sequence[UUID]) -> Mapping[str, Any]:
        return accepted[0].to_json() | {"delivery_id": ids.show(ids.DELIVERY, delivery_ids[0])}

    entry = audit.entry(
        caller.actor,
        "subscription.tested",
        ids.show(ids.SUBSCRIPTION, subscription.id),
        organization_id=subscription.organization_id,
        after={"event_id": ids.show(ids.EVENT, event.id), "event_type": event.event_type},
    )
    request = Request([event], subscription.organization_id, api_key_id, idempotent, render, entry)
    return await caller.services.acceptance.accept(request)


TEST_DATA: Mapping[str, Any] = {"message": "This is a test event", "sent_by": "Hookwright"}
