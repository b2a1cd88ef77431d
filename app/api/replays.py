"""Replays: preview a selection, send it again as a durable job, and steer that job."""

from __future__ import annotations

from sqlmodel import col

from app import views
from app.api import answers, lists
from app.api.calls import Call, Handler
from app.api.inputs import Nothing, ReplayIn
from app.api.replies import Reply
from core import ids, replays
from core.errors import ValidationFailed
from core.models import Replay, ReplayStatus


async def create(call: Call) -> Reply:
    given = call.read(ReplayIn)
    if not 1 <= given.rate_per_second <= replays.MAX_RATE:  # of a dry run too, which else would promise too much
        raise ValidationFailed.of("rate_per_second", f"Must be from 1 to {replays.MAX_RATE}")
    filters = replays.freeze(given.filters)
    async with call.transaction() as session:
        if given.dry_run:
            groups = await replays.preview(session, call.organization_id, filters)
            total = sum(group.count for group in groups)
            data = {
                "dry_run": True,
                "filters": filters,
                "rate_per_second": given.rate_per_second,
                "total": total,
                "estimated_duration_s": -(-total // given.rate_per_second),
                **views.counts(groups),
            }
            return Reply(data, 202, f"Deliveries that would be sent again: {total}")
        replay, groups = await replays.create(
            session,
            call.organization_id,
            filters,
            rate_per_second=given.rate_per_second,
            created_by=call.actor.id,
        )
        shown = views.replay(replay)
        call.audit(session, "replay.created", shown["id"], after=shown)
    return Reply(views.replay(replay, groups), 202, f"Deliveries that will be sent again: {replay.total}")


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.Replay)
    checked = []
    for name, value in query.filters.items():
        if name != "status" or value not in set(ReplayStatus):
            known = ", ".join(ReplayStatus)
            raise ValidationFailed.of(f"filters.{name}", f"There is filters[status], with one of: {known}")
        checked.append(col(Replay.status) == value)
    async with call.transaction() as session:
        conditions = [col(Replay.organization_id) == call.organization_id]
        return await lists.run(session, query, Replay, conditions, views.replay, checked=checked)


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        return Reply(views.replay(await replays.get(session, call.organization_id, call.path_id(ids.REPLAY))))


def operation(name: str, action: str, message: str) -> Handler:
    """A handler that applies one operation of `core.replays.OPERATIONS`, which the audit log calls `action`."""

    async def handle(call: Call) -> Reply:
        call.read(Nothing)
        async with call.transaction() as session:
            locked = await replays.get(session, call.organization_id, call.path_id(ids.REPLAY), lock=True)
            before = views.replay(locked)
            replay = await replays.operate(session, call.organization_id, locked.id, name)
            after = views.replay(replay)
            call.audit(session, action, after["id"], before=before, after=after)
        return Reply(after, message=message.format(sent=replay.sent))

    return handle


pause = operation("pause", "replay.paused", "Replay paused")
resume = operation("resume", "replay.resumed", "Replay resumed")
cancel = operation("cancel", "replay.cancelled", "Replay cancelled; that does not undo the {sent} that were sent")
