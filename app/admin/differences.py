"""What differs between two texts, line by line, for people: each line says in a word and a sign what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import Match, SequenceMatcher
from itertools import accumulate
from typing import NamedTuple

MAX_LINES = 4_000  # of each
MAX_STEPS = 2_000_000  # of comparing: about a second, in which nobody else is served
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
    try:
        return list(_compare(old, new))
    except _TooMuch:
        return None


class _TooMuch(Exception):
    """It takes more than `MAX_STEPS`."""


class _Matcher(SequenceMatcher[str]):
    """Stops where it would take too long. It looks anew at what is left for each run of lines that both have, and at
    each place where a line occurs: with some thousand lines, chosen for it, that is minutes."""

    def __init__(self, old: Sequence[str], new: Sequence[str]) -> None:
        super().__init__(None, old, new)
        places: Mapping[str, Sequence[int]] = self.b2j  # type: ignore[attr-defined]  # documented, and not in typeshed
        self._lines = len(old)
        self._steps = [0, *accumulate(1 + len(places.get(line, ())) for line in old)]
        self._left = MAX_STEPS

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> Match:
        self._left -= self._steps[self._lines if ahi is None else ahi] - self._steps[alo]
        if self._left < 0:
            raise _TooMuch
        return super().find_longest_match(alo, ahi, blo, bhi)


def _compare(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    done = 0
    for group in _Matcher(old, new).get_grouped_opcodes(AROUND):
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
