"""One subscription's circuit breaker: when deliveries to a failing receiver are held back, and when they go on.

```
            failure_threshold failures in a row, or a share of
            failure_rate_threshold within monitoring_window_ms
   CLOSED ──────────────────────────────────────────────────────▶ OPEN ◀─┐
      ▲                                                             │    │ one failure
      │                                            after timeout_ms │    │
      └──── half_open_success_threshold successes ──── HALF_OPEN ◀──┘ ───┘
```

- The share is judged when a call fails, once `failure_threshold` × 2 calls are counted. Counting begins with a failure:
  a receiver that is well has no record at all, so that it costs nothing. The window is kept in ten steps, so it is
  between nine and ten tenths of `monitoring_window_ms` long.
- OPEN becomes HALF_OPEN by the clock alone, without anybody's doing.
- In HALF_OPEN at most `half_open_max_calls` attempts are under way at once; whoever sends sees to that.
- An outcome that comes while OPEN is of a request sent before. It changes nothing: a late failure does not put the
  next trial off, and a late success does not prove that the receiver is back. One so late that it comes in HALF_OPEN
  counts as a trial, for it is as good a sign as any.
- What closes is forgotten: nothing that was counted before it opened can open it again.

Pure: the clock is an argument, in Unix milliseconds. Clocks of several machines differ a little; a record opened more
than `timeout_ms` ahead of the clock was made by one that is wrong, and counts as HALF_OPEN rather than wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

import orjson

from core import numbers
from core.numbers import Bounds

DAY_MS: Final = 86_400_000
STEPS: Final = 10  # of a window
MOST_STEPS: Final = 64  # that a stored record may have; clocks that differ make a few more than `STEPS`
MOST: Final = 1 << 47  # of any number in a stored record; as milliseconds, the year 6429
FORMAT: Final = 1  # of a stored record


class BreakerState(StrEnum):
    CLOSED = "CLOSED"  # deliveries are sent
    OPEN = "OPEN"  # deliveries wait, without spending attempts
    HALF_OPEN = "HALF_OPEN"  # a few are sent, to see whether the receiver is back


BOUNDS: Final = {
    "failure_threshold": Bounds(1, 1000),
    "failure_rate_threshold": Bounds(0.01, 1, whole=False),
    "timeout_ms": Bounds(100, DAY_MS),
    "half_open_max_calls": Bounds(1, 100),
    "half_open_success_threshold": Bounds(1, 100),
    "monitoring_window_ms": Bounds(1_000, DAY_MS),
}


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """One subscription's settings. `BreakerSettings()` are the defaults; `parse` checks what a request gives."""

    failure_threshold: int = 5
    failure_rate_threshold: float = 0.5  # a fraction of the calls
    timeout_ms: int = 60_000  # how long OPEN lasts
    half_open_max_calls: int = 3
    half_open_success_threshold: int = 2
    monitoring_window_ms: int = 300_000

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> BreakerSettings:
        """What `to_json` made; None and {} are the defaults. A field that a later release added is passed over."""
        return cls(**{name: value for name, value in (stored or {}).items() if name in BOUNDS})

    @classmethod
    def parse(cls, given: object, path: str = "circuit_breaker") -> BreakerSettings:
        """The settings that a request asks for; what it leaves out, or sets to null, is the default.

        Raises `ValidationFailed` whose details hold every fault, keyed `circuit_breaker.timeout_ms` and so on.
        """
        return cls(**numbers.read(given, BOUNDS, path))

    def to_json(self) -> dict[str, Any]:
        """Everything in effect; `of` reads it back to equal settings."""
        return asdict(self)


