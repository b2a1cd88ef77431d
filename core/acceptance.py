"""Accepting events: match, store the event with its deliveries, and only then say yes.

A request is one event or a batch of them, accepted whole or not at all. All requests that wait at the same moment
share one transaction (`core.storage.group_commit`), but for those whose matching takes long: they are stored apart, so
that costly filters of one organization don't keep the others waiting. The answer leaves after the commit, and so does
the hint to the workers, which may be lost: the sweep finds every committed delivery without it.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import structlog

from core import audit, idempotency, ids
from core.access.models import AuditEntry
from core.errors import AuthenticationFailed, HookwrightError, NotFound, Unavailable
from core.events import Accepted, NewEvent
from core.hints import Hint
from core.idempotency import IdempotentCall
from core.matching.matcher import Matching, Slice, SubscriberCache, Subscribers
from core.stats import Tally
from core.storage import partitions
from core.storage.database import Database, is_unreachable
from core.storage.group_commit import GroupCommit

COMPLAIN_EVERY_S = 1.0  # in the log, however many requests fail
ACCEPT_TIMEOUT_S = 10.0  # then the caller gets 503; whether it was stored is told by its idempotency key
TRIES = 3  # of a request whose transaction PostgreSQL ended for the sake of another
# Two requests with the same `event_id` wait for each other, and with them all that share their transactions. A process
# that stopped inside its transaction would hold back those of all others for as long as the pool's `lock_timeout`.
KEYS_LOCK_TIMEOUT_MS = 500
MAX_BATCH_EVENTS = 500  # events a transaction takes; beyond that latency grows and the cost per event does not fall
SHARED_MATCHING_S = 0.02  # of a batch, for each organization; what takes longer is stored apart
APART = 2  # requests at a time, no two of the same organization; it leaves connections to everything else
MAX_WAITING = 20_000  # requests; and, whichever is reached first,
MAX_WAITING_BYTES = 128 * 1024 * 1024


log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Request:
    """What one caller posted."""

    events: Sequence[NewEvent]
    organization_id: UUID
    # Looked at again within the batch: a revoked key is refused by every process at once. None: a person posts it.
    api_key_id: UUID | None
    idempotent: IdempotentCall | None = None
    render: Callable[[Sequence[Accepted], Sequence[UUID]], Any] = field(
        default=lambda accepted, _: [one.to_json() for one in accepted]
    )
    audited: AuditEntry | None = None  # stored with the events, if they are new


class Answer(NamedTuple):
    """What a request came to. `data` is what the caller is shown; `first_at` is set when it was answered before."""

    data: Any
    duplicate: bool = False
    first_at: datetime | None = None


class _TakesLong(HookwrightError):
    """Never shown: the request is stored apart"""


class Acceptance:
    """Accepts events for one web process, and counts them in `tally`. `hint` is called after each commit with the new
    deliveries."""

    def __init__(self, database: Database, hint: Callable[[Sequence[Hint]], None], seal: idempotency.Seal) -> None:
        self._database = database
        self._hint = hint
        self._seal = seal
        self._subscribers = SubscriberCache()
        self._apart = asyncio.Semaphore(APART)
        self._apart_of: weakref.WeakValueDictionary[UUID, asyncio.Lock] = weakref.WeakValueDictionary()
        self._waiting_bytes = 0
        self._complained_at = -COMPLAIN_EVERY_S
        self._refused = 0  # since then
        self.tally = Tally()
        self._group: GroupCommit[Request, Answer] = GroupCommit(
            self._flush,
            max_batch=MAX_BATCH_EVENTS,
            max_waiting=MAX_WAITING,
            flushers=2,  # while one batch waits for the disk, the next is matched
            weight=lambda request: len(request.events),
            may_contend=_has_keys,
        )

    def start(self) -> None:
        self._group.start()

    async def close(self) -> None:
        await self._group.close()

    async def accept(self, request: Request) -> Answer:
        """Stores the events of `request` and returns when that is durable.

        Raises `Unavailable` when the database does not answer in time; nothing can then be said about whether the
        events were stored, and the same idempotency key or `event_id` makes it safe to send them again.
        """
        size = sum(len(event.payload) for event in request.events)
        if self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise Unavailable("More is waiting to be stored than memory allows; slow down and try again")
        self._waiting_bytes += size
        try:
            return await self._submit(request)
        except Exception as error:
            if is_unreachable(error):
                self._complain(error)
                raise Unavailable(
                    "The event could not be stored in time; send it again with the same event_id or Idempotency-Key",
                    retry_after_s=2,
                ) from error
            raise
        finally:
            self._waiting_bytes -= size

    def _complain(self, error: Exception) -> None:
        self._refused += 1
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            log.warning("events could not be stored", requests=self._refused, error=repr(error))
            self._complained_at, self._refused = now, 0

    async def _submit(self, request: Request) -> Answer:
        """Raises TimeoutError after `ACCEPT_TIMEOUT_S`, all tries together."""
        end = asyncio.get_running_loop().time() + ACCEPT_TIMEOUT_S
        for _ in range(TRIES - 1):
            try:
                return await self._submit_once(request, end)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                log.info("an acceptance gave way to another transaction; it is tried again", error=repr(error))
        return await self._submit_once(request, end)

    async def _submit_once(self, request: Request, end: float) -> Answer:
        future = self._group.submit(request)
        timer = future.get_loop().call_at(end, _give_up, future)  # a seventh of what asyncio.timeout() costs
        try:
            return await future
        except _TakesLong:
            return await self._submit_apart(request, end)
        finally:
            timer.cancel()
            del future  # an error in it holds this frame: such a cycle, with the request's body, would wait to be found

    async def _submit_apart(self, request: Request, end: float) -> Answer:
        turn = self._apart_of.setdefault(request.organization_id, asyncio.Lock())
        async with asyncio.timeout_at(end), turn, self._apart:
            [answer] = await self._flush([request], apart=True)
        if isinstance(answer, HookwrightError):
            raise answer
        return answer

    async def _flush(self, requests: list[Request], *, apart: bool = False) -> list[Answer | HookwrightError]:
        try:
            return await self._store(requests, apart=apart)
        except asyncpg.CheckViolationError as error:
            if not partitions.is_missing(error):
                raise
            # Partitions are made a week ahead by a cron job; this is for when no worker ran that long.
            async with self._database.driver() as driver:
                days = [ids.day_of(event.id) for request in requests for event in request.events]
                await partitions.ensure(driver, days)
            return await self._store(requests, apart=apart)

    async def _store(self, requests: list[Request], *, apart: bool = False) -> list[Answer | HookwrightError]:
        batch = _Batch(requests)
        async with self._database.driver() as driver:
            subscribers = await self._context(driver, batch)
            await _match(batch, subscribers, None if apart else SHARED_MATCHING_S)
            if batch.needs_transaction():
                async with driver.transaction():
                    await driver.execute(f"SET LOCAL lock_timeout = '{KEYS_LOCK_TIMEOUT_MS}ms'")
                    await batch.claim_keys(driver, self._seal)
                    made = await _insert(driver, batch)
                    await batch.store_answers(driver, self._seal)
                    await audit.store(driver, [one.audited for _, one in batch.live() if one.audited is not None])
            else:
                made = await _insert(driver, batch)
        self.tally.accept(batch.new)
        if made:
            self._hint(made)
        return batch.answers()

    async def _context(self, driver: Any, batch: _Batch) -> dict[UUID, Subscribers]:
        """One statement for the whole batch: are the keys still valid, and which subscriptions are current?"""
        organizations = {request.organization_id for request in batch.requests}
        keys = {request.api_key_id for request in batch.requests if request.api_key_id is not None}
        rows = await driver.fetch(_CONTEXT, list(organizations), list(keys))
        valid = {row["id"] for row in rows if row["version"] is None}
        versions = {row["id"]: row["version"] for row in rows if row["version"] is not None}
        for index, request in enumerate(batch.requests):
            if request.api_key_id is not None and request.api_key_id not in valid:
                batch.fail(index, AuthenticationFailed("This API key has been revoked"))
            elif request.organization_id not in versions:
                batch.fail(index, NotFound("There is no such organization"))
        return await self._subscribers.at(driver, versions)


def _give_up(future: asyncio.Future[Answer]) -> None:
    """Withdraws a request, if its batch has not begun, and lets its caller know."""
    if not future.done():
        future.set_exception(TimeoutError("not stored in time"))


def _has_keys(request: Request) -> bool:
    return request.idempotent is not None or any(event.external_id is not None for event in request.events)


class _Batch:
    """The requests of one transaction and what becomes of each."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.wanted: dict[UUID, Sequence[UUID]] = {}  # the subscriptions by the id of the event
        self.new: dict[UUID, int] = defaultdict(int)  # how many events were not stored before, by organization
        self._ended: dict[int, Answer | HookwrightError] = {}
        self._accepted: dict[UUID, Accepted] = {}  # by the id of the NewEvent; a duplicate holds the first event's
        self._deliveries: dict[UUID, Sequence[UUID]] = {}
        self._twins: list[tuple[NewEvent, NewEvent]] = []  # a later event in this batch with the first one's event_id

    def fail(self, index: int, error: HookwrightError) -> None:
        self._ended[index] = error

    def live(self) -> list[tuple[int, Request]]:
        return [(index, request) for index, request in enumerate(self.requests) if index not in self._ended]

    def needs_transaction(self) -> bool:
        return any(_has_keys(request) or request.audited is not None for _, request in self.live())

    async def claim_keys(self, driver: Any, seal: idempotency.Seal) -> None:
        """Ends the requests that were answered before, and finds the events that were accepted before."""
        first_by_key: dict[tuple[UUID, str, str], int] = {}
        for index, request in self.live():
            call = request.idempotent
            if call is None:
                continue
            # Two requests with the same key in one batch: the later waits for nothing, it is simply in flight.
            if first_by_key.setdefault(call.identity, index) != index:
                self._ended[index] = idempotency.in_flight()
        claimed = [(index, request.idempotent) for index, request in self.live() if request.idempotent]
        for (index, _), outcome in zip(
            claimed, await idempotency.claim(driver, [call for _, call in claimed], seal), strict=True
        ):
            if isinstance(outcome, HookwrightError):
                self._ended[index] = outcome
            elif outcome is not None:
                self._ended[index] = Answer(outcome.data, duplicate=True, first_at=outcome.created_at)
        await self._claim_external_ids(driver)

    async def _claim_external_ids(self, driver: Any) -> None:
        first: dict[tuple[UUID, str], NewEvent] = {}
        for _, request in self.live():
            for event in request.events:
                if event.external_id is not None:
                    holder = first.setdefault((event.organization_id, event.external_id), event)
                    if holder is not event:
                        self._twins.append((event, holder))
        if not first:
            return
        wanted = [first[key] for key in sorted(first)]  # in one order everywhere: no deadlock between processes
        columns = (
            [event.organization_id for event in wanted],
            [event.external_id for event in wanted],
        )
        await driver.execute(_CLAIM_EXTERNAL_IDS, *columns, [event.id for event in wanted])
        for row in await driver.fetch(_HELD_EXTERNAL_IDS, *columns, [event.id for event in wanted]):
            event = first[row["organization_id"], row["external_id"]]
            self._accepted[event.id] = Accepted(
                row["id"], row["event_type"], row["occurred_at"], row["matched_subscriptions"], duplicate=True
            )

    def to_insert(self) -> list[NewEvent]:
        skipped = set(self._accepted) | {event.id for event, _ in self._twins}
        return [event for _, request in self.live() for event in request.events if event.id not in skipped]

    def inserted(self, event: NewEvent, delivery_ids: Sequence[UUID]) -> None:
        self._accepted[event.id] = Accepted(event.id, event.event_type, event.occurred_at, len(delivery_ids))
        self._deliveries[event.id] = delivery_ids
        self.new[event.organization_id] += 1

    def _answer(self, request: Request) -> Answer:
        for event, holder in self._twins:
            self._accepted[event.id] = self._accepted[holder.id]._replace(duplicate=True)
        accepted = [self._accepted[event.id] for event in request.events]
        duplicate = all(one.duplicate for one in accepted)
        delivery_ids = [one for event in request.events for one in self._deliveries.get(event.id, ())]
        return Answer(
            request.render(accepted, delivery_ids),
            duplicate=duplicate,
            first_at=ids.time_of(accepted[0].id) if duplicate else None,
        )

    async def store_answers(self, driver: Any, seal: idempotency.Seal) -> None:
        answered = [
            (request.idempotent, self._answer(request).data) for _, request in self.live() if request.idempotent
        ]
        await idempotency.store(driver, answered, seal)

    def answers(self) -> list[Answer | HookwrightError]:
        for index, request in self.live():
            self._ended[index] = self._answer(request)
        return [self._ended[index] for index in range(len(self.requests))]


