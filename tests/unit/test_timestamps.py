"""Times are shown in UTC with `Z`, no finer than the moment itself, and read back equal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import timestamps
from core.listing.selection import moment

BERLIN = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2026, 1, 28, 10, 15, tzinfo=UTC), "2026-01-28T10:15:00Z"),
        (datetime(2026, 1, 28, 10, 15, 0, 250_000, tzinfo=UTC), "2026-01-28T10:15:00.250Z"),
        (datetime(2026, 1, 28, 10, 15, 0, 1, tzinfo=UTC), "2026-01-28T10:15:00.000001Z"),
        (datetime(2026, 1, 28, 0, 15, tzinfo=BERLIN), "2026-01-27T23:15:00Z"),
    ],
)
def test_a_moment_is_shown_in_utc(at: datetime, expected: str) -> None:
    assert timestamps.show(at) == expected


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 30), timezones=st.just(UTC) | st.just(BERLIN)))
def test_it_is_what_the_standard_library_writes(at: datetime) -> None:
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat()
    assert timestamps.show(at) == (text[:-3] if "." in text and text.endswith("000") else text) + "Z"


@given(st.datetimes(datetime(1970, 1, 2), datetime(8999, 12, 30), timezones=st.just(UTC) | st.just(BERLIN)))
def test_what_is_shown_reads_back_as_the_same_moment(at: datetime) -> None:
    assert moment(timestamps.show(at)) == at


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "2026-01-28", "2026-01-28T10:15:00", "2026-13-01T00:00:00Z", "2026-01-28T25:00:00Z", "1769595300"),
        *("1969-12-31T23:59:59Z", "9000-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
        *("1970-01-01T00:00:00+00:01", "8999-12-31T23:59:59-00:01", "2026-01-28T10:15:00Z\0", "２026-01-28T10:15:00Z"),
    ],
)
def test_what_is_no_time_or_too_far_off_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Must"):
        moment(text)


@pytest.mark.parametrize("value", [None, 0, 1769595300, True, [], {}])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        moment(value)
