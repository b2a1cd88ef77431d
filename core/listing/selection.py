"""Choosing deliveries: the one set of filters that the list, a replay and its preview share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from threading import BoundedSemaphore
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, LargeBinary, bindparam, func, literal_column, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids, jsontext
from core.errors import InvalidId, Unavailable, ValidationFailed
from core.failures import ErrorKind
from core.models import OFF_PATH, Delivery, Event, ItemOutcome, Replay, ReplayItem, Subscription
from core.states import DeadReason, DiscardReason, PendingReason, State

MAX_IDS = 1_000
SEARCHES_AT_ONCE = 2  # of payloads in one process: beside them it accepts events, over the same few connections
NO_ERROR = "none"  # among errors: there is none
REASONS = tuple(str(one) for kind in (PendingReason, DeadReason, DiscardReason) for one in kind)

Condition = ColumnElement[bool]


# As literals, so that PostgreSQL sees at once that a partial index serves.
_LEFT_THE_PATH: Condition = literal_column(f"({OFF_PATH})", Boolean)
_PENDING: Condition = literal_column("(deliveries.state = 'pending')", Boolean)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which deliveries are chosen: those that an index yields in the order of their ids (`walked`), as far as each of
    them passes `checked`.

    `in_index`: the index itself checks. `events`: they are better found through their events, which have an index on
    the type, as deliveries have not: the conditions of those. `by_organization`: the index begins with the
    organization. `reads_payloads`: checking reads those.
    """

    walked: Sequence[Condition]
    checked: Sequence[Condition]
    in_index: bool = False
    events: Sequence[Condition] = ()
    by_organization: bool = True
    reads_payloads: bool = False


def conditions(organization_id: UUID | None, filters: Mapping[str, Any]) -> list[Condition]:
    """The SQL conditions for `filters`, which may name:

    `status`, `error` (comma-separated or a list; `none` is that there is none), `reason`, `status_code`,
    `subscription_id`, `event_id`, `event_type`, `replay_id` (the last one that sent it) or with `outcome` (what came of
    it in that one), `ids` (a list of delivery ids), `created_after` and `created_before` (ISO 8601), `text`
    (the id of a delivery or of an event, or what stands in the event's `data`).

    Without `organization_id` those of all. Raises `ValidationFailed` that names an unknown filter or a wrong value.
    """
    chosen = choose(organization_id, filters)
    return [*chosen.walked, *chosen.checked]


def to_count(found: Sequence[Condition], filters: Mapping[str, Any]) -> Sequence[Condition]:
    """The `conditions` of `filters` for a count by subscription and error: where only dead letters are chosen, by no
    more than their own index holds, that serves. It is of no use for a part of a day."""
    if only_state(filters) is State.DEAD and _IN_DEAD_INDEX.issuperset(filters):
        return [one for one in found if one is not _LEFT_THE_PATH]  # which would ask for a larger index
    return found


def only_state(filters: Mapping[str, Any]) -> State | None:
    """The one that `filters` leave, as far as they name it."""
    named = set(words(filters.get("status", "")))
    return State(*named) if len(named) == 1 else None


def choose(organization_id: UUID | None, filters: Mapping[str, Any]) -> Choice:
    """The same conditions, by what serves them. Raises `ValidationFailed` like `conditions`."""
    built = _build(filters)
    walked: list[Condition] = [] if organization_id is None else [col(Delivery.organization_id) == organization_id]
    reads_payloads = searches_payloads(filters)

    def walk(*names: str) -> None:
        walked.extend(built.pop(name) for name in names if name in built)

    def choice(*more: Condition, in_index: bool = False, by_organization: bool = True) -> Choice:
        return Choice(
            [*walked, *more],
            list(built.values()),
            in_index=in_index,
            by_organization=by_organization,
            reads_payloads=reads_payloads,
        )

    walk("created_after", "created_before")
    if "ids" in built or "event_id" in built or ("text" in built and not reads_payloads):
        walk(*(name for name in tuple(built) if name != "text" or not reads_payloads))
        return choice(by_organization=False)
    if "replay_id" in built:
        walk("replay_id")
        return choice(by_organization=False)
    if any(name in filters and leaves(filters[name]) for name, leaves in _LEAVES_THE_PATH.items()):
        walk("subscription_id")
        return choice(_LEFT_THE_PATH, in_index=True)
    if "status" in built and words(filters["status"]) == [State.PENDING]:
        del built["status"]
        return choice(_PENDING)
    if "event_type" in built and organization_id is not None:
        events = [
            col(Event.organization_id) == organization_id,
            col(Event.event_type) == filters["event_type"],
            *(compare(col(Event.id), filters[name]) for name, compare in _SPAN.items() if name in filters),
        ]
        return Choice(walked, list(built.values()), events=events, reads_payloads=reads_payloads)
    walk("subscription_id")
    return choice(by_organization=False)


