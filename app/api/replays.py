"""Replays: preview a selection, send it again or discard it as a durable job, and steer that job."""

from __future__ import annotations

from sqlmodel import col

from app import views
from app.actions import replays as actions
from app.api import answers, lists
from app.api.calls import Call, Handler
from app.api.deliveries import check_search
from app.api.inputs import Nothing, ReplayIn, ReplayPatch
from app.api.replies import Reply
from core import ids, replay_items, replays
from core.errors import ValidationFailed
from core.models import ItemOutcome, Replay, ReplayAction, ReplayStatus

DOES = {ReplayAction.REPLAY: "be sent again", ReplayAction.DISCARD: "be discarded"}


async def create(call: Call) -> Reply:
    given = call.read(ReplayIn)
    check_search(call, given.filters)
    action = ReplayAction(given.action)
    asked = (call.organization_id, given.filters, given.rate_per_second, action)
    if given.dry_run:
        prepared = await actions.prepare(call, *asked)
        said = f"Deliveries that would {DOES[action]}: {prepared.preview.total}"
        return Reply(views.prepared_replay(prepared), 202, said)
    replay, groups = await actions.create(call, *asked)
    said = f"Deliveries that will {DOES[action]}: {replay.total}"
    return Reply(views.replay(replay, groups), 202, said)


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


async def items(call: Call) -> Reply:
    """What came of each delivery."""
    query = lists.parse(call.request, answers.ReplayItem)
    outcome = None
    for name, value in query.filters.items():
        if name != "outcome" or value not in set(ItemOutcome):
            known = ", ".join(ItemOutcome)
            raise ValidationFailed.of(f"filters.{name}", f"There is filters[outcome], with one of: {known}")
        outcome = ItemOutcome(value)
    async with call.transaction() as session:
        replay = await replays.get(session, call.organization_id, call.path_id(ids.REPLAY))
        page = await replay_items.page(session, replay.id, outcome, query)
    return lists.answer(query, page, [views.replay_item(item) for item in page.rows])


async def update(call: Call) -> Reply:
    given = call.read(ReplayPatch)
    replay = await actions.set_rate(call, call.organization_id, call.path_id(ids.REPLAY), given.rate_per_second)
    return Reply(views.replay(replay), message=f"What is left goes at {replay.rate_per_second} a second")


def operation(name: str, message: str) -> Handler:
    """A handler that applies one operation of `core.replays.OPERATIONS`."""

    async def handle(call: Call) -> Reply:
        call.read(Nothing)
        replay = await actions.operate(call, call.organization_id, call.path_id(ids.REPLAY), name)
        return Reply(views.replay(replay), message=message.format(sent=replay.sent))

    return handle


pause = operation("pause", "Replay paused")
resume = operation("resume", "Replay resumed")
cancel = operation("cancel", "Replay cancelled; that does not undo the {sent} that were sent")
