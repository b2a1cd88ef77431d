"""The request bodies: their fields and types. What the values mean is judged in core."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
)

from app.api import fields
from core.errors import ValidationFailed
from core.listing.selection import moment
from core.models import RateTier

Time = Annotated[datetime, BeforeValidator(moment)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("Must not hold NUL characters")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_without_nul)]


MAX_FAULTS, MAX_NAME_CHARS = 50, 100  # of faults an answer lists, and of a field's name that it repeats


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


Model = TypeVar("Model", bound=Input)


class EventIn(Input):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"event_type": "inventory.quantity.updated", "data": {"product_id": "p1", "current_quantity": 95}}
            ]
        }
    )

    event_type: fields.EventType
    data: dict[str, Any]
    event_id: fields.ExternalId | None = None
    occurred_at: Time | None = None
    branch_id: fields.Label | None = None
    metadata: fields.Metadata | None = None


class _Each:
    """An array of at most `most` of a model, which are judged one by one later, so that all faults are told at once."""

    def __init__(self, model: type[Input], most: int) -> None:
        self._model, self._most = model, most

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        items = handler(self._model.__pydantic_core_schema__)
        return {"type": "array", "items": items, "minItems": 1, "maxItems": self._most}


class BatchIn(Input):
    events: Annotated[list[dict[str, Any]], _Each(EventIn, fields.MAX_BATCH)]


class CopyIn(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"data": {"product_id": "p1", "current_quantity": 94}}]})

    data: dict[str, Any]


class AuthenticationIn(Input):
    type: fields.Scheme = "standard"
    secret: fields.Secret | None = None


class SubscriptionFields(Input):
    """What is given when one is made, and when one is changed. Core says which are required."""

    url: fields.Url | None = None
    events: fields.Patterns | None = None
    filters: fields.Filters | None = None
    payload_format: fields.Format | None = None
    retry_policy: fields.Retries | None = None
    headers: fields.CustomHeaders | None = None
    timeout_ms: fields.Timeout | None = None
    limits: fields.Limits | None = None
    circuit_breaker: fields.CircuitBreaker | None = None
    description: fields.Description | None = None
    metadata: fields.Metadata | None = None
    branch_id: fields.Label | None = None


class SubscriptionIn(SubscriptionFields):
    # Core says that url and events are required, together with what else is wrong.
    model_config = ConfigDict(
        json_schema_extra={
            "required": ["url", "events"],
            "examples": [
                {
                    "url": "https://ecommerce.example.com/webhooks/inventory",
                    "events": ["inventory.quantity.updated", "inventory.product.*"],
                    "filters": {"location_types": ["retail", "warehouse"], "total": {"$gte": 100}},
                    "retry_policy": {"max_attempts": 5, "backoff_strategy": "exponential"},
                }
            ],
        }
    )

    authentication: AuthenticationIn | None = None


class CheckIn(Input):
    # Core says what is required, as of a subscription.
    model_config = ConfigDict(
        json_schema_extra={
            "required": ["events"],
            "examples": [{"events": ["order.*"], "filters": {"total": {"$gte": 100}}}],
        }
    )

    events: fields.Patterns | None = None
    filters: fields.Filters | None = None


class AuthenticationPatch(Input):
    type: fields.Scheme


RESETTABLE = {"filters", "retry_policy", "headers", "limits", "circuit_breaker", "branch_id"}  # by null


def _without_null(schema: dict[str, Any]) -> None:
    """In the document, only what null resets takes null. Which of the others is null is said with all other faults."""
    properties = schema["properties"]
    for name in properties.keys() - RESETTABLE:
        properties[name] = properties[name]["anyOf"][0]


class SubscriptionPatch(SubscriptionFields):
    """What is left out stays; null resets a field."""

    model_config = ConfigDict(json_schema_extra=_without_null)

    authentication: AuthenticationPatch | None = None


class RotateIn(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"grace_period_s": 86_400}]})

    grace_period_s: fields.Grace = 86_400
    secret: fields.Secret | None = None


class TestIn(Input):
    __test__ = False  # its name is no test class's

    event_type: fields.EventType = "webhook.test"
    data: dict[str, Any] | None = None


class ResumeIn(Input):
    sync_from: Time | None = None
    priority: Literal["normal", "high"] = "normal"


class ReplayIn(Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"filters": {"status": "dead"}, "rate_per_second": 50, "dry_run": True}]}
    )

    filters: fields.Selection = Field(default_factory=dict)
    rate_per_second: fields.Rate = 50
    dry_run: bool = False
    action: Literal["replay", "discard"] = "replay"


class ReplayPatch(Input):
    model_config = ConfigDict(json_schema_extra={"examples": [{"rate_per_second": 200}]})

    rate_per_second: fields.Rate


class OrganizationIn(Input):
    name: fields.Name


class ApiKeyIn(Input):
    name: fields.Name
    scopes: fields.Scopes | None = None
    tier: fields.Tier = RateTier.DEFAULT


class ApiKeyPatch(Input):
    name: fields.Name | None = None
    tier: fields.Tier | None = None


class EventTypeIn(Input):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "order.paid", "description": "An order was paid", "schema": {}}]}
    )

    name: fields.EventType
    description: Text = ""
    schema_: fields.Metadata | None = Field(default=None, alias="schema")
    example: fields.Metadata | None = None


class EventTypePatch(Input):
    description: Text | None = None
    schema_: fields.Metadata | None = Field(default=None, alias="schema")
    example: fields.Metadata | None = None


class Nothing(Input):
    """For actions that take no fields."""


def read(model: type[Model], value: Any, path: str = "") -> Model:
    """`value` as a `model`. Raises `ValidationFailed` with every fault, each under its dotted path."""
    if not isinstance(value, dict):
        raise ValidationFailed.of(path or "body", "Must be a JSON object")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details: dict[str, list[str]] = {}
        for fault in error.errors(include_url=False)[:MAX_FAULTS]:
            where = ".".join(str(part)[:MAX_NAME_CHARS] for part in ([path] if path else []) + list(fault["loc"]))
            details.setdefault(where, []).append(_said(model, fault["type"], fault["msg"]))
        raise ValidationFailed(details=details) from None


def read_part(model: type[Model], value: Any) -> tuple[Model, dict[str, Any]]:
    """What of `value` is well-formed, as a `model` whose fields are all optional, and the faults of the rest.

    So a caller can judge what the well-formed part means and tell all faults at once.
    """
    try:
        return read(model, value), {}
    except ValidationFailed as error:
        if not isinstance(value, dict):
            raise
        faulty = {path.partition(".")[0] for path in error.details}
        part = {name: value[name] for name in model.model_fields if name in value and name not in faulty}
        return read(model, part), error.details


def _said(model: type[Input], kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        known = ", ".join(info.alias or name for name, info in model.model_fields.items())
        return f"Unknown field; known here: {known}"
    if kind == "missing":
        return "Is required"
    return message.removeprefix("Value error, ").replace("Input should be", "Must be")
