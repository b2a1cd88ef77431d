"""Quantiles from a histogram: never further off than the bucket they fall in."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.stats import durations
from core.stats.durations import BOUNDS_MS, BUCKETS


def histogram(times_ms: list[int]) -> list[int]:
    counts = [0] * BUCKETS
    for one in times_ms:
        counts[durations.bucket_of(one)] += 1
    return counts


@pytest.mark.parametrize(
    ("ms", "bucket"), [(0, 0), (5, 0), (6, 1), (10, 1), (11, 2), (30_000, BUCKETS - 2), (30_001, BUCKETS - 1)]
)
def test_a_bound_belongs_to_the_bucket_that_it_ends(ms: int, bucket: int) -> None:
    assert durations.bucket_of(ms) == bucket


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 1.0]))
def test_a_quantile_is_within_the_bucket_of_the_true_one(times_ms: list[int], q: float) -> None:
    true = sorted(times_ms)[math.ceil(q * len(times_ms)) - 1]
    found = durations.quantile(histogram(times_ms), q)
    assert found is not None
    bucket = durations.bucket_of(true)
    assert (BOUNDS_MS[bucket - 1] if bucket else 0) <= found <= BOUNDS_MS[bucket]


def test_quantiles_are_interpolated() -> None:
    counts = [0] * 6 + [100]  # all took 75 to 100 ms
    assert [durations.quantile(counts, q) for q in (0.04, 0.5, 0.95, 1.0)] == [76, 88, 99, 100]


def test_nothing_has_no_quantile_and_the_longest_no_more_than_the_last_bound() -> None:
    assert durations.quantile([], 0.5) is None
    assert durations.quantile([0] * BUCKETS, 0.5) is None
    assert durations.quantile(histogram([90_000]), 0.5) == 30_000


@given(st.lists(st.integers(0, 9), max_size=BUCKETS), st.floats(0.01, 1))
def test_zeros_at_the_end_say_nothing(counts: list[int], q: float) -> None:
    short = durations.trimmed(counts)
    assert not short or short[-1]
    assert [*short, *[0] * (len(counts) - len(short))] == counts
    assert durations.quantile(short, q) == durations.quantile(counts, q)
