"""What differs between two texts, line by line, for people: each line says in a word and a sign what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

MAX_LINES = 4_000  # of each; beyond that comparing takes seconds
AROUND = 3  # lines that stayed, shown before and after those that changed


class Line(NamedTuple):
    kind: str  # same, removed, added, or skipped
    text: str  # of skipped ones, how many


def lines(before: str, after: str) -> list[Line] | None:
    """Empty where nothing differs; None where there is too much to compare."""
    old, new = before.split("\n"), after.split("\n")
    if max(len(old), len(new)) > MAX_LINES:
        return None
    if old == new:
        return []
    return list(_compare(old, new))


def _compare(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    done = 0
    for group in SequenceMatcher(None, old, new).get_grouped_opcodes(AROUND):
        if left_out := group[0][1] - done:
            yield Line("skipped", str(left_out))
        for tag, old_from, old_to, new_from, new_to in group:
            if tag == "equal":
                yield from (Line("same", line) for line in old[old_from:old_to])
            else:
                yield from (Line("removed", line) for line in old[old_from:old_to])
                yield from (Line("added", line) for line in new[new_from:new_to])
        done = group[-1][2]
    if left_out := len(old) - done:
        yield Line("skipped", str(left_out))
