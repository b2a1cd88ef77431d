"""What is asked of a replay's preview: by the filters in a URL, the same as those of the deliveries, or by its form."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin import wording
from app.admin.delivery_filters import FILTERS
from app.admin.forms import Form
from app.admin.lists import PageQuery
from app.admin.visit import Visit
from core import ids, jsontext, replays, timestamps
from core.errors import HookwrightError, ValidationFailed
from core.listing import labels, selection
from core.models import ReplayAction, ReplayStatus
from core.replay_preview import Prepared, SkipReason
from core.states import State

CONFIRM_FROM = 101  # deliveries; so many are to be typed
DISCARD_RATE = 1_000  # a second, where none is asked for: nobody has to keep up with a discard
MAX_GROUPS = 100  # that a preview lists
ANY_STATE = ",".join(State)

# What else stands in such a URL: the rows that were picked, or that all that match were, and what is to be done.
BESIDES = frozenset({"ids", "all_matching", "select", "action", "rate_per_second", "after", "before", "page"})

WHY_SKIPPED = {
    SkipReason.SUBSCRIPTION_DELETED: "their subscription was deleted",
    SkipReason.SUBSCRIPTION_DISABLED: "their subscription is disabled; resume it first to send these too",
    SkipReason.EVENT_REDACTED: "their event was redacted, so there is no payload left to send",
    SkipReason.SENDING: "they are being sent at this moment",
    SkipReason.DELIVERED: "they were delivered, so there is nothing to discard",
    SkipReason.DISCARDED: "they are discarded already",
}
STANDS = {ReplayStatus.QUEUED: "about to start", ReplayStatus.RUNNING: "running", ReplayStatus.PAUSED: "paused"}


@dataclass
class Asked:
    """A preview, as it is asked for. `is_wrong`: in a way that leaves nothing to count."""

    organization_id: UUID | None
    filters: dict[str, Any]
    action: ReplayAction
    rate_per_second: int
    rate_text: str
    errors: dict[str, list[str]] = field(default_factory=dict)
    is_wrong: bool = False

    def refuse(self, name: str, said: str) -> None:
        self.errors[name] = [said]
        self.is_wrong = True

    def note(self, error: ValidationFailed) -> None:
        """What core says is wrong, by the name of what it is about."""
        details = error.details or {"form": [error.message]}
        self.errors.update({name.removeprefix("filters."): said for name, said in details.items()})


async def of_url(visit: Visit) -> Asked:
    """By the filters, or by `ids` where rows were picked. A filter that is not known here would choose more than was
    meant, so it is refused."""
    params = visit.request.query_params
    query = PageQuery.of(visit, FILTERS, ids.DELIVERY)
    asked = _asked(params.get("action", ""), params.get("rate_per_second", ""), dict(query.asked))
    for name, said in query.errors.items():
        if name not in ("after", "before"):
            asked.refuse(name, " ".join(said))
    for name in params:
        if name not in BESIDES and name not in {one.name for one in FILTERS} and params[name].strip():
            asked.refuse(name[:40], f"There is no filter {name[:40]} here, so nothing is chosen")
    picked = [one.strip() for text in params.getlist("ids") for one in text.split(",") if one.strip()]
    is_all = params.get("all_matching") == "1"
    if picked and not is_all:
        whose = asked.filters.get("organization")
        asked.filters = {"ids": picked}
        if whose:
            asked.filters["organization"] = whose
    elif params.get("select") and not is_all:
        asked.refuse("ids", "Nothing was selected: go back and tick what you mean, or all that match")
    await _find_owner(visit, asked)
    asked.filters = replays.freeze({"status": ANY_STATE, **asked.filters})  # as in the list of deliveries
    return asked


async def of_form(visit: Visit) -> Asked:
    """By what the preview showed. Raises `ValidationFailed` on what no page of ours sends."""
    form = visit.form
    filters = jsontext.loads(form.text("selection").encode())
    if not isinstance(filters, dict):
        raise ValidationFailed.of("selection", "Must be filters")
    asked = _asked(form.text("action"), form.text("rate_per_second"), filters)
    asked.organization_id = ids.parse(ids.ORGANIZATION, form.text("organization"))
    selection.conditions(asked.organization_id, filters)
    return asked


def _asked(action: str, rate: str, filters: dict[str, Any]) -> Asked:
    chosen = ReplayAction.DISCARD if action == ReplayAction.DISCARD else ReplayAction.REPLAY
    usual = replays.DEFAULT_RATE if chosen is ReplayAction.REPLAY else DISCARD_RATE
    number = whole(rate) if rate.strip() else usual
    asked = Asked(None, filters, chosen, usual if number is None else number, rate.strip() or str(usual))
    if number is None or not 1 <= number <= replays.MAX_RATE:
        asked.rate_per_second = usual
        asked.errors["rate_per_second"] = [f"Must be a whole number from 1 to {replays.MAX_RATE:,}"]
    return asked


async def _find_owner(visit: Visit, asked: Asked) -> None:
    whose = asked.filters.pop("organization", None)
    if asked.is_wrong:
        return
    try:
        async with visit.transaction() as session:
            owner = await selection.owner(session, asked.filters)
    except ValidationFailed as error:
        asked.refuse("ids", error.message)
        return
    asked.organization_id = ids.parse(ids.ORGANIZATION, whose) if whose else owner
    if asked.organization_id is None:
        asked.refuse("organization", "Choose whose deliveries: an organization, a subscription, or some of them")


def confirmed(form: Form) -> tuple[int, UUID]:
    """How many the preview showed, and the id that the job is to have. Raises `ValidationFailed` where so many were to
    be typed and were not."""
    expected = whole(form.text("expected"))
    if expected is None:
        raise ValidationFailed.of("expected", "Must be a number")
    if expected >= CONFIRM_FROM and whole(form.text("confirm_count")) != expected:
        raise ValidationFailed.of("confirm_count", f"Type {expected:,} to confirm that you mean as many")
    return expected, ids.parse(ids.REPLAY, form.text("replay_id"))


def whole(text: str) -> int | None:
    """A number as people type it: `4,000` too."""
    digits = text.strip().replace(",", "").replace(" ", "").replace("\u202f", "")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 9 else None


async def shown(
    visit: Visit, asked: Asked, prepared: Prepared | None, problem: HookwrightError | None
) -> dict[str, Any]:
    """What the template of a preview knows."""
    preview = prepared and prepared.preview
    async with visit.transaction() as session:
        of = {group.subscription_id for group in preview.groups} if preview else set()
        targets = await labels.subscriptions(session, of)
        whose = [asked.organization_id] if asked.organization_id else []
        names = await labels.organizations(session, whose)
        chosen = await in_words(session, asked.filters)
        total = preview.total if preview else 0
        first_step = await _first_step(session, asked, total)
    picked = asked.filters.get("ids")
    return {
        "asked": asked,
        "errors": asked.errors,
        "problem": problem.message if problem is not None else "",
        "prepared": prepared,
        "preview": preview,
        "total": total,
        "groups": preview.groups[:MAX_GROUPS] if preview else (),
        "hidden_groups": max(0, len(preview.groups) - MAX_GROUPS) if preview else 0,
        "skips": _skips(prepared),
        "skipped_of": _skipped_of(prepared),
        "again": _again(prepared),
        "left_out": len(picked) - total if picked and preview else 0,
        "targets": targets,
        "organization": names.get(asked.organization_id, "") if asked.organization_id else "",
        "organization_id": ids.show(ids.ORGANIZATION, asked.organization_id) if asked.organization_id else "",
        "chosen": chosen,
        "is_discard": asked.action is ReplayAction.DISCARD,
        "selection": orjson.dumps(asked.filters).decode(),
        "replay_id": ids.show(ids.REPLAY, ids.new_id()),
        "first_step": first_step,
        "needs_confirming": total >= CONFIRM_FROM,
        "most": replays.MAX_SELECTION,
        "most_a_second": replays.MAX_RATE,
        "stands": STANDS,
        "moment": lambda ms: datetime.fromtimestamp(ms / 1000, UTC),
        "replay_shown": lambda id_: ids.show(ids.REPLAY, id_),
    }


def _skips(prepared: Prepared | None) -> list[tuple[str, int]]:
    """Why how many are skipped, the most frequent first."""
    counts: dict[str, int] = {}
    for one in prepared.preview.details.skips if prepared and prepared.preview.details else ():
        counts[WHY_SKIPPED[one.reason]] = counts.get(WHY_SKIPPED[one.reason], 0) + one.count
    return sorted(counts.items(), key=lambda item: -item[1])


def _skipped_of(prepared: Prepared | None) -> dict[tuple[UUID, str | None], int]:
    counts: dict[tuple[UUID, str | None], int] = {}
    for one in prepared.preview.details.skips if prepared and prepared.preview.details else ():
        key = one.subscription_id, one.error_kind
        counts[key] = counts.get(key, 0) + one.count
    return counts


def _again(prepared: Prepared | None) -> dict[str, int]:
    """What is worth knowing of those that are not dead letters."""
    by_state = prepared.preview.details.by_state if prepared and prepared.preview.details else {}
    return {state: by_state.get(state, 0) for state in (State.PENDING, State.DELIVERED, State.DISCARDED)}


async def _first_step(session: AsyncSession, asked: Asked, total: int) -> str | None:
    """Where more are chosen than one job takes: the preview of the oldest of them."""
    if total <= replays.MAX_SELECTION or asked.organization_id is None:
        return None
    try:
        async with session.begin_nested():
            until = await replays.until(session, asked.organization_id, asked.filters)
    except ValidationFailed:
        return None  # there are so many that not even that is found in time
    chosen = asked.filters | {"created_before": timestamps.show(until)}
    names = {one.field: one.name for one in FILTERS} | {"ids": "ids"}
    params = {names[name]: ",".join(selection.words(value)) for name, value in chosen.items()}
    whose = ids.show(ids.ORGANIZATION, asked.organization_id)
    return f"/replays/new?{urlencode(params | {'organization': whose, 'action': asked.action})}"


async def in_words(session: AsyncSession, filters: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What `filters` choose: label, text, and the path of its page if it has one."""
    told = []
    names = {one.field: one for one in FILTERS}
    for name, value in filters.items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        if name == "ids":
            count = len(selection.words(value))
            told.append(("Selected", f"{count:,} deliver{'y' if count == 1 else 'ies'} by hand", ""))
        elif name == "status" and set(selection.words(value)) == set(State):
            told.append((names[name].label, "any", ""))
        elif name == "subscription_id":
            found = await labels.subscriptions(session, [ids.parse(ids.SUBSCRIPTION, text)])
            named = next((one.label for one in found.values()), text)
            told.append(("Subscription", named, f"/subscriptions/{text}"))
        elif name in ("event_id", "replay_id"):
            told.append((names[name].label, text, f"/{name.removesuffix('_id')}s/{text}"))
        elif name in ("created_after", "created_before"):
            label = "Accepted since" if name == "created_after" else "Accepted before"
            told.append((label, wording.exact_time(selection.moment(text)), ""))
        elif name in names:
            told.append((names[name].label, text if name in ("event_type", "text") else text.replace("_", " "), ""))
        else:
            told.append((name.replace("_", " "), text, ""))
    return told
