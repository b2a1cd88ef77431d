"""Limits of one subscription: defaults, bounds, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import ValidationFailed
from core.limiting.limits import Limits


@pytest.mark.parametrize("given", [{}, {"per_second": None}, {"max_in_flight": None, "per_second": None}])
def test_the_defaults(given: dict[str, Any]) -> None:
    assert Limits.parse(given) == Limits.of(None) == Limits.of({}) == Limits(max_in_flight=200, per_second=None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_in_flight": 1}, Limits(1)),
        ({"max_in_flight": 1000, "per_second": 10_000}, Limits(1000, 10_000.0)),
        ({"per_second": 0.5}, Limits(200, 0.5)),
        ({"per_second": 0.001}, Limits(200, 0.001)),
    ],
)
def test_what_is_given_is_stored_and_read_back(given: dict[str, Any], expected: Limits) -> None:
    limits = Limits.parse(given)
    assert limits == expected
    assert Limits.of(limits.to_json()) == limits
    assert Limits.of(limits.to_json() | {"of a later release": 5}) == limits


@pytest.mark.parametrize(
    ("given", "faulty"),
    [
        ({"max_in_flight": 0}, ["max_in_flight"]),
        ({"max_in_flight": 1001}, ["max_in_flight"]),
        ({"max_in_flight": 1.5}, ["max_in_flight"]),
        ({"max_in_flight": False}, ["max_in_flight"]),
        ({"per_second": 0}, ["per_second"]),
        ({"per_second": -1}, ["per_second"]),
        ({"per_second": 10_000.1}, ["per_second"]),
        ({"per_second": float("inf")}, ["per_second"]),
        ({"per_second": "5"}, ["per_second"]),
        ({"per_minute": 5, "max_in_flight": 0}, ["max_in_flight", "per_minute"]),
    ],
)
def test_faults_are_told_by_their_paths(given: dict[str, Any], faulty: list[str]) -> None:
    with pytest.raises(ValidationFailed) as caught:
        Limits.parse(given)
    assert sorted(caught.value.details) == [f"limits.{name}" for name in faulty]


def test_limits_must_be_an_object() -> None:
    with pytest.raises(ValidationFailed) as caught:
        Limits.parse([200])
    assert list(caught.value.details) == ["limits"]