async def _match(batch: _Batch, subscribers: Mapping[UUID, Subscribers], longest_s: float | None) -> None:
    """Finds who wants each event, before anything is locked. Fails requests of an organization for which it has taken
    longer than that already."""
    took_s: dict[UUID, float] = {}
    turn = Slice()
    for index, request in batch.live():
        organization_id = request.organization_id
        for event in request.events:
            if event.only_for:
                batch.wanted[event.id] = [event.only_for]
                continue
            matching = Matching(subscribers[organization_id], event.event_type, event.envelope)
            while not matching.run(turn):
                took_s[organization_id] = took_s.get(organization_id, 0) + await turn.pause()
                if longest_s is not None and took_s[organization_id] > longest_s:
                    break
            if longest_s is not None and took_s.get(organization_id, 0) > longest_s:
                batch.fail(index, _TakesLong())
                break
            batch.wanted[event.id] = matching.wanted
            if matching.undecided:
                log.warning(
                    "an event holds more than filters may look at; it is not sent to their subscriptions",
                    organization_id=ids.show(ids.ORGANIZATION, organization_id),
                    event_id=ids.show(ids.EVENT, event.id),
                    subscriptions=matching.undecided,
                )


async def _insert(driver: Any, batch: _Batch) -> list[Hint]:
    """Stores the new events with their deliveries in one statement. Returns the deliveries."""
    events = batch.to_insert()
    rows: list[tuple[Any, ...]] = []
    deliveries: list[tuple[UUID, UUID, UUID, UUID, str]] = []
    for event in events:
        wanted = batch.wanted[event.id]
        made = [ids.new_id.within(event.id) for _ in wanted]
        batch.inserted(event, made)
        rows.append(
            (
                event.id,
                event.organization_id,
                event.event_type,
                event.occurred_at,
                event.external_id,
                event.branch_id,
                event.metadata,
                event.payload,
                event.data_at,
                len(made),
                event.only_for,
                event.copied_from,
            )
        )
        deliveries += [
            (delivery_id, event.organization_id, subscription_id, event.id, event.event_type)
            for delivery_id, subscription_id in zip(made, wanted, strict=True)
        ]
    if events:
        await driver.execute(_INSERT, rows, deliveries)
    return [Hint(organization_id, subscription_id, id_) for id_, organization_id, subscription_id, _, _ in deliveries]


