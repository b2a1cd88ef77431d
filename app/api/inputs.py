"""The request bodies: their fields and types. What the values mean is judged in core."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from core.errors import ValidationFailed
from core.selection import moment

Time = Annotated[datetime, BeforeValidator(moment)]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("Must not hold NUL characters")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_without_nul)]


MAX_FAULTS, MAX_NAME_CHARS = 50, 100  # of faults an answer lists, and of a field's name that it repeats


class Input(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Model = TypeVar("Model", bound=Input)


class EventIn(Input):
    event_type: str
    data: dict[str, Any]
    event_id: str | None = None
    occurred_at: Time | None = None
    branch_id: str | None = None
    metadata: dict[str, Any] | None = None


class BatchIn(Input):
    events: list[dict[str, Any]]


class AuthenticationIn(Input):
    type: str = "standard"
    secret: str | None = None


class SubscriptionIn(Input):
    url: str | None = None  # core says that these two are required, together with what else is wrong
    events: list[str] | None = None
    filters: dict[str, Any] | None = None
    authentication: AuthenticationIn | None = None
    payload_format: str | None = None
    retry_policy: dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    timeout_ms: int | None = None
    limits: dict[str, Any] | None = None
    circuit_breaker: dict[str, Any] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    branch_id: str | None = None


class AuthenticationPatch(Input):
    type: str


class SubscriptionPatch(Input):
    url: str | None = None
    events: list[str] | None = None
    filters: dict[str, Any] | None = None
    authentication: AuthenticationPatch | None = None
    payload_format: str | None = None
    retry_policy: dict[str, Any] | None = None
    headers: dict[str, str] | None = None
    timeout_ms: int | None = None
    limits: dict[str, Any] | None = None
    circuit_breaker: dict[str, Any] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    branch_id: str | None = None


class RotateIn(Input):
    grace_period_s: int = 86_400
    secret: str | None = None


class TestIn(Input):
    __test__ = False  # its name is no test class's

    event_type: str = "webhook.test"
    data: dict[str, Any] | None = None


class ResumeIn(Input):
    sync_from: Time | None = None
    priority: Literal["normal", "high"] = "normal"


class ReplayIn(Input):
    filters: dict[str, Any] = Field(default_factory=dict)
    rate_per_second: int = 50
    dry_run: bool = False


class OrganizationIn(Input):
    name: str


class ApiKeyIn(Input):
    name: str
    scopes: list[str] | None = None
    tier: str = "default"


class ApiKeyPatch(Input):
    name: str | None = None
    tier: str | None = None


class EventTypeIn(Input):
    name: str
    description: Text = ""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    example: dict[str, Any] | None = None


class EventTypePatch(Input):
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    example: dict[str, Any] | None = None


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
