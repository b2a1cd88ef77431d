"""Delivery statistics: a row per minute, subscription and kind of error, kept by the workers as they record outcomes.

So what a page or the API shows costs the same whether the minute saw one delivery or a million. `tally` writes,
`totals` and `series` read, and `retention` forgets. `counts` asks the deliveries themselves how many stand somewhere
now, within bounds.

Statistics are not the truth about any delivery: an outcome recorded by a worker that is killed before its next flush
is missing here, and so is what a web process accepted that is killed; what a flush that was answered by a broken
connection has added may count twice.
"""

from __future__ import annotations

from core.stats.counts import COUNT_TIMEOUT_MS, MOST_COUNTED, Queue, Waiting, count, queue, waiting
from core.stats.keeping import Keeper
from core.stats.retention import prune
from core.stats.series import (
    LAST_DAY,
    LAST_HOUR,
    LAST_WEEK,
    Failures,
    Histories,
    History,
    Point,
    Span,
    history,
    sparklines,
)
from core.stats.tally import INSTALLATION, WHOLE, Tally
from core.stats.totals import Figures, figures

__all__ = [
    "COUNT_TIMEOUT_MS",
    "INSTALLATION",
    "LAST_DAY",
    "LAST_HOUR",
    "LAST_WEEK",
    "MOST_COUNTED",
    "WHOLE",
    "Failures",
    "Figures",
    "Histories",
    "History",
    "Keeper",
    "Point",
    "Queue",
    "Span",
    "Tally",
    "Waiting",
    "count",
    "figures",
    "history",
    "prune",
    "queue",
    "sparklines",
    "waiting",
]