_CONTEXT = """
SELECT id, subscriptions_version AS version FROM organizations WHERE id = ANY($1::uuid[]) AND deleted_at IS NULL
UNION ALL
SELECT id, NULL FROM api_keys WHERE id = ANY($2::uuid[]) AND revoked_at IS NULL
"""

_CLAIM_EXTERNAL_IDS = """
INSERT INTO event_keys (organization_id, external_id, event_id)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[])
ON CONFLICT DO NOTHING
"""

# Those of the wanted keys that another event holds. A separate statement: it sees what was committed meanwhile.
_HELD_EXTERNAL_IDS = """
SELECT k.organization_id, k.external_id, e.id, e.event_type, e.occurred_at, e.matched_subscriptions
FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS wanted(organization_id, external_id, event_id)
JOIN event_keys k USING (organization_id, external_id)
JOIN events e ON e.id = k.event_id
WHERE k.event_id <> wanted.event_id
"""

_INSERT = """
WITH accepted AS (
    INSERT INTO events (
        id, organization_id, event_type, occurred_at, external_id, branch_id, metadata, payload, data_at,
        matched_subscriptions, only_for, copied_from
    )
    SELECT * FROM unnest($1::accepted_event[])
)
INSERT INTO deliveries (id, organization_id, subscription_id, event_id, event_type, state, reason, due_at)
SELECT id, organization_id, subscription_id, event_id, event_type, 'pending', 'new', now()
FROM unnest($2::accepted_delivery[])
"""
