from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.grace import LEAST_S, MOST_S, Grace


def claims(*due_for_s: float) -> list[Any]:
    return [SimpleNamespace(due_for_s=one) for one in due_for_s]


def test_it_follows_what_hints_lately_took() -> None:
    grace = Grace()
    assert grace.seconds == LEAST_S
    grace.note(claims(0.8, 0.9, 1.0))
    assert grace.seconds == pytest.approx(LEAST_S + 0.9)
    grace.note([])
    assert grace.seconds == pytest.approx(LEAST_S + 0.9)
    grace.note(claims(0.01))
    assert grace.seconds == pytest.approx(LEAST_S + 0.01)
    grace.end()
    assert grace.seconds == LEAST_S


def test_one_that_found_no_room_for_long_does_not_count() -> None:
    grace = Grace()
    grace.note(claims(0.1, 0.1, 30.0))
    assert grace.seconds == pytest.approx(LEAST_S + 0.1)


def test_it_has_an_end_however_late_hints_are() -> None:
    grace = Grace()
    grace.note(claims(60.0))
    assert grace.seconds == MOST_S