Step = tuple[int, int, int]  # when it began, in Unix milliseconds; the calls in it; how many of these failed


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is known of one subscription. Times are Unix milliseconds, 0 where there is none."""

    state: BreakerState = BreakerState.CLOSED  # as stored: ask `state_at` for the state that holds
    failures: int = 0  # in a row, up to now
    successes: int = 0  # of trials, while HALF_OPEN
    opened_at_ms: int = 0
    half_open_at_ms: int = 0
    failed_at_ms: int = 0  # the last failure
    steps: tuple[Step, ...] = ()  # the calls within the window, the oldest first; while CLOSED

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing worth storing: CLOSED, and no failure is counted."""
        return (
            self.state is BreakerState.CLOSED and not self.failures and not any(failed for _, _, failed in self.steps)
        )

    def state_at(self, settings: BreakerSettings, now_ms: int) -> BreakerState:
        """The state that holds at `now_ms`."""
        if self.state is BreakerState.OPEN and abs(now_ms - self.opened_at_ms) >= settings.timeout_ms:
            return BreakerState.HALF_OPEN
        return self.state

    def opens_until_ms(self, settings: BreakerSettings) -> int | None:
        """When OPEN ends; None when it is not stored as OPEN."""
        return self.opened_at_ms + settings.timeout_ms if self.state is BreakerState.OPEN else None

    def after(self, settings: BreakerSettings, ok: bool, now_ms: int) -> Breaker:
        """This record after an attempt has succeeded (`ok`) or failed; itself, the very same, where nothing changes."""
        if ok and self is BLANK:  # by far the most frequent
            return self
        state = self.state_at(settings, now_ms)
        if state is BreakerState.OPEN:
            return self
        if state is BreakerState.HALF_OPEN:
            return self._after_success_of_trial(settings) if ok else self._opened(now_ms)
        steps = self._steps_with(settings, ok, now_ms)
        if not ok:
            calls = sum(step[1] for step in steps)
            share = sum(step[2] for step in steps) / calls
            many = calls >= settings.failure_threshold * 2 and share >= settings.failure_rate_threshold
            if many or self.failures + 1 >= settings.failure_threshold:
                return self._opened(now_ms)
            return replace(self, failures=self.failures + 1, failed_at_ms=now_ms, steps=steps)
        after = replace(self, failures=0, steps=steps)
        return BLANK if after.is_blank else after

    def reset(self, now_ms: int) -> Breaker:
        """HALF_OPEN from any state: the next few deliveries are sent, and decide."""
        return replace(self, state=BreakerState.HALF_OPEN, successes=0, half_open_at_ms=now_ms, steps=())

    def _opened(self, now_ms: int) -> Breaker:
        return Breaker(BreakerState.OPEN, failures=self.failures + 1, opened_at_ms=now_ms, failed_at_ms=now_ms)

    def _after_success_of_trial(self, settings: BreakerSettings) -> Breaker:
        half_open = self
        if self.state is BreakerState.OPEN:
            since_ms = self.opened_at_ms + settings.timeout_ms
            half_open = replace(self, state=BreakerState.HALF_OPEN, half_open_at_ms=since_ms)
        successes = half_open.successes + 1
        if successes >= settings.half_open_success_threshold:
            return BLANK
        return replace(half_open, successes=successes, failures=0)

    def _steps_with(self, settings: BreakerSettings, ok: bool, now_ms: int) -> tuple[Step, ...]:
        """The steps still within the window, with one call more."""
        window_ms = settings.monitoring_window_ms
        # A clock ahead of ours leaves steps in our future; one that is far ahead must not keep them for ever.
        steps = [step for step in self.steps if -window_ms <= now_ms - step[0] < window_ms]
        begun_ms = now_ms - now_ms % max(1, window_ms // STEPS)
        calls = failed = 0
        if steps and steps[-1][0] >= begun_ms:
            begun_ms, calls, failed = steps.pop()
        return (*steps, (begun_ms, calls + 1, failed + (not ok)))

    # --- as it is stored ---

    def to_bytes(self) -> bytes:
        """Compact JSON, the same for equal records; empty for a blank one."""
        if self.is_blank:
            return b""
        times = (self.opened_at_ms, self.half_open_at_ms, self.failed_at_ms)
        return orjson.dumps((FORMAT, self.state, self.failures, self.successes, *times, self.steps))

    @classmethod
    def from_bytes(cls, stored: bytes) -> Breaker:
        """The record that `to_bytes` wrote; the blank one for anything else."""
        try:
            fmt, state, *counts, steps = orjson.loads(stored)
            failures, successes, opened_at_ms, half_open_at_ms, failed_at_ms = counts
            known = tuple((at, calls, failed) for at, calls, failed in steps)
            state = BreakerState(state)
        except (ValueError, TypeError):  # no JSON, another shape, another word
            return BLANK
        figures = [fmt, *counts, *(figure for step in known for figure in step)]
        if fmt != FORMAT or len(known) > MOST_STEPS or not all(type(one) is int and 0 <= one < MOST for one in figures):
            return BLANK
        found = cls(state, failures, successes, opened_at_ms, half_open_at_ms, failed_at_ms, known)
        return BLANK if found.is_blank else found


BLANK: Final = Breaker()  # nothing known: CLOSED
