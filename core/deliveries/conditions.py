"""How a batch of deliveries is looked up."""

from __future__ import annotations

from core.states import State


def in_states(*states: State) -> str:
    """`state IN (…)`, said in a way from which PostgreSQL does not prove that the index of what is unfinished serves.

    A batch is looked up by its ids. Through that index it would cost as much as there is waiting beside it, and the
    entries of what was sent since the last vacuum too.
    """
    others = ", ".join(f"'{state}'" for state in State if state not in states)
    return f"state NOT IN ({others})"


# Each in the words of an index's condition, so that PostgreSQL sees that the index serves.
DUE = "state IN ('pending', 'sending') AND (reason IS NULL OR reason IN ('new', 'retry', 'replay'))"
RANK = "CASE reason WHEN 'retry' THEN 1 WHEN 'replay' THEN 2 ELSE 0 END"  # in the order in which it is claimed
PARKED = "state = 'pending' AND reason IN ('rate_limited', 'breaker_open')"
HELD = "state = 'pending' AND reason = 'paused'"
