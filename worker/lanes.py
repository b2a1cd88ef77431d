"""Slots: each holds one delivery from its claim until its outcome is recorded.

They are of two lanes, so that slow endpoints can't take the quick ones'. Of the quick lane, half is for those that are
known to answer. And where there are several organizations, one may have three quarters of each: the rest is there for
others, however many of its endpoints hang at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from worker.gates import Gate

SHARED_S = 60.0  # after two organizations wanted slots, others are reckoned with for so long


class Lane:
    """`is_shared`: whether there are several organizations."""

    def __init__(self, size: int, is_shared: Callable[[], bool]) -> None:
        self.size = size
        self.used = 0
        self._is_shared = is_shared
        self._by_organization: Counter[UUID | None] = Counter()

    @property
    def most(self) -> int:
        """Slots that one organization may have."""
        return -(-3 * self.size // 4) if self._is_shared() else self.size

    @property
    def free(self) -> int:
        return self.size - self.used

    def room(self, gate: Gate, *, times: int = 1) -> int:
        """How many more slots its organization may take, were the lane so many `times` as large."""
        return min(times * self.size - self.used, times * self.most - self._by_organization[gate.organization_id])

    def take(self, gate: Gate, slots: int = 1) -> None:
        """Takes slots, or gives back where `slots` is negative."""
        self.used += slots
        self._by_organization[gate.organization_id] += slots
        if not self._by_organization[gate.organization_id]:
            del self._by_organization[gate.organization_id]

    def recount(self, gates: Iterable[Gate]) -> None:
        """Its slots are those of `gates`, and no others."""
        self._by_organization.clear()
        for gate in gates:
            self._by_organization[gate.organization_id] += gate.slots
        self.used = self._by_organization.total()


class Lanes:
    """The quick lane and the slow one, which has half as many slots and may be overfull by as many again. And within
    the quick one that of endpoints that have not answered yet: it counts what was taken, until all are recounted."""

    def __init__(self, quick: int, clock: Callable[[], float]) -> None:
        self.quick, self.slow = Lane(quick, self.is_shared), Lane(slow_slots(quick), self.is_shared)
        self.unproven = Lane(max(1, quick // 2), self.is_shared)
        self._clock = clock
        self._latest: UUID | None = None
        self._shared_until = -1.0

    def wants(self, gate: Gate) -> None:
        """Its organization would take a slot, if it may."""
        if gate.organization_id != self._latest:
            if self._latest is not None:
                self._shared_until = self._clock() + SHARED_S
            self._latest = gate.organization_id

    def is_shared(self) -> bool:
        return self._clock() < self._shared_until

    def of(self, gate: Gate) -> Lane:
        return self.slow if gate.slow else self.quick

    @property
    def used(self) -> int:
        return self.quick.used + self.slow.used

    @property
    def free(self) -> int:
        return max(0, self.quick.free) + max(0, self.slow.free)

    def recount(self, gates: Sequence[Gate]) -> None:
        """By the gates that hold slots: endpoints have answered meanwhile, and no fault of ours counts for ever."""
        self.quick.recount(gate for gate in gates if not gate.slow)
        self.slow.recount(gate for gate in gates if gate.slow)
        self.unproven.recount(gate for gate in gates if gate.is_unproven)

    def move(self, gate: Gate, slow: bool) -> bool:
        """Moves what it holds to the slow lane or back. False where the slow lane is more than full: then it stays
        where it is, or there would be no bound to what is under way."""
        if slow and self.slow.used and self.slow.room(gate, times=2) < gate.slots:
            return False
        self.quick.take(gate, -gate.slots if slow else gate.slots)
        self.slow.take(gate, gate.slots if slow else -gate.slots)
        return True


def slow_slots(quick: int) -> int:
    return max(1, quick // 2)
