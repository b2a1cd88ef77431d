"""Subscription filters: which events of the right type does a subscription want?

A filter is a JSON object. All its entries must hold; `{}` holds always.

    {"location.type": ["retail", "warehouse"],          an array: any of these
     "total": {"$gte": 100, "$lt": 500},                operators: all of these
     "event.branch_id": "berlin",                       a scalar: equal to it
     "$or": [{"vip": true}, {"$not": {"channel": "web"}}]}

**Paths.** A key is a dotted path into `data`; one that begins with `event.` reaches the envelope, whose
fields are `event_type`, `event_id`, `occurred_at`, `branch_id`, `organization_id`, `metadata` and `data`
(so that a field of the data which is itself named `event` can be reached as `event.data.event.…`). An
envelope field that is None counts as missing. A dot always separates: a data key with a literal dot in it
can't be named.

On an array, a segment of digits is an index (`items.0.sku`); any other segment is looked up in each element
that is an object, so a path can reach several values (`items.sku`). Arrays directly inside arrays need an
index.

**Operators.** With the values a path reaches, none or several:

| operator                   | holds for a value when                                                      |
|----------------------------|-----------------------------------------------------------------------------|
| scalar, `$eq`              | it is that scalar; an array is never equal (see `$contains`)                |
| array, `$in`               | it is one of those, or an array that holds one of them                      |
| `$gt` `$gte` `$lt` `$lte`  | number against number, or string against string (by code point)             |
| `$startsWith` `$endsWith`  | it is a string that does                                                    |
| `$contains`                | it is a string with that inside, or an array with that element              |
| `$ne`, `$nin`              | `$eq`, `$in` hold for *none* of the values: true when the path is missing   |
| `$exists`                  | true: the path reaches a value, if only null; false: it reaches none        |

The operators above the last two, standing together, must hold for *the same* value: with `items.price` at 5
and 25, `{"$gte": 10, "$lt": 20}` does not match. Types are strict: true is not 1, "5" is not 5, null is
only null; 1 and 1.0 are the same number.

**Bounds.** See the constants. What filters look at in one event is bounded too, or large arrays under many conditions
would take seconds: a filter may take 30,000 steps, and all filters that share a `Budget` 1,200,000. A step is an
element of an array, for each condition and each segment of its path from the array on, or 50 characters inside which
`$contains` searches (fewer where what it seeks is long). A filter that needs more is undecided as a whole: it raises
`Undecided` through whatever surrounds the condition, so that no negation makes a match of what was not looked at.

A filter is compiled once into closures; matching takes about a microsecond a condition. Source: the HTTP contract,
"Filters".
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from core.errors import InvalidFilter

MAX_DEPTH: Final = 5  # filters within filters, the outermost counted
MAX_CONDITIONS: Final = 100  # tests of a field, plus filters within $and, $or and $not
MAX_BYTES: Final = 16 * 1024  # as compact JSON in UTF-8
MAX_VALUES: Final = 200  # in one array
MAX_STRING: Final = 1024  # characters
MAX_PATH: Final = 256  # characters
MAX_SEGMENTS: Final = 16
# Of one event. Worst case measured: 1 µs a step.
MAX_STEPS: Final = 30_000  # by one filter: seven conditions on 4,000 lines of an order, about what an event can hold
MAX_STEPS_OF_ALL: Final = 1_200_000  # by all filters of an organization: 40 like that

COMBINATORS: Final = ("$and", "$or", "$not")
OPERATORS: Final = (
    "$eq",
    "$ne",
    "$gt",
    "$gte",
    "$lt",
    "$lte",
    "$in",
    "$nin",
    "$exists",
    "$startsWith",
    "$endsWith",
    "$contains",
)
ENVELOPE_FIELDS: Final = (
    "event_type",
    "event_id",
    "occurred_at",
    "branch_id",
    "organization_id",
    "metadata",
    "data",
)

Envelope = Mapping[str, Any]
_CHARACTERS = 50  # searched in about the time that one element takes
# In shorter ones CPython (3.11) may compare by brute force: what is sought costs, too. In longer ones not beyond 20 ns.
_LONG_TEXT = 30_000

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_ORDERINGS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class Undecided(Exception):
    """The event holds more than a filter may look at; whether it is wanted is not known."""


class Budget:
    """The steps that the filters of one organization may take in one event."""

    __slots__ = ("_floor", "left")

    def __init__(self) -> None:
        self.left = MAX_STEPS_OF_ALL
        self._floor = MAX_STEPS_OF_ALL - MAX_STEPS  # of the filter in turn

    def next_filter(self) -> None:
        """From here on, another filter spends. Needed only after one that spent."""
        self._floor = self.left - MAX_STEPS if self.left > MAX_STEPS else 0

    def spend(self, steps: int) -> None:
        """Raises `Undecided` when that is more than there is, and leaves nothing to the filter in turn."""
        left = self.left - steps
        if left < self._floor:
            self.left = self._floor
            raise Undecided
        self.left = left


_Test = Callable[[Envelope, Budget], bool]  # of an event
_Check = Callable[[Any, Budget], bool]  # of one value
_Reach = Callable[[Envelope, Budget], Sequence[Any]]


class Filter:
    """A compiled filter. Immutable; safe to share."""

    __slots__ = ("decide",)

    def __init__(self, test: _Test) -> None:
        # Whether the event, with the fields of `ENVELOPE_FIELDS` parsed from JSON, is wanted. Raises `Undecided`.
        self.decide: Final = test

    def matches(self, envelope: Envelope) -> bool:
        """As `decide`, with a budget for it alone; what is undecided does not match."""
        try:
            return self.decide(envelope, Budget())
        except Undecided:
            return False


def compile_stored(spec: object) -> Filter:
    """The filter as the database gives it back, in which numbers may be written at greater length (1e18)."""
    return Filter(_Compiler().whole(spec, "filters"))


def compile_filter(spec: object, path: str = "filters") -> Filter:
    """The filter that a request's `filters` asks for.

    Raises `InvalidFilter`, whose path leads to the fault (`filters.total.$gte`) and whose message says what
    would be right.
    """
    test = _Compiler().whole(spec, path)
    # Measured last, when depth and values are known to be harmless to the encoder.
    size = len(json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_BYTES:
        _refuse(path, f"Must be at most {MAX_BYTES} bytes as JSON; these are {size}")
    return Filter(test)


def values_at(key: str, envelope: Envelope, budget: Budget) -> Sequence[Any]:
    """What a field path reaches in an event. Raises `Undecided` when that takes more steps than there are."""
    return _reach(key, "filters", 1)(envelope, budget)


class _Compiler:
    """Turns one filter into one function, counting its conditions."""

    def __init__(self) -> None:
        self._conditions = 0

    def whole(self, spec: object, path: str) -> _Test:
        return self.filter(spec, path, depth=1)

    def filter(self, spec: object, path: str, depth: int) -> _Test:
        if not isinstance(spec, dict):
            _refuse(path, 'Must be an object such as {"status": "paid"}')
        if depth > MAX_DEPTH:
            _refuse(path, f"Filters may be nested {MAX_DEPTH} deep, not deeper")
        tests = []
        for key, value in spec.items():
            if not isinstance(key, str):
                _refuse(path, "Keys must be strings")
            tests.append(self._entry(key, value, f"{path}.{_clip(key)}", depth))
        return _all_of(tests)

    def _entry(self, key: str, value: object, path: str, depth: int) -> _Test:
        if key in COMBINATORS:
            return self._combine(key, value, path, depth)
        if key in OPERATORS:
            _refuse(path, f'{key} belongs inside a field\'s object: {{"field": {{"{key}": …}}}}')
        if key.startswith("$"):
            _refuse(path, f"Unknown operator; here may stand field paths and {', '.join(COMBINATORS)}")
        return self._field(key, value, path)

    def _combine(self, key: str, value: object, path: str, depth: int) -> _Test:
        if key == "$not":
            self._count(path)
            return _negated(self.filter(value, path, depth + 1))
        if not isinstance(value, list) or not value:
            _refuse(path, "Must be a list of at least one filter")
        tests = []
        for index, item in enumerate(value):
            self._count(path)
            tests.append(self.filter(item, f"{path}.{index}", depth + 1))
        return _all_of(tests) if key == "$and" else _any_of(tests)

    def _field(self, key: str, value: object, path: str) -> _Test:
        reach = _reach(key, path, _weight(value))
        if isinstance(value, list):
            self._count(path)
            return _some(reach, _one_of(value, path))
        if not isinstance(value, dict):
            self._count(path)
            return _some(reach, _equal(value, path))
        return self._operators(reach, value, path)

    def _operators(self, reach: _Reach, spec: dict[Any, Any], path: str) -> _Test:
        _check_operator_names(spec, path)
        checks: list[_Check] = []  # for one and the same value
        tests: list[_Test] = []  # for all values that the path reaches
        for name, operand in spec.items():
            self._count(path)
            at = f"{path}.{name}"
            if name == "$ne":
                tests.append(_negated(_some(reach, _equal(operand, at))))
            elif name == "$nin":
                tests.append(_negated(_some(reach, _one_of(operand, at))))
            elif name == "$exists":
                tests.append(_exists(reach, operand, at))
            else:
                checks.append(_check(name, operand, at))
        if checks:
            tests.insert(0, _some(reach, _all_checks(checks)))
        return _all_of(tests)

    def _count(self, path: str) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            _refuse(path, f"A filter may hold {MAX_CONDITIONS} conditions, and this exceeds them")


def _weight(value: object) -> int:
    """How many checks each value at a path may go through."""
    plain = [name for name in value if name not in ("$ne", "$nin", "$exists")] if isinstance(value, dict) else ()
    return max(1, len(plain))


def _check_operator_names(spec: dict[Any, Any], path: str) -> None:
    if not spec:
        _refuse(path, f"Must hold at least one operator of {', '.join(OPERATORS)}")
    plain = [str(name) for name in spec if not str(name).startswith("$")]
    if plain and len(plain) < len(spec):
        _refuse(f"{path}.{_clip(plain[0])}", "Operators and plain keys can't be mixed in one object")
    if plain:
        _refuse(
            path,
            "Operators begin with $; to reach a field inside, write its path as the key, as customer.tier",
        )
    for name in spec:
        if name in COMBINATORS:
            _refuse(
                f"{path}.{name}",
                f'Combines filters, not values: {{"{name}": …}} goes where field paths stand',
            )
        if name not in OPERATORS:
            _refuse(f"{path}.{_clip(str(name))}", f"Unknown operator; allowed are {', '.join(OPERATORS)}")


def _refuse(path: str, fault: str) -> NoReturn:
    raise InvalidFilter(path, fault)


def _clip(key: str) -> str:
    """A key may be of any length and hold anything; the error that names it must be short and encodable."""
    return key[:64].encode(errors="replace").decode()


# --- Paths --------------------------------------------------------------------------------------------------


def _reach(key: str, path: str, weight: int) -> _Reach:
    """A function from an event to the values at `key`: none, one, or several by way of arrays. Each element of an array
    costs `weight` steps."""
    _check_text(key, path, MAX_PATH)
    segments = key.split(".")
    if not all(segments):
        _refuse(path, "A path is names separated by single dots, as customer.tier")
    if len(segments) > MAX_SEGMENTS:
        _refuse(path, f"A path may have {MAX_SEGMENTS} segments, and this has {len(segments)}")
    if segments[0] != "event" or len(segments) == 1:
        return _walk("data", segments, weight)
    if segments[1] not in ENVELOPE_FIELDS:
        _refuse(path, f"The event has no such field; it has {', '.join(ENVELOPE_FIELDS)}")
    return _walk(segments[1], segments[2:], weight)


def _walk(field: str, segments: Sequence[str], weight: int) -> _Reach:
    steps = tuple((segment, int(segment) if _INDEX.fullmatch(segment) else None) for segment in segments)

    def reach(envelope: Envelope, budget: Budget) -> Sequence[Any]:
        value = envelope.get(field)
        if value is None:
            return ()
        for depth, (name, _) in enumerate(steps):
            if isinstance(value, list):  # from here on there may be several values
                return _spread([value], steps[depth:], weight, budget)
            if not isinstance(value, dict) or name not in value:
                return ()
            value = value[name]
        if isinstance(value, list):
            budget.spend(len(value) * weight)
        return (value,)

    return reach


def _spread(values: list[Any], steps: Sequence[tuple[str, int | None]], weight: int, budget: Budget) -> list[Any]:
    """All values that the steps lead to from any of `values`."""
    for name, index in steps:
        found = []
        if len(values) > 1:
            budget.spend(len(values) * weight)
        for value in values:
            if isinstance(value, dict):
                if name in value:
                    found.append(value[name])
            elif isinstance(value, list):
                if index is None:
                    budget.spend(len(value) * weight)
                    found += [item[name] for item in value if isinstance(item, dict) and name in item]
                elif index < len(value):
                    found.append(value[index])
        values = found
    for value in values:
        if isinstance(value, list):
            budget.spend(len(value) * weight)
    return values


# --- Operands -----------------------------------------------------------------------------------------------


def _scalar(value: object, path: str) -> str | int | float | bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_text(value, path, MAX_STRING)
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            _refuse(path, "Must be a number of at most 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            _refuse(path, "Must be a finite number")
        if not -(1 << 63) <= value < 1 << 64:  # the database would give 1e20 back as a whole number
            _refuse(path, "Must be a number of at most 64 bits")
        return value
    _refuse(path, "Must be a string, a number, true, false or null; for any of several, use $in")


def _check_text(text: str, path: str, longest: int) -> str:
    if len(text) > longest:
        _refuse(path, f"Must be at most {longest} characters; these are {len(text)}")
    # PostgreSQL stores neither in jsonb.
    try:
        text.encode()
    except UnicodeEncodeError:
        is_storable = False
    else:
        is_storable = "\0" not in text
    if not is_storable:
        _refuse(path, "Must be Unicode text without NUL and without lone surrogates")
    return text


def _string(value: object, path: str) -> str:
    if not isinstance(value, str) or not value:
        _refuse(path, "Must be a string that is not empty")
    return _check_text(value, path, MAX_STRING)


def _number_or_string(value: object, path: str) -> str | int | float:
    scalar = _scalar(value, path)
    if scalar is None or isinstance(scalar, bool):
        _refuse(path, "Must be a number or a string")
    return scalar


# --- Checks of one value ------------------------------------------------------------------------------------


def _check(name: str, operand: object, path: str) -> _Check:
    if name == "$eq":
        return _equal(operand, path)
    if name == "$in":
        return _one_of(operand, path)
    if name == "$contains":
        return _contains(operand, path)
    if name == "$startsWith":
        head = _string(operand, path)
        return lambda value, _: isinstance(value, str) and value.startswith(head)
    if name == "$endsWith":
        tail = _string(operand, path)
        return lambda value, _: isinstance(value, str) and value.endswith(tail)
    return _ordered(_ORDERINGS[name], _number_or_string(operand, path))


def _equal(operand: object, path: str) -> _Check:
    want = _scalar(operand, path)
    if want is None or isinstance(want, bool):
        return lambda value, _: value is want
    # Python has True == 1 and False == 0, JSON has not.
    return lambda value, _: value == want and not isinstance(value, bool)


def _one_of(operand: object, path: str) -> _Check:
    if not isinstance(operand, list) or not operand:
        _refuse(path, "Must be a list of at least one value")
    if len(operand) > MAX_VALUES:
        _refuse(path, f"Must be at most {MAX_VALUES} values; these are {len(operand)}")
    scalars = [_scalar(item, f"{path}.{index}") for index, item in enumerate(operand)]
    # Two sets, since a single one would take true for 1.
    booleans = frozenset(item for item in scalars if isinstance(item, bool))
    others = frozenset(item for item in scalars if not isinstance(item, bool))

    def is_listed(value: Any) -> bool:
        kind = type(value)  # of JSON, so of no derived class; isinstance() with several takes twice as long
        if kind is bool:
            return value in booleans
        return kind is not dict and kind is not list and value in others  # neither can be hashed

    def check(value: Any, _: Budget) -> bool:
        return any(map(is_listed, value)) if isinstance(value, list) else is_listed(value)

    return check


def _contains(operand: object, path: str) -> _Check:
    want = _scalar(operand, path)
    if want == "":
        _refuse(path, "Must not be an empty string, which every string contains")
    is_equal = _equal(want, path)
    comparisons = 1 + len(want) // 16 if isinstance(want, str) else 0  # measured; of each character, at worst

    def check(value: Any, budget: Budget) -> bool:
        if isinstance(value, list):
            return any(is_equal(item, budget) for item in value)
        if not isinstance(value, str) or not isinstance(want, str):
            return False
        budget.spend(len(value) * (comparisons if len(value) < _LONG_TEXT else 1) // _CHARACTERS)
        return want in value

    return check


def _ordered(compare: Callable[[Any, Any], bool], want: str | int | float) -> _Check:
    if isinstance(want, str):
        return lambda value, _: isinstance(value, str) and compare(value, want)
    return lambda value, _: isinstance(value, int | float) and not isinstance(value, bool) and compare(value, want)


# --- Tests of an event --------------------------------------------------------------------------------------


def _some(reach: _Reach, check: _Check) -> _Test:
    def test(envelope: Envelope, budget: Budget) -> bool:
        for value in reach(envelope, budget):  # noqa: SIM110 - a generator here would double the time of a match
            if check(value, budget):
                return True
        return False

    return test


def _exists(reach: _Reach, operand: object, path: str) -> _Test:
    if not isinstance(operand, bool):
        _refuse(path, "Must be true or false")
    return lambda envelope, budget: bool(reach(envelope, budget)) is operand


def _all_checks(checks: list[_Check]) -> _Check:
    if len(checks) == 1:
        return checks[0]
    return lambda value, budget: all(check(value, budget) for check in checks)


def _all_of(tests: list[_Test]) -> _Test:
    if len(tests) == 1:
        return tests[0]

    def test(envelope: Envelope, budget: Budget) -> bool:
        for each in tests:  # noqa: SIM110 - as in `_some`
            if not each(envelope, budget):
                return False
        return True

    return test


def _any_of(tests: list[_Test]) -> _Test:
    def test(envelope: Envelope, budget: Budget) -> bool:
        for each in tests:  # noqa: SIM110 - as in `_some`
            if each(envelope, budget):
                return True
        return False

    return test


def _negated(test: _Test) -> _Test:
    return lambda envelope, budget: not test(envelope, budget)
