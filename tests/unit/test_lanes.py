from __future__ import annotations

from uuid import UUID

import pytest

from core.ids import new_id
from worker.gates import Gate
from worker.lanes import SHARED_S, Lane, Lanes

MINE, OTHER = new_id(), new_id()


def gate(organization_id: UUID = MINE, *, slots: int = 0, slow: bool = False) -> Gate:
    made = Gate(new_id())
    made.organization_id, made.slots, made.slow = organization_id, slots, slow
    return made


def lane_of(size: int, *, shared: bool = True) -> Lane:
    return Lane(size, lambda: shared)


def shared_lanes(quick: int) -> Lanes:
    lanes = Lanes(quick, lambda: 0.0)
    lanes.wants(gate())
    lanes.wants(gate(OTHER))
    return lanes


@pytest.mark.parametrize(("size", "most"), [(1, 1), (2, 2), (4, 3), (10, 8), (512, 384)])
def test_an_organization_has_three_quarters_of_a_lane(size: int, most: int) -> None:
    lane = lane_of(size)
    assert lane.room(gate()) == most
    lane.take(gate(), most)
    assert lane.room(gate()) == 0
    assert lane.room(gate(OTHER)) == size - most == lane.free


def test_who_is_alone_has_all_of_it() -> None:
    lane = lane_of(8, shared=False)
    lane.take(gate(), 8)
    assert (lane.room(gate()), lane.free) == (0, 0)


def test_others_are_reckoned_with_for_a_while_after_they_wanted_slots() -> None:
    now = 0.0
    lanes = Lanes(8, lambda: now)
    lanes.wants(gate())
    lanes.wants(gate())
    assert lanes.quick.most == 8
    lanes.wants(gate(OTHER))
    assert lanes.quick.most == 6
    now = SHARED_S - 1
    lanes.wants(gate(OTHER))
    assert lanes.quick.most == 6
    now = SHARED_S
    assert lanes.quick.most == 8


def test_all_lanes_are_counted_by_what_holds_slots() -> None:
    lanes = shared_lanes(8)
    lanes.quick.take(gate(), 7)
    proven = gate(slots=1)
    proven.proven = True
    lanes.recount([proven, gate(OTHER, slots=2), gate(slots=3, slow=True)])
    assert (lanes.quick.used, lanes.unproven.used, lanes.slow.used) == (3, 2, 3)


def test_what_is_given_back_is_free_for_everybody() -> None:
    lane = lane_of(8)
    lane.take(gate(), 6)
    lane.take(gate(), -2)
    assert (lane.room(gate()), lane.room(gate(OTHER)), lane.free) == (2, 4, 4)
    lane.take(gate(), -4)
    assert not lane._by_organization


def test_a_recount_forgets_what_was_taken_before() -> None:
    lane = lane_of(8)
    lane.take(gate(), 6)
    lane.recount([gate(slots=1), gate(OTHER, slots=2)])
    assert (lane.used, lane.room(gate()), lane.room(gate(OTHER))) == (3, 5, 4)


def test_who_is_slow_takes_its_slots_along_and_back() -> None:
    lanes, one = shared_lanes(8), gate(slots=3)
    lanes.quick.take(one, 3)
    assert lanes.move(one, True)
    assert (lanes.quick.used, lanes.slow.used, lanes.free) == (0, 3, 9)
    assert lanes.move(one, False)
    assert (lanes.quick.used, lanes.slow.used) == (3, 0)


def test_the_slow_lane_may_be_twice_full_and_an_organization_may_have_its_part_of_that() -> None:
    lanes = shared_lanes(8)  # four slow ones, of which an organization may have three
    assert lanes.move(gate(slots=6), True)
    assert not lanes.move(gate(slots=1), True)
    assert lanes.move(gate(OTHER, slots=2), True)
    assert not lanes.move(gate(OTHER, slots=1), True)
    assert (lanes.slow.used, lanes.slow.room(gate()), lanes.slow.room(gate(OTHER))) == (8, -4, -4)


def test_an_empty_slow_lane_takes_anybody() -> None:
    lanes = shared_lanes(8)
    assert lanes.move(gate(slots=20), True)
