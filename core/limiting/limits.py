"""How much one subscription's receiver takes: requests open at once, and a second.

So a slow receiver keeps no other's deliveries waiting, and a small one is not overrun.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from core import numbers
from core.numbers import Bounds

BOUNDS: Final = {
    "max_in_flight": Bounds(1, 1000),
    "per_second": Bounds(0.001, 10_000, whole=False),  # at least one in a quarter of an hour
}


@dataclass(frozen=True, slots=True)
class Limits:
    """One subscription's limits. `Limits()` are the defaults; `parse` checks what a request gives."""

    max_in_flight: int = 200  # requests open at once, of all workers together
    per_second: float | None = None  # attempts begun a second; 0.5 is one every two seconds; None: no limit

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Limits:
        """What `to_json` made; None and {} are the defaults. A field that a later release added is passed over."""
        return cls(**{name: value for name, value in (stored or {}).items() if name in BOUNDS})

    @classmethod
    def parse(cls, given: object, path: str = "limits") -> Limits:
        """The limits that a request asks for; what it leaves out, or sets to null, is the default.

        Raises `ValidationFailed` whose details hold every fault, keyed `limits.per_second` and so on.
        """
        return cls(**numbers.read(given, BOUNDS, path))

    def to_json(self) -> dict[str, Any]:
        """Everything in effect; `of` reads it back to equal limits."""
        return asdict(self)
