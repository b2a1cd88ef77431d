"""The ledger of a soak, once all is quiet: every event, every delivery, every request and every attempt.

| must hold | or else |
|---|---|
| every event that was accepted is stored once under the id in the answer, and no other is | lost, doubled or made up |
| it has one delivery for each subscription that wants its type, and no other | lost, or made up |
| every delivery is delivered, or dead because its retry policy was used up | stuck, or given up wrongly |
| everything delivered was answered with 200 by its receiver; everything received was accepted | a lie |
| every request has its recorded attempt, or came when a worker or the database was harmed | unrecorded |
| a request after one that was answered with 200 is explained by such a harm, or by an attempt that is recorded as failed, because the answer came too late for the worker | doubled |
| attempts are numbered without a gap, and the last one of a delivered delivery brought a 2xx | sloppy |
| every replay is completed, and its counters are those of its items | wrong figures |
| every signature verified | wrong secret |
"""  # noqa: E501 - a table

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from core import ids
from tests.faults.soak.producer import SoakProducer
from tests.faults.soak.receiver import FAILED, NOTHING, OK, Request
from tests.faults.soak.stage import SUBSCRIPTIONS, Stage, fan_out

SHOWN = 20  # rows of each fault
UNRECORDED_S = 4.0  # from a receipt to the commit of its outcome: a timeout, and what a busy machine adds
STARTED_SLACK_S, ENDED_SLACK_S = 0.05, 1.0  # an attempt's own times and the receiver's are of two processes
RECEIVED_SLACK_S = (
    0.3  # from a worker's writing to the receiver's noting, where the latter is not known to have stalled
)

Row = dict[str, Any]


@dataclass
class Books:
    faults: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def fault(self, what: str, row: object) -> None:
        self.faults[what] += 1
        if len(self.rows[what]) < SHOWN:
            self.rows[what].append(str(row))

    def __str__(self) -> str:
        n = self.counts
        lines = [
            f"accepted {n['accepted']:,} = stored {n['stored']:,} events",
            f"{n['deliveries']:,} deliveries = delivered {n['delivered']:,} + dead {n['dead']:,} (exhausted)",
            f"{n['requests']:,} requests, {n['attempts']:,} attempts recorded, {n['unrecorded']:,} requests unrecorded"
            " in a harm window",
            f"{n['repeats']:,} requests after the first of their delivery: {n['retries']:,} after an answer that was no"
            f" 200, {n['harmed']:,} after a 200 in a harm window, {n['late']:,} after a 200 that came too late for"
            " the worker",
            f"{n['replays']:,} replays of {n['replayed']:,} dead letters",
        ]
        for what, count in self.faults.items():
            shown = self.rows[what]
            lines += [f"FAULT {what}: {count:,}", *(f"    {row}" for row in shown)]
            lines += [f"    … and {count - len(shown):,} more"] if count > len(shown) else []
        return "\n".join([*lines, "ledger: NOT EXACT" if self.faults else "ledger: exact"])


async def close(stage: Stage, producer: SoakProducer) -> Books:
    """Checks everything. The platform must be quiet, and go on running."""
    books = Books()
    await _check_events(books, stage, producer)
    states = await _check_deliveries(books, stage, producer)
    attempts = await _attempts(stage)
    suspects = _check_requests(books, stage, states, attempts)
    await _explain(books, stage, suspects)
    await _check_in_database(books, stage)
    for what, rows in (
        ("an answer to the producer that should never be given", producer.faults),
        ("a signature that does not verify", stage.receiver.wrongly_signed),
        ("a fault that could not be done or undone", stage.failed),
    ):
        for row in rows:
            books.fault(what, row)
    if stage.receiver.malformed:
        books.fault("a request that is no webhook", stage.receiver.malformed)
    return books


# --- what is stored ---


