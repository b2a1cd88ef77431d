"""Which subscriptions of an organization want an event: compiled once per version, never stale.

Every change to a subscription raises `organizations.subscriptions_version` in the same transaction. Acceptance reads
the versions of the organizations in a batch with one statement, after the events arrived, and loads anew what has
changed. So whoever changed a subscription, in whatever process, and then posts an event, is matched by the change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from core.filters import Filter, compile_stored
from core.patterns import PatternSet


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subscription as acceptance sees it."""

    subscription_id: UUID
    patterns: PatternSet
    filter: Filter | None  # None: takes every event that its patterns take


MEMO_TYPES = 1_000  # event types an organization's memo holds; more than any catalogue, and a bound all the same


@dataclass(slots=True)
class Subscribers:
    """The subscriptions of one organization at one version."""

    version: int
    candidates: Sequence[Candidate]
    _by_type: dict[str, list[Candidate]] = field(default_factory=dict)

    def match(self, event_type: str, envelope: Mapping[str, Any]) -> list[UUID]:
        """The ids of the subscriptions that want this event."""
        candidates = self._by_type.get(event_type)
        if candidates is None:
            if len(self._by_type) >= MEMO_TYPES:
                self._by_type.clear()
            candidates = [one for one in self.candidates if one.patterns.matches(event_type)]
            self._by_type[event_type] = candidates
        return [one.subscription_id for one in candidates if one.filter is None or one.filter.matches(envelope)]


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
        candidates: dict[UUID, list[Candidate]] = {organization_id: [] for organization_id in versions}
        for row in await driver.fetch(_SUBSCRIPTIONS, list(versions)):
            candidates[row["organization_id"]].append(compile_candidate(row))
        # Loaded after the version was read, so the content may be newer, never older, than its label.
        loaded = {one: Subscribers(versions[one], found) for one, found in candidates.items()}
        for organization_id, subscribers in loaded.items():
            self._cached[organization_id] = subscribers
            self._cached.move_to_end(organization_id)
        while len(self._cached) > self._max:
            self._cached.popitem(last=False)
        return loaded


def compile_candidate(row: Mapping[str, Any]) -> Candidate:
    return Candidate(
        subscription_id=row["id"],
        patterns=PatternSet(row["events"]),
        filter=compile_stored(row["filters"]) if row["filters"] else None,
    )


_SUBSCRIPTIONS = """
SELECT id, organization_id, events, filters FROM subscriptions
WHERE organization_id = ANY($1) AND status IN ('active', 'paused')
"""
