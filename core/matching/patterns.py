"""Event types, and the patterns by which a subscription names them.

An event type is 1 to 128 characters: segments of `[A-Za-z0-9_-]`, separated by single dots. A pattern is an
event type in which whole segments may be `*`:

| pattern       | matches                                              | does not match      |
|---------------|------------------------------------------------------|---------------------|
| `a.b`         | `a.b`                                                | `a.b.c`             |
| `*`           | everything                                           |                     |
| `a.*`         | everything below `a`: `a.b`, `a.b.c`                 | `a`                 |
| `a.*.c`       | exactly one segment in the middle: `a.b.c`           | `a.c`, `a.b.b.c`    |
| `*.created`   | exactly one segment in front: `order.created`        | `a.order.created`   |
| `a.*.b.*`     | `a`, one segment, `b`, one segment or more below     | `a.x.b`, `a.b.c`    |
| `*.*`         | everything of two segments or more                   | `a`                 |

So only the last star is greedy, wherever the others stand. Source: the HTTP contract, "Event patterns".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from core.errors import InvalidFilter

MAX_LENGTH: Final = 128  # characters, of an event type and of a pattern

_SEGMENT = r"[A-Za-z0-9_-]+"
_EVENT_TYPE = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*")
_PATTERN = re.compile(rf"(?:{_SEGMENT}|\*)(?:\.(?:{_SEGMENT}|\*))*")


def validate_event_type(text: object, path: str = "event_type") -> str:
    """`text` itself when it is an event type; raises `InvalidFilter` at `path` when it is not."""
    text = _bounded(text, path, "an event type")
    if not _EVENT_TYPE.fullmatch(text):
        raise InvalidFilter(path, "Must be segments of A-Z a-z 0-9 _ - separated by single dots, as order.paid")
    return text


def validate_pattern(text: object, path: str = "events") -> str:
    """`text` itself when it is a pattern; raises `InvalidFilter` at `path`, say `events.0`, when not."""
    text = _bounded(text, path, "an event pattern")
    if _PATTERN.fullmatch(text):
        return text
    if any("*" in segment and segment != "*" for segment in text.split(".")):
        raise InvalidFilter(path, "A * stands for whole segments: write order.* rather than order* or order.pa*")
    raise InvalidFilter(
        path, "Must be segments of A-Z a-z 0-9 _ - or *, separated by single dots, as order.paid or order.*"
    )


def _bounded(text: object, path: str, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidFilter(path, f"Must be a string: {what}")
    if not 1 <= len(text) <= MAX_LENGTH:
        raise InvalidFilter(path, f"Must be 1 to {MAX_LENGTH} characters: {what}")
    return text


class PatternSet:
    """A subscription's patterns, compiled: does any of them match an event type?

    Nearly every pattern is exact or `a.*`; those cost one set look-up and one `startswith` over all
    prefixes (well under a microsecond). Only patterns with an inner or leading star are compared segment by
    segment. An empty set matches nothing.
    """

    __slots__ = ("_everything", "_exact", "_prefixes", "_segmentwise")

    def __init__(self, patterns: Iterable[str], path: str = "events") -> None:
        """Raises `InvalidFilter` at `path.0`, `path.1`… for the first that is no pattern."""
        exact: set[str] = set()
        prefixes: set[str] = set()
        segmentwise: set[tuple[tuple[str, ...], bool]] = set()
        self._everything = False
        for index, text in enumerate(patterns):
            pattern = validate_pattern(text, f"{path}.{index}")
            below = pattern.endswith(".*")
            fixed = pattern[:-2] if below else pattern
            if pattern == "*":
                self._everything = True
            elif "*" in fixed:
                segmentwise.add((tuple(fixed.split(".")), below))
            elif below:
                prefixes.add(fixed + ".")  # the dot keeps `a` itself and `ab.c` out
            else:
                exact.add(pattern)
        self._exact = frozenset(exact)
        self._prefixes = tuple(sorted(prefixes))
        self._segmentwise = tuple(sorted(segmentwise))

    def matches(self, event_type: str) -> bool:
        """True when any pattern matches. `event_type` must have passed `validate_event_type`."""
        if self._everything or event_type in self._exact or event_type.startswith(self._prefixes):
            return True
        if not self._segmentwise:
            return False
        segments = event_type.split(".")
        return any(_fits(segments, fixed, below) for fixed, below in self._segmentwise)


def _fits(segments: list[str], fixed: tuple[str, ...], below: bool) -> bool:
    """Whether the segments begin with `fixed` and go on for one or more (`below`) or end there."""
    length_fits = len(segments) > len(fixed) if below else len(segments) == len(fixed)
    # Not strict: with `below`, the segments after `fixed` may be anything.
    return length_fits and all(want in ("*", got) for want, got in zip(fixed, segments, strict=False))
