"""Every kind of failure is explained, and every status that a receiver can answer."""

from __future__ import annotations

import pytest

from app.admin.explanations import EXPLANATIONS, FAULT_WORDS, Fault, explain
from core.failures import ErrorKind


def test_every_kind_is_explained() -> None:
    assert list(EXPLANATIONS) == list(ErrorKind)
    assert list(FAULT_WORDS) == list(Fault)
    assert len({one.says for one in EXPLANATIONS.values()}) == len(ErrorKind)
    for kind, one in EXPLANATIONS.items():
        assert explain(kind) == explain(str(kind)) == one
        assert one.says[0].isupper()
        assert not one.says.endswith("."), "it stands in the middle of other text"
        assert one.advice.endswith((".", "?"))
        assert one.whose in FAULT_WORDS.values()


def test_an_answer_is_named_by_its_status() -> None:
    for status in (*range(100, 200), *range(300, 600), 999):
        one = explain(ErrorKind.STATUS, status)
        assert one.says.startswith(f"Their server answered {status}")
        assert one.advice, status
        assert status < 500 or one.fault is Fault.THEIRS


def test_a_status_says_more_only_where_it_is_what_failed() -> None:
    assert explain(ErrorKind.TIMEOUT, 200) == EXPLANATIONS[ErrorKind.TIMEOUT]
    assert explain(ErrorKind.STATUS, 301).says == "Their server answered 301, a redirect, which is not followed"
    assert explain(ErrorKind.STATUS, 410).fault is Fault.THEIRS


def test_a_kind_that_is_none_fails_loudly() -> None:
    with pytest.raises(ValueError, match="is not a valid ErrorKind"):
        explain("gremlins")
