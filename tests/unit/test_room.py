"""Where a worker has room, without a database: which of what is parked it claims next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from core.ids import new_id
from core.limiting.breaker import BreakerSettings
from core.limiting.limits import Limits
from worker.engine import Engine
from worker.gates import Gate
from worker.membership import Membership
from worker.ready import Admission
from worker.room import FIRST_RANKS, MAX_CLAIM, MAX_PARKED_LOOK, Room


def with_room(test: Callable[[Room], None], slots: int = 8) -> None:
    async def run() -> None:
        clock = asyncio.get_running_loop().time
        test(Room(slots, clock=clock, members=Membership(), changed=lambda: None))

    asyncio.run(run())


def parked(room: Room, organization_id: UUID | None = None, *, slow: bool = False, window: int = 2) -> Gate:
    """A subscription of its own organization, if none is given, that has answered."""
    organization_id = organization_id or new_id()
    gate = room.gates[new_id()]
    room.gates.configure(gate, organization_id, 1, Limits(), BreakerSettings())
    gate.slow, gate.proven, gate.window = slow, True, window
    room.parked.add(organization_id, gate.id, first=True)
    return gate


def claimed_for(room: Room) -> dict[UUID, int]:
    return {want.subscription_id: want.size for _, want in room.for_parked()}


def test_who_waits_for_a_full_lane_hides_nobody_of_the_other() -> None:
    def test(room: Room) -> None:
        room.lanes.slow.take(Gate(new_id()), room.lanes.slow.size)
        for _ in range(MAX_PARKED_LOOK + 100):
            parked(room, slow=True)
        quick = parked(room)
        looks = [claimed_for(room) for _ in range(2)]
        assert quick.id in looks[0] | looks[1]

    with_room(test)


def test_two_that_want_the_last_slot_take_turns() -> None:
    def test(room: Room) -> None:
        organization_id = new_id()
        both = {parked(room, organization_id).id for _ in range(2)}
        room.lanes.quick.take(Gate(new_id()), room.lanes.quick.size - 1)
        turns = []
        for _ in range(6):
            [one] = claimed_for(room)
            turns.append(one)
            fruitless = room.lanes.quick
            fruitless.take(Gate(new_id()))
            assert claimed_for(room) == {}
            fruitless.take(Gate(new_id()), -1)
        assert set(turns[0::2]) | set(turns[1::2]) == both
        assert len(set(turns[0::2])) == len(set(turns[1::2])) == 1

    with_room(test)


def test_an_organization_is_given_its_part_of_the_slots_and_no_more() -> None:
    def test(room: Room) -> None:
        organization_id = new_id()
        other = parked(room, window=100)
        for _ in range(5):
            parked(room, organization_id, window=100)
        room.for_parked()  # both are known now
        given = claimed_for(room)
        assert sum(given.values()) <= room.lanes.quick.size
        assert sum(size for one, size in given.items() if one != other.id) <= room.lanes.quick.most == 6

    with_room(test)


def test_endpoints_that_never_answered_are_given_half_of_the_slots() -> None:
    def test(room: Room) -> None:
        for _ in range(20):
            parked(room).proven = False
        assert sum(claimed_for(room).values()) == room.lanes.unproven.size == 4

    with_room(test)


def test_each_rank_is_first_now_and_then() -> None:
    def test(room: Room) -> None:
        parked(room)
        ranks = [room.for_parked()[0][1].first_rank for _ in range(2 * len(FIRST_RANKS))]
        assert {rank: ranks.count(rank) for rank in range(3)} == {0: 12, 1: 2, 2: 2}

    with_room(test)


def test_what_a_rate_holds_back_waits_in_memory_unless_it_would_overtake() -> None:
    def test(room: Room) -> None:
        gate = room.gates[new_id()]
        room.gates.configure(gate, new_id(), 1, Limits(per_second=1.0), BreakerSettings())
        reserved: dict[UUID, Gate] = {}
        answers = [room.admit(gate.id, new_id(), reserved) for _ in range(2)]
        assert answers == [Admission.YES, Admission.CROWD]
        assert room.admit(gate.id, new_id(), reserved, replay=True) is Admission.FORGET
        assert (room.remembers(gate, replay=False), room.remembers(gate, replay=True)) == (1, 0)
        assert [room.awaits_time(), room.awaits_time()] == [True, False]
        assert gate.organization_id is not None
        room.parked.add(gate.organization_id, gate.id, first=False)
        assert room.admit(gate.id, new_id(), reserved) is Admission.CROWD, "first attempts stand before what is parked"
        room.parked.add(gate.organization_id, gate.id, first=True)
        gate.tokens = 1.0
        assert room.admit(gate.id, new_id(), reserved) is Admission.FORGET, "others have waited longer"
        assert room.remembers(gate, replay=False) == 0

    with_room(test)


def test_a_claim_takes_no_more_than_it_may() -> None:
    def test(room: Room) -> None:
        for _ in range(10):
            parked(room, window=200)
        assert sum(claimed_for(room).values()) == MAX_CLAIM

    with_room(test, slots=2_000)


def test_a_fault_in_looking_around_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        nothing: Any = None
        engine = Engine(nothing, nothing, nothing, max_in_flight=8, margin_s=2.0)
        looked = asyncio.Queue[int]()

        def watch() -> None:
            looked.put_nowait(1)
            if looked.qsize() == 1:
                raise ValueError("a fault of ours")

        monkeypatch.setattr(engine._room.gates, "watch", watch)
        looking = asyncio.create_task(engine._look_around())
        async with asyncio.timeout(10):
            while looked.qsize() < 2:  # noqa: ASYNC110 - it is the loop that is waited for
                await asyncio.sleep(0.01)
        looking.cancel()

    asyncio.run(run())