async def _check_events(books: Books, stage: Stage, producer: SoakProducer) -> None:
    accepted = producer.accepted
    books.counts["accepted"] = producer.accepted_count
    seen = bytearray(len(accepted))
    async with stage.fleet.session() as session, session.transaction():
        async for row in session.cursor("SELECT id, external_id FROM events", prefetch=5_000):
            books.counts["stored"] += 1
            number = int(row["external_id"])
            if number >= len(accepted) or accepted[number] != row["id"].int or seen[number]:
                books.fault("an event that is stored is not the one that was accepted", dict(row))
            else:
                seen[number] = 1
    for number, event in enumerate(accepted):
        if not event:
            books.fault("an event was never accepted, though the producer repeated it", number)
        elif not seen[number]:
            books.fault("an accepted event is not stored", f"event {number}, {ids.show(ids.EVENT, UUID(int=event))}")


def _key(event: int, subscription: int) -> int:
    return event * len(SUBSCRIPTIONS) + subscription


async def _check_deliveries(books: Books, stage: Stage, producer: SoakProducer) -> dict[int, str]:
    """The state of each delivery by its key."""
    index_of = {ids.parse(ids.SUBSCRIPTION, one): index for index, one in enumerate(stage.subscriptions)}
    states: dict[int, str] = {}
    words = {word: word for word in ("pending", "sending", "delivered", "dead", "discarded")}
    query = "SELECT event_id, subscription_id, state, reason, due_at, attempt_count, series, id FROM deliveries"
    async with stage.fleet.session() as session, session.transaction():
        async for row in session.cursor(query, prefetch=5_000):
            books.counts["deliveries"] += 1
            state = words[row["state"]]  # one object for all
            books.counts[state] += 1
            key = _key(row["event_id"].int, index_of[row["subscription_id"]])
            if key in states:
                books.fault("an event has two deliveries for one subscription", dict(row))
            states[key] = state
            if state not in ("delivered", "dead"):
                books.fault(f"a delivery is still {state}", dict(row))
            elif state == "dead" and row["reason"] != "exhausted":
                books.fault(f"a delivery is dead for a reason that nothing here gives: {row['reason']}", dict(row))
    wanted = 0
    for number, event in enumerate(producer.accepted):
        for subscription in fan_out(number) if event else ():
            wanted += 1
            if _key(event, subscription) not in states:
                books.fault("an accepted event has no delivery for a subscription", f"event {number}, {subscription}")
    if wanted != len(states):
        books.fault("there are deliveries that nobody asked for", f"{len(states)}, and not {wanted}")
    return states


async def _attempts(stage: Stage) -> dict[int, int]:
    """How many are recorded, by the delivery's key."""
    index_of = {ids.parse(ids.SUBSCRIPTION, one): index for index, one in enumerate(stage.subscriptions)}
    query = """
        SELECT d.event_id, d.subscription_id, a.count
        FROM (SELECT delivery_id, count(*) FROM attempts GROUP BY delivery_id) a
        JOIN deliveries d ON d.id = a.delivery_id
    """
    async with stage.fleet.session() as session, session.transaction():
        await session.execute("SET LOCAL work_mem = '256MB'")
        return {
            _key(row["event_id"].int, index_of[row["subscription_id"]]): row["count"]
            async for row in session.cursor(query, prefetch=5_000)
        }


# --- what was received ---


def _check_requests(books: Books, stage: Stage, states: dict[int, str], attempts: dict[int, int]) -> set[int]:
    """The keys of the deliveries whose requests want explaining."""
    books.counts["attempts"] = sum(attempts.values())
    requests: Counter[int] = Counter()
    answered: set[int] = set()
    suspects: set[int] = set()
    for request in stage.receiver.requests():
        key = _key(request.event, request.subscription)
        requests[key] += 1
        if key not in states:
            books.fault("a request tells of an event that was not accepted for this subscription", request)
        if key in answered:
            suspects.add(key)
        if request.said == OK:
            answered.add(key)
    books.counts["requests"] = requests.total()
    books.counts["repeats"] = requests.total() - len(requests)
    suspects |= {key for key, count in requests.items() if count > attempts.get(key, 0)}
    for key, state in states.items():
        if state == "delivered" and key not in answered:
            books.fault("a delivery is delivered, it says, and its receiver never answered with 200", _shown(key))
        if state == "dead" and not attempts.get(key):
            books.fault("a delivery is dead and was never tried", _shown(key))
    return suspects & states.keys()


