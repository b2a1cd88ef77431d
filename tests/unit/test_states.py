"""The state machine as a table, and docs/states.md, which says the same in words."""

from __future__ import annotations

import re
from pathlib import Path

from core import states
from core.states import TRANSITIONS, DeadReason, DiscardReason, PendingReason, State

DOCUMENT = (Path(__file__).parents[2] / "docs" / "states.md").read_text("utf-8")
REASONS = {State.PENDING: PendingReason, State.DEAD: DeadReason, State.DISCARDED: DiscardReason}


def diagram(text: str) -> str:
    return re.findall(r"```\n(.*?)```", text, re.DOTALL)[0]


def table(heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    found: list[list[str]] = []
    for line in DOCUMENT[DOCUMENT.index(f"| {heading} |") :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def test_the_document_draws_the_diagram_of_the_code() -> None:
    assert diagram(DOCUMENT) == diagram(states.__doc__ or "")


def test_the_document_lists_every_transition_and_no_other() -> None:
    documented = {
        operation.strip("`"): ([State(one) for one in before.split(", ")], [State(one) for one in after.split(", ")])
        for operation, before, after, _ in table("operation")
    }
    assert documented == {name: (sorted(one.before), sorted(one.after)) for name, one in TRANSITIONS.items()}


def test_the_document_explains_every_state() -> None:
    assert [row[0] for row in table("state | means")] == list(State)


def test_the_document_explains_every_reason_beside_its_state() -> None:
    documented = [(state, reason) for state, reason, _ in table("state | reason")]
    assert documented == [(state, reason) for state, kinds in REASONS.items() for reason in kinds]


def test_every_state_can_be_reached_and_left() -> None:
    """An event enters as pending; nothing is a dead end, since whatever ended can be replayed."""
    reached = {State.PENDING}.union(*(one.after for one in TRANSITIONS.values()))
    left = set[State]().union(*(one.before for one in TRANSITIONS.values()))
    assert reached == set(State)
    assert left == set(State)


def test_no_reason_belongs_to_two_states() -> None:
    everything = [reason for kinds in REASONS.values() for reason in kinds]
    assert len(everything) == len(set(everything))
