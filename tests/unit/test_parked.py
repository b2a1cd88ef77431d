from __future__ import annotations

from core.ids import new_id
from worker.parked import Parked

ONE, TWO = new_id(), new_id()


def filled(**numbers: int) -> tuple[Parked, dict[str, list[tuple[object, object]]]]:
    parked, made = Parked(), {}
    for name, number in numbers.items():
        organization_id = {"one": ONE, "two": TWO}[name]
        subscriptions = [new_id() for _ in range(number)]
        for one in subscriptions:
            parked.add(organization_id, one, first=True)
        made[name] = [(organization_id, one) for one in subscriptions]
    return parked, made


def test_organizations_take_turns() -> None:
    parked, made = filled(one=1000, two=2)
    turns = list(parked.turns())
    assert turns[:5] == [made["one"][0], made["two"][0], made["one"][1], made["two"][1], made["one"][2]]
    assert sorted(turns) == sorted([*made["one"], *made["two"]])


def test_who_had_a_turn_comes_last() -> None:
    parked, made = filled(one=3, two=1)
    parked.to_end(*made["one"][0])
    assert list(parked.turns()) == [made["two"][0], made["one"][1], made["one"][2], made["one"][0]]


def test_who_is_added_again_keeps_its_turn() -> None:
    parked, made = filled(one=2)
    parked.add(*made["one"][0], first=False)
    assert list(parked.turns()) == made["one"]


def test_nothing_is_left_of_what_is_discarded() -> None:
    parked, made = filled(one=2)
    for one in made["one"]:
        assert parked
        parked.discard(*one)
    parked.discard(*made["one"][0])
    assert not parked
    assert list(parked.turns()) == []


def test_it_knows_for_whom_first_attempts_are_parked() -> None:
    parked = Parked()
    one = new_id()
    assert not parked.has_first(ONE, one)
    parked.add(ONE, one, first=False)
    assert not parked.has_first(ONE, one)
    parked.add(ONE, one, first=True)
    parked.add(ONE, one, first=False)
    assert parked.has_first(ONE, one)
    parked.found(ONE, one, first=False)
    assert not parked.has_first(ONE, one)
    assert not parked.has_first(None, one)
