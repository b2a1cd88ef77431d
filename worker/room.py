"""Where a worker has room: which of what is due or parked it may claim now.

A slot and room at the subscription's gate are taken together, before the claim, and given back together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import islice, zip_longest
from uuid import UUID

from core import deliveries
from core.deliveries import Choice, Due, Park, ParkedRoom
from core.limiting.breaker import BreakerState
from core.states import PendingReason
from worker.circuits import Circuits
from worker.gates import Gate, Gates
from worker.lanes import Lane, Lanes
from worker.membership import Membership
from worker.parked import Parked
from worker.plans import Plan
from worker.ready import MAX_ALL, Admission

MAX_CLAIM = 150  # deliveries one claim takes: what it locks others wait for, and a larger one costs each hardly less
MAX_LOOK = 300  # due deliveries a sweep looks at
MAX_PARKED_LOOK = 500  # subscriptions that are asked for room at a time
FIRST_RANKS = (0, 0, 0, 1, 0, 0, 0, 2)  # which comes first of what is parked for a subscription, turn by turn


class Room:
    """The slots, the gates and the parked subscriptions of one worker. `changed` is called when there may be more room
    than before. `members`: how much of a subscription's limits is this worker's."""

    def __init__(
        self, slots: int, *, clock: Callable[[], float], members: Membership, changed: Callable[[], None]
    ) -> None:
        self.lanes = Lanes(slots, clock)
        self.circuits = Circuits()
        self.gates = Gates(
            clock=clock,
            share=members.share,
            may_open=members.may_open,
            circuit=self.circuits.state,
            move=self._move,
        )
        self.parked = Parked()
        self._left_behind = False  # something due found no slot, and was not parked
        self._awaits_rate = False  # something in memory waits for its rate
        self._changed = changed

    def know(self, plans: Mapping[UUID, Plan]) -> None:
        """The limits of these subscriptions."""
        for one, plan in plans.items():
            self.gates.configure(self.gates[one], plan.organization_id, plan.version, plan.limits, plan.breaker)

    def look_around(self) -> bool:
        """Who is slow by now, and who has answered? For a few times a second. Returns whether something due was left
        behind since the last time."""
        self.gates.watch()
        self.lanes.recount(self.gates.holding())
        left, self._left_behind = self._left_behind, False
        return left

    def awaits_time(self) -> bool:
        """Whether there may be more room soon by the clock alone, rather than by what comes to an end."""
        awaits, self._awaits_rate = self._awaits_rate or bool(self.parked), False
        return awaits

    def _move(self, gate: Gate, slow: bool) -> bool:
        """What an endpoint has under way changes the lane with it."""
        moved = self.lanes.move(gate, slow)
        self._changed()
        return moved

    def reserve(self, gate: Gate, delivery_id: UUID) -> bool:
        """Takes a slot and room at the gate, if there is."""
        self.lanes.wants(gate)
        lane = self.lanes.of(gate)
        if self.is_crowded_out(gate) or lane.room(gate) <= 0:
            return False
        if delivery_id in gate.started or self.gates.room(gate) <= 0:
            return False
        self.take_slot(gate, delivery_id)
        return True

    def is_crowded_out(self, gate: Gate) -> bool:
        return gate.is_unproven and self.lanes.unproven.room(gate) <= 0

    def take_slot(self, gate: Gate, delivery_id: UUID) -> None:
        self.gates.start(gate, delivery_id)
        self.lanes.of(gate).take(gate)
        if gate.is_unproven:
            self.lanes.unproven.take(gate)

    def release(self, gate: Gate) -> None:
        self.gates.release(gate)
        self.lanes.of(gate).take(gate, -1)
        self._changed()

    def give_back(self, reserved: Mapping[UUID, Gate]) -> None:
        """Those of `reserved` that were not claimed after all."""
        for delivery_id, gate in reserved.items():
            self.gates.withdraw(gate, delivery_id)
            self.release(gate)

    def remembers(self, gate: Gate, *, replay: bool) -> int:
        """How many of its hints are to wait in this worker's memory. What is not, the sweep parks.

        Of those with a rate as many as it lets through in a second, which is when a sweep parks what still waits; none
        of replays, and none where first attempts are parked already, which they would overtake."""
        rate = gate.limits.per_second
        if rate is not None and self._would_overtake(gate):
            return 0
        if self.gates.is_held_up(gate) or (rate is not None and replay):
            return MAX_ALL if self.gates.room(gate) > 0 else 0
        return MAX_ALL if rate is None else max(1, int(rate))

    def admit(
        self, subscription_id: UUID, delivery_id: UUID, reserved: MutableMapping[UUID, Gate], *, replay: bool = False
    ) -> Admission:
        """Whether one that a hint named is claimed; then it is `reserved`."""
        gate = self.gates[subscription_id]
        has_rate = gate.limits.per_second is not None
        if delivery_id in reserved or delivery_id in gate.started:
            return Admission.SKIP
        overtakes = has_rate and self._would_overtake(gate)
        if not overtakes and self.reserve(gate, delivery_id):
            reserved[delivery_id] = gate
            return Admission.YES
        if overtakes or self.gates.is_held_up(gate) or (has_rate and replay):
            self._left_behind = True
            return Admission.FORGET
        self._awaits_rate = self._awaits_rate or has_rate
        return Admission.CROWD if has_rate or self.is_crowded_out(gate) else Admission.WAIT

    def _would_overtake(self, gate: Gate) -> bool:
        return self.parked.has_first(gate.organization_id, gate.id)

    def choose(self, due: Sequence[Due], reserved: MutableMapping[UUID, Gate]) -> list[Choice | Park]:
        """What a sweep does with each of these; those it claims are `reserved`."""
        found = Counter(one.rank for one in due)
        hides = [found[rank] >= share for rank, share in enumerate(deliveries.shares_of(MAX_LOOK))]
        choices = {one.id: self._choose(one, reserved, hides=hides[one.rank]) for one in _mixed(due)}
        return [choices[one.id] for one in due]

    def _choose(self, due: Due, reserved: MutableMapping[UUID, Gate], *, hides: bool) -> Choice | Park:
        """`hides`: behind this one there may be others, which no sweep sees as long as it is left where it is."""
        gate = self.gates[due.subscription_id]
        if len(reserved) < MAX_CLAIM and self.reserve(gate, due.id):
            reserved[due.id] = gate
            return Choice.CLAIM
        if due.id in gate.started:
            return Choice.LEAVE
        is_full = len(reserved) >= MAX_CLAIM or self.lanes.quick.free <= 0
        if (is_full or not hides) and not gate.slow and self.gates.room(gate) > 0:
            self._left_behind = True
            return Choice.LEAVE  # it waits for a slot of this worker
        if gate.circuit is BreakerState.CLOSED:
            return Park(PendingReason.RATE_LIMITED, 0.0)
        return Park(PendingReason.BREAKER_OPEN, self.circuits.opens_in_s(gate.id, gate.breaker))

    def for_parked(self) -> list[tuple[UUID, ParkedRoom]]:
        """How much of what is parked may be claimed now, and for whom."""
        wanted: list[tuple[UUID, ParkedRoom]] = []
        given: Counter[Lane | tuple[Lane, UUID]] = Counter()
        # All that are looked at go to the end, or so many could stand before everybody; but who waits for a slot of its
        # lane stands before who had its turn.
        blocked: list[tuple[UUID, UUID]] = []
        had_turn: list[tuple[UUID, UUID]] = []
        left = MAX_CLAIM
        for organization_id, one in islice(self.parked.turns(), MAX_PARKED_LOOK):
            gate = self.gates[one]
            size = min(self.gates.room(gate), left)
            if size <= 0:
                had_turn.append((organization_id, one))
                continue
            self.lanes.wants(gate)
            lanes = [self.lanes.of(gate), *([self.lanes.unproven] if gate.is_unproven else [])]
            for lane in lanes:
                size = min(size, lane.free - given[lane], lane.room(gate) - given[lane, organization_id])
            if size <= 0:
                blocked.append((organization_id, one))
                continue
            had_turn.append((organization_id, one))
            gate.turns += 1
            wanted.append((organization_id, ParkedRoom(one, size, FIRST_RANKS[gate.turns % len(FIRST_RANKS)])))
            left -= size
            for lane in lanes:
                given[lane] += size
                given[lane, organization_id] += size
            if not left:
                break
        for organization_id, one in blocked + had_turn:
            self.parked.to_end(organization_id, one)
        return wanted


def _mixed(due: Sequence[Due]) -> list[Due]:
    """First attempts first; but where room is scarce, every fourth place is a retry's or a replay's in turn, or a long
    backlog would keep them waiting for ever."""
    first, retries, replays = ([one for one in due if one.rank == rank] for rank in range(3))
    later = [one for pair in zip_longest(retries, replays) for one in pair if one is not None]
    mixed: list[Due] = []
    for at in range(0, max(len(first), 3 * len(later)), 3):
        mixed += first[at : at + 3]
        mixed += later[at // 3 : at // 3 + 1]
    return mixed
