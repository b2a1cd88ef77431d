"""Arrays as statements are given them."""

from __future__ import annotations

from core.storage.arrays import sparse


def test_an_array_of_nothing_but_nulls_is_sent_empty() -> None:
    assert list(sparse([None, None])) == []
    assert list(sparse([])) == []


def test_an_array_with_any_value_is_sent_whole() -> None:
    assert list(sparse([None, 0, None])) == [None, 0, None]
    assert list(sparse(["", None])) == ["", None]
