"""What an entry of the audit log says has changed, field by field, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from core import jsontext

MAX_DEPTH = 3  # levels of objects that are taken apart; what is deeper is shown as JSON
MAX_FIELDS = 100
MAX_CHARS = 2_000  # of a value
_ABSENT: Any = object()


class Mark(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    SAME = "same"


class Change(NamedTuple):
    """A field by its path. `before` and `after` are JSON, or text as it is; None: it was or is not there."""

    path: str
    before: str | None
    after: str | None
    mark: Mark


class Changes(NamedTuple):
    fields: list[Change]
    left_out: int  # fields beyond `MAX_FIELDS`


def of(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Changes:
    """The fields of both, in their order. Within an object only what differs tells; the rest of it is there as well, so
    that one sees where."""
    fields = list(_walk((), before or {}, after or {}))
    return Changes(fields[:MAX_FIELDS], max(0, len(fields) - MAX_FIELDS))


def _walk(path: tuple[str, ...], before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        here = (*path, name)
        if len(here) < MAX_DEPTH and _opens(old, new):
            yield from _walk(here, old if isinstance(old, dict) else {}, new if isinstance(new, dict) else {})
        else:
            yield Change(".".join(here), _text(old), _text(new), _mark(old, new))


def _opens(old: Any, new: Any) -> bool:
    """Whether to look inside: an object that was there before or is now, and nothing else than an object."""
    given = [value for value in (old, new) if value is not _ABSENT]
    return all(isinstance(value, dict) for value in given) and any(given)


def _mark(old: Any, new: Any) -> Mark:
    if old is _ABSENT:
        return Mark.ADDED
    if new is _ABSENT:
        return Mark.REMOVED
    return Mark.SAME if old == new and type(old) is type(new) else Mark.CHANGED


def _text(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    text = value if isinstance(value, str) else jsontext.dumps(value).decode()
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text):,} characters)"
