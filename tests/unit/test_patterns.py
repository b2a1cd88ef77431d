"""Event types and patterns: the table of the module, its errors, and a naive model."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidFilter
from core.matching.patterns import MAX_LENGTH, PatternSet, validate_event_type, validate_pattern


@pytest.mark.parametrize("text", ["a", "order.paid", "inventory.quantity.updated", "A-b_9.0", "x" * MAX_LENGTH])
def test_an_event_type_is_returned_as_it_came(text: str) -> None:
    assert validate_event_type(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * (MAX_LENGTH + 1),
        ".a",
        "a.",
        "a..b",
        "a b",
        "a\n",
        "é",
        "a.*",
        "*",
        "٣",
        "a/b",
        None,
        7,
        ["a"],
    ],
)
def test_what_is_no_event_type_is_refused_at_its_path(text: object) -> None:
    with pytest.raises(InvalidFilter) as refused:
        validate_event_type(text, "events.3.event_type")
    assert list(refused.value.details) == ["events.3.event_type"]


@pytest.mark.parametrize("text", ["a", "*", "a.*", "a.*.c", "*.created", "a.*.b.*", "*.*"])
def test_a_pattern_is_returned_as_it_came(text: str) -> None:
    assert validate_pattern(text) == text


@pytest.mark.parametrize("text", ["", "a*", "*a", "a.b*.c", "**", "a..*", ".*", "*.", "a.*\n", "é.*", None, 1])
def test_what_is_no_pattern_is_refused_at_its_path(text: object) -> None:
    with pytest.raises(InvalidFilter) as refused:
        validate_pattern(text, "events.0")
    assert refused.value.path == "events.0"


def test_a_star_inside_a_segment_is_told_apart_from_other_faults() -> None:
    with pytest.raises(InvalidFilter) as star:
        validate_pattern("order*")
    with pytest.raises(InvalidFilter) as other:
        validate_pattern("order..paid")
    assert "whole segments" in star.value.fault
    assert "whole segments" not in other.value.fault


def test_a_set_names_the_pattern_that_is_wrong() -> None:
    with pytest.raises(InvalidFilter) as refused:
        PatternSet(["a", "b.*", "c*"])
    assert refused.value.path == "events.2"


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a.b", ["a.b"], ["a", "a.b.c", "a.bc", "A.b"]),
        ("*", ["a", "a.b", "a.b.c"], []),
        ("a.*", ["a.b", "a.b.c"], ["a", "ab", "ab.c", "b.a.c"]),
        ("a.*.c", ["a.b.c", "a.c.c"], ["a.c", "a.b.b.c", "a.b.c.d", "b.b.c"]),
        ("*.created", ["order.created"], ["created", "a.order.created", "order.created.now"]),
        ("a.*.b.*", ["a.x.b.y", "a.x.b.y.z"], ["a.x.b", "a.b.c", "a.x.c.y"]),
        ("*.*", ["a.b", "a.b.c"], ["a"]),
        ("*.*.c", ["a.b.c"], ["b.c", "a.a.b.c"]),
    ],
)
def test_patterns_match(pattern: str, matching: list[str], other: list[str]) -> None:
    patterns = PatternSet([pattern])
    assert [each for each in matching if not patterns.matches(each)] == []
    assert [each for each in other if patterns.matches(each)] == []


def test_an_empty_set_matches_nothing() -> None:
    assert not PatternSet([]).matches("a")


def test_a_set_matches_what_any_of_its_patterns_does() -> None:
    patterns = PatternSet(["order.paid", "user.*", "*.*.deleted"])
    types = ["order.paid", "user.x", "a.b.deleted", "order.sent", "user", "a.deleted"]
    assert [patterns.matches(each) for each in types] == [True, True, True, False, False, False]


segments = st.sampled_from(["a", "b", "ab"])
event_types = st.lists(segments, min_size=1, max_size=5).map(".".join)
any_pattern = st.lists(st.one_of(segments, st.just("*")), min_size=1, max_size=5).map(".".join)


def naive(pattern: str, event_type: str) -> bool:
    """The rules once more, as one regular expression."""
    if pattern == "*":
        return True
    parts = ["[^.]+" if part == "*" else re.escape(part) for part in pattern.split(".")]
    if pattern.endswith(".*"):
        parts[-1] = ".+"
    return re.fullmatch(r"\.".join(parts), event_type) is not None


@given(st.lists(any_pattern, max_size=4), event_types)
def test_a_set_agrees_with_the_naive_model(patterns: list[str], event_type: str) -> None:
    assert PatternSet(patterns).matches(event_type) == any(naive(each, event_type) for each in patterns)
