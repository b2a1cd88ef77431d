"""What a replay or a bulk discard would do, said before anybody starts it: exactly, and by cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from operator import itemgetter
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import ARRAY, Uuid, any_, bindparam, func, literal, union_all
from sqlalchemy.exc import DBAPIError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from core import ids
from core.errors import ValidationFailed
from core.listing import selection
from core.models import (
    UNFINISHED,
    Delivery,
    ItemOutcome,
    Replay,
    ReplayAction,
    ReplayItem,
    ReplayStatus,
    Subscription,
    SubscriptionStatus,
)
from core.states import STATE_OF, TRANSITIONS, State

MAX_SELECTION = 100_000  # what is surely frozen within the time of one call, on a busy machine too
# A selection is counted exactly or not at all. Dead letters are counted in an index; what was delivered is many rows.
COUNT_TIMEOUT_MS = 5_000


@dataclass(slots=True)
class Group:
    """How many of a selection share a subscription and an error. Not frozen: a preview makes a thousand, which then
    would take four times as long."""

    subscription_id: UUID
    error_kind: str | None
    count: int


class SkipReason(StrEnum):
    """Why the job passes a delivery over. Where several hold, the first that is listed here is said."""

    SUBSCRIPTION_DELETED = "subscription_deleted"
    SUBSCRIPTION_DISABLED = "subscription_disabled"
    EVENT_REDACTED = "event_redacted"  # there is no payload left to send
    SENDING = "sending"  # its outcome is awaited
    DELIVERED = "delivered"  # so it can't be discarded
    DISCARDED = "discarded"  # already


@dataclass(frozen=True, slots=True)
class Skips:
    subscription_id: UUID
    error_kind: str | None
    reason: SkipReason
    count: int


@dataclass(frozen=True, slots=True)
class Target:
    """A subscription that is sent to. While it is paused, what is sent to it waits."""

    subscription_id: UUID
    status: SubscriptionStatus
    circuit_breaker: Mapping[str, Any] | None  # its settings
    count: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Another job that is not finished, and how many of the same deliveries it has still to deal with."""

    replay_id: UUID
    action: ReplayAction
    status: ReplayStatus
    count: int


@dataclass(frozen=True, slots=True)
class Details:
    """`overlaps`: None where comparing with other jobs took too long."""

    by_state: Mapping[State, int]
    skips: Sequence[Skips]
    targets: Sequence[Target]
    overlaps: Sequence[Overlap] | None

    @property
    def skipped(self) -> int:
        return sum(one.count for one in self.skips)


