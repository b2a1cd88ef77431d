"""When a failed delivery is tried again, and when it is given up.

A policy answers one question: how many seconds after failed attempt number n (from 1) does the next begin?

| strategy      | nominal delay after attempt n                            | by default, n = 1, 2, 3, …      |
|---------------|----------------------------------------------------------|---------------------------------|
| `exponential` | base_delay_ms × backoff_multiplier^(n-1)                 | 1, 2, 4, 8 s; 5 attempts        |
| `linear`      | base_delay_ms × n                                        | 1, 2, 3, 4 s; 5 attempts        |
| `fixed`       | base_delay_ms                                            | 1, 1, 1, 1 s; 5 attempts        |
| `schedule`    | schedule[n-1] seconds; past the end, the last one again  | 5 s, 5 min … 24 h; 10 attempts  |

No nominal delay exceeds `max_delay_ms` (30 s, or base_delay_ms where that is more; 7 days for `schedule`).

`max_attempts` counts the first attempt too. For `schedule` it defaults to one more than the list is long;
when smaller, the list is cut; when larger, its last delay repeats.

Jitter spreads a delay evenly over nominal × (1 - jitter) … min(nominal × (1 + jitter), max_delay_ms).
Worked, with jitter 0.1 and max_delay_ms 30000:

    nominal  5 s:   4.5 …  5.5 s
    nominal 28 s:  25.2 … 30.0 s    the cap cuts the range, so delays do not pile up on the cap itself
    nominal 30 s:  27.0 … 30.0 s

Without a policy, deliveries follow the Standard Webhooks schedule (spec 1.0.0, "Deliverability and
reliability").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from core.errors import ValidationFailed

STANDARD_SCHEDULE_S: Final[tuple[float, ...]] = (
    5,
    5 * 60,
    30 * 60,
    2 * 3600,
    5 * 3600,
    10 * 3600,
    14 * 3600,
    20 * 3600,
    24 * 3600,
)
DEFAULT_JITTER: Final = 0.1
DEFAULT_ATTEMPTS: Final = 5
DEFAULT_BASE_DELAY_MS: Final = 1_000
DEFAULT_MAX_DELAY_MS: Final = 30_000
DEFAULT_MULTIPLIER: Final = 2.0

MOST_ATTEMPTS: Final = 100
LONGEST_DELAY_MS: Final = 7 * 24 * 3600 * 1000  # a week; beyond it, nobody waits for a webhook any more
HIGHEST_MULTIPLIER: Final = 10

STRATEGIES: Final = ("exponential", "linear", "fixed", "schedule")
_FIELDS: Final = (
    "max_attempts",
    "backoff_strategy",
    "base_delay_ms",
    "max_delay_ms",
    "backoff_multiplier",
    "jitter",
    "schedule",
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """One subscription's policy. Make it with `parse`, which checks; `RetryPolicy()` is the default policy.

    A field that the strategy does not use stands at its default, so that equal behaviour means equal
    policies.
    """

    backoff_strategy: str = "schedule"
    max_attempts: int = len(STANDARD_SCHEDULE_S) + 1
    base_delay_ms: int = DEFAULT_BASE_DELAY_MS
    max_delay_ms: int = LONGEST_DELAY_MS
    backoff_multiplier: float = DEFAULT_MULTIPLIER
    jitter: float = DEFAULT_JITTER  # fraction of the nominal delay, 0 to 1
    schedule: tuple[float, ...] = STANDARD_SCHEDULE_S  # seconds

    @classmethod
    def parse(cls, spec: Mapping[str, Any] | None, path: str = "retry_policy") -> RetryPolicy:
        """The policy that a request's `retry_policy` asks for; None and {} ask for the default.

        Known fields that the chosen strategy does not use are checked, then ignored. Raises
        `ValidationFailed` whose details hold every fault, keyed `retry_policy.max_attempts` and so on.
        """
        return _Reader({} if spec is None else spec, path).policy()

    def to_json(self) -> dict[str, Any]:
        """Everything in effect, defaults filled in; `parse` reads it back to an equal policy."""
        shape: dict[str, Any] = {
            "backoff_strategy": self.backoff_strategy,
            "max_attempts": self.max_attempts,
            "max_delay_ms": self.max_delay_ms,
            "jitter": self.jitter,
        }
        if self.backoff_strategy == "schedule":
            return shape | {"schedule": list(self.schedule)}
        shape["base_delay_ms"] = self.base_delay_ms
        if self.backoff_strategy == "exponential":
            shape["backoff_multiplier"] = self.backoff_multiplier
        return shape

    def delay_after(self, attempt: int, rng: Callable[[], float]) -> float | None:
        """Seconds from failed attempt number `attempt` (from 1) to the next; None when it was the last.

        `rng` gives numbers in [0, 1), as `random.random` does.
        """
        if attempt >= self.max_attempts:
            return None
        nominal_s = self.nominal_delay_s(attempt)
        low = nominal_s * (1 - self.jitter)
        high = min(nominal_s * (1 + self.jitter), self.max_delay_ms / 1000)
        return low + (high - low) * rng()

    def nominal_delay_s(self, attempt: int) -> float:
        """Seconds after failed attempt number `attempt`, before jitter."""
        if attempt < 1:
            raise ValueError(f"attempts count from 1, not {attempt}")
        if self.backoff_strategy == "schedule":
            delay_s = self.schedule[min(attempt, len(self.schedule)) - 1]
        elif self.backoff_strategy == "exponential":
            # At most 6e8 ms × 10^98, which a float holds.
            delay_s = self.base_delay_ms / 1000 * self.backoff_multiplier ** (attempt - 1)
        elif self.backoff_strategy == "linear":
            delay_s = self.base_delay_ms / 1000 * attempt
        else:
            delay_s = self.base_delay_ms / 1000
        return min(delay_s, self.max_delay_ms / 1000)


class _Reader:
    """Reads one `retry_policy`, collecting every fault before it raises."""

    def __init__(self, spec: Mapping[str, Any], path: str) -> None:
        if not isinstance(spec, Mapping):
            raise ValidationFailed.of(path, "Must be an object, or left out for the default schedule")
        self.spec = spec
        self.path = path
        self.faults: dict[str, list[str]] = {}

    def policy(self) -> RetryPolicy:
        for name in self.spec:
            if name not in _FIELDS:
                self.fault(str(name)[:64], f"Unknown field; known are {', '.join(_FIELDS)}")
        strategy = self.strategy()
        max_attempts = self.integer("max_attempts", 1, MOST_ATTEMPTS)
        base_delay_ms = self.integer("base_delay_ms", 1, LONGEST_DELAY_MS)
        max_delay_ms = self.integer("max_delay_ms", 1, LONGEST_DELAY_MS)
        multiplier = self.number("backoff_multiplier", 1, HIGHEST_MULTIPLIER)
        jitter = self.jitter()
        schedule = self.schedule(strategy)
        if strategy != "schedule":
            base_delay_ms = base_delay_ms or DEFAULT_BASE_DELAY_MS
            if max_delay_ms is not None and max_delay_ms < base_delay_ms:
                self.fault("max_delay_ms", f"Must not be less than base_delay_ms, which is {base_delay_ms}")
        if self.faults:
            raise ValidationFailed(details=self.faults)
        if strategy == "schedule" or base_delay_ms is None:
            return RetryPolicy(
                max_attempts=max_attempts or len(schedule) + 1,
                max_delay_ms=max_delay_ms or LONGEST_DELAY_MS,
                jitter=jitter,
                schedule=schedule,
            )
        return RetryPolicy(
            backoff_strategy=strategy,
            max_attempts=max_attempts or DEFAULT_ATTEMPTS,
            base_delay_ms=base_delay_ms,
            max_delay_ms=max_delay_ms or max(DEFAULT_MAX_DELAY_MS, base_delay_ms),
            backoff_multiplier=multiplier
            if multiplier is not None and strategy == "exponential"
            else DEFAULT_MULTIPLIER,
            jitter=jitter,
        )

    def strategy(self) -> str:
        given = self.spec.get("backoff_strategy")
        if given is None:
            # Guessing between exponential, linear and fixed would surprise somebody for days.
            if "base_delay_ms" in self.spec or "backoff_multiplier" in self.spec:
                self.fault("backoff_strategy", "Say exponential, linear or fixed for base_delay_ms to mean anything")
            return "schedule"
        if given not in STRATEGIES:
            self.fault("backoff_strategy", f"Must be one of {', '.join(STRATEGIES)}")
            return "schedule"
        return str(given)

    def schedule(self, strategy: str) -> tuple[float, ...]:
        given = self.spec.get("schedule")
        if given is None:
            return STANDARD_SCHEDULE_S
        if strategy != "schedule":
            self.fault("schedule", f"Belongs to backoff_strategy schedule, not to {strategy}")
        elif not isinstance(given, list | tuple) or not 1 <= len(given) < MOST_ATTEMPTS:
            self.fault("schedule", f"Must be a list of 1 to {MOST_ATTEMPTS - 1} delays in seconds")
        else:
            longest_s = LONGEST_DELAY_MS // 1000
            for index, delay_s in enumerate(given):
                if not _is_number(delay_s) or not 0 <= delay_s <= longest_s:
                    self.fault(f"schedule.{index}", f"Must be a number of seconds from 0 to {longest_s}")
            return tuple(given)
        return STANDARD_SCHEDULE_S

    def jitter(self) -> float:
        given = self.spec.get("jitter")
        if isinstance(given, bool):
            return DEFAULT_JITTER if given else 0.0
        if given is None:
            return DEFAULT_JITTER
        if not _is_number(given) or not 0 <= given <= 1:
            self.fault("jitter", "Must be a fraction from 0 to 1, or true for the default, or false for none")
            return DEFAULT_JITTER
        return float(given)

    def integer(self, name: str, low: int, high: int) -> int | None:
        given = self.spec.get(name)
        if given is None:
            return None
        if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
            self.fault(name, f"Must be a whole number from {low} to {high}")
            return None
        return given

    def number(self, name: str, low: int, high: int) -> float | None:
        given = self.spec.get(name)
        if given is None:
            return None
        if not _is_number(given) or not low <= given <= high:
            self.fault(name, f"Must be a number from {low} to {high}")
            return None
        return float(given)

    def fault(self, name: str, message: str) -> None:
        self.faults.setdefault(f"{self.path}.{name}", []).append(message)


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


# --- Retry-After --------------------------------------------------------------------------------------------

RETRY_AFTER_CAP_S: Final = 86_400  # a receiver may hold us off for a day, not for ever
_OVERFLOW_S: Final = 2_147_483_648  # what RFC 9111, 1.2.2 makes of a number too large to hold

_DELAY_SECONDS = re.compile(r"(-?)0*([0-9]+)", re.ASCII)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_FULL_DAY = "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_HTTP_DATES = (  # RFC 9110, 5.6.7, in its order: IMF-fixdate, RFC 850, asctime
    re.compile(rf"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    re.compile(rf"{_FULL_DAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    re.compile(rf"{_DAY} {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds to wait from `now` (aware), as a `Retry-After` header asks; None when it is neither form.

    RFC 9110, 10.2.3: delay-seconds, or an HTTP-date in any of its three formats. What lies in the past is
    0; so is a negative number, which some servers send. Too large a number is 2^31 s; `with_retry_after`
    bounds it.
    """
    text = value.strip(" \t")
    if seconds := _DELAY_SECONDS.fullmatch(text):
        if seconds[1]:
            return 0.0
        # int() of thousands of digits is slow and, past 4,300, refused.
        return float(min(int(seconds[2]), _OVERFLOW_S)) if len(seconds[2]) <= 10 else float(_OVERFLOW_S)
    for form in _HTTP_DATES:
        if match := form.fullmatch(text):
            moment = _moment(match, now)
            return None if moment is None else max(0.0, (moment - now).total_seconds())
    return None


