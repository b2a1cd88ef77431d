"""Keys that were found valid a moment ago: who looks at one again, and who need not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.api import authentication
from app.api.authentication import CACHE_S, LOOK_AGAIN_S, RecentKeys
from core.access.api_keys import Credential


class Now:
    def __init__(self) -> None:
        self.s = 1_000.0

    def monotonic(self) -> float:
        return self.s


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    clock = Now()
    monkeypatch.setattr(authentication, "time", clock)
    return clock


def credential(ends_at: datetime | None = None) -> Credential:
    return Credential(UUID(int=1), "a key", None, frozenset(), "standard", ends_at)


def test_one_caller_looks_at_a_key_again_and_the_others_need_not(now: Now) -> None:
    keys, known = RecentKeys(), credential()
    keys.put("sk", known)
    assert keys.get("sk") is known
    now.s += CACHE_S
    assert [keys.get("sk") for _ in range(3)] == [None, known, known]
    now.s += LOOK_AGAIN_S
    assert [keys.get("sk") for _ in range(2)] == [None, known], "whoever looked did not come back"
    keys.put("sk", known)
    assert keys.get("sk") is known
    keys.forget("sk")
    assert keys.get("sk") is None


def test_what_nobody_asked_for_in_a_while_is_not_taken_to_be_valid(now: Now) -> None:
    keys = RecentKeys()
    keys.put("sk", credential())
    now.s += 2 * CACHE_S
    assert [keys.get("sk") for _ in range(2)] == [None, None]


def test_an_access_token_does_not_outlive_its_end(now: Now) -> None:
    keys = RecentKeys()
    keys.put("a.b.c", credential(datetime.now(UTC) + timedelta(seconds=2)))
    assert keys.get("a.b.c")
    now.s += 2
    assert [keys.get("a.b.c") for _ in range(2)] == [None, None]
