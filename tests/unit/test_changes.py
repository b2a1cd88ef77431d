"""What people read of an entry of the audit log."""

from __future__ import annotations

from typing import Any

from app.admin import changes
from app.admin.changes import Change, Mark


def fields(before: Any, after: Any) -> list[tuple[str, str | None, str | None, str]]:
    return [tuple(one) for one in changes.of(before, after).fields]


def test_what_was_made_what_went_and_what_changed() -> None:
    assert fields(None, {"name": "new"}) == [("name", None, "new", "added")]
    assert fields({"name": "old"}, None) == [("name", "old", None, "removed")]
    assert fields({"a": 1, "b": None}, {"a": 2, "c": [1, "x"]}) == [
        ("a", "1", "2", "changed"),
        ("b", "null", None, "removed"),
        ("c", None, '[1,"x"]', "added"),
    ]
    assert fields(None, None) == fields({}, {}) == []


def test_an_object_is_looked_into_and_what_is_the_same_in_it_says_so() -> None:
    before = {"retry": {"max": 5, "wait": {"s": 1, "deep": {"x": 1}}}}
    after = {"retry": {"max": 5, "wait": {"s": 2, "deep": {"x": 2}}, "new": True}}
    assert fields(before, after) == [
        ("retry.max", "5", "5", "same"),
        ("retry.wait.s", "1", "2", "changed"),
        ("retry.wait.deep", '{"x":1}', '{"x":2}', "changed"),
        ("retry.new", None, "true", "added"),
    ]
    assert fields({"a": {}}, {"a": {"b": 1}}) == [("a.b", None, "1", "added")]
    assert fields({"a": {"b": 1}}, {"a": None}) == [("a", '{"b":1}', "null", "changed")]
    assert fields({"a": {}}, {"a": {}}) == [("a", "{}", "{}", "same")]


def test_true_is_not_one() -> None:
    [change] = changes.of({"a": True}, {"a": 1}).fields
    assert change == Change("a", "true", "1", Mark.CHANGED)


def test_no_entry_is_endless() -> None:
    many = changes.of(None, {f"n{n}": n for n in range(1_000)})
    assert (len(many.fields), many.left_out) == (changes.MAX_FIELDS, 900)
    deep: Any = {}
    for _ in range(60):
        deep = {"x": deep}
    [change] = changes.of(None, deep).fields
    assert change.path == "x.x.x"
    [change] = changes.of(None, {"a": "x" * 10_000}).fields
    assert change.after == "x" * changes.MAX_CHARS + "… (10,000 characters)"
    [change] = changes.of(None, {"a": 2**80}).fields
    assert change.after == str(2**80)
