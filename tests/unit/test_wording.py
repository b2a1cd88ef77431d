"""How pages write figures."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.admin import wording


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.4, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1 s"),
        (1_234, "1.2 s"),
        (59_940, "59.9 s"),
        (59_960, "60 s"),
        (60_000, "1 min"),
        (250_000, "4 min 10 s"),
        (3_599_999, "59 min 59 s"),
        (3_600_000, "1 h"),
        (11_130_000, "3 h 5 min"),
        (86_400_000, "1 d"),
        (187_200_000, "2 d 4 h"),
    ],
)
def test_durations(ms: float | None, text: str) -> None:
    assert wording.duration(ms) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 %"),
        (0.001, "0.1 %"),
        (12.34, "12.3 %"),
        (50.0, "50 %"),
        (99.94, "99.9 %"),
        (99.999, "99.9 %"),
        (100, "100 %"),
    ],
)
def test_percentages_round_to_all_or_nothing_only_where_it_is_so(value: float | None, text: str) -> None:
    assert wording.percent(value) == text


def test_numbers_sizes_and_times() -> None:
    assert [wording.number(value) for value in (0, 999, 12_345, 1_234_567)] == ["0", "999", "12,345", "1,234,567"]
    assert [wording.size(value) for value in (0, 1023, 1024, 1_600, 3 << 20)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.6 KiB",
        "3 MiB",
    ]
    moment = datetime(2026, 1, 28, 10, 15, 7, 123_456, UTC)
    assert (wording.time(moment), wording.exact_time(moment)) == ("2026-01-28 10:15 UTC", "2026-01-28 10:15:07.123 UTC")
    assert wording.pretty({"a": [1]}) == '{\n  "a": [\n    1\n  ]\n}'
    assert wording.pretty({"n": 1 << 70}) == '{\n  "n": 1180591620717411303424\n}'
