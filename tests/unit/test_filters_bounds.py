"""What filters look at in one event is bounded, and so is the time; what was not looked at never makes a match."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import UUID

import pytest

from core.matching.filters import MAX_CONDITIONS, MAX_STEPS, MAX_STEPS_OF_ALL, compile_filter, compile_stored
from core.matching.matcher import Candidate, Matching, Slice, Subscribers


def matches(spec: dict[str, Any], data: dict[str, Any]) -> bool:
    found = compile_filter(spec).matches({"data": data})
    assert compile_stored(spec).matches({"data": data}) == found
    return found


def among(many: int, element: Any, last: Any) -> list[Any]:
    return [element] * (many - 1) + [last]


def test_a_filter_with_more_to_look_at_than_it_may_matches_neither_way() -> None:
    for spec, element, last in (
        ({"a": {"$contains": 1}}, 0, 1),
        ({"a": [1, 2]}, 0, 1),
        ({"a.b": 1}, {"b": 0}, {"b": 1}),
        ({"a.b": {"$gte": 1}}, {"b": 0}, {"b": 1}),
    ):
        for size, decided in ((MAX_STEPS, True), (MAX_STEPS + 1, False)):
            with_it, without = {"a": among(size, element, last)}, {"a": [element] * size}
            assert matches(spec, with_it) == decided
            assert not matches(spec, without)
            assert not matches({"$not": spec}, with_it)
            assert matches({"$not": spec}, without) == decided
            for negated in ({"a.b": {"$ne": 1}}, {"a.b": {"$nin": [1]}}):
                assert matches(negated, without) == decided


def test_a_step_that_one_condition_leaves_is_there_for_the_others() -> None:
    """Nine conditions that need none leave them to the tenth, whose last element decides."""
    spec = {"items.sku": {"$nin": ["banned"]}} | {f"n{number}": {"$exists": False} for number in range(9)}
    fine, many = {"sku": "fine"}, 20_000
    assert matches(spec, {"items": [fine] * many})
    assert not matches(spec, {"items": among(many, fine, {"sku": "banned"})})
    twice = {"$and": [{"items.sku": "fine"}, {"items.sku": "fine"}]}
    assert matches(twice, {"items": [fine] * (MAX_STEPS // 2)})
    assert not matches(twice, {"items": [fine] * (MAX_STEPS // 2 + 1)})


def test_contains_searches_so_many_characters_less_where_it_compares_many() -> None:
    assert matches({"a": {"$contains": "xy"}}, {"a": " " * (MAX_STEPS * 50 - 2) + "xy"})
    assert not matches({"a": {"$contains": "xy"}}, {"a": "xy" + " " * (MAX_STEPS + 1) * 50})
    long = "x" * 1024
    assert matches({"$and": [{"a": {"$contains": long}}]}, {"a": " " * 20_000 + long})
    assert not matches({"$and": [{"a": {"$contains": long}}] * 2}, {"a": " " * 20_000 + long})


def test_all_filters_of_an_organization_share_the_steps_of_an_event_and_give_the_loop_its_turn() -> None:
    greedy = {"a.b": {"$in": [number + 0.5 for number in range(200)]}}
    specs = [*[greedy] * 60, {"c": 1}, {"c": 2}, {"$not": greedy}, {}]
    candidates = [
        Candidate({"id": UUID(int=number), "version": 1, "events": ["*"], "filters": json.dumps(spec)})
        for number, spec in enumerate(specs)
    ]
    data = {"a": [{"b": 1}] * MAX_STEPS, "c": 1}
    matching = Matching(Subscribers(1, candidates), "order.paid", {"data": data})
    turns = 1
    while not matching.run(Slice()):
        turns += 1
    assert set(matching.wanted) == {UUID(int=60), UUID(int=63)}
    assert matching.undecided == 60 - MAX_STEPS_OF_ALL // MAX_STEPS + 1
    assert turns > 20


def nest(levels: int) -> dict[str, Any]:
    return {"a": 1} if levels == 0 else {"a": [nest(levels - 1)] * 2}


HALF = MAX_CONDITIONS // 2  # each entry of $or counts, and so does the condition in it
SIZE = 250_000  # bytes of data, about the most an event may have
WORST: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "any of, over an array": ({"$or": [{"a": [5, 6]}] * HALF}, {"a": [0] * (SIZE // 2)}),
    "in, over an array": ({"$or": [{"a": {"$in": [5]}}] * HALF}, {"a": [0] * (SIZE // 2)}),
    "over an array of objects": ({"$or": [{"a.b": 5}] * HALF}, {"a": [{"b": 1}] * (SIZE // 8)}),
    "over arrays of arrays": ({"$or": [{"a.b": {"$contains": 5}}] * HALF}, {"a": [{"b": [1] * 9}] * (SIZE // 30)}),
    "one condition, deep": ({"a" + ".a" * 13: 5}, nest(13)),
    "checks of each value": (
        {"a.b": {"$in": [1], "$eq": 1, "$gt": 0, "$gte": 0, "$lt": 9, "$lte": 0}},
        {"a": [{"b": 1}] * (SIZE // 8)},
    ),
    "many conditions, deep": ({"$or": [{"a" + ".a" * 13: 5}] * HALF}, nest(13)),
    "long text within short text": (
        {"$or": [{"a": {"$contains": "a" * 512 + "b" + "a" * 511}}] * 14},
        {"a": "a" * 2_499},
    ),
    "text within text": ({"$or": [{"a": {"$contains": "aaaab"}}] * HALF}, {"a": "a" * SIZE}),
}


@pytest.mark.parametrize("name", WORST)
def test_the_worst_filter_takes_milliseconds_on_the_largest_event(name: str) -> None:
    """Without the bounds these took seconds, during which the process served nobody. Now 40 ms at most; the test allows
    for a busy machine."""
    spec, data = WORST[name]
    chosen = compile_filter(spec)

    def took_s() -> float:
        started = time.perf_counter()
        assert not chosen.matches({"data": data})
        return time.perf_counter() - started

    assert min(took_s() for _ in range(3)) < 0.15
