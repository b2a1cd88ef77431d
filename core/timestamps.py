"""Times as the contract writes them: ISO 8601 in UTC with `Z`."""

from __future__ import annotations

from datetime import UTC, datetime


def show(moment: datetime) -> str:
    """`2026-01-28T10:15:00Z`; with milliseconds or microseconds where the moment has them."""
    moment = moment.astimezone(UTC)
    precision = "seconds" if not moment.microsecond else "microseconds" if moment.microsecond % 1000 else "milliseconds"
    return moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z"