def with_retry_after(nominal_s: float, retry_after_s: float | None, cap_s: float = RETRY_AFTER_CAP_S) -> float:
    """The later of the policy's own delay and the receiver's wish, of which at most `cap_s` counts. Seconds.

    A receiver can delay the next attempt, but neither hurry it nor add attempts: (5, 60) gives 60, (5, 1)
    gives 5, (5, 10^9) gives 86400, (100000, 10^9) gives 100000.
    """
    if retry_after_s is None:
        return nominal_s
    return max(nominal_s, min(retry_after_s, cap_s))


def _moment(match: re.Match[str], now: datetime) -> datetime | None:
    year = int(match["year"])
    second = int(match["second"])
    if second > 60:  # the grammar allows 60, a leap second
        return None
    try:
        if len(match["year"]) == 2:
            year = _century(year, now)
        start = datetime(
            year,
            _MONTHS.index(match["month"]) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            tzinfo=UTC,
        )
        return start + timedelta(seconds=second)
    except (ValueError, OverflowError):  # 31 Feb, year 0, past the year 9999
        return None


def _century(two_digits: int, now: datetime) -> int:
    """RFC 9110, 5.6.7: a year that seems over 50 years ahead is the latest past one with those digits."""
    year = now.year // 100 * 100 + two_digits
    return year - 100 if year > now.year + 50 else year
