"""What the OpenAPI document says of the fields in requests whose values core judges: JSON Schemas drawn from core's own
bounds, so that the two say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import WithJsonSchema

from core import egress, ids, organizations, payloads, replays, retry
from core import subscriptions as rules
from core.access import api_keys
from core.failures import ErrorKind
from core.limiting import breaker, limits
from core.listing.selection import MAX_IDS, NO_ERROR, REASONS
from core.matching import filters as conditions
from core.matching import patterns
from core.models import ItemOutcome, RateTier
from core.numbers import Bounds
from core.secrets import signing
from core.states import State

Schema = dict[str, Any]

MAX_BATCH = 1_000  # events
MAX_EXTERNAL_ID_CHARS = 255


def id_of(prefix: str) -> Schema:
    """Upper and lower case are the same, as Crockford has it; 26 characters hold two bits more than an id has."""
    example = f"{prefix}_01M7X7GQSDE00BB7SXD0G019HE"
    letters = "".join(char + char.lower() if char.isalpha() else char for char in ids.ALPHABET)
    return {"type": "string", "pattern": f"^{prefix}_[0-7][{letters}]{{25}}$", "examples": [example]}


def text(low: int, high: int, example: str = "", **more: Any) -> Schema:
    return {
        "type": "string",
        "minLength": low,
        "maxLength": high,
        **({"examples": [example]} if example else {}),
        **more,
    }


def whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def closed(properties: Mapping[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **more}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _numbers(fields: Mapping[str, Bounds]) -> Schema:
    return closed(
        {
            name: {"type": ["integer" if one.whole else "number", "null"], "minimum": one.low, "maximum": one.high}
            for name, one in fields.items()
        }
    )


def commas(known: Sequence[str]) -> Schema:
    """One or several words, separated by commas."""
    one = f"({'|'.join(known)})"
    return {"type": "string", "pattern": f"^{one}(,{one})*$", "examples": [",".join(known[:2])]}


def _words(known: Sequence[str]) -> Schema:
    """The same, or as a list."""
    return {
        "anyOf": [commas(known), {"type": "array", "minItems": 1, "items": {"type": "string", "enum": list(known)}}]
    }


TIME: Schema = {"type": "string", "format": "date-time", "examples": ["2026-01-28T10:15:00Z"]}
EVENT_TYPE = text(1, patterns.MAX_LENGTH, "order.paid", pattern=f"^{patterns._EVENT_TYPE.pattern}$")
PATTERN = text(1, patterns.MAX_LENGTH, "order.*", pattern=f"^{patterns._PATTERN.pattern}$")
LABEL = text(1, rules.MAX_LABEL_CHARS, "berlin")
NAME = text(1, organizations.MAX_NAME_CHARS, "Acme")
METADATA: Schema = {"type": "object", "description": f"At most {rules.MAX_METADATA_BYTES} bytes of JSON, without NUL"}

FILTERS: Schema = {
    "type": "object",
    "description": "Conditions on dotted paths into the event's data; all must hold. A scalar must be equal, an array"
    f" means any of, an object holds operators: {', '.join(conditions.OPERATORS)}. {', '.join(conditions.COMBINATORS)}"
    f" combine filters. At most {conditions.MAX_DEPTH} levels, {conditions.MAX_CONDITIONS} conditions,"
    f" {conditions.MAX_BYTES} bytes",
    "examples": [{"location_types": ["retail", "warehouse"], "total": {"$gte": 100}}],
}
RETRY_POLICY = closed(
    {
        "backoff_strategy": {"enum": [*retry.STRATEGIES, None]},
        "max_attempts": {**whole(1, retry.MOST_ATTEMPTS), "type": ["integer", "null"]},
        "base_delay_ms": {**whole(1, retry.LONGEST_DELAY_MS), "type": ["integer", "null"]},
        "max_delay_ms": {**whole(1, retry.LONGEST_DELAY_MS), "type": ["integer", "null"]},
        "backoff_multiplier": {"type": ["number", "null"], "minimum": 1, "maximum": retry.HIGHEST_MULTIPLIER},
        "jitter": {"type": ["number", "boolean", "null"], "minimum": 0, "maximum": 1},
        "schedule": {
            "type": ["array", "null"],
            "items": {"type": "number", "minimum": 0, "maximum": retry.LONGEST_DELAY_MS // 1000},
            "minItems": 1,
            "maxItems": retry.MOST_ATTEMPTS - 1,
            "description": "Seconds",
        },
    },
    examples=[{"max_attempts": 5, "backoff_strategy": "exponential"}],
)
HEADERS: Schema = {
    "type": "object",
    "maxProperties": egress.MAX_CUSTOM_HEADERS,
    "additionalProperties": {"type": "string", "maxLength": egress.MAX_HEADER_VALUE_BYTES},
    "description": f"Sent along, sealed at rest, never shown; {egress.MAX_CUSTOM_HEADERS_BYTES} bytes together",
    "examples": [{"X-Token": "4711"}],
}
SCOPES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "enum": list(api_keys.ORGANIZATION_SCOPES)},
    "description": "Left out: all but organizations.admin, which no organization's key can have",
}
SEARCHED: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": 256,
    "description": "the id of a delivery or of an event, or what stands in the event's data or is its external_id",
}
# Of deliveries, as their list takes them in the query and a replay in its body.
SELECTION: Mapping[str, Schema] = {
    "status": _words([str(one) for one in State]),
    "error": _words([*map(str, ErrorKind), NO_ERROR]),
    "reason": _words(REASONS),
    "status_code": {"anyOf": [whole(100, 999), {"type": "string", "pattern": "^[0-9]{3}$"}]},
    "subscription_id": id_of(ids.SUBSCRIPTION),
    "event_id": id_of(ids.EVENT),
    "event_type": {"type": "string", "maxLength": 256},
    "replay_id": id_of(ids.REPLAY),
    "outcome": _words([str(one) for one in ItemOutcome]) | {"description": "Of the replay in replay_id"},
    "ids": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": id_of(ids.DELIVERY)}],
        "description": f"1 to {MAX_IDS} ids of deliveries",
    },
    "created_after": TIME,
    "created_before": TIME,
    "text": SEARCHED,
}

# The types of fields, for the models of requests.
EventType = Annotated[str, WithJsonSchema(EVENT_TYPE)]
ExternalId = Annotated[str, WithJsonSchema(text(1, MAX_EXTERNAL_ID_CHARS, "stock-4711"))]
Label = Annotated[str, WithJsonSchema(LABEL)]
Name = Annotated[str, WithJsonSchema(NAME)]
Metadata = Annotated[dict[str, Any], WithJsonSchema(METADATA)]
Scheme = Annotated[str, WithJsonSchema({"type": "string", "enum": sorted(signing.SCHEMES)})]
Secret = Annotated[str, WithJsonSchema({"type": "string", "description": "24 to 64 bytes, or a whsec_… of as many"})]
Url = Annotated[str, WithJsonSchema(text(1, egress.MAX_URL_CHARS, "https://example.com/webhooks"))]
Patterns = Annotated[
    list[str],
    WithJsonSchema({"type": "array", "items": PATTERN, "minItems": 1, "maxItems": rules.MAX_PATTERNS}),
]
Filters = Annotated[dict[str, Any], WithJsonSchema(FILTERS)]
Format = Annotated[str, WithJsonSchema({"type": "string", "enum": list(payloads.FORMATS)})]
Retries = Annotated[dict[str, Any], WithJsonSchema(RETRY_POLICY)]
CustomHeaders = Annotated[dict[str, str], WithJsonSchema(HEADERS)]
Timeout = Annotated[int, WithJsonSchema(whole(rules.MIN_TIMEOUT_MS, rules.MAX_TIMEOUT_MS))]
Limits = Annotated[dict[str, Any], WithJsonSchema(_numbers(limits.BOUNDS))]
CircuitBreaker = Annotated[dict[str, Any], WithJsonSchema(_numbers(breaker.BOUNDS))]
Description = Annotated[str, WithJsonSchema(text(0, rules.MAX_DESCRIPTION_CHARS))]
Grace = Annotated[int, WithJsonSchema(whole(0, rules.MAX_GRACE_S))]
Rate = Annotated[int, WithJsonSchema(whole(1, replays.MAX_RATE))]
Selection = Annotated[dict[str, Any], WithJsonSchema(closed(SELECTION))]
Scopes = Annotated[list[str], WithJsonSchema(SCOPES)]
Tier = Annotated[str, WithJsonSchema({"type": "string", "enum": [str(one) for one in RateTier]})]
