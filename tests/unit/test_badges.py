"""Every state has its word, and a state without one fails."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from itertools import chain
from pathlib import Path

import pytest

from app.admin import badges
from core.failures import ErrorKind
from core.health import Health
from core.limiting.breaker import BreakerState
from core.models import ItemOutcome, ReplayStatus, SubscriptionStatus
from core.states import DeadReason, DiscardReason, PendingReason, State

STYLES = (Path(__file__).parents[2] / "app/static/hookwright.css").read_text("utf-8")
STATES: dict[str, Iterable[StrEnum]] = {
    "delivery": State,
    "reason": [*PendingReason, *DeadReason, *DiscardReason],
    "error": ErrorKind,
    "subscription": SubscriptionStatus,
    "replay": ReplayStatus,
    "item": ItemOutcome,
    "health": Health,
    "breaker": BreakerState,
    "attempt": badges.AttemptResult,
    "user": badges.UserState,
}


@pytest.mark.parametrize("noun", STATES)
def test_every_state_has_a_badge_and_no_two_the_same_word(noun: str) -> None:
    shown = [badges.of(noun, str(state)) for state in STATES[noun]]
    assert len({badge.label for badge in shown}) == len(shown)
    assert all(badge.label and badge.means for badge in shown)
    assert len(badges.BADGES[noun]) == len(shown), "and there is none for what is no state"


def test_every_noun_is_looked_at_here() -> None:
    assert set(badges.BADGES) == set(STATES)


def test_every_tone_has_its_colour_and_is_used() -> None:
    assert all(f".badge.{tone}" in STYLES for tone in badges.Tone)
    used = {badge.tone for badge in chain.from_iterable(each.values() for each in badges.BADGES.values())}
    assert used == set(badges.Tone)


@pytest.mark.parametrize(("noun", "state"), [("delivery", "lost"), ("delivery", ""), ("parcel", "dead")])
def test_what_nobody_gave_a_word_fails(noun: str, state: str) -> None:
    with pytest.raises(LookupError, match="give it its word"):
        badges.of(noun, state)
