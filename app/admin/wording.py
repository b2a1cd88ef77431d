"""How pages write numbers, times, durations and JSON."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import orjson

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000  # milliseconds


def time(moment: datetime) -> str:
    """`2026-01-28 10:15 UTC`"""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def exact_time(moment: datetime) -> str:
    """`2026-01-28 10:15:00.123 UTC`"""
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} UTC"


def number(value: float) -> str:
    """`12,345`"""
    return f"{value:,}"


def percent(value: float | None) -> str:
    """`98.7 %`, of a value from 0 to 100; `–` where there is none. What is not all is never written as `100 %`, what is
    not nothing never as `0 %`."""
    if value is None:
        return "–"
    text = f"{value:.1f}".removesuffix(".0")
    if text == "100" and value < 100:
        text = "99.9"
    if text == "0" and value > 0:
        text = "0.1"
    return f"{text} %"


def duration(ms: float | None) -> str:
    """Milliseconds as `85 ms`, `1.2 s`, `4 min 10 s`, `3 h 5 min` or `2 d 4 h`; `–` where there is none."""
    if ms is None:
        return "–"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < MINUTE:
        return f"{ms / SECOND:.1f}".removesuffix(".0") + " s"
    if ms < HOUR:
        return _two(ms, MINUTE, "min", SECOND, "s")
    if ms < DAY:
        return _two(ms, HOUR, "h", MINUTE, "min")
    return _two(ms, DAY, "d", HOUR, "h")


def _two(ms: float, unit: int, name: str, part: int, part_name: str) -> str:
    whole, rest = divmod(int(ms), unit)
    return f"{whole} {name} {rest // part} {part_name}" if rest >= part else f"{whole} {name}"


def size(count: int) -> str:
    """Bytes as `85 B`, `1.2 KiB` or `3.4 MiB`."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{count} B"


def pretty(value: Any) -> str:
    """A value as indented JSON."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(value, indent=2, ensure_ascii=False)
