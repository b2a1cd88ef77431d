"""A log that nothing in Redis can flood."""

from __future__ import annotations

import logging
import time

LINES = 10
PERIOD_S = 60.0


class Sparing(logging.Filter):
    """Lets the first `LINES` of each `PERIOD_S` through."""

    def __init__(self) -> None:
        super().__init__()
        self._since = -PERIOD_S
        self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._since >= PERIOD_S:
            self._since, self._lines = now, 0
        self._lines += 1
        return self._lines <= LINES


_sparing: dict[str, Sparing] = {}


def spare(*names: str) -> None:
    """Has the loggers of these names say little, however often they are asked to."""
    for name in names:
        logging.getLogger(name).addFilter(_sparing.setdefault(name, Sparing()))  # the same is not added again