def _shown(key: int) -> str:
    event, subscription = divmod(key, len(SUBSCRIPTIONS))
    return f"{ids.show(ids.EVENT, UUID(int=event))} for subscription {subscription}"


async def _explain(books: Books, stage: Stage, suspects: set[int]) -> None:
    requests: dict[int, list[Request]] = defaultdict(list)
    for request in stage.receiver.requests():
        key = _key(request.event, request.subscription)
        if key in suspects:
            requests[key].append(request)
    attempts = await _attempts_of(stage, suspects)
    doubled, windows = 0, Windows(stage)
    for key in suspects:
        doubled += _explain_one(books, stage, windows, key, requests[key], attempts.get(key, []))
    books.counts["retries"] = books.counts["repeats"] - doubled


def _explain_one(
    books: Books, stage: Stage, windows: Windows, key: int, requests: list[Request], attempts: list[Row]
) -> int:
    """How many of these came after a 200."""
    left, doubled = list(attempts), 0
    whole = f"{_shown(key)}\n        requests {_times(stage, requests)}\n        attempts {attempts}"
    for request, after in zip(requests, [*requests[1:], None], strict=True):
        attempt = _attempt_of(request, left)
        if attempt is not None:
            left.remove(attempt)
        elif windows.explain(request.at):
            books.counts["unrecorded"] += 1
        else:
            books.fault("a request that no attempt tells of, and nobody was harmed at that time", whole)
        if request.said == OK and after is not None:
            doubled += 1
            if windows.explain(request.at, after.at):
                books.counts["harmed"] += 1
            elif attempt is not None and attempt["error_kind"] is not None:
                books.counts["late"] += 1
            else:
                books.fault("a webhook came again after a 200, and nobody was harmed at that time", whole)
    return doubled


def _attempt_of(request: Request, attempts: list[Row]) -> Row | None:
    """The one that tells of it. One that fits what was answered goes before one that does not: others may never have
    reached the receiver."""
    near = [
        one
        for one in attempts
        if one["at"] - STARTED_SLACK_S <= request.at <= one["at"] + one["duration_ms"] / 1000 + ENDED_SLACK_S
    ]
    fits = {OK: (200,), FAILED: (503,), NOTHING: (None,)}
    return min(near, key=lambda one: (one["status_code"] not in fits[request.said], one["at"]), default=None)


class Windows:
    """The moments of harm, with what was in the air or unrecorded then."""

    def __init__(self, stage: Stage) -> None:
        self._all = [
            (harm.began - UNRECORDED_S, _noted_by(stage, harm.ended), harm.began) for harm in stage.fleet.harms
        ]

    def explain(self, earlier: float, later: float = math.inf) -> bool:
        """Whether what was received at `earlier` may have been unrecorded at a moment of harm before `later`."""
        return any(low <= earlier <= high and began <= later for low, high, began in self._all)


def _noted_by(stage: Stage, sent_at: float) -> float:
    """When at the latest the receiver has noted what was sent at that moment."""
    by = sent_at + RECEIVED_SLACK_S
    for began, ended in stage.receiver.stalls:  # in their order
        if began <= by <= ended:
            by = ended + RECEIVED_SLACK_S
    return by


def _times(stage: Stage, requests: list[Request]) -> str:
    return ", ".join(f"{one.at - stage.began:.2f} s (said {one.said})" for one in requests)


