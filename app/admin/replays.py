"""Replays and bulk discards: what one would do, how far it is, and what came of each delivery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.responses import Response

from app.actions import replays as actions
from app.admin import delivery_filters, replay_forms
from app.admin.lists import Filter, PageQuery
from app.admin.replay_forms import Asked
from app.admin.visit import Visit
from core import ids, replay_items, replays
from core.errors import Conflict, HookwrightError, ValidationFailed
from core.listing import labels, lists
from core.listing.lists import Page, Paging, Walk
from core.models import UNFINISHED, ItemOutcome, Replay, ReplayAction, ReplayStatus
from core.replay_preview import duration_s
from core.replays import CountChanged

FILTERS = (
    Filter.choice("status", "Status", ReplayStatus),
    Filter.choice("action", "What", {"replay": "replay", "discard": "discard"}),
    delivery_filters.ORGANIZATION,
)
OUTCOMES = (Filter.choice("outcome", "Outcome", ItemOutcome),)


# --- the list ---


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        query = PageQuery.of(visit, await delivery_filters.with_organizations(session, FILTERS), ids.REPLAY)
        page = await query.page(session, _walk)
        names = await labels.organizations(session, {row.organization_id for row in page.rows})
        who = await labels.actors(session, {row.created_by for row in page.rows})
    rows = [Progress(row, names.get(row.organization_id, ""), who.get(row.created_by, "")) for row in page.rows]
    return visit.render("replays/index.html", query.status, query=query, page=page, rows=rows)


def _walk(asked: dict[str, str]) -> Walk:
    whose = delivery_filters.organization_of(asked)
    walked = [] if whose is None else [col(Replay.organization_id) == whose]
    checked = [
        column.in_(asked[name].split(","))
        for name, column in (("status", col(Replay.status)), ("action", col(Replay.action)))
        if name in asked
    ]
    return Walk(Replay, walked, checked, lists.REACH)


@dataclass(frozen=True, slots=True)
class Progress:
    """A job and how far it is."""

    row: Replay
    organization: str
    who: str

    @property
    def shown(self) -> str:
        return ids.show(ids.REPLAY, self.row.id)

    @property
    def organization_shown(self) -> str:
        return ids.show(ids.ORGANIZATION, self.row.organization_id)

    @property
    def done(self) -> int:
        """Dealt with: sent or skipped."""
        return self.row.sent + self.row.skipped

    @property
    def waiting(self) -> int:
        return self.row.total - self.done

    @property
    def under_way(self) -> int:
        """Sent, and not answered yet."""
        return self.row.sent - self.row.succeeded - self.row.failed

    @property
    def percent(self) -> float:
        return 100 * self.done / self.row.total if self.row.total else 100.0

    @property
    def left_ms(self) -> int:
        return 1000 * duration_s(self.waiting, self.row.rate_per_second)

    @property
    def is_discard(self) -> bool:
        return self.row.action == ReplayAction.DISCARD

    @property
    def is_unfinished(self) -> bool:
        return self.row.status in UNFINISHED

    @property
    def is_advancing(self) -> bool:
        return self.row.status in (ReplayStatus.QUEUED, ReplayStatus.RUNNING)

    @property
    def can(self) -> list[str]:
        """The operations that its status allows."""
        return [name for name, (allowed, _) in replays.OPERATIONS.items() if self.row.status in allowed]

    @property
    def took(self) -> timedelta | None:
        if self.row.started_at is None or self.row.finished_at is None:
            return None
        return self.row.finished_at - self.row.started_at


# --- before it starts ---


async def new(visit: Visit) -> Response:
    """What the URL chooses: exact counts, what is skipped and why, and how long it takes."""
    return await _preview(visit, await replay_forms.of_url(visit))


async def start(visit: Visit) -> Response:
    """Once: the form names the job, so that sending it twice leads to the same one."""
    asked = await replay_forms.of_form(visit)
    if visit.form.text("update"):
        return await _preview(visit, asked)
    try:
        replay = await _start(visit, asked)
    except CountChanged as error:
        return await _preview(visit, asked, error)
    except ValidationFailed as error:
        asked.note(error)
        return await _preview(visit, asked)
    except Conflict as error:
        return await _preview(visit, asked, error)
    return visit.redirect(f"/replays/{ids.show(ids.REPLAY, replay.id)}")


async def _start(visit: Visit, asked: Asked) -> Replay:
    if asked.errors or asked.organization_id is None:
        raise ValidationFailed(details=asked.errors)
    expected, replay_id = replay_forms.confirmed(visit.form)
    replay, _ = await actions.create(
        visit,
        asked.organization_id,
        asked.filters,
        asked.rate_per_second,
        asked.action,
        replay_id=replay_id,
        expected=expected,
    )
    return replay


async def _preview(visit: Visit, asked: Asked, problem: HookwrightError | None = None) -> Response:
    prepared = None
    if asked.organization_id is not None and not asked.is_wrong:
        try:
            prepared = await actions.prepare(
                visit, asked.organization_id, asked.filters, asked.rate_per_second, asked.action
            )
        except ValidationFailed as error:
            asked.note(error)
    status = problem.status if problem is not None else ValidationFailed.status if asked.errors else 200
    return visit.render("replays/new.html", status, **await replay_forms.shown(visit, asked, prepared, problem))


async def time(visit: Visit) -> Response:
    """How long so many take at a rate, for the preview while somebody types: a fragment of it."""
    given = visit.request.query_params
    rate = replay_forms.whole(given.get("rate_per_second", ""))
    total = replay_forms.whole(given.get("total", ""))
    is_known = rate is not None and total is not None and 1 <= rate <= replays.MAX_RATE
    seconds = duration_s(total, rate) if is_known and total is not None and rate is not None else None
    return visit.render("replays/_time.html", seconds=seconds, most=replays.MAX_RATE)


# --- while it runs, and afterwards ---


async def show(visit: Visit) -> Response:
    return await _show(visit)


async def pause(visit: Visit) -> Response:
    return await _operate(visit, "pause")


async def resume(visit: Visit) -> Response:
    return await _operate(visit, "resume")


async def cancel(visit: Visit) -> Response:
    return await _operate(visit, "cancel")


async def set_rate(visit: Visit) -> Response:
    given = visit.form.text("rate_per_second")
    rate = replay_forms.whole(given)
    try:
        if rate is None:
            raise ValidationFailed.of("rate_per_second", f"Must be a whole number from 1 to {replays.MAX_RATE:,}")
        replay = await actions.set_rate(visit, None, visit.path_id(ids.REPLAY), rate)
    except ValidationFailed as error:
        return await _show(visit, error, error.details, given)
    except Conflict as error:
        return await _show(visit, error)
    return visit.redirect(f"/replays/{ids.show(ids.REPLAY, replay.id)}?done=rate")


async def _operate(visit: Visit, operation: str) -> Response:
    try:
        replay = await actions.operate(visit, None, visit.path_id(ids.REPLAY), operation)
    except Conflict as error:
        return await _show(visit, error)
    return visit.redirect(f"/replays/{ids.show(ids.REPLAY, replay.id)}")


@dataclass(frozen=True, slots=True)
class _Items:
    """The items of one replay, as a list page walks them."""

    replay: Replay
    outcome: ItemOutcome | None

    async def page(self, session: AsyncSession, paging: Paging) -> Page:
        return await replay_items.page(session, self.replay.id, self.outcome, paging)


async def _show(
    visit: Visit,
    problem: HookwrightError | None = None,
    errors: Mapping[str, Any] | None = None,
    rate: str = "",
) -> Response:
    query = PageQuery.of(visit, OUTCOMES, ids.DELIVERY)
    async with visit.transaction() as session:
        replay = await replays.get(session, None, visit.path_id(ids.REPLAY))
        query.path = f"/replays/{ids.show(ids.REPLAY, replay.id)}"  # the forms on it have paths of their own

        def build(asked: dict[str, str]) -> _Items:
            wanted = asked.get("outcome")
            if wanted is not None and "," in wanted:
                raise ValidationFailed.of("outcome", "Choose one")
            return _Items(replay, None if wanted is None else ItemOutcome(wanted))

        page = await query.page(session, build)
        known = [item.delivery.subscription_id for item in page.rows if item.delivery is not None]
        targets = await labels.subscriptions(session, known)
        names = await labels.organizations(session, [replay.organization_id])
        who = await labels.actors(session, [replay.created_by])
        chosen = await replay_forms.in_words(session, replay.filters)
    return visit.render(
        "replays/show.html",
        problem.status if problem is not None else query.status,
        problem=problem.message if problem is not None and not errors else "",
        errors=errors or {},
        rate=rate or replay.rate_per_second,
        most=replays.MAX_RATE,
        query=query,
        page=page,
        targets=targets,
        shown_id=lambda id_: ids.show(ids.DELIVERY, id_),
        progress=Progress(replay, names.get(replay.organization_id, ""), who.get(replay.created_by, "")),
        chosen=chosen,
    )
