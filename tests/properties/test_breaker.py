"""The circuit breaker against a model that keeps every call, and whatever clocks may do to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from core.limiting.breaker import BLANK, MOST_STEPS, STEPS, Breaker, BreakerSettings, BreakerState

START_MS = 1_800_000_000_000

settings = st.builds(
    BreakerSettings,
    failure_threshold=st.integers(1, 6),
    failure_rate_threshold=st.floats(0.01, 1),
    timeout_ms=st.integers(100, 5_000),
    half_open_max_calls=st.just(3),
    half_open_success_threshold=st.integers(1, 4),
    monitoring_window_ms=st.integers(1_000, 10_000),
)
# What happens, and how long after the last: a success, a failure, or a person's reset.
happenings = st.lists(st.tuples(st.sampled_from("+--r"), st.integers(0, 4_000)), max_size=60)


@dataclass
class Model:
    """Every call since the receiver was last known to be well, one by one."""

    settings: BreakerSettings
    state: BreakerState = BreakerState.CLOSED
    opened_at_ms: int = 0
    in_a_row: int = 0
    trials: int = 0
    calls: list[tuple[int, bool]] = field(default_factory=list)  # the beginning of each one's tenth of a window

    def look(self, now_ms: int) -> BreakerState:
        if self.state is BreakerState.OPEN and now_ms >= self.opened_at_ms + self.settings.timeout_ms:
            self.state, self.trials = BreakerState.HALF_OPEN, 0
        return self.state

    def happens(self, what: str, now_ms: int) -> None:
        state = self.look(now_ms)
        if what == "r":
            self.state, self.trials, self.calls = BreakerState.HALF_OPEN, 0, []
        elif state is BreakerState.HALF_OPEN:
            self._trial(what == "+", now_ms)
        elif state is BreakerState.CLOSED:
            self._call(what == "+", now_ms)

    def _trial(self, ok: bool, now_ms: int) -> None:
        self.trials += 1
        if not ok:
            self._open(now_ms)
        elif self.trials == self.settings.half_open_success_threshold:
            self.state, self.in_a_row, self.calls = BreakerState.CLOSED, 0, []

    def _call(self, ok: bool, now_ms: int) -> None:
        tenth_ms = self.settings.monitoring_window_ms // STEPS
        self.calls.append((now_ms // tenth_ms * tenth_ms, ok))
        self.calls = [one for one in self.calls if one[0] > now_ms - self.settings.monitoring_window_ms]
        self.in_a_row = 0 if ok else self.in_a_row + 1
        failed = sum(not one for _, one in self.calls)
        enough = len(self.calls) >= self.settings.failure_threshold * 2
        too_many = failed / len(self.calls) >= self.settings.failure_rate_threshold
        if not ok and (self.in_a_row >= self.settings.failure_threshold or (enough and too_many)):
            self._open(now_ms)
        elif failed == 0:
            self.calls = []  # it is well

    def _open(self, now_ms: int) -> None:
        self.state, self.opened_at_ms, self.calls, self.in_a_row = BreakerState.OPEN, now_ms, [], self.in_a_row + 1


@given(settings, happenings)
def test_it_does_what_a_model_does_that_keeps_every_call(
    chosen: BreakerSettings, happens: list[tuple[str, int]]
) -> None:
    model, breaker, now_ms = Model(chosen), BLANK, START_MS
    for what, later_ms in happens:
        now_ms += later_ms
        assert breaker.state_at(chosen, now_ms) is model.look(now_ms)
        before = breaker
        breaker = breaker.reset(now_ms) if what == "r" else breaker.after(chosen, what == "+", now_ms)
        model.happens(what, now_ms)
        assert breaker.state_at(chosen, now_ms) is model.look(now_ms)
        assert breaker.is_blank == (model.state is BreakerState.CLOSED and not model.calls and not model.in_a_row)
        if what != "r" and before.state_at(chosen, now_ms) is BreakerState.OPEN:
            assert breaker is before
        assert Breaker.from_bytes(breaker.to_bytes()) == breaker
        assert len(breaker.steps) <= STEPS + 1
        assert len(breaker.to_bytes()) < 400


@given(
    st.lists(settings, min_size=1, max_size=3),
    st.lists(st.tuples(st.booleans(), st.integers(0, START_MS * 2)), max_size=60),
)
def test_clocks_that_jump_and_settings_that_change_never_lock_it(
    chosen: list[BreakerSettings], calls: list[tuple[bool, int]]
) -> None:
    breaker = BLANK
    for number, (ok, now_ms) in enumerate(calls):
        breaker = breaker.after(chosen[number % len(chosen)], ok, now_ms)
        assert Breaker.from_bytes(breaker.to_bytes()) == breaker
        assert len(breaker.steps) <= MOST_STEPS
        # By any clock, it is open for no longer than its timeout before and after the moment in its record.
        away_ms = chosen[0].timeout_ms
        for moment_ms in (breaker.opened_at_ms - away_ms, breaker.opened_at_ms + away_ms):
            assert breaker.state_at(chosen[0], moment_ms) is not BreakerState.OPEN
    end_ms = START_MS * 3
    for _ in range(chosen[0].half_open_success_threshold + 1):  # it closes again by successes, wherever it stands
        breaker = breaker.after(chosen[0], True, end_ms)
    assert breaker is BLANK


@given(st.binary(max_size=200) | st.text('[]0123456789,"OPENCLSDHAF_.-', max_size=120).map(str.encode))
def test_any_bytes_read_as_a_record_that_can_be_used(stored: bytes) -> None:
    breaker = Breaker.from_bytes(stored)
    after = breaker.after(BreakerSettings(), False, START_MS)
    assert not after.is_blank
