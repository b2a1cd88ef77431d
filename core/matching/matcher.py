"""Which subscriptions of an organization want an event: compiled once per version, never stale.

Every change to a subscription raises `organizations.subscriptions_version` in the same transaction. Acceptance reads
the versions of the organizations in a batch with one statement, after the events arrived, and loads anew the
subscriptions whose own version has changed. So whoever changed a subscription, in whatever process, and then posts an
event, is matched by the change.

An organization may have so many and so costly filters that one event takes seconds. Therefore a `Matching` can be
interrupted between two subscriptions, and filters are compiled when an event first needs them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from core.matching.filters import Budget, Envelope, Undecided, compile_stored
from core.matching.patterns import PatternSet

MEMO_TYPES = 1_000  # event types an organization's memo holds; more than any catalogue, and a bound all the same
SLICE_S = 0.005  # then everything else in the process gets its turn
UNTIMED = 64  # cheap filters, or sets of patterns, between two looks at the clock;
UNTIMED_STEPS = 16  # of arrays and the like count as another


class Slice:
    """A stretch of computing, after which the event loop is due its turn."""

    __slots__ = ("began",)

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def is_over(self) -> bool:
        return time.perf_counter() - self.began >= SLICE_S

    async def pause(self) -> float:
        """Lets everything else run and begins anew. Returns the seconds that it had lasted."""
        lasted = time.perf_counter() - self.began
        await asyncio.sleep(0)
        self.began = time.perf_counter()
        return lasted


class Candidate:
    """A subscription at one version, as acceptance sees it."""

    __slots__ = ("decide", "filters", "patterns", "subscription_id", "version")

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.subscription_id: UUID = row["id"]
        self.version: int = row["version"]
        self.patterns = PatternSet(row["events"])
        self.filters: str | None = None if row["filters"] == "{}" else row["filters"]  # JSON; none: takes every event
        self.decide: Callable[[Envelope, Budget], bool] | None = None
        if self.filters is not None:
            self.decide = self._compile_and_decide

    def _compile_and_decide(self, envelope: Envelope, budget: Budget) -> bool:
        """Stands in for the filter until an event needs it."""
        decide = compile_stored(orjson.loads(self.filters or "{}")).decide
        self.decide, self.filters = decide, ""
        return decide(envelope, budget)


# The subscriptions that take all events of a type, and those that ask their filters.
_Fitting = tuple[list[UUID], list[Candidate]]


@dataclass(slots=True)
class Subscribers:
    """The subscriptions of one organization at one version."""

    version: int
    candidates: Sequence[Candidate]
    by_type: dict[str, _Fitting] = field(default_factory=dict)

    def remember(self, event_type: str, fitting: _Fitting) -> None:
        if len(self.by_type) >= MEMO_TYPES:
            self.by_type.clear()
        self.by_type[event_type] = fitting


class Matching:
    """Finds the subscriptions that want one event."""

    # Defaults of the class: setting them for each event takes as long as a filter.
    undecided = 0  # subscriptions whose filters had more to look at than they may; they don't get the event
    _unsorted: Iterator[Candidate] | None = None
    _sorted: _Fitting
    _left: Iterator[Candidate] | None = None
    _budget = Budget()  # nobody spends of this one

    def __init__(self, subscribers: Subscribers, event_type: str, envelope: Envelope) -> None:
        self.wanted: list[UUID] = []
        self._subscribers = subscribers
        self._event_type = event_type
        self._envelope = envelope
        self._fitting = subscribers.by_type.get(event_type)

    def run(self, until: Slice) -> bool:
        """Goes on where it stopped. False when the slice is over before it is done."""
        fitting = self._fitting or self._sort(until)
        if fitting is None:
            return False
        if self._left is None:
            everything, filtered = fitting
            self.wanted = everything.copy()
            self._left = iter(filtered)
            if filtered:
                self._budget = Budget()
        return self._filter(self._left, self._budget, until)

    def _sort(self, until: Slice) -> _Fitting | None:
        """By patterns; once for each type of event. None when the slice is over before it is done."""
        if self._unsorted is None:
            self._unsorted, self._sorted = iter(self._subscribers.candidates), ([], [])
        everything, filtered = self._sorted
        for count, one in enumerate(self._unsorted, 1):
            if one.patterns.matches(self._event_type):
                if one.decide is None:
                    everything.append(one.subscription_id)
                else:
                    filtered.append(one)
            if count % UNTIMED == 0 and until.is_over():
                return None
        self._subscribers.remember(self._event_type, self._sorted)
        self._fitting = self._sorted
        return self._fitting

    def _filter(self, left: Iterator[Candidate], budget: Budget, until: Slice) -> bool:
        envelope = self._envelope
        before, untimed = budget.left, UNTIMED
        for one in left:
            if one.filters:
                untimed = 1  # it is compiled now
            try:
                if one.decide(envelope, budget):  # type: ignore[misc]  # those without are not asked
                    self.wanted.append(one.subscription_id)
            except Undecided:
                self.undecided += 1
            untimed -= 1
            if budget.left != before:
                untimed -= (before - budget.left) // UNTIMED_STEPS
                budget.next_filter()
                before = budget.left
            if untimed <= 0:
                untimed = UNTIMED
                if until.is_over():
                    return False
        return True


class SubscriberCache:
    """The compiled subscriptions of recently seen organizations."""

    def __init__(self, max_organizations: int = 10_000) -> None:
        self._max = max_organizations
        self._cached: OrderedDict[UUID, Subscribers] = OrderedDict()

    async def at(self, driver: Any, versions: Mapping[UUID, int]) -> dict[UUID, Subscribers]:
        """The subscribers of these organizations, at least as new as the versions say."""
        current = {}
        for organization_id, version in versions.items():
            cached = self._cached.get(organization_id)
            if cached is not None and cached.version == version:
                current[organization_id] = cached
        stale = [organization_id for organization_id in versions if organization_id not in current]
        if stale:
            current |= await self._load(driver, {one: versions[one] for one in stale})
        return current

    async def _load(self, driver: Any, versions: Mapping[UUID, int]) -> dict[UUID, Subscribers]:
        known = {
            one.subscription_id: one
            for organization_id in versions
            if organization_id in self._cached
            for one in self._cached[organization_id].candidates
        }
        rows = await driver.fetch(_SUBSCRIPTIONS, list(versions))
        changed = [row["id"] for row in rows if row["id"] not in known or known[row["id"]].version != row["version"]]
        turn = Slice()
        for row in await driver.fetch(_CHANGED, changed) if changed else ():
            known[row["id"]] = Candidate(row)
            if turn.is_over():
                await turn.pause()
        candidates: dict[UUID, list[Candidate]] = {organization_id: [] for organization_id in versions}
        for row in rows:
            candidates[row["organization_id"]].append(known[row["id"]])
        # Loaded after the version was read, so the content may be newer, never older, than its label.
        loaded = {one: Subscribers(versions[one], found) for one, found in candidates.items()}
        for organization_id, subscribers in loaded.items():
            self._cached[organization_id] = subscribers
            self._cached.move_to_end(organization_id)
        while len(self._cached) > self._max:
            self._cached.popitem(last=False)
        return loaded


_SUBSCRIPTIONS = """
SELECT id, organization_id, version FROM subscriptions
WHERE organization_id = ANY($1) AND status IN ('active', 'paused')
"""

_CHANGED = "SELECT id, version, events, filters::text AS filters FROM subscriptions WHERE id = ANY($1)"
