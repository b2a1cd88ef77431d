"""Subscriptions: create, read, change, pause, resume, rotate, test, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.api import answers, breakers, lists
from app.api import deliveries as delivery_api
from app.api import events as event_api
from app.api.calls import Call, repeated
from app.api.inputs import RESETTABLE, Nothing, ResumeIn, RotateIn, SubscriptionIn, SubscriptionPatch, TestIn
from app.api.replies import Reply
from core import audit, catch_up, events, idempotency, ids, organizations, settling, signing, subscriptions
from core.acceptance import Request
from core.database import driver_of
from core.errors import Conflict, HookwrightError, ValidationFailed
from core.events import Accepted
from core.idempotency import FirstAnswer
from core.models import Subscription, SubscriptionStatus
from core.patterns import validate_event_type


def _shown(call: Call, subscription: Subscription) -> dict[str, Any]:
    return views.subscription(subscription, list(_headers(call, subscription)))


def _headers(call: Call, subscription: Subscription) -> dict[str, str]:
    return subscriptions.open_headers(call.services.sealer, subscription.id, subscription.headers)


def _reply(call: Call, subscription: Subscription, message: str, status: int = 200) -> Reply:
    return Reply(_shown(call, subscription), status, message, version=subscription.version)


def _fields(given: SubscriptionIn | SubscriptionPatch) -> dict[str, Any]:
    """What was given, by the names that core uses. An explicit null stays, so that it can reset a field."""
    values = given.model_dump(exclude_unset=True, exclude={"authentication"})
    if given.authentication is not None:
        values["authentication_type"] = given.authentication.type
    return values


def _faulty(malformed: dict[str, Any], wrong: dict[str, Any]) -> ValidationFailed:
    """All faults at once; what is malformed was not judged, so it is not missing either."""
    seen = {path.partition(".")[0] for path in malformed}
    return ValidationFailed(details=malformed | {path: said for path, said in wrong.items() if path not in seen})


async def create(call: Call) -> Reply:
    given, faults = call.read_part(SubscriptionIn)
    values = {"branch_id": call.branch_id, **_fields(given)}
    if given.authentication is not None:
        values["secret"] = given.authentication.secret
    if faults:
        raise _faulty(faults, subscriptions.faults_in_new(call.services.rules, values))
    async with call.transaction() as session:
        subscription, secret = await subscriptions.create(session, call.services.rules, call.organization_id, values)
        shown = _shown(call, subscription)
        call.audit(session, "subscription.created", shown["id"], after=shown)
    data = shown | {"secret_key": secret}
    return Reply(data, 201, "Subscription created", version=subscription.version)


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.Subscription)
    conditions = [col(Subscription.organization_id) == call.organization_id, subscriptions.KEPT]
    for name, value in query.filters.items():
        if name != "status" or value not in set(SubscriptionStatus):
            known = ", ".join(SubscriptionStatus)
            raise ValidationFailed.of(f"filters.{name}", f"There is filters[status], with one of: {known}")
        conditions.append(col(Subscription.status) == value)
    async with call.transaction() as session:
        return await lists.run(session, query, Subscription, conditions, lambda row: _shown(call, row))


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        subscription = await _get(call, session)
        data = await _secrets(call, session, subscription)
    return Reply(data, version=subscription.version)


async def _secrets(call: Call, session: AsyncSession, subscription: Subscription) -> dict[str, Any]:
    """The subscription, and which secrets sign for it and until when; not what they are."""
    secrets = await subscriptions.live_secrets(session, subscription.id, datetime.now(UTC))
    return _shown(call, subscription) | {"secrets": [views.secret(one) for one in secrets]}


async def _get(call: Call, session: AsyncSession, *, lock: bool = False) -> Subscription:
    return await subscriptions.get(session, call.organization_id, call.path_id(ids.SUBSCRIPTION), lock=lock)


async def update(call: Call) -> Reply:
    given, faults = call.read_part(SubscriptionPatch)
    for name in sorted(given.model_fields_set - RESETTABLE):
        if getattr(given, name) is None:
            faults[name] = ["Can't be null; leave it out to keep it"]
    values = {name: value for name, value in _fields(given).items() if name not in faults}
    if faults:
        raise _faulty(faults, subscriptions.faults_in_change(call.services.rules, values))
    async with call.transaction() as session:
        subscription = await _get(call, session, lock=True)
        call.check_version(subscription.version)
        url = subscription.url
        if values:
            before, headers = _shown(call, subscription), _headers(call, subscription)
            await subscriptions.update_fields(session, call.services.rules, subscription, values)
            after = _shown(call, subscription) | {"headers": _marked(headers, _headers(call, subscription))}
            call.audit(session, "subscription.updated", before["id"], before=before, after=after)
    if subscription.url != url:
        breakers.forget(call, subscription)
    return _reply(call, subscription, "Subscription updated")


def _marked(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Custom headers for the audit log: a value is never shown, but that it is another one is."""
    return {
        name: "•••• (changed)" if before.get(name, value) != value else views.HIDDEN for name, value in after.items()
    }


