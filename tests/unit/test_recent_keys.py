"""Keys that were found valid a moment ago: who looks at one again, and who need not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from freezegun import freeze_time

from app.api.authentication import CACHE_S, LOOK_AGAIN_S, RecentKeys
from core.access.api_keys import Credential

NOON = "2026-01-28T12:00:00Z"


def credential(ends_in_s: float | None = None) -> Credential:
    ends_at = None if ends_in_s is None else datetime.now(UTC) + timedelta(seconds=ends_in_s)
    return Credential(UUID(int=1), "a key", None, frozenset(), "standard", ends_at)


def test_one_caller_looks_at_a_key_again_and_the_others_need_not() -> None:
    with freeze_time(NOON) as clock:
        keys, known = RecentKeys(), credential()
        keys.put("sk", known)
        assert keys.get("sk") is known
        clock.tick(CACHE_S)
        assert [keys.get("sk") for _ in range(3)] == [None, known, known]
        clock.tick(LOOK_AGAIN_S)
        assert [keys.get("sk") for _ in range(2)] == [None, known], "whoever looked did not come back"
        keys.put("sk", known)
        assert keys.get("sk") is known
        keys.forget("sk")
        assert keys.get("sk") is None


def test_what_nobody_asked_for_in_a_while_is_not_taken_to_be_valid() -> None:
    with freeze_time(NOON) as clock:
        keys = RecentKeys()
        keys.put("sk", credential())
        clock.tick(2 * CACHE_S)
        assert [keys.get("sk") for _ in range(2)] == [None, None]


def test_an_access_token_does_not_outlive_its_end() -> None:
    with freeze_time(NOON) as clock:
        keys, known = RecentKeys(), credential(CACHE_S + LOOK_AGAIN_S / 2)
        keys.put("a.b.c", known)
        clock.tick(CACHE_S)
        assert [keys.get("a.b.c") for _ in range(2)] == [None, known], "as with a key"
        clock.tick(LOOK_AGAIN_S / 2)
        assert [keys.get("a.b.c") for _ in range(3)] == [None, None, None]