def searches_payloads(filters: Mapping[str, Any]) -> bool:
    """Whether `filters` choose by what stands in payloads, rather than by an id. False where they can't be read, which
    `conditions` refuses."""
    try:
        return "text" in filters and _named(filters["text"]) is None
    except ValueError:
        return False


_searches = BoundedSemaphore(SEARCHES_AT_ONCE)  # never waited for, so that it serves any event loop


@contextmanager
def turn() -> Iterator[None]:
    """While payloads are searched. Raises `Unavailable` when others search: whoever waited here would hold a connection
    meanwhile."""
    if not _searches.acquire(blocking=False):
        raise Unavailable("Others are searching payloads just now; try again in a moment")
    try:
        yield
    finally:
        _searches.release()


def turn_for(filters: Mapping[str, Any]) -> AbstractContextManager[None]:
    """`turn`, where `filters` need it."""
    return turn() if searches_payloads(filters) else nullcontext()


async def owner(session: AsyncSession, filters: Mapping[str, Any]) -> UUID | None:
    """Whose the deliveries are that `filters` name: by their subscription, replay, event or first id; None where they
    name none of these, or what there is not. Raises ValueError for what is no id."""
    found: UUID | None = None
    for name, prefix, model in _OWNED:
        if found is None and filters.get(name):
            id_ = _id(prefix, words(filters[name])[0])
            found = (await session.exec(select(model.organization_id).where(model.id == id_))).one_or_none()
    return found


async def plan_by_value(session: AsyncSession) -> None:
    """Has PostgreSQL plan the rest of the transaction's statements by their values, as it plans the first five of each.
    From a plan for any value it reads a large organization in the wrong index: 370 ms instead of 60."""
    connection = await session.connection()
    await connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_custom_plan")


def _build(filters: Mapping[str, Any]) -> dict[str, Condition]:
    found: dict[str, Condition] = {}
    faults: dict[str, list[str]] = {}
    for name, value in filters.items():
        build = _FILTERS.get(name)
        if build is None:
            faults[f"filters.{name}"] = [f"There is no such filter; there are: {', '.join(sorted(_FILTERS))}"]
            continue
        try:
            found[name] = build(value)
        except (ValueError, ValidationFailed) as error:
            said = error.message if isinstance(error, ValidationFailed) else str(error)
            faults[f"filters.{name}"] = [said]
    if "outcome" in filters and "replay_id" not in filters:
        faults["filters.outcome"] = ["Belongs to replay_id: what came of it in that replay"]
    if faults:
        raise ValidationFailed(details=faults)
    if "outcome" in found:
        of_replay = col(ReplayItem.replay_id) == _id(ids.REPLAY, filters["replay_id"])
        items = select(col(ReplayItem.delivery_id)).where(of_replay, found.pop("outcome"))
        found["replay_id"] = col(Delivery.id).in_(items)
    return found


def words(value: Any) -> list[str]:
    """`"a,b"` or `["a", "b"]` as a list. Raises ValueError on anything else."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    if isinstance(value, Sequence) and all(isinstance(one, str) for one in value):
        return list(value)
    raise ValueError("Must be text, or a list of texts")


_YEARS = "Must be a time between the years 1970 and 9000"


def moment(value: Any) -> datetime:
    """An ISO 8601 time with its zone, in UTC. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("Must be an ISO 8601 time, as 2026-01-28T10:15:00Z")  # noqa: TRY004 - one error for callers
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("Must be an ISO 8601 time, as 2026-01-28T10:15:00Z") from None
    if not value.isprintable():  # fromisoformat overlooks a NUL at the end
        raise ValueError("Must be an ISO 8601 time, as 2026-01-28T10:15:00Z")
    if parsed.tzinfo is None:
        raise ValueError("Must carry a time zone: add Z for UTC")
    try:
        parsed = parsed.astimezone(UTC)
    except OverflowError:
        raise ValueError(_YEARS) from None
    if not 1970 <= parsed.year < 9000:
        raise ValueError(_YEARS)
    return parsed


def _among(value: Any, known: Sequence[str]) -> list[str]:
    chosen = set(words(value))
    if not chosen or chosen - set(known):
        raise ValueError(f"Must be among: {', '.join(known)}")
    return sorted(chosen)


def _id(prefix: str, value: Any) -> UUID:
    if not isinstance(value, str):
        raise ValueError(f"Must be an id that begins with {prefix}_")  # noqa: TRY004 - one error for callers
    return ids.parse(prefix, value)


