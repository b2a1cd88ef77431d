"""What a rate limit says: so many requests a minute, and so many at once."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

WINDOW_S: Final = 60
MAX_RATE: Final = 10_000_000  # a minute: one in 6 µs; the numbers in Redis are exact to a quarter of one
_RATE = re.compile(r"([0-9]{1,8})/([0-9]{1,8})")


class Rate(NamedTuple):
    per_minute: int
    burst: int  # at most at once

    @property
    def interval_us(self) -> float:
        """Microseconds until a request that was used is there again."""
        return WINDOW_S * 1_000_000 / self.per_minute


def parse(text: str) -> Rate | None:
    """`1000/100` is 1,000 requests a minute and 100 at once; `off` is no limit, None. Raises ValueError."""
    if text == "off":
        return None
    match = _RATE.fullmatch(text)
    rate = Rate(int(match[1]), int(match[2])) if match else Rate(0, 0)
    if not (1 <= rate.per_minute <= MAX_RATE and 1 <= rate.burst <= MAX_RATE):
        raise ValueError(
            f"must be requests a minute and requests at once, as 1000/100, each from 1 to {MAX_RATE}; or off"
        )
    return rate
