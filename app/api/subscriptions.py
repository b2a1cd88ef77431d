"""Subscriptions: create, read, change, check, pause, resume, rotate, test, delete."""

from __future__ import annotations

from typing import Any

from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.actions import subscriptions as actions
from app.api import answers, lists
from app.api import deliveries as delivery_api
from app.api.calls import Call, repeated
from app.api.inputs import RESETTABLE, CheckIn, Nothing, ResumeIn, RotateIn, SubscriptionIn, SubscriptionPatch, TestIn
from app.api.replies import Reply
from core import idempotency, ids, organizations, subscriptions
from core.errors import HookwrightError, ValidationFailed
from core.idempotency import FirstAnswer
from core.matching.patterns import validate_event_type
from core.models import Subscription, SubscriptionStatus
from core.secrets import signing
from core.storage.database import driver_of


def _reply(call: Call, subscription: Subscription, message: str, status: int = 200) -> Reply:
    return Reply(actions.shown(call, subscription), status, message, version=subscription.version)


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
    subscription, secret = await actions.create(call, call.organization_id, values)
    data = actions.shown(call, subscription) | {"secret_key": secret}
    return Reply(data, 201, "Subscription created", version=subscription.version)


async def check(call: Call) -> Reply:
    """Which of the latest events these patterns and this filter would have matched."""
    given, faults = call.read_part(CheckIn)
    values = given.model_dump(exclude_unset=True)
    if values.get("events") is None:
        faults.setdefault("events", ["Is required"])
    wrong = subscriptions.faults_in_change(
        call.services.rules, {name: value for name, value in values.items() if value is not None}
    )
    if faults or wrong:
        raise _faulty(faults, wrong)
    async with call.transaction() as session:
        await organizations.get(session, call.organization_id)
    checked = await call.services.checks.check(call.organization_id, given.events or [], given.filters or {})
    return Reply(views.subscription_check(checked))


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.Subscription)
    conditions = [col(Subscription.organization_id) == call.organization_id, subscriptions.KEPT]
    for name, value in query.filters.items():
        if name != "status" or value not in set(SubscriptionStatus):
            known = ", ".join(SubscriptionStatus)
            raise ValidationFailed.of(f"filters.{name}", f"There is filters[status], with one of: {known}")
        conditions.append(col(Subscription.status) == value)
    async with call.transaction() as session:
        return await lists.run(session, query, Subscription, conditions, lambda row: actions.shown(call, row))


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        subscription = await _get(call, session)
        data = await actions.shown_with_secrets(call, session, subscription)
    return Reply(data, version=subscription.version)


async def _get(call: Call, session: AsyncSession) -> Subscription:
    return await subscriptions.get(session, call.organization_id, call.path_id(ids.SUBSCRIPTION))


async def update(call: Call) -> Reply:
    given, faults = call.read_part(SubscriptionPatch)
    for name in sorted(given.model_fields_set - RESETTABLE):
        if getattr(given, name) is None:
            faults[name] = ["Can't be null; leave it out to keep it"]
    values = {name: value for name, value in _fields(given).items() if name not in faults}
    if faults:
        raise _faulty(faults, subscriptions.faults_in_change(call.services.rules, values))
    subscription = await actions.update(call, call.organization_id, call.path_id(ids.SUBSCRIPTION), values)
    return _reply(call, subscription, "Subscription updated")


async def delete(call: Call) -> Reply:
    subscription = await actions.delete(call, call.organization_id, call.path_id(ids.SUBSCRIPTION))
    data = {"subscription_id": ids.show(ids.SUBSCRIPTION, subscription.id), "status": subscription.status}
    return Reply(data, message="Subscription deleted; what was waiting for it is discarded, its history stays")


async def pause(call: Call) -> Reply:
    call.read(Nothing)
    subscription = await actions.pause(call, call.organization_id, call.path_id(ids.SUBSCRIPTION))
    return _reply(call, subscription, "Subscription paused; its deliveries are held")


async def resume(call: Call) -> Reply:
    given = call.read(ResumeIn)
    subscription, missed = await actions.resume(
        call,
        call.organization_id,
        call.path_id(ids.SUBSCRIPTION),
        sync_from=given.sync_from,
        first=given.priority == "high",
    )
    reply = _reply(call, subscription, "Subscription resumed")
    return Reply({**reply.data, "missed_deliveries_created": missed}, message=reply.message, version=reply.version)


async def rotate_secret(call: Call) -> Reply:
    given = call.read(RotateIn)
    done = await actions.rotate_secret(
        call,
        call.organization_id,
        call.path_id(ids.SUBSCRIPTION),
        grace_s=given.grace_period_s,
        secret=given.secret,
    )
    message = _rotated(done.subscription, given.grace_period_s)
    return Reply({**done.shown, "secret_key": done.secret}, message=message, version=done.subscription.version)


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
    subscription, live = await actions.reveal_secret(call, call.organization_id, call.path_id(ids.SUBSCRIPTION))
    shown = [views.secret(one) | {"secret_key": text} for one, text in live]
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
    answer = await actions.send_test(
        call,
        subscription,
        given.event_type,
        given.data,
        api_key_id=call.credential.key_id,
        idempotent=call.idempotent,
    )
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
