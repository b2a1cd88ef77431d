from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest

from core.hints import Hint
from core.ids import new_id
from worker.ready import MAX_CROWD, Admission, Ready


def hints(organization_id: UUID, number: int, subscription_id: UUID | None = None) -> list[Hint]:
    subscription_id = subscription_id or new_id()
    return [Hint(organization_id, subscription_id, new_id()) for _ in range(number)]


def filled(*groups: list[Hint]) -> Ready:
    ready = Ready()
    for group in groups:
        for one in group:
            assert ready.add(one)
    return ready


def everything(_: UUID, __: UUID) -> Admission:
    return Admission.YES


def test_one_event_does_not_wait_for_another_organizations_thousands() -> None:
    many, one = hints(new_id(), 400), hints(new_id(), 1)
    ready = filled(many, one)
    assert one[0].delivery_id in ready.take(2, everything)
    assert len(ready) == 399


def test_subscriptions_of_an_organization_take_turns() -> None:
    organization_id = new_id()
    busy, quiet = hints(organization_id, 300), hints(organization_id, 2)
    ready = filled(busy, quiet)
    assert {one.delivery_id for one in quiet} < set(ready.take(4, everything))


def test_each_subscription_keeps_its_order_and_all_come_out() -> None:
    groups = [hints(new_id(), number) for number in (5, 1, 9)]
    ready = filled(*groups)
    taken = []
    while some := ready.take(4, everything):
        taken += some
    assert sorted(taken) == sorted(one.delivery_id for group in groups for one in group)
    for group in groups:
        mine = [one.delivery_id for one in group]
        assert [one for one in taken if one in mine] == mine
    assert not ready._organizations
    assert not ready._sizes


def admitting(refused: UUID, how: Admission) -> Callable[[UUID, UUID], Admission]:
    """Everything but a subscription's."""
    return lambda subscription_id, _: how if subscription_id == refused else Admission.YES


def test_who_has_no_room_keeps_only_its_own_waiting() -> None:
    organization_id = new_id()
    stuck, free = hints(organization_id, 3), hints(organization_id, 3)
    ready = filled(stuck, free)
    assert ready.take(10, admitting(stuck[0].subscription_id, Admission.WAIT)) == [one.delivery_id for one in free]
    assert len(ready) == 3
    assert ready.take(10, everything) == [one.delivery_id for one in stuck]


def test_what_had_better_wait_elsewhere_is_forgotten() -> None:
    organization_id = new_id()
    slow, quick = hints(organization_id, 3), hints(organization_id, 1)
    ready = filled(slow, quick)
    assert ready.take(10, admitting(slow[0].subscription_id, Admission.FORGET)) == [quick[0].delivery_id]
    assert len(ready) == 0
    assert ready.take(10, everything) == []


def test_of_a_crowd_that_waits_only_so_many_are_kept() -> None:
    one, other = new_id(), new_id()
    crowd = [Hint(one, new_id(), new_id()) for _ in range(300)]
    few = [Hint(other, new_id(), new_id()) for _ in range(5)]
    ready = filled(crowd, few)
    assert ready.take(10, lambda _, __: Admission.CROWD) == []
    assert len(ready) == MAX_CROWD + len(few)
    kept = ready.take(1000, everything)
    assert set(kept) < {hint.delivery_id for hint in crowd + few}
    assert {hint.delivery_id for hint in few} < set(kept)


def test_one_that_is_not_wanted_does_not_hold_up_the_next() -> None:
    both = hints(new_id(), 2)
    ready = filled(both)
    taken = ready.take(
        10, lambda _, delivery_id: Admission.SKIP if delivery_id == both[0].delivery_id else Admission.YES
    )
    assert (taken, len(ready)) == ([both[1].delivery_id], 0)


@pytest.mark.parametrize(("name", "spread"), [("MAX_SUBSCRIPTION", 1), ("MAX_ORGANIZATION", 4), ("MAX_ALL", 4)])
def test_it_takes_in_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch, name: str, spread: int) -> None:
    monkeypatch.setattr(f"worker.ready.{name}", 8)
    ready, organization_id = Ready(), new_id()
    subscriptions = [new_id() for _ in range(spread)]
    taken = [ready.add(Hint(organization_id, subscriptions[at % spread], new_id())) for at in range(12)]
    assert taken == [True] * 8 + [False] * 4
    assert len(ready.take(100, everything)) == 8
    assert ready.add(Hint(organization_id, subscriptions[0], new_id()))


def test_many_that_wait_are_asked_once_in_a_turn() -> None:
    organization_id = new_id()
    waiting = [hints(organization_id, 1)[0] for _ in range(500)]
    busy = hints(organization_id, 200)
    ready = filled(waiting, busy)
    asked = 0

    def admit(subscription_id: UUID, _: UUID) -> Admission:
        nonlocal asked
        asked += 1
        return Admission.YES if subscription_id == busy[0].subscription_id else Admission.WAIT

    assert len(ready.take(200, admit)) == 200
    assert asked == 700


def test_no_more_wait_for_a_subscription_than_is_said() -> None:
    ready, organization_id, subscription_id = Ready(), new_id(), new_id()
    added = [ready.add(Hint(organization_id, subscription_id, new_id()), 2) for _ in range(3)]
    assert added == [True, True, False]
    assert len(ready) == 2
