"""What one filter looks at in one event is bounded: the first so many elements and characters, and no more time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from core.filters import MAX_CHARACTERS, MAX_CONDITIONS, MAX_ELEMENTS, compile_filter, compile_stored


def matches(spec: dict[str, Any], data: dict[str, Any]) -> bool:
    found = compile_filter(spec).matches({"data": data})
    assert compile_stored(spec).matches({"data": data}) == found
    return found


def among(many: int, element: Any, last: Any) -> list[Any]:
    return [element] * (many - 1) + [last]


@pytest.mark.parametrize("others", [0, 1, 9, MAX_CONDITIONS - 1])
def test_a_condition_looks_at_its_share_of_elements_and_no_further(others: int) -> None:
    share = MAX_ELEMENTS // (others + 1)
    # One condition each, that always holds, so that the first decides.
    more = {f"event.data.n{number}": {"$exists": False} for number in range(others)}
    for spec, element, last in (
        ({"a": {"$contains": 1}}, 0, 1),
        ({"a": [1, 2]}, 0, 1),
        ({"a.b": 1}, {"b": 0}, {"b": 1}),
        ({"a.b": {"$contains": 1}}, {"c": 0}, {"b": "1"}),
        ({"a.b.c": {"$gte": 1}}, {"b": {"c": 0}}, {"b": {"c": 1}}),
    ):
        wanted = element != {"c": 0}  # "1" is not 1, wherever it is
        assert matches(spec | more, {"a": among(share, element, last)}) == wanted
        assert not matches(spec | more, {"a": among(share + 1, element, last)})


def test_arrays_within_arrays_share_the_same_elements() -> None:
    spec = {"a.b": [1]}
    many, inner = 100, MAX_ELEMENTS // 100 - 1  # each of 100 objects counts too

    def nested(size: int) -> dict[str, Any]:
        return {"a": [{"b": [0] * size}] * (many - 1) + [{"b": among(size, 0, 1)}]}

    assert matches(spec, nested(inner))
    assert not matches(spec, nested(inner + 1))


@pytest.mark.parametrize("others", [0, 9])
def test_contains_searches_its_share_of_characters(others: int) -> None:
    share = MAX_CHARACTERS // (others + 1)
    spec = {"a": {"$contains": "xy"}} | {f"n{number}": {"$exists": False} for number in range(others)}
    assert matches(spec, {"a": " " * (share - 2) + "xy"})
    assert not matches(spec, {"a": " " * (share - 1) + "xy"})


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
    "many conditions, deep": ({"$or": [{"a" + ".a" * 13: 5}] * HALF}, nest(13)),
    "text within text": ({"$or": [{"a": {"$contains": "aaaab"}}] * HALF}, {"a": "a" * SIZE}),
}


@pytest.mark.parametrize("name", WORST)
def test_the_worst_filter_takes_milliseconds_on_the_largest_event(name: str) -> None:
    """Without the bounds these took seconds, during which the process served nobody. Now 15 ms at most; the test allows
    for a busy machine."""
    spec, data = WORST[name]
    chosen = compile_filter(spec)

    def took_s() -> float:
        started = time.perf_counter()
        assert not chosen.matches({"data": data})
        return time.perf_counter() - started

    assert min(took_s() for _ in range(3)) < 0.15
