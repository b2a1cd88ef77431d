"""Why a filter does not match an event: the first condition in it that does not hold, and what the event has there.

For people who write a filter. Acceptance only asks whether it matches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from core import jsontext
from core.matching.filters import COMBINATORS, Budget, Envelope, Filter, Undecided, compile_stored, values_at

MOST_FOUND: Final = 3  # values that are shown where a path reaches several
MAX_FOUND_CHARS: Final = 80  # of each

_Path = tuple[str, ...]


class Mismatch(NamedTuple):
    """`condition` leads to it, as `filters.total.$gte`. `found`: what the event has at its field, as JSON; empty where
    it has nothing there, or where the condition is not one of a single field."""

    condition: str
    found: Sequence[str] = ()


class Explainer:
    """Explains one filter, found well-formed by `core.matching.filters.compile_filter`, for any number of events."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._compiled: dict[_Path, Filter] = {}  # each part once it is asked for

    def explain(self, envelope: Envelope) -> Mismatch:
        """Of an event that the filter does not match. The steps it may take are bounded like the filter's own; where
        those don't lead to the condition itself, what surrounds it is named."""
        budget = Budget()
        try:
            found = self._first(self._spec, ("filters",), envelope, budget)
        except Undecided:
            found = None
        return found or Mismatch("filters")

    def _first(self, spec: Mapping[str, Any], path: _Path, envelope: Envelope, budget: Budget) -> Mismatch | None:
        """The first entry that does not hold, for all must."""
        for key, value in spec.items():
            at = (*path, key)
            if not self._holds({key: value}, at, envelope, budget):
                try:
                    return self._within(key, value, at, envelope, budget)
                except Undecided:
                    return Mismatch(".".join(at))
        return None

    def _within(self, key: str, value: Any, path: _Path, envelope: Envelope, budget: Budget) -> Mismatch:
        """What exactly does not hold in an entry."""
        if key == "$and":
            for index, part in enumerate(value):
                if found := self._first(part, (*path, str(index)), envelope, budget):
                    return found
        if key in COMBINATORS:
            return Mismatch(".".join(path))
        found_values = _shown(values_at(key, envelope, budget))
        # Which of several operators fails? None, where each holds for another value.
        for name in value if isinstance(value, dict) else ():
            at = (*path, name)
            if not self._holds({key: {name: value[name]}}, at, envelope, budget):
                return Mismatch(".".join(at), found_values)
        return Mismatch(".".join(path), found_values)

    def _holds(self, spec: Mapping[str, Any], path: _Path, envelope: Envelope, budget: Budget) -> bool:
        compiled = self._compiled.get(path)
        if compiled is None:
            compiled = self._compiled[path] = compile_stored(spec)
        return compiled.decide(envelope, budget)


def _shown(values: Sequence[Any]) -> list[str]:
    texts = [jsontext.dumps(value).decode() for value in values[:MOST_FOUND]]
    return [text if len(text) <= MAX_FOUND_CHARS else f"{text[:MAX_FOUND_CHARS]}…" for text in texts]
