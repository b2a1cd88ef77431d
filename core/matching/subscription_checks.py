"""Which of an organization's latest events would patterns and a filter have matched, and why not the others?

For whoever writes them, before anything is stored. Decided by the same code, within the same bounds for each event, as
at acceptance.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from core.errors import Unavailable
from core.events import envelope_of
from core.matching.filters import Budget, Undecided, compile_filter
from core.matching.matcher import Slice
from core.matching.mismatch import Explainer, Mismatch
from core.matching.patterns import PatternSet
from core.storage.database import Database

MOST_EVENTS: Final = 100
MOST_WALKED: Final = 1_000  # to find them among test events and redacted ones
WORK_S: Final = 0.5  # of computing; costly filters on large events then saw fewer of them
MOST_TYPES: Final = 500
CHUNK: Final = 10  # events whose bodies are in memory at once
AT_ONCE: Final = 2  # checks of one process: beside them it accepts events
TURN_TIMEOUT_S: Final = 5.0


class Outcome(StrEnum):
    MATCHED = "matched"
    OTHER_TYPE = "other_type"  # no pattern matches its type
    FILTERED_OUT = "filtered_out"
    UNDECIDED = "undecided"  # it holds more than a filter may look at, so it would not have been sent


@dataclass(frozen=True, slots=True)
class Seen:
    """One event that was looked at. Its time is in its id."""

    event_id: UUID
    event_type: str
    outcome: Outcome
    mismatch: Mismatch | None = None  # of one that was filtered out


@dataclass(frozen=True, slots=True)
class Checked:
    """The latest first. Fewer than `MOST_EVENTS` where there are no more, or where looking at them took too long."""

    seen: Sequence[Seen]
    is_cut: bool  # it took too long

    @property
    def matched(self) -> int:
        return sum(one.outcome is Outcome.MATCHED for one in self.seen)


class SubscriptionChecks:
    """Checks for one web process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def check(
        self, organization_id: UUID, events: Sequence[str], filters: Mapping[str, Any], *, work_s: float = WORK_S
    ) -> Checked:
        """Raises `InvalidFilter` where `events` or `filters` are not well-formed, and `Unavailable` when others are
        being checked for too long."""
        task = _Check(events, filters, work_s)
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable("Too much is being checked just now; try again") from None
        try:
            return await self._run(task, organization_id)
        finally:
            self._turn.release()

    async def _run(self, task: _Check, organization_id: UUID) -> Checked:
        async with self._database.driver() as driver:
            latest = await driver.fetch(_LATEST, organization_id, MOST_WALKED, MOST_EVENTS)
        for at in range(0, len(latest), CHUNK):
            chunk = latest[at : at + CHUNK]
            fitting = [row["id"] for row in chunk if task.needs_body(row["event_type"])]
            bodies: dict[UUID, Any] = {}
            if fitting:
                async with self._database.driver() as driver:
                    rows = await driver.fetch(_BODIES, fitting, min(fitting), max(fitting))
                bodies = {row["id"]: row for row in rows}
            for row in chunk:
                await task.look(row, bodies.get(row["id"]))
                if task.is_over:
                    return Checked(task.seen, is_cut=len(task.seen) < len(latest))
        return Checked(task.seen, is_cut=False)


class _Check:
    """One check on its way through the events."""

    def __init__(self, events: Sequence[str], filters: Mapping[str, Any], work_s: float) -> None:
        self._patterns = PatternSet(events)
        self._filter = compile_filter(filters) if filters else None
        self._explainer = Explainer(filters)
        self._left_s = work_s
        self._slice = Slice()
        self.seen: list[Seen] = []

    def needs_body(self, event_type: str) -> bool:
        return self._filter is not None and self._patterns.matches(event_type)

    @property
    def is_over(self) -> bool:
        return self._left_s <= 0

    async def look(self, row: Mapping[str, Any], body: Mapping[str, Any] | None) -> None:
        began = time.perf_counter()
        outcome, mismatch = self._decide(row["event_type"], body)
        self._left_s -= time.perf_counter() - began
        self.seen.append(Seen(row["id"], row["event_type"], outcome, mismatch))
        if self._slice.is_over():
            await self._slice.pause()

    def _decide(self, event_type: str, body: Mapping[str, Any] | None) -> tuple[Outcome, Mismatch | None]:
        if not self._patterns.matches(event_type):
            return Outcome.OTHER_TYPE, None
        if self._filter is None:
            return Outcome.MATCHED, None
        if body is None:  # redacted, or dropped by retention, since it was found
            return Outcome.UNDECIDED, None
        envelope = envelope_of(body)
        try:
            if self._filter.decide(envelope, Budget()):
                return Outcome.MATCHED, None
        except Undecided:
            return Outcome.UNDECIDED, None
        return Outcome.FILTERED_OUT, self._explainer.explain(envelope)


async def known_types(driver: Any, organization_id: UUID) -> list[str]:
    """Event types to suggest: of the catalogue, and of the latest events."""
    rows = await driver.fetch(_KNOWN_TYPES, organization_id, MOST_WALKED, MOST_TYPES)
    return [row["name"] for row in rows]


# Those that are matched by patterns: a test event goes to its one subscription, whatever that subscribes to.
_LATEST = """
SELECT id, event_type FROM (
    SELECT id, event_type, only_for, redacted_at FROM events WHERE organization_id = $1 ORDER BY id DESC LIMIT $2
) AS latest
WHERE only_for IS NULL AND redacted_at IS NULL ORDER BY id DESC LIMIT $3
"""
_KNOWN_TYPES = """
SELECT name FROM event_types WHERE organization_id = $1
UNION
SELECT event_type FROM (
    SELECT event_type, only_for FROM events WHERE organization_id = $1 ORDER BY id DESC LIMIT $2
) AS latest
WHERE only_for IS NULL
ORDER BY name LIMIT $3
"""
_BODIES = """
SELECT id, organization_id, event_type, occurred_at, branch_id, metadata, payload, data_at FROM events
WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3 AND redacted_at IS NULL
"""