async def delete(call: Call) -> Reply:
    async with call.transaction() as session:
        subscription = await _get(call, session, lock=True)
        call.check_version(subscription.version)
        before = _shown(call, subscription)
        await subscriptions.delete(session, subscription)
        call.audit(session, "subscription.deleted", before["id"], before=before)

    _settle(call, subscription)
    breakers.forget(call, subscription)
    data = {"subscription_id": ids.show(ids.SUBSCRIPTION, subscription.id), "status": subscription.status}
    return Reply(data, message="Subscription deleted; what was waiting for it is discarded, its history stays")


def _settle(call: Call, subscription: Subscription) -> None:
    """Releases what was held, or discards what waits, once the change itself is committed."""

    async def settle() -> None:
        async with call.services.database.driver() as driver:
            await settling.settle(driver, subscription.id)

    call.after_commit(settle)


async def pause(call: Call) -> Reply:
    call.read(Nothing)
    async with call.transaction() as session:
        subscription = await _get(call, session, lock=True)
        call.check_version(subscription.version)
        before = _shown(call, subscription)
        await subscriptions.pause(session, subscription)
        _audit_status(call, session, "subscription.paused", before, subscription)
    return _reply(call, subscription, "Subscription paused; its deliveries are held")


def _audit_status(
    call: Call, session: AsyncSession, action: str, before: Mapping[str, Any], subscription: Subscription, **more: Any
) -> None:
    """Unless it was so already, and nothing `more` was done."""
    after = _shown(call, subscription)
    if after != before or more:
        call.audit(session, action, after["id"], before=before, after=after | more)


async def resume(call: Call) -> Reply:
    given = call.read(ResumeIn)
    missed: Sequence[UUID] = ()
    async with call.transaction() as session:
        subscription = await _get(call, session, lock=True)
        call.check_version(subscription.version)
        before = _shown(call, subscription)
        await subscriptions.resume(session, subscription)
        if given.sync_from is not None:
            await session.flush()
            since = max(given.sync_from, ids.time_of(call.organization_id))  # no event is older than its organization
            missed = await catch_up.create_missed(
                await driver_of(session), subscription, since, first=given.priority == "high"
            )
        made = {"missed_deliveries_created": len(missed)} if missed else {}
        _audit_status(call, session, "subscription.resumed", before, subscription, **made)

    _settle(call, subscription)
    reply = _reply(call, subscription, "Subscription resumed")
    return Reply({**reply.data, "missed_deliveries_created": len(missed)}, message=reply.message, version=reply.version)


async def rotate_secret(call: Call) -> Reply:
    given = call.read(RotateIn)
    async with call.transaction() as session:
        subscription = await _get(call, session, lock=True)
        call.check_version(subscription.version)
        before = await _secrets(call, session, subscription)
        secret = await subscriptions.rotate_secret(
            session,
            call.services.rules,
            subscription,
            grace_s=given.grace_period_s,
            secret=given.secret,
        )
        after = await _secrets(call, session, subscription)
        call.audit(session, "subscription.secret_rotated", after["id"], before=before, after=after)
    data = after | {"secret_key": secret}
    return Reply(data, message=_rotated(subscription, given.grace_period_s), version=subscription.version)