def _ids(value: Any) -> Condition:
    chosen = [_id(ids.DELIVERY, one) for one in words(value)]
    if not 1 <= len(chosen) <= MAX_IDS:
        raise ValueError(f"Must list 1 to {MAX_IDS} delivery ids")
    return col(Delivery.id).in_(chosen)


def _of_event(value: Any) -> Condition:
    event_id = _id(ids.EVENT, value)
    low, high = ids.family_bounds(event_id)
    return (col(Delivery.id).between(low, high)) & (col(Delivery.event_id) == event_id)


def _status(value: Any) -> Condition:
    chosen = _among(value, tuple(State))
    if len(chosen) == 1:  # as a literal: see above
        return literal_column(f"(deliveries.state = '{chosen[0]}')", Boolean)
    return col(Delivery.state).in_(chosen)


def _error(value: Any) -> Condition:
    kinds = _among(value, (*ErrorKind, NO_ERROR))
    of_kind = col(Delivery.error_kind).in_([kind for kind in kinds if kind != NO_ERROR])
    return or_(of_kind, col(Delivery.error_kind).is_(None)) if NO_ERROR in kinds else of_kind


def _status_code(value: Any) -> Condition:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) == 3):
        raise ValueError("Must be an HTTP status of three digits")
    return col(Delivery.status_code) == int(text)


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > 256:
        raise ValueError("Must be text of at most 256 characters")
    return value


def _searched(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value or len(value) > 256:
        raise ValueError("Must be text of 1 to 256 characters")
    return value.strip()


def _named(value: Any) -> Condition | None:
    """The condition for a text that is the id of a delivery or of an event."""
    text = _searched(value)
    for prefix, condition in ((ids.DELIVERY, _ids), (ids.EVENT, _of_event)):
        if text.startswith(f"{prefix}_"):
            try:
                return condition(text)
            except (InvalidId, ValueError):
                return None
    return None


def _holds(value: Any) -> Condition:
    # A subquery for one value, which PostgreSQL runs for each row that is looked at: a semi-join it might turn around,
    # and read all payloads there are.
    holds = select(holding(value)).where(col(Event.id) == col(Delivery.event_id)).scalar_subquery()
    found = _named(value)
    return func.coalesce(holds, literal_column("false")) if found is None else found


def holding(value: Any) -> Condition:
    """Of an event: it has this text in `data`, or as its producer's `event_id`. Raises ValueError."""
    text = _searched(value)
    data = func.substring(col(Event.payload), col(Event.data_at) + 1)
    # As it was typed; and as it stands within a JSON string, if that differs.
    wanted = sorted({text.encode(), jsontext.dumps(text)[1:-1]})
    found = [func.position(bindparam(None, one, LargeBinary, unique=True).op("IN")(data)) > 0 for one in wanted]
    return or_(col(Event.external_id) == text, *found)


# Of deliveries and of events, whose ids begin alike.
_SPAN: Mapping[str, Callable[[Any, Any], Condition]] = {
    "created_after": lambda key, value: key >= ids.lowest_at(moment(value)),
    "created_before": lambda key, value: key < ids.lowest_at(moment(value)),
}
_FILTERS: Mapping[str, Callable[[Any], Condition]] = {
    "status": _status,
    "error": _error,
    "reason": lambda value: col(Delivery.reason).in_(_among(value, REASONS)),
    "status_code": _status_code,
    "subscription_id": lambda value: col(Delivery.subscription_id) == _id(ids.SUBSCRIPTION, value),
    "event_id": _of_event,
    "event_type": lambda value: col(Delivery.event_type) == _text(value),
    "replay_id": lambda value: col(Delivery.replay_id) == _id(ids.REPLAY, value),
    "outcome": lambda value: col(ReplayItem.outcome).in_(_among(value, tuple(ItemOutcome))),
    "ids": _ids,
    "text": _holds,
    **{name: partial(compare, col(Delivery.id)) for name, compare in _SPAN.items()},
}

# What `ix_deliveries_dead` knows of each.
_IN_DEAD_INDEX = frozenset(("status", "error", "subscription_id", "created_before"))

# What tells whose a delivery is.
_OWNED: Sequence[tuple[str, str, Any]] = (
    ("subscription_id", ids.SUBSCRIPTION, Subscription),
    ("replay_id", ids.REPLAY, Replay),
    ("event_id", ids.EVENT, Event),
    ("ids", ids.DELIVERY, Delivery),
)

# Whether a value of a filter chooses only what `OFF_PATH` holds for.
_LEAVES_THE_PATH: Mapping[str, Callable[[Any], bool]] = {
    "status": lambda value: {State.DEAD, State.DISCARDED}.issuperset(words(value)),
    "reason": lambda value: PendingReason.NEW not in words(value),
    "error": lambda value: NO_ERROR not in words(value),
    "status_code": lambda value: not 200 <= int(value) < 300,
}
