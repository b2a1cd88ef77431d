"""How long the sweep leaves what became due to its hints.

Half a second where hints come at once. Where so many wait that each claim is full of them, they are late, and so are
the deliveries: a sweep that took those meanwhile would only overtake their hints, and look at each under a lock for it
(with 2,000 deliveries on their way, sweeps made more than half of all claims). So it leaves them as much longer as
hints lately took. A worker whose claims are not full goes by half a second, and takes over what waits for a busy one.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from core.deliveries import Claimed

LEAST_S = 0.5
MOST_S = 2.0  # what no hint names waits no longer for its sweep, however late the others are


class Grace:
    def __init__(self) -> None:
        self.seconds = LEAST_S

    def note(self, claims: Sequence[Claimed]) -> None:
        """These were claimed by hints, as many as one claim takes. None: others had taken them before, which says
        nothing."""
        if claims:
            # Not by the latest: that may be one whose subscription had no room for long.
            self.seconds = min(MOST_S, LEAST_S + statistics.median(one.due_for_s for one in claims))

    def end(self) -> None:
        """A claim took all that hints named, and there was room for."""
        self.seconds = LEAST_S
