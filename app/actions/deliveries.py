"""What people and programs do with one delivery: send it again, take it out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from app import views
from app.caller import Caller
from core import deliveries, replays
from core.hints import Hint
from core.listing import delivery_lists
from core.models import Delivery, Replay
from core.storage.database import driver_of


async def replay(caller: Caller, organization_id: UUID, delivery_id: UUID) -> tuple[Delivery, Replay]:
    """Sends it again at once, as a fresh series of attempts; a retry that was pending is superseded. Raises `NotFound`,
    or `Conflict` where its state, its subscription or a redaction forbids it."""
    async with caller.transaction() as session:
        delivery = await delivery_lists.get(session, organization_id, delivery_id, lock=True)
        before = views.delivery(delivery)
        replay = await replays.replay_one(session, organization_id, delivery.id, created_by=caller.actor.id)
        await _changed(caller, session, "delivery.replayed", delivery, before)

    async def hint() -> None:
        caller.services.hints.send([Hint(organization_id, delivery.subscription_id, delivery.id)])

    caller.after_commit(hint)
    return delivery, replay


async def discard(caller: Caller, organization_id: UUID, delivery_id: UUID) -> Delivery:
    """Takes out one that is pending or dead. Raises `NotFound`, or `Conflict` in any other state."""
    async with caller.transaction() as session:
        delivery = await delivery_lists.get(session, organization_id, delivery_id, lock=True)
        before = views.delivery(delivery)
        await deliveries.discard(await driver_of(session), organization_id, delivery.id)
        await _changed(caller, session, "delivery.discarded", delivery, before)
    return delivery


async def _changed(
    caller: Caller, session: AsyncSession, action: str, delivery: Delivery, before: dict[str, Any]
) -> None:
    await session.refresh(delivery)
    after = views.delivery(delivery)
    caller.audit(session, action, after["id"], before=before, after=after, organization_id=delivery.organization_id)
