"""What people and programs do with one event: remove its content, send it again with another payload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app import views
from app.caller import Caller
from core import audit, events, idempotency, ids, redaction, subscriptions
from core.acceptance import Answer, Request
from core.errors import Conflict, HookwrightError, PayloadTooLarge
from core.idempotency import IdempotentCall
from core.listing import event_lists
from core.models import Event, SubscriptionStatus
from core.storage.database import driver_of


async def redact(caller: Caller, organization_id: UUID, event_id: UUID) -> Event:
    """Removes its content for good. Raises `NotFound`."""
    async with caller.transaction() as session:
        event, is_new = await redaction.redact(session, organization_id, event_id)
        if is_new:
            shown = views.event(event)
            after = {"redacted_at": shown["redacted_at"]}
            caller.audit(session, "event.redacted", shown["id"], after=after, organization_id=organization_id)
    caller.after_commit(lambda: redaction.finish(caller.services.database, event_id))
    return event


async def copy(
    caller: Caller,
    organization_id: UUID,
    event_id: UUID,
    data: Mapping[str, Any],
    *,
    api_key_id: UUID | None,
    idempotent: IdempotentCall | None,
) -> Answer:
    """Accepts a new event that is the first but for its `data`. A repeat gets the first answer, whatever has become of
    the event since. Raises `NotFound`, `Conflict`, `PayloadTooLarge` and what accepting raises."""
    async with caller.transaction() as session:
        if idempotent is not None:
            [first] = await idempotency.claim(await driver_of(session), [idempotent], caller.services.sealer)
            if isinstance(first, HookwrightError):
                raise first
            if first is not None:
                return Answer(first.data, duplicate=True, first_at=first.created_at)
        event = await event_lists.get(session, organization_id, event_id)
        if event.only_for is not None:
            subscription = await subscriptions.get(session, organization_id, event.only_for)
            if subscription.status != SubscriptionStatus.ACTIVE:
                raise Conflict(f"It is a test event, and its subscription is {subscription.status}")
    copied = events.copy(event, data)
    limit = caller.services.settings.event_max_bytes
    if len(copied.payload) - copied.data_at > limit:
        raise PayloadTooLarge(f"The data exceeds {limit} bytes; send less", details={"max_bytes": limit})
    entry = audit.entry(
        caller.actor,
        "event.copied",
        ids.show(ids.EVENT, event.id),
        organization_id=organization_id,
        after={"event_id": ids.show(ids.EVENT, copied.id), "event_type": copied.event_type},
    )
    request = Request(
        [copied], organization_id, api_key_id, idempotent, lambda accepted, _: accepted[0].to_json(), entry
    )
    return await caller.services.acceptance.accept(request)
