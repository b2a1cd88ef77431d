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

**Bounds.** See the constants. What one filter looks at in one event is bounded too, or a large array under many
conditions would keep everybody's events waiting for seconds: 10,000 elements of arrays and 1,000,000 characters inside
which `$contains` searches, shared evenly by its conditions (100 conditions: 100 elements each). What lies beyond is as
if it were not there.

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
# Of one event, by one filter, all conditions together; worst case measured: 15 ms for 256 KiB of data.
MAX_ELEMENTS: Final = 10_000  # of arrays
MAX_CHARACTERS: Final = 1_000_000  # inside which `$contains` searches

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
_Test = Callable[[Envelope], bool]  # of an event
_Check = Callable[[Any], bool]  # of one value
_Reach = Callable[[Envelope], Sequence[Any]]

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_ORDERINGS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


class Filter:
    """A compiled filter. Immutable; safe to share."""

    __slots__ = ("_test",)

    def __init__(self, test: _Test) -> None:
        self._test = test

    def matches(self, envelope: Envelope) -> bool:
        """Whether the event is wanted. `envelope` holds the fields of `ENVELOPE_FIELDS`, parsed from JSON."""
        return self._test(envelope)


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


class _Share:
    """What one condition may look at in one event. Settled once all conditions are counted."""

    __slots__ = ("characters", "elements")

    def __init__(self) -> None:
        self.settle(1)

    def settle(self, conditions: int) -> None:
        self.elements = MAX_ELEMENTS // conditions
        self.characters = MAX_CHARACTERS // conditions


class _Compiler:
    """Turns one filter into one function, counting its conditions."""

    def __init__(self) -> None:
        self._conditions = 0
        self._share = _Share()

    def whole(self, spec: object, path: str) -> _Test:
        test = self.filter(spec, path, depth=1)
        self._share.settle(max(1, self._conditions))
        return test

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
        reach = _reach(key, path, self._share)
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
                checks.append(_check(name, operand, at, self._share))
        if checks:
            tests.insert(0, _some(reach, _all_checks(checks)))
        return _all_of(tests)

    def _count(self, path: str) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            _refuse(path, f"A filter may hold {MAX_CONDITIONS} conditions, and this exceeds them")


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


def _reach(key: str, path: str, share: _Share) -> _Reach:
    """A function from an event to the values at `key`: none, one, or several by way of arrays."""
    _check_text(key, path, MAX_PATH)
    segments = key.split(".")
    if not all(segments):
        _refuse(path, "A path is names separated by single dots, as customer.tier")
    if len(segments) > MAX_SEGMENTS:
        _refuse(path, f"A path may have {MAX_SEGMENTS} segments, and this has {len(segments)}")
    if segments[0] != "event" or len(segments) == 1:
        return _walk("data", segments, share)
    if segments[1] not in ENVELOPE_FIELDS:
        _refuse(path, f"The event has no such field; it has {', '.join(ENVELOPE_FIELDS)}")
    return _walk(segments[1], segments[2:], share)


def _walk(field: str, segments: Sequence[str], share: _Share) -> _Reach:
    steps = tuple((segment, int(segment) if _INDEX.fullmatch(segment) else None) for segment in segments)

    def reach(envelope: Envelope) -> Sequence[Any]:
        value = envelope.get(field)
        if value is None:
            return ()
        for depth, (name, _) in enumerate(steps):
            if isinstance(value, list):  # from here on there may be several values
                return _spread([value], steps[depth:], share.elements)
            if not isinstance(value, dict) or name not in value:
                return ()
            value = value[name]
        if isinstance(value, list) and len(value) > share.elements:
            value = value[: share.elements]
        return (value,)

    return reach


def _spread(values: list[Any], steps: Sequence[tuple[str, int | None]], left: int) -> list[Any]:
    """All values that the steps lead to from any of `values`, by way of at most `left` elements of arrays. Arrays among
    those values are cut so that they have no more elements than are left, all together."""
    for name, index in steps:
        found = []
        for value in values:
            if isinstance(value, dict):
                if name in value:
                    found.append(value[name])
            elif isinstance(value, list):
                if index is None:
                    items = value[:left]
                    left -= len(items)
                    found += [item[name] for item in items if isinstance(item, dict) and name in item]
                elif index < len(value):
                    found.append(value[index])
        values = found
    for at, value in enumerate(values):
        if isinstance(value, list):
            values[at] = value[:left]
            left -= len(values[at])
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
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
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


def _check(name: str, operand: object, path: str, share: _Share) -> _Check:
    if name == "$eq":
        return _equal(operand, path)
    if name == "$in":
        return _one_of(operand, path)
    if name == "$contains":
        return _contains(operand, path, share)
    if name == "$startsWith":
        head = _string(operand, path)
        return lambda value: isinstance(value, str) and value.startswith(head)
    if name == "$endsWith":
        tail = _string(operand, path)
        return lambda value: isinstance(value, str) and value.endswith(tail)
    return _ordered(_ORDERINGS[name], _number_or_string(operand, path))


def _equal(operand: object, path: str) -> _Check:
    want = _scalar(operand, path)
    if want is None or isinstance(want, bool):
        return lambda value: value is want
    # Python has True == 1 and False == 0, JSON has not.
    return lambda value: value == want and not isinstance(value, bool)


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
        if isinstance(value, bool):
            return value in booleans
        return not isinstance(value, list | dict) and value in others  # neither can be hashed

    def check(value: Any) -> bool:
        return any(map(is_listed, value)) if isinstance(value, list) else is_listed(value)

    return check


def _contains(operand: object, path: str, share: _Share) -> _Check:
    want = _scalar(operand, path)
    if want == "":
        _refuse(path, "Must not be an empty string, which every string contains")
    is_equal = _equal(want, path)

    def check(value: Any) -> bool:
        if isinstance(value, list):
            return any(map(is_equal, value))
        return isinstance(value, str) and isinstance(want, str) and value.find(want, 0, share.characters) >= 0

    return check


def _ordered(compare: Callable[[Any, Any], bool], want: str | int | float) -> _Check:
    if isinstance(want, str):
        return lambda value: isinstance(value, str) and compare(value, want)
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and compare(value, want)


# --- Tests of an event --------------------------------------------------------------------------------------


def _some(reach: _Reach, check: _Check) -> _Test:
    def test(envelope: Envelope) -> bool:
        for value in reach(envelope):  # noqa: SIM110 - a generator here would double the time of a match
            if check(value):
                return True
        return False

    return test


def _exists(reach: _Reach, operand: object, path: str) -> _Test:
    if not isinstance(operand, bool):
        _refuse(path, "Must be true or false")
    return lambda envelope: bool(reach(envelope)) is operand


def _all_checks(checks: list[_Check]) -> _Check:
    if len(checks) == 1:
        return checks[0]
    return lambda value: all(check(value) for check in checks)


def _all_of(tests: list[_Test]) -> _Test:
    if len(tests) == 1:
        return tests[0]

    def test(envelope: Envelope) -> bool:
        for each in tests:  # noqa: SIM110 - as in `_some`
            if not each(envelope):
                return False
        return True

    return test


def _any_of(tests: list[_Test]) -> _Test:
    def test(envelope: Envelope) -> bool:
        for each in tests:  # noqa: SIM110 - as in `_some`
            if each(envelope):
                return True
        return False

    return test


def _negated(test: _Test) -> _Test:
    return lambda envelope: not test(envelope)
