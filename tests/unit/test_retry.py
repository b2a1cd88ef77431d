"""Retry policies: delays, bounds, refusals; and what a receiver's Retry-After may do to them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ValidationFailed
from core.retry import STANDARD_SCHEDULE_S, RetryPolicy, parse_retry_after, with_retry_after


def middle() -> float:
    """Randomness that leaves a delay at its nominal value, where no cap cuts the range."""
    return 0.5


def delays(policy: RetryPolicy, rng: Any = middle) -> list[float | None]:
    return [policy.delay_after(attempt, rng) for attempt in range(1, policy.max_attempts + 1)]


def exact(**spec: Any) -> RetryPolicy:
    return RetryPolicy.parse({"jitter": False, **spec})


def test_the_promised_example_waits_1_2_4_and_8_seconds() -> None:
    policy = RetryPolicy.parse({"max_attempts": 5, "backoff_strategy": "exponential"})
    assert delays(policy) == pytest.approx([1, 2, 4, 8, None])


@pytest.mark.parametrize("spec", [None, {}])
def test_without_a_policy_the_standard_webhooks_schedule_holds(spec: dict[str, Any] | None) -> None:
    minute, hour = 60, 3600
    expected = [
        5,
        5 * minute,
        30 * minute,
        2 * hour,
        5 * hour,
        10 * hour,
        14 * hour,
        20 * hour,
        24 * hour,
        None,
    ]
    policy = RetryPolicy.parse(spec)
    assert policy == RetryPolicy()
    assert delays(policy) == pytest.approx(expected)
    assert policy.jitter == 0.1


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"backoff_strategy": "exponential"}, [1, 2, 4, 8, None]),
        ({"backoff_strategy": "exponential", "max_attempts": 8}, [1, 2, 4, 8, 16, 30, 30, None]),
        (
            {"backoff_strategy": "exponential", "backoff_multiplier": 1.5, "max_attempts": 4},
            [1, 1.5, 2.25, None],
        ),
        (
            {"backoff_strategy": "exponential", "base_delay_ms": 500, "max_delay_ms": 900},
            [0.5, 0.9, 0.9, 0.9, None],
        ),
        ({"backoff_strategy": "linear"}, [1, 2, 3, 4, None]),
        ({"backoff_strategy": "linear", "base_delay_ms": 20_000}, [20, 30, 30, 30, None]),
        ({"backoff_strategy": "fixed"}, [1, 1, 1, 1, None]),
        ({"backoff_strategy": "fixed", "base_delay_ms": 60_000, "max_attempts": 2}, [60, None]),
        ({"backoff_strategy": "fixed", "max_attempts": 1}, [None]),
        ({"backoff_strategy": "schedule", "schedule": [0, 10, 20.5]}, [0, 10, 20.5, None]),
        ({"schedule": [1, 2]}, [1, 2, None]),
        ({"schedule": [1, 2], "max_attempts": 5}, [1, 2, 2, 2, None]),
        ({"schedule": [1, 2, 3], "max_attempts": 2}, [1, None]),
        ({"schedule": [1, 20], "max_delay_ms": 5000}, [1, 5, None]),
        ({"max_attempts": 3}, [5, 300, None]),
        ({"backoff_strategy": "schedule", "max_attempts": 1}, [None]),
    ],
    ids=str,
)
def test_delays_without_jitter(spec: dict[str, Any], expected: list[float | None]) -> None:
    assert delays(exact(**spec)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("base_delay_ms", "low", "high"),
    [(5_000, 4.5, 5.5), (28_000, 25.2, 30.0), (30_000, 27.0, 30.0)],
)
def test_jitter_spreads_over_the_range_that_the_docstring_works_out(
    base_delay_ms: int, low: float, high: float
) -> None:
    policy = RetryPolicy.parse({"backoff_strategy": "fixed", "base_delay_ms": base_delay_ms})
    assert policy.delay_after(1, lambda: 0.0) == pytest.approx(low)
    assert policy.delay_after(1, lambda: 1.0) == pytest.approx(high)
    assert policy.delay_after(1, lambda: 0.5) == pytest.approx((low + high) / 2)


@pytest.mark.parametrize(
    ("given_jitter", "effective"), [(True, 0.1), (False, 0.0), (0, 0.0), (1, 1.0), (0.25, 0.25), (None, 0.1)]
)
def test_jitter_is_a_fraction_or_a_switch(given_jitter: object, effective: float) -> None:
    assert RetryPolicy.parse({"jitter": given_jitter}).jitter == effective


@pytest.mark.parametrize("attempt", [0, -1])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        RetryPolicy().delay_after(attempt, middle)


def test_beyond_the_last_attempt_there_is_none() -> None:
    assert RetryPolicy().delay_after(11, middle) is None


@pytest.mark.parametrize(
    ("spec", "fields"),
    [
        ({"max_attempts": 0}, ["max_attempts"]),
        ({"max_attempts": 101}, ["max_attempts"]),
        ({"max_attempts": True}, ["max_attempts"]),
        ({"max_attempts": 5.0}, ["max_attempts"]),
        ({"max_attempts": "5"}, ["max_attempts"]),
        ({"backoff_strategy": "fibonacci"}, ["backoff_strategy"]),
        ({"backoff_strategy": ["fixed"]}, ["backoff_strategy"]),
        ({"base_delay_ms": 100}, ["backoff_strategy"]),
        ({"backoff_multiplier": 2}, ["backoff_strategy"]),
        ({"backoff_strategy": "fixed", "base_delay_ms": 0}, ["base_delay_ms"]),
        ({"backoff_strategy": "fixed", "base_delay_ms": 604_800_001}, ["base_delay_ms"]),
        ({"backoff_strategy": "fixed", "max_delay_ms": 999}, ["max_delay_ms"]),
        ({"max_delay_ms": 0}, ["max_delay_ms"]),
        ({"backoff_strategy": "exponential", "backoff_multiplier": 0.9}, ["backoff_multiplier"]),
        ({"backoff_strategy": "exponential", "backoff_multiplier": 10.1}, ["backoff_multiplier"]),
        ({"backoff_strategy": "exponential", "backoff_multiplier": float("nan")}, ["backoff_multiplier"]),
        ({"backoff_strategy": "exponential", "backoff_multiplier": True}, ["backoff_multiplier"]),
        ({"jitter": 1.01}, ["jitter"]),
        ({"jitter": -0.1}, ["jitter"]),
        ({"jitter": float("nan")}, ["jitter"]),
        ({"jitter": "full"}, ["jitter"]),
        ({"schedule": []}, ["schedule"]),
        ({"schedule": [1] * 100}, ["schedule"]),
        ({"schedule": "5,300"}, ["schedule"]),
        ({"schedule": [1, -1, True, float("inf"), 604_801]}, [f"schedule.{index}" for index in (1, 2, 3, 4)]),
        ({"backoff_strategy": "linear", "schedule": [1]}, ["schedule"]),
        ({"max_attempt": 3}, ["max_attempt"]),
        ({"max_attempts": 0, "jitter": 2, "x": 1}, ["x", "max_attempts", "jitter"]),
    ],
    ids=str,
)
def test_each_fault_is_named_by_its_field(spec: dict[str, Any], fields: list[str]) -> None:
    with pytest.raises(ValidationFailed) as refused:
        RetryPolicy.parse(spec)
    assert list(refused.value.details) == [f"retry_policy.{field}" for field in fields]


def test_a_policy_that_is_no_object_is_refused() -> None:
    with pytest.raises(ValidationFailed) as refused:
        RetryPolicy.parse([])  # type: ignore[arg-type]  # what a request may hold all the same
    assert list(refused.value.details) == ["retry_policy"]


def test_fields_that_the_strategy_does_not_use_make_no_difference() -> None:
    fixed = RetryPolicy.parse({"backoff_strategy": "fixed", "backoff_multiplier": 3})
    assert fixed == RetryPolicy.parse({"backoff_strategy": "fixed"})


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (
            None,
            {
                "backoff_strategy": "schedule",
                "max_attempts": 10,
                "max_delay_ms": 604_800_000,
                "jitter": 0.1,
                "schedule": list(STANDARD_SCHEDULE_S),
            },
        ),
        (
            {"backoff_strategy": "exponential", "jitter": 0},
            {
                "backoff_strategy": "exponential",
                "max_attempts": 5,
                "base_delay_ms": 1000,
                "max_delay_ms": 30_000,
                "backoff_multiplier": 2.0,
                "jitter": 0.0,
            },
        ),
        (
            {"backoff_strategy": "fixed", "base_delay_ms": 45_000},
            {
                "backoff_strategy": "fixed",
                "max_attempts": 5,
                "base_delay_ms": 45_000,
                "max_delay_ms": 45_000,
                "jitter": 0.1,
            },
        ),
    ],
)
def test_json_holds_all_that_is_in_effect(spec: dict[str, Any] | None, shape: dict[str, Any]) -> None:
    assert RetryPolicy.parse(spec).to_json() == shape


delay_ms = st.integers(1, 604_800_000)
common = {"max_attempts": st.integers(1, 100), "jitter": st.one_of(st.booleans(), st.floats(0, 1))}
curves = st.fixed_dictionaries(
    {"backoff_strategy": st.sampled_from(["exponential", "linear", "fixed"]), "base_delay_ms": delay_ms},
    optional={**common, "backoff_multiplier": st.floats(1, 10)},
)
schedules = st.fixed_dictionaries(
    {"schedule": st.lists(st.floats(0, 604_800), min_size=1, max_size=99)},
    optional={**common, "max_delay_ms": delay_ms},
)
policies = st.one_of(curves, schedules).map(RetryPolicy.parse)


@given(policies)
def test_json_reads_back_as_an_equal_policy(policy: RetryPolicy) -> None:
    assert RetryPolicy.parse(policy.to_json()) == policy


@given(policies, st.integers(1, 120), st.integers())
def test_delays_stay_within_jitter_and_below_the_cap(policy: RetryPolicy, attempt: int, seed: int) -> None:
    delay_s = policy.delay_after(attempt, random.Random(seed).random)
    if attempt >= policy.max_attempts:
        assert delay_s is None
        return
    assert delay_s is not None
    nominal_s = policy.nominal_delay_s(attempt)
    rounding = 1 + 1e-9
    assert nominal_s * (1 - policy.jitter) / rounding <= delay_s <= nominal_s * (1 + policy.jitter) * rounding
    assert 0 <= delay_s <= policy.max_delay_ms / 1000 * rounding


# --- Retry-After ---

NOW = datetime(2026, 1, 28, 10, 15, 0, 500_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("007", 7),
        (" \t5 ", 5),
        ("-5", 0),
        ("2147483647", 2147483647),
        ("9999999999", 2147483648),
        ("1" * 5000, 2147483648),
        ("0" * 5000 + "3", 3),
        # the three forms of RFC 9110, 5.6.7
        ("Wed, 28 Jan 2026 10:16:00 GMT", 59.5),
        ("Wednesday, 28-Jan-26 10:16:00 GMT", 59.5),
        ("Wed Jan 28 10:16:00 2026", 59.5),
        ("Mon Feb  2 10:15:00 2026", 5 * 86400 - 0.5),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("Sun Nov  6 08:49:37 1994", 0),
        ("Wednesday, 28-Jan-76 10:15:00 GMT", 18262 * 86400 - 0.5),  # 50 years ahead: 2076
        ("Wednesday, 28-Jan-77 10:15:00 GMT", 0),  # 51 years: 1977
        ("Wed, 28 Jan 2026 10:15:60 GMT", 59.5),  # a leap second
    ],
)
def test_retry_after_is_read(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "1.5",
        "+5",
        "5s",
        "5, 6",
        "1e3",
        "٣",
        "５",
        "²",
        "--5",
        "1_000",
        "5\n",
        "Wed, 28 Jan 2026 10:16:00",
        "Wed, 28 Jan 2026 10:16:00 CET",
        "Wed, 28 Jan 2026 10:16:00 +0000",
        "wed, 28 jan 2026 10:16:00 gmt",
        "Wed, 31 Feb 2026 10:16:00 GMT",
        "Wed, 28 Jan 0000 10:16:00 GMT",
        "Wed, 28 Jan 2026 24:16:00 GMT",
        "Wed, 28 Jan 2026 10:16:61 GMT",
        "Fri, 31 Dec 9999 23:59:60 GMT",
        "Wed, 28 Jan 20260 10:16:00 GMT",
        "2026-01-28T10:16:00Z",
        "x" * 100_000,
    ],
)
def test_what_is_no_retry_after_is_ignored(value: str) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text(max_size=40))
def test_no_text_upsets_the_reader(value: str) -> None:
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("nominal_s", "retry_after_s", "expected"),
    [
        (5, None, 5),
        (5, 60, 60),
        (5, 1, 5),
        (5, 0, 5),
        (5, 1e9, 86_400),
        (100_000, 1e9, 100_000),
        (0, 2.5, 2.5),
    ],
)
def test_a_receiver_can_delay_but_not_hurry(nominal_s: float, retry_after_s: float | None, expected: float) -> None:
    assert with_retry_after(nominal_s, retry_after_s) == expected


def test_the_bound_on_retry_after_can_be_chosen() -> None:
    assert with_retry_after(5, 500, cap_s=60) == 60
