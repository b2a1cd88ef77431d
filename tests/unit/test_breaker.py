"""The circuit breaker's rules by example; tests/properties/test_breaker.py holds them against a model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.errors import ValidationFailed
from core.limiting.breaker import BLANK, MOST, Breaker, BreakerSettings, BreakerState

NOW = 1_800_000_000_000
DEFAULTS = BreakerSettings()
CLOSED, OPEN, HALF_OPEN = BreakerState


def after(breaker: Breaker, outcomes: str, at_ms: int = NOW, every_ms: int = 0, settings: Any = DEFAULTS) -> Breaker:
    """`outcomes`: + for a success, - for a failure."""
    for number, outcome in enumerate(outcomes):
        breaker = breaker.after(settings, outcome == "+", at_ms + number * every_ms)
    return breaker


OPENED = after(BLANK, "-----")
HALF_OPEN_AT = NOW + 60_000


def test_five_failures_in_a_row_open_it_and_a_success_between_starts_anew() -> None:
    assert after(BLANK, "----").state is CLOSED
    assert OPENED.state is OPEN
    assert after(BLANK, "----+----").state is CLOSED
    assert after(BLANK, "----+-----").state is OPEN


def test_failures_in_a_row_count_however_long_they_are_apart() -> None:
    assert after(BLANK, "-----", every_ms=3_600_000).state is OPEN


def test_half_of_ten_calls_failing_opens_it() -> None:
    assert after(BLANK, "-+-+-+-+-").state is CLOSED  # 5 of 9
    assert after(BLANK, "-+-+-+-+-+-").state is OPEN  # 6 of 11
    assert after(BLANK, "-+-+-++-+-").state is OPEN  # 5 of 10
    assert after(BLANK, "--+--+--+-").state is OPEN  # 7 of 10, never 3 in a row
    assert after(BLANK, "-++-++-++-++-++-++-").state is CLOSED  # a third


def test_failures_that_left_the_window_do_not_count() -> None:
    assert after(BLANK, "-+-+-+-+-+-", every_ms=29_000).state is OPEN  # all within 290 s
    assert after(BLANK, "-+-+-+-+-+-" * 5, every_ms=60_000).state is CLOSED  # never ten calls within 300 s


def test_a_receiver_that_is_well_has_no_record() -> None:
    assert BLANK.is_blank
    assert after(BLANK, "++++") is BLANK
    flaky = after(BLANK, "-++")
    assert not flaky.is_blank
    assert after(flaky, "+", NOW + 299_999) != BLANK
    assert after(flaky, "+", NOW + 300_001) is BLANK


def test_open_becomes_half_open_by_the_clock_alone() -> None:
    assert OPENED.state_at(DEFAULTS, NOW + 59_999) is OPEN
    assert OPENED.state_at(DEFAULTS, HALF_OPEN_AT) is HALF_OPEN
    assert OPENED.opens_until_ms(DEFAULTS) == HALF_OPEN_AT
    assert BLANK.opens_until_ms(DEFAULTS) is None


def test_what_was_sent_before_it_opened_changes_nothing() -> None:
    assert after(OPENED, "+", NOW + 1) is OPENED
    assert after(OPENED, "-", NOW + 59_999) is OPENED


def test_two_successes_in_half_open_close_it_and_all_is_forgotten() -> None:
    once = after(OPENED, "+", HALF_OPEN_AT + 5)
    assert (once.state, once.successes, once.half_open_at_ms) == (HALF_OPEN, 1, HALF_OPEN_AT)
    assert once.opens_until_ms(DEFAULTS) is None
    assert once.state_at(DEFAULTS, NOW + 10**9) is HALF_OPEN
    assert after(once, "+", HALF_OPEN_AT + 6) is BLANK
    strict = BreakerSettings(half_open_success_threshold=1)
    assert OPENED.after(strict, True, HALF_OPEN_AT) is BLANK


@pytest.mark.parametrize(("trials", "in_a_row"), [("-", 6), ("+-", 1)])
def test_one_failure_in_half_open_opens_it_again_from_then_on(trials: str, in_a_row: int) -> None:
    again = after(OPENED, trials, HALF_OPEN_AT)
    assert (again.state, again.opened_at_ms, again.failures) == (OPEN, HALF_OPEN_AT, in_a_row)
    assert again.state_at(DEFAULTS, HALF_OPEN_AT + 59_999) is OPEN


@pytest.mark.parametrize("breaker", [BLANK, OPENED, after(BLANK, "--+-"), after(OPENED, "+", HALF_OPEN_AT)])
def test_a_reset_is_half_open_from_every_state(breaker: Breaker) -> None:
    reset = breaker.reset(NOW + 7)
    assert (reset.state_at(DEFAULTS, NOW + 7), reset.half_open_at_ms, reset.successes) == (HALF_OPEN, NOW + 7, 0)
    assert reset.steps == ()
    assert (reset.failures, reset.opened_at_ms) == (breaker.failures, breaker.opened_at_ms)
    assert after(reset, "++", NOW + 8) is BLANK
    assert after(reset, "-", NOW + 8).opened_at_ms == NOW + 8


def test_a_record_of_a_clock_that_is_years_ahead_is_not_waited_for() -> None:
    years = 3 * 365 * 86_400_000
    assert after(BLANK, "-----", NOW + years).state_at(DEFAULTS, NOW) is HALF_OPEN
    assert after(BLANK, "-----", NOW + 59_000).state_at(DEFAULTS, NOW) is OPEN  # a clock that is a little ahead
    failing = after(BLANK, "-", NOW + years)
    assert after(failing, "+") is BLANK
    assert len(after(failing, "-").steps) == 1


def test_a_call_by_a_clock_that_lags_counts_in_the_step_that_is_there() -> None:
    assert [step[1:] for step in after(after(BLANK, "-"), "-", NOW - 90_000).steps] == [(2, 2)]


def test_settings_decide() -> None:
    eager = BreakerSettings(failure_threshold=1, timeout_ms=100)
    opened = BLANK.after(eager, False, NOW)
    assert opened.state_at(eager, NOW + 99) is OPEN
    assert opened.state_at(eager, NOW + 100) is HALF_OPEN
    lenient = BreakerSettings(failure_threshold=1000, failure_rate_threshold=1)
    assert after(BLANK, "-" * 999, settings=lenient).state is CLOSED
    narrow = BreakerSettings(monitoring_window_ms=1_000)
    assert after(BLANK, "-+" * 20, every_ms=99, settings=narrow).state is OPEN
    assert after(BLANK, "-+" * 20, every_ms=150, settings=narrow).state is CLOSED


# --- stored --------------------------------------------------------------------------------------------------------

RECORDS = [OPENED, after(BLANK, "--+-", every_ms=31_000), after(OPENED, "+", HALF_OPEN_AT), OPENED.reset(NOW)]


@pytest.mark.parametrize("breaker", RECORDS)
def test_a_record_is_read_as_it_was_written(breaker: Breaker) -> None:
    stored = breaker.to_bytes()
    assert Breaker.from_bytes(stored) == breaker
    assert len(stored) < 200


def test_a_blank_record_is_no_bytes() -> None:
    assert BLANK.to_bytes() == b""
    assert Breaker.from_bytes(b"") is BLANK


GOOD: list[Any] = json.loads(RECORDS[1].to_bytes())
GOOD_STEPS = json.dumps(GOOD[7]).encode()


def changed(at: int, value: Any) -> bytes:
    return json.dumps([*GOOD[:at], value, *GOOD[at + 1 :]]).encode()


RUBBISH = {
    "no JSON": b"\xff\x00",
    "half of it": RECORDS[0].to_bytes()[:-3],
    "a number": b"5",
    "null": b"null",
    "an object": b'{"state": "OPEN"}',
    "an empty list": b"[]",
    "too short": json.dumps(GOOD[:-1]).encode(),
    "too long": json.dumps([*GOOD, 1]).encode(),
    "another format": changed(0, 2),
    "a state that there is not": changed(1, "AJAR"),
    "a state of another kind": changed(1, ["OPEN"]),
    "a negative count": changed(2, -1),
    "a fraction": changed(2, 1.5),
    "a word for a number": changed(2, "1"),
    "true for a number": changed(2, True),
    "a moment that no calendar has": changed(4, MOST),
    "a number beyond 64 bits": changed(4, 10**30),
    "steps that are no list": changed(7, 5),
    "a step that is none": changed(7, [5]),
    "a step of two": changed(7, [[1, 2]]),
    "a step of words": changed(7, [["a", "b", "c"]]),
    "thousands of steps": changed(7, [[1, 1, 1]] * 5_000),
    "a blank one, written out": changed(2, 0).replace(GOOD_STEPS, b"[[5, 3, 0]]"),
    "deep": b"[" * 2_000 + b"]" * 2_000,
}


@pytest.mark.parametrize("stored", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_reads_as_the_blank_one(stored: bytes) -> None:
    assert Breaker.from_bytes(changed(0, GOOD[0])) == RECORDS[1]  # so that it is the change that is refused
    assert Breaker.from_bytes(stored) is BLANK


# --- settings ------------------------------------------------------------------------------------------------------


def test_the_promised_defaults() -> None:
    promised = {
        "failure_threshold": 5,
        "failure_rate_threshold": 0.5,
        "timeout_ms": 60000,
        "half_open_max_calls": 3,
        "half_open_success_threshold": 2,
        "monitoring_window_ms": 300000,
    }
    assert BreakerSettings.of(None).to_json() == BreakerSettings.parse({}).to_json() == promised


def test_what_is_left_out_or_null_is_the_default() -> None:
    settings = BreakerSettings.parse({"timeout_ms": 100, "failure_rate_threshold": 1, "failure_threshold": None})
    assert settings == BreakerSettings(timeout_ms=100, failure_rate_threshold=1.0)
    assert BreakerSettings.of(settings.to_json()) == settings
    assert BreakerSettings.of({"of a later release": 1, "timeout_ms": 100}).timeout_ms == 100


@pytest.mark.parametrize(
    ("given", "faulty"),
    [
        ({"failure_threshold": 0}, ["failure_threshold"]),
        ({"failure_threshold": 1001}, ["failure_threshold"]),
        ({"failure_threshold": 5.0}, ["failure_threshold"]),
        ({"failure_threshold": True}, ["failure_threshold"]),
        ({"failure_threshold": "5"}, ["failure_threshold"]),
        ({"failure_rate_threshold": 0}, ["failure_rate_threshold"]),
        ({"failure_rate_threshold": 1.01}, ["failure_rate_threshold"]),
        ({"failure_rate_threshold": 50}, ["failure_rate_threshold"]),
        ({"failure_rate_threshold": float("nan")}, ["failure_rate_threshold"]),
        ({"timeout_ms": 99}, ["timeout_ms"]),
        ({"timeout_ms": 86_400_001}, ["timeout_ms"]),
        ({"half_open_max_calls": 0}, ["half_open_max_calls"]),
        ({"half_open_success_threshold": 101}, ["half_open_success_threshold"]),
        ({"monitoring_window_ms": 999}, ["monitoring_window_ms"]),
        ({"timeout": 5, "timeout_ms": -1}, ["timeout", "timeout_ms"]),
    ],
)
def test_faults_are_told_by_their_paths(given: dict[str, Any], faulty: list[str]) -> None:
    with pytest.raises(ValidationFailed) as caught:
        BreakerSettings.parse(given)
    assert sorted(caught.value.details) == [f"circuit_breaker.{name}" for name in faulty]


@pytest.mark.parametrize("given", [None, [], "open", 5])
def test_settings_must_be_an_object(given: object) -> None:
    with pytest.raises(ValidationFailed) as caught:
        BreakerSettings.parse(given)
    assert list(caught.value.details) == ["circuit_breaker"]
