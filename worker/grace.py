"""How long the sweep leaves new deliveries to their hints.

Half a second where hints come at once. Where more comes in than can be sent, they wait behind each other, and so do the
deliveries: a sweep that took them meanwhile would only overtake their hints, and look at each under a lock for it
(with 2,000 deliveries on their way, that was a twelfth of a worker's processor and of PostgreSQL's). So it leaves them
as much longer as hints lately took. A worker that has room has no such wait, and takes over what waits for a busy one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from core.deliveries import Claimed

LEAST_S = 0.5
MOST_S = 2.0  # what no hint names waits no longer for its sweep, however late the others are
HOLDS_S = 1.0  # how long what was seen last is believed; then hints may have ceased


class Grace:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._late_s = 0.0
        self._until = clock()

    def note(self, claims: Sequence[Claimed]) -> None:
        """These were claimed because hints named them."""
        if claims:
            # Not the latest: that is one whose subscription had no room for long.
            self._late_s = statistics.median(one.due_for_s for one in claims)
            self._until = self._clock() + HOLDS_S

    @property
    def seconds(self) -> float:
        return min(MOST_S, LEAST_S + self._late_s) if self._clock() < self._until else LEAST_S
