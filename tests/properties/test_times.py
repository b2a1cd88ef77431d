"""The time inside an id and a moment that somebody names are compared as they are shown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from core import ids, timestamps
from core.listing.selection import moment

moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
nearby = st.integers(-3_000, 3_000).map(lambda microseconds: timedelta(microseconds=microseconds))


def at_ms(time: datetime) -> UUID:
    """An id of the millisecond that `time` is in."""
    whole = time.replace(microsecond=time.microsecond // 1000 * 1000)
    return UUID(int=ids.lowest_at(whole).int | (1 << 80) - 1)


@given(moments, nearby)
def test_an_id_is_on_the_side_of_a_moment_that_its_shown_time_is_on(named: datetime, away: timedelta) -> None:
    """As `created_after` and `created_before` choose."""
    id_ = at_ms(max(named + away, datetime(1970, 1, 1, tzinfo=UTC)))
    assert (id_ >= ids.lowest_at(named)) == (ids.time_of(id_) >= named)
    assert moment(timestamps.show(ids.time_of(id_))) == ids.time_of(id_)


@given(moments)
def test_a_moment_of_whole_milliseconds_is_its_own_bound(named: datetime) -> None:
    whole = named.replace(microsecond=named.microsecond // 1000 * 1000)
    bound = ids.lowest_at(whole)
    assert ids.time_of(bound) == whole
    assert ids.time_of(UUID(int=bound.int - 1)) < whole if bound.int else True
