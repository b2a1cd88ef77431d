"""Times as the contract writes them: ISO 8601 in UTC with `Z`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=1024)  # an event's is shown where it is built and twice in the answer
def show(moment: datetime) -> str:
    """`2026-01-28T10:15:00Z`; with milliseconds or microseconds where the moment has them."""
    since = moment - _EPOCH
    second = _second(since.days, since.seconds)
    micros = since.microseconds
    if not micros:
        return f"{second}Z"
    return f"{second}.{micros:06}Z" if micros % 1000 else f"{second}.{micros // 1000:03}Z"


@lru_cache(maxsize=256)
def _second(days: int, seconds: int) -> str:
    """What the times of one second have in common: under load most are of the same few, and writing a time is slow."""
    return (_EPOCH + timedelta(days, seconds)).isoformat()[:19]