def _rotated(subscription: Subscription, grace_s: int) -> str:
    if grace_s == 0:
        return "Secret rotated; the old one signs no more"
    scheme = subscription.authentication_type
    if scheme in signing.ONE_SIGNATURE:
        return (
            f"Secret rotated; the own header of {scheme} is the new one's at once, webhook-signature carries both until"
            " the old one expires"
        )
    return "Secret rotated; the old one signs along until it expires"


async def reveal_secret(call: Call) -> Reply:
    """Shows the secrets that sign now, and says in the audit log to whom."""
    call.read(Nothing)
    async with call.transaction() as session:
        subscription = await _get(call, session)
        live = await subscriptions.live_secrets(session, subscription.id, datetime.now(UTC))
        shown_ids = [ids.show(ids.SECRET, one.id) for one in live]
        call.audit(
            session,
            "subscription.secret_revealed",
            ids.show(ids.SUBSCRIPTION, subscription.id),
            after={"secrets": shown_ids},
        )
    shown = [
        views.secret(one) | {"secret_key": subscriptions.open_secret(call.services.sealer, one.id, one.sealed)}
        for one in live
    ]
    data = {
        "subscription_id": ids.show(ids.SUBSCRIPTION, subscription.id),
        "secret_key": shown[0]["secret_key"],
        "secrets": shown,
    }
    return Reply(data, message="Secret revealed; the audit log says so", version=subscription.version)


async def test(call: Call) -> Reply:
    """Sends an event to this subscription alone, by the same way as every other."""
    given = call.read(TestIn)
    validate_event_type(given.event_type)
    async with call.transaction() as session:
        # A repeat gets the first answer, whatever has become of the subscription; acceptance claims the key for good.
        await organizations.get(session, call.organization_id)
        if first := await _first_answer(call, session):
            return repeated(first.data, first.created_at)
        subscription = await _get(call, session)
    if subscription.status != SubscriptionStatus.ACTIVE:
        raise Conflict(f"The subscription is {subscription.status}; resume it first")
    await breakers.refuse_open(call, subscription)
    event = events.build(
        organization_id=call.organization_id,
        event_type=given.event_type,
        data=event_api.test_data(given.data),
        branch_id=subscription.branch_id,
        only_for=subscription.id,
    )

    def render(accepted: Sequence[Accepted], delivery_ids: Sequence[UUID]) -> Mapping[str, Any]:
        return accepted[0].to_json() | {"delivery_id": ids.show(ids.DELIVERY, delivery_ids[0])}

    entry = audit.entry(
        call.actor,
        "subscription.tested",
        ids.show(ids.SUBSCRIPTION, subscription.id),
        organization_id=call.organization_id,
        after={"event_id": ids.show(ids.EVENT, event.id), "event_type": event.event_type},
    )
    request = Request([event], call.organization_id, call.credential.key_id, call.idempotent, render, entry)
    answer = await call.services.acceptance.accept(request)
    if answer.first_at is not None:
        return repeated(answer.data, answer.first_at)
    return Reply(answer.data, 202, "Test event accepted")


async def _first_answer(call: Call, session: AsyncSession) -> FirstAnswer | None:
    if call.idempotent is None:
        return None
    [outcome] = await idempotency.claim(await driver_of(session), [call.idempotent], call.services.sealer)
    if isinstance(outcome, HookwrightError):
        raise outcome
    return outcome


async def deliveries_of(call: Call) -> Reply:
    query = delivery_api.parse_query(call)
    async with call.transaction() as session:
        subscription = await _get(call, session)
        shown = ids.show(ids.SUBSCRIPTION, subscription.id)
        return await delivery_api.run_query(call, session, query, subscription_id=shown)
