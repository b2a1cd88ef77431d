"""How long successful attempts took: a histogram, from which quantiles are read. Histograms add up; quantiles do not.

A quantile is interpolated within one bucket, so it is wrong by a bucket's width at most: a quarter to a half of its
value. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

# The upper end of each bucket in milliseconds, itself included; one more bucket holds what took longer. Stored rows
# depend on them: never change one, append at most.
BOUNDS_MS: Final = (5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000)
BUCKETS: Final = len(BOUNDS_MS) + 1


def bucket_of(duration_ms: int) -> int:
    return bisect_left(BOUNDS_MS, duration_ms)


def trimmed(counts: Sequence[int]) -> Sequence[int]:
    """Without the zeros at its end, which most rows have many of."""
    length = len(counts)
    while length and not counts[length - 1]:
        length -= 1
    return counts[:length]


def quantile(counts: Sequence[int], q: float) -> int | None:
    """The time in ms that a share of `q` took at most; None of nothing. What took longer than the last bound counts as
    if it had taken just that."""
    rank = q * sum(counts)
    if not rank:
        return None
    below = 0
    for place, count in enumerate(counts[: len(BOUNDS_MS)]):
        if below + count >= rank:
            low = BOUNDS_MS[place - 1] if place else 0
            return round(low + (BOUNDS_MS[place] - low) * (rank - below) / count)
        below += count
    return BOUNDS_MS[-1]
