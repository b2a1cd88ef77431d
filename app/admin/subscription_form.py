"""The form of a subscription: its fields as text, what they ask for, and which of them somebody else changed meanwhile.

A field has the name of what it sets, as the API spells it: `retry_policy.max_attempts`. What core finds wrong at
`filters.total.$gte` or `events.2` therefore finds its field, the one whose name the path begins with.

The form carries a fingerprint of each field as it was shown (`base`). So only what was changed is asked of core, and
two people who change different things can both be served.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from app.admin.forms import Form
from core import jsontext
from core.errors import ValidationFailed
from core.limiting.breaker import BOUNDS as BREAKER_BOUNDS
from core.limiting.limits import BOUNDS as LIMITS
from core.models import Subscription
from core.numbers import Bounds
from core.retry import RetryPolicy

Faults = dict[str, list[str]]

RETRY_NUMBERS: Final = {
    "max_attempts": True,
    "base_delay_ms": True,
    "max_delay_ms": True,
    "backoff_multiplier": False,
    "jitter": False,
}  # whether it is whole
FIELDS: Final = (
    "url",
    "events",
    "filters",
    "description",
    "authentication.type",
    "payload_format",
    "retry_policy.backoff_strategy",
    *(f"retry_policy.{name}" for name in RETRY_NUMBERS),
    "retry_policy.schedule",
    "timeout_ms",
    *(f"limits.{name}" for name in LIMITS),
    *(f"circuit_breaker.{name}" for name in BREAKER_BOUNDS),
    "headers",
    "metadata",
    "branch_id",
)
ONE_MORE = "one_more"  # an event pattern, beside those in `events`
SECRET = "authentication.secret"  # nosec B105 # noqa: S105 - a field's name; of new ones only
REMOVE = "remove."  # and the name of a header
MAX_PRETTY = 8_000  # characters of JSON that are spread over lines; indented, more might not fit into the form again


@dataclass
class Filled:
    """A form as it was shown, or as it came back."""

    given: dict[str, str]
    is_new: bool = False
    base: dict[str, str] = field(default_factory=dict)  # fingerprints by field
    header_names: list[str] = field(default_factory=list)  # that are stored; their values are never shown
    removed: set[str] = field(default_factory=set)  # of these
    faults: Faults = field(default_factory=dict)
    meanwhile: dict[str, str] = field(default_factory=dict)  # what others changed, where it was changed here too

    @classmethod
    def new(cls) -> Filled:
        given = dict.fromkeys((*FIELDS, ONE_MORE, SECRET), "")
        return cls(given | {"authentication.type": "standard", "payload_format": "default"}, is_new=True)

    @classmethod
    def of(cls, subscription: Subscription, header_names: list[str]) -> Filled:
        """As it is stored."""
        given = {**dict.fromkeys((ONE_MORE, SECRET), ""), **_texts(subscription)}
        return cls(given, base=_fingerprints(given), header_names=header_names)

    @classmethod
    def came(cls, form: Form, header_names: list[str], *, is_new: bool = False) -> Filled:
        given = {name: _plain(form.text(name)) for name in (*FIELDS, ONE_MORE, SECRET)}
        removed = {name for name in header_names if form.text(f"{REMOVE}{name}")}
        return cls(given, is_new, _base(form.text("base")), header_names, removed)

    @property
    def base_text(self) -> str:
        return json.dumps(self.base, separators=(",", ":"))

    @property
    def events(self) -> list[str]:
        lines = [*self.given["events"].split("\n"), self.given[ONE_MORE]]
        return [line.strip() for line in lines if line.strip()]

    def filters(self) -> dict[str, Any]:
        """Notes it as a fault where it is not JSON."""
        return self._json("filters")

    def _json(self, name: str) -> dict[str, Any]:
        text = self.given[name]
        if not text:
            return {}
        try:
            value = jsontext.loads(text.encode())
        except ValidationFailed as error:
            self._fault(name, _why_not_json(text, error))
            return {}
        if not isinstance(value, dict):
            self._fault(name, 'Must be a JSON object, such as {"total": {"$gte": 100}}')
            return {}
        return value

    def values(self, stored_headers: Mapping[str, str]) -> dict[str, Any]:
        """What is asked for, by the names that core uses; of a stored subscription only what was changed. What can't be
        read is left out and noted in `faults`."""
        readers: dict[str, Callable[[], Any]] = {
            "url": lambda: self.given["url"],
            "events": lambda: self.events,
            "filters": self.filters,
            "description": lambda: self.given["description"],
            "authentication.type": lambda: self.given["authentication.type"],
            "payload_format": lambda: self.given["payload_format"],
            "retry_policy": self._retry_policy,
            "timeout_ms": lambda: self._number("timeout_ms", whole=True),
            "limits": lambda: self._numbers("limits", LIMITS),
            "circuit_breaker": lambda: self._numbers("circuit_breaker", BREAKER_BOUNDS),
            "metadata": lambda: self._json("metadata"),
            "branch_id": lambda: self.given["branch_id"] or None,
        }
        values: dict[str, Any] = {}
        for name, read in readers.items():
            if self._is_changed(name):
                value = read()
                if name not in {fault.partition(".")[0] for fault in self.faults}:
                    values["authentication_type" if name == "authentication.type" else name] = value
        if self.given["headers"] or self.removed:
            values["headers"] = self._headers(stored_headers)
        if "timeout_ms" in values and values["timeout_ms"] is None:
            if not self.is_new:
                self._fault("timeout_ms", "Is required")
            del values["timeout_ms"]
        if self.is_new:  # then core says what is required
            values = {name: value for name, value in values.items() if value not in ("", [], None)}
            if self.given[SECRET]:
                values["secret"] = self.given[SECRET]
        return values

    def _is_changed(self, name: str) -> bool:
        if name == "events" and self.given[ONE_MORE]:
            return True
        return any(
            self.base.get(one) != _fingerprint(self.given[one])
            for one in FIELDS
            if one == name or one.startswith(f"{name}.")
        )

    def _retry_policy(self) -> dict[str, Any] | None:
        given = {name: self._number(f"retry_policy.{name}", whole=whole) for name, whole in RETRY_NUMBERS.items()}
        policy: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if strategy := self.given["retry_policy.backoff_strategy"]:
            policy["backoff_strategy"] = strategy
        if schedule := self.given["retry_policy.schedule"].replace(",", " ").split():
            try:
                policy["schedule"] = [_number(one, whole=False) for one in schedule]
            except ValueError:
                self._fault("retry_policy.schedule", "Must be seconds, such as 5, 300, 1800")
        return policy or None

    def _numbers(self, name: str, fields: Mapping[str, Bounds]) -> dict[str, Any] | None:
        given = {one: self._number(f"{name}.{one}", whole=bounds.whole) for one, bounds in fields.items()}
        return {one: value for one, value in given.items() if value is not None} or None

    def _number(self, name: str, *, whole: bool) -> float | None:
        text = self.given[name]
        if not text:
            return None
        try:
            return _number(text, whole=whole)
        except ValueError:
            self._fault(name, f"Must be a {'whole ' if whole else ''}number")
            return None

    def _headers(self, stored: Mapping[str, str]) -> dict[str, str]:
        """The stored ones without those that are to go, and what was filled in. By their names, in which upper and
        lower case are the same."""
        headers = {name: value for name, value in stored.items() if name not in self.removed}
        for number, line in enumerate(self.given["headers"].split("\n"), 1):
            if not line.strip():
                continue
            name, colon, value = line.partition(":")
            if not colon:
                self._fault("headers", f"Line {number} has no colon; write a header as X-Token: secret")
                continue
            for known in [one for one in headers if one.lower() == name.strip().lower()]:
                del headers[known]
            headers[name.strip()] = value.strip()
        return headers

    def _fault(self, name: str, said: str) -> None:
        self.faults.setdefault(name, []).append(said)

    def refuse(self, details: Mapping[str, Any]) -> None:
        """Notes what core says is wrong, beside its field. What could not be read is judged already."""
        unread = {name.partition(".")[0] for name in self.faults}
        for path, said in details.items():
            if path.partition(".")[0] in unread:
                continue
            place, rest = _field_of(path)
            texts = said if isinstance(said, list) else [str(said)]
            self.faults.setdefault(place, []).extend(f"{_where(place, rest)}{text}" for text in texts)

    def merge(self, current: Filled) -> None:
        """It was changed meanwhile, to `current`. What was not touched here becomes what it is now; of what was changed
        in both places is noted what the others made of it."""
        for name in FIELDS:
            mine, theirs = _fingerprint(self.given[name]), current.base.get(name)
            if mine == self.base.get(name):
                self.given[name] = current.given[name]
            elif theirs not in (self.base.get(name), mine):
                self.meanwhile[name] = current.given[name]
        self.base, self.header_names = current.base, current.header_names


def _field_of(path: str) -> tuple[str, str]:
    """The field that a fault at `path` is shown beside, and the rest of the path."""
    known = (*FIELDS, SECRET)
    if path in known:
        return path, ""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        if head in known:
            return head, ".".join(parts[length:])
        within = [one for one in known if one.startswith(f"{head}.")]
        if within:
            return within[0], ".".join(parts[length:])
    return "url", path


def _where(place: str, rest: str) -> str:
    if not rest:
        return ""
    if place == "events" and rest.isdigit():
        return f"Line {int(rest) + 1}: "
    return f"{rest}: "


def _texts(row: Subscription) -> dict[str, str]:
    """Each field as text. What was left to the defaults is empty."""
    retry = RetryPolicy.parse(row.retry_policy).to_json() if row.retry_policy else {}
    found: dict[str, Any] = {
        "url": row.url,
        "events": "\n".join(row.events),
        "filters": _pretty(row.filters),
        "description": row.description,
        "authentication.type": row.authentication_type,
        "payload_format": row.payload_format,
        "timeout_ms": row.timeout_ms,
        "metadata": _pretty(row.metadata_),
        "branch_id": row.branch_id or "",
        "headers": "",
        "retry_policy.schedule": ", ".join(f"{one:g}" for one in retry.pop("schedule", ())),
    }
    found |= {f"retry_policy.{name}": value for name, value in retry.items()}
    found |= {f"limits.{name}": value for name, value in (row.limits or {}).items()}
    found |= {f"circuit_breaker.{name}": value for name, value in (row.circuit_breaker or {}).items()}
    return {name: _plain(_text(found.get(name))) for name in FIELDS}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _pretty(value: Mapping[str, Any]) -> str:
    if not value:
        return ""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= MAX_PRETTY else jsontext.dumps(value).decode()


def _plain(text: str) -> str:
    """Browsers send line ends as CR LF (WHATWG URL Standard, 5.1)."""
    return text.replace("\r\n", "\n").strip()


def _number(text: str, *, whole: bool) -> float:
    """Raises ValueError. No `1_000`, no `٣`, no `inf`: what is typed is what is meant."""
    if not text.isascii() or "_" in text or len(text) > 20:
        raise ValueError(text)
    return int(text) if whole or text.isdigit() else float(text)


def _why_not_json(text: str, error: ValidationFailed) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as found:
        return f"Is not JSON: {found.msg}, line {found.lineno}, column {found.colno}"
    except (ValueError, RecursionError):
        pass
    return "; ".join(said for value in error.details.values() for said in value) or error.message


def _fingerprints(given: Mapping[str, str]) -> dict[str, str]:
    return {name: _fingerprint(given[name]) for name in FIELDS}


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _base(text: str) -> dict[str, str]:
    """What the form was shown with. Somebody may have changed it: then more is asked of core, and nothing else."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    known = found if isinstance(found, dict) else {}
    return {name: one for name, one in known.items() if name in FIELDS and isinstance(one, str)}