@dataclass(frozen=True)
class Preview:
    """`details`: None where there are more than one job takes."""

    action: ReplayAction
    groups: Sequence[Group]
    details: Details | None

    @cached_property
    def total(self) -> int:
        return sum(group.count for group in self.groups)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a job would do. `filters`: with their defaults and up to when; posted as they are, they choose the same.
    `open_until_ms`: of subscriptions whose circuit breaker is open, in Unix milliseconds."""

    filters: Mapping[str, Any]
    rate_per_second: int
    preview: Preview
    open_until_ms: Mapping[UUID, int]

    @property
    def duration_s(self) -> int:
        return duration_s(self.preview.total, self.rate_per_second)

    @property
    def held(self) -> list[tuple[Target, str]]:
        """What is sent to these waits there: `paused`, or `breaker_open`."""
        held = []
        for target in self.preview.details.targets if self.preview.details is not None else ():
            if target.status is SubscriptionStatus.PAUSED:
                held.append((target, "paused"))
            elif target.subscription_id in self.open_until_ms:
                held.append((target, "breaker_open"))
        return held


def duration_s(count: int, rate_per_second: int) -> int:
    """How long so many take at this rate, at least."""
    return -(-count // rate_per_second)


async def preview(
    session: AsyncSession,
    organization_id: UUID,
    filters: Mapping[str, Any],
    action: ReplayAction = ReplayAction.REPLAY,
) -> Preview:
    """Exact counts of what `filters` choose now, and what `action` would do with them. Raises `ValidationFailed` on a
    wrong filter, or where counting takes longer than `COUNT_TIMEOUT_MS`; `Unavailable` as `selection.turn`."""
    conditions = selection.conditions(organization_id, filters)
    with selection.turn_for(filters):
        return await _preview(session, organization_id, filters, conditions, action)


async def _preview(
    session: AsyncSession,
    organization_id: UUID,
    filters: Mapping[str, Any],
    conditions: Sequence[selection.Condition],
    action: ReplayAction,
) -> Preview:
    began = monotonic()
    async with in_time(session):
        # Mostly there are none. That is told by a plan for any value, and spares to plan for them at each call.
        is_any_redacted = (await session.exec(_first_redacted(organization_id))).first() is not None
        await selection.plan_by_value(session)
        rows = await _count(session, filters, selection.to_count(conditions, filters), is_any_redacted)
    if sum(row.number for row in rows) > MAX_SELECTION:
        return Preview(action, _groups(rows), None)
    overlaps: Sequence[Overlap] | None = []
    unfinished = (col(Replay.organization_id) == organization_id, col(Replay.status).in_(UNFINISHED))
    if (await session.exec(select(Replay.id).where(*unfinished).limit(1))).first() is not None:
        try:
            async with session.begin_nested(), in_time(session, _left_ms(began)):
                overlaps = await _overlaps(session, unfinished, conditions)
        except ValidationFailed:
            overlaps = None
    return await _judged(session, action, rows, overlaps)


def _left_ms(began: float) -> float:
    return COUNT_TIMEOUT_MS - 1000 * (monotonic() - began)


async def until(session: AsyncSession, organization_id: UUID, filters: Mapping[str, Any]) -> datetime:
    """Of a selection that is larger than `MAX_SELECTION`: up to when as many as that were accepted, the oldest first.
    Raises `ValidationFailed` where that takes longer than `COUNT_TIMEOUT_MS`."""
    key = col(Delivery.id)
    query = (
        select(key).where(*selection.conditions(organization_id, filters)).order_by(key).offset(MAX_SELECTION).limit(1)
    )
    with selection.turn_for(filters):
        async with in_time(session):
            await selection.plan_by_value(session)
            return ids.time_of((await session.exec(query)).one())


@asynccontextmanager
async def in_time(session: AsyncSession, timeout_ms: float = COUNT_TIMEOUT_MS) -> AsyncIterator[None]:
    """Raises `ValidationFailed` when a statement takes longer."""
    connection = await session.connection()
    await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(100, round(timeout_ms))}")
    try:
        yield
    except DBAPIError as error:
        if error.orig is not None and isinstance(error.orig.__cause__, asyncpg.QueryCanceledError):
            raise ValidationFailed.of(
                "filters",
                f"They choose among more deliveries than can be looked at in {COUNT_TIMEOUT_MS / 1000:g} s; narrow them"
                " by created_after and created_before, or by subscription_id",
            ) from None
        raise
    await connection.exec_driver_sql("SET LOCAL statement_timeout TO DEFAULT")


class Row(NamedTuple):
    """How many (`number`) of a selection share all else."""

    subscription_id: UUID
    error_kind: str | None
    state: State
    redacted: bool
    number: int


def _first_redacted(organization_id: UUID) -> SelectOfScalar[UUID]:
    """The first in their order, which only their index gives at once: any of them PostgreSQL might look for in the
    table where many are redacted, and read all of it for an organization that has none."""
    key = col(Delivery.id)
    redacted = (col(Delivery.organization_id) == organization_id, col(Delivery.redacted_at).is_not(None))
    return select(key).where(*redacted).order_by(key).limit(1)


async def _count(
    session: AsyncSession,
    filters: Mapping[str, Any],
    conditions: Sequence[selection.Condition],
    is_any_redacted: bool,
) -> list[Row]:
    by = [col(Delivery.subscription_id), col(Delivery.error_kind)]
    only_state = selection.only_state(filters)
    if only_state is None:  # the index of dead letters, which all have one, doesn't hold it
        by.append(col(Delivery.state))

    def counted(redacted: bool, *more: selection.Condition) -> Any:
        query: Any = select(func.count(), literal(redacted), *by)
        return query.where(*conditions, *more).group_by(*by)

    # Whether they were redacted stands in no index that lists use: read from the table for each it takes four times as
    # long. So the few that were are counted again, in an index of their own, and taken off.
    query = counted(False)
    if is_any_redacted:
        query = union_all(query, counted(True, col(Delivery.redacted_at).is_not(None)))
    connection = await session.connection()  # the session itself would take twice as long for a thousand rows
    rows = [
        Row(subscription_id, error_kind, only_state or STATE_OF[state[0]], redacted, number)
        for number, redacted, subscription_id, error_kind, *state in (await connection.execute(query)).all()
    ]
    if not is_any_redacted:
        return rows
    taken_off = {row[:3]: row.number for row in rows if row.redacted}
    left = (row if row.redacted else row._replace(number=row.number - taken_off.get(row[:3], 0)) for row in rows)
    return [row for row in left if row.number]


def _groups(rows: Sequence[Row]) -> list[Group]:
    """The largest first."""
    found: dict[tuple[UUID, str | None], int] = {}
    for subscription_id, error_kind, _, _, number in rows:
        key = subscription_id, error_kind
        found[key] = found.get(key, 0) + number
    return [Group(*key, count) for key, count in sorted(found.items(), key=itemgetter(1), reverse=True)]


async def _overlaps(
    session: AsyncSession, unfinished: Sequence[selection.Condition], conditions: Sequence[selection.Condition]
) -> list[Overlap]:
    chosen = select(col(Delivery.id)).where(*conditions).cte("chosen").prefix_with("MATERIALIZED", dialect="postgresql")
    query = (
        select(Replay.id, Replay.action, Replay.status, func.count())
        .join(ReplayItem, col(ReplayItem.replay_id) == col(Replay.id))
        .join(chosen, chosen.c.id == col(ReplayItem.delivery_id))
        .where(*unfinished, col(ReplayItem.outcome).in_((ItemOutcome.WAITING, ItemOutcome.SENT)))
        .group_by(col(Replay.id))
        .order_by(col(Replay.id))
    )
    rows = (await session.exec(query)).all()
    return [Overlap(one, ReplayAction(action), ReplayStatus(status), count) for one, action, status, count in rows]


async def _judged(
    session: AsyncSession, action: ReplayAction, rows: Sequence[Row], overlaps: Sequence[Overlap] | None
) -> Preview:
    of = list({row.subscription_id for row in rows})
    columns = col(Subscription.id), col(Subscription.status), col(Subscription.circuit_breaker)
    connection = await session.connection()
    query = select(*columns).where(columns[0] == any_(bindparam("of", of, ARRAY(Uuid))))
    known = {
        one: (SubscriptionStatus(status), breaker) for one, status, breaker in (await connection.execute(query)).all()
    }
    skips: Counter[tuple[UUID, str | None, SkipReason]] = Counter()
    states: Counter[State] = Counter()
    targets: Counter[UUID] = Counter()
    reasons: dict[tuple[State, bool, SubscriptionStatus], SkipReason | None] = {}
    for subscription_id, error_kind, state, redacted, count in rows:
        states[state] += count
        status = known[subscription_id][0] if subscription_id in known else SubscriptionStatus.DELETED
        case = state, redacted, status
        if case not in reasons:
            reasons[case] = why_skipped(action, *case)
        if (reason := reasons[case]) is not None:
            skips[subscription_id, error_kind, reason] += count
        elif action is ReplayAction.REPLAY:
            targets[subscription_id] += count
    details = Details(
        states,
        [Skips(*key, count) for key, count in skips.most_common()],
        [Target(one, *known[one], count) for one, count in targets.most_common()],
        overlaps,
    )
    return Preview(action, _groups(rows), details)


def why_skipped(
    action: ReplayAction, state: State, redacted: bool, subscription: SubscriptionStatus
) -> SkipReason | None:
    """What the job will find at this delivery; None: it does what it is for."""
    if action is ReplayAction.REPLAY:
        if subscription is SubscriptionStatus.DELETED:
            return SkipReason.SUBSCRIPTION_DELETED
        if subscription is SubscriptionStatus.DISABLED:
            return SkipReason.SUBSCRIPTION_DISABLED
        if redacted:
            return SkipReason.EVENT_REDACTED
    return None if state in TRANSITIONS[action].before else SkipReason(state)