async def _attempts_of(stage: Stage, keys: set[int]) -> dict[int, list[Row]]:
    """Those of some deliveries in the order of their beginnings, with `at` on the receiver's clock."""
    wall_less_monotonic_s = time.time() - time.monotonic()
    found: dict[int, list[Row]] = defaultdict(list)
    query = """
        SELECT d.event_id, a.series, a.number, a.started_at, a.duration_ms, a.status_code, a.error_kind
        FROM unnest($1::uuid[]) AS given(event_id)
        JOIN deliveries d ON d.event_id = given.event_id AND d.subscription_id = $2
        JOIN attempts a ON a.delivery_id = d.id
        ORDER BY a.started_at
    """
    async with stage.fleet.session() as session:
        for index, subscription in enumerate(stage.subscriptions):
            wanted = [key // len(SUBSCRIPTIONS) for key in keys if key % len(SUBSCRIPTIONS) == index]
            subscription_id = ids.parse(ids.SUBSCRIPTION, subscription)
            for part in _parts([UUID(int=event) for event in wanted], 10_000):
                for row in await session.fetch(query, part, subscription_id, timeout=300):
                    one: Row = {name: row[name] for name in ("series", "number", "status_code", "error_kind")}
                    one["at"] = round(row["started_at"].timestamp() - wall_less_monotonic_s, 3)
                    one["duration_ms"] = row["duration_ms"]
                    found[_key(row["event_id"].int, index)].append(one)
    return found


def _parts(whole: list[UUID], size: int) -> Iterator[list[UUID]]:
    return (whole[at : at + size] for at in range(0, len(whole), size))


# --- what the database can say by itself ---

_CHECKS = {
    "attempts are not numbered from 1 without a gap up to the delivery's count": """
        SELECT d.id, d.state, d.series, d.attempt_count, a.numbers, a.greatest
        FROM deliveries d LEFT JOIN (
            SELECT delivery_id, series, count(DISTINCT number) AS numbers, max(number) AS greatest
            FROM attempts GROUP BY delivery_id, series
        ) a ON a.delivery_id = d.id AND a.series = d.series
        WHERE (coalesce(a.numbers, 0), coalesce(a.greatest, 0)) <> (d.attempt_count, d.attempt_count)
    """,
    "a delivery's last status or error is none of an attempt with its number": """
        SELECT d.id, d.state, d.series, d.attempt_count, d.status_code, d.error_kind
        FROM deliveries d LEFT JOIN attempts a
            ON a.delivery_id = d.id AND a.series = d.series AND a.number = d.attempt_count
            AND a.status_code IS NOT DISTINCT FROM d.status_code AND a.error_kind IS NOT DISTINCT FROM d.error_kind
        WHERE a.id IS NULL
    """,
    "a delivered delivery whose last attempt brought no 2xx": """
        SELECT id, status_code, error_kind FROM deliveries
        WHERE state = 'delivered' AND (status_code IS NULL OR status_code NOT BETWEEN 200 AND 299)
    """,
    "a replay is not completed, or its counters are not those of its items": """
        SELECT r.id, r.status, r.total, r.sent, r.succeeded, r.failed, r.skipped, i.*
        FROM replays r LEFT JOIN (
            SELECT replay_id, count(*) AS items, count(*) FILTER (WHERE outcome = 'succeeded') AS have_succeeded,
                count(*) FILTER (WHERE outcome = 'failed') AS have_failed,
                count(*) FILTER (WHERE outcome = 'skipped') AS have_skipped
            FROM replay_items GROUP BY replay_id
        ) i ON i.replay_id = r.id
        WHERE r.status <> 'completed' OR (r.total, r.sent, r.succeeded, r.failed, r.skipped) <> (
            coalesce(items, 0), coalesce(have_succeeded + have_failed, 0), coalesce(have_succeeded, 0),
            coalesce(have_failed, 0), coalesce(have_skipped, 0)
        ) OR r.total <> r.succeeded + r.failed + r.skipped
    """,
    "a subscription is not settled": "SELECT id, status, version FROM subscriptions WHERE NOT settled",
}


async def _check_in_database(books: Books, stage: Stage) -> None:
    async with stage.fleet.session() as session:
        await session.execute("SET work_mem = '256MB'")
        for what, query in _CHECKS.items():
            for row in await session.fetch(query, timeout=300):
                books.fault(what, dict(row))
        totals = await session.fetchrow("SELECT count(*), coalesce(sum(total), 0) AS replayed FROM replays")
        books.counts["replays"], books.counts["replayed"] = totals["count"], int(totals["replayed"])
