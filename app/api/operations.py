"""What the OpenAPI document says of every operation, beyond what its `Action` in app/routes.py says already.

A path or a method that is missing here fails `tests/unit/test_openapi.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.api import answers, fields, inputs
from app.api.answers import Answer
from app.api.fields import Schema
from app.api.inputs import Input
from core.failures import ErrorKind
from core.listing.selection import NO_ERROR, REASONS
from core.models import ItemOutcome, ReplayStatus, SubscriptionStatus
from core.states import State


@dataclass(frozen=True, slots=True)
class Operation:
    """`summary` and `status` are those of docs/api.md. `gives`: what `data` is, or one of what it is; of a list, its
    items. `versioned`: it answers an ETag; a change takes `If-Match` too. `labels`: it takes `X-Branch-ID`."""

    summary: str
    gives: type[Answer] | tuple[type[Answer], ...]
    takes: type[Input] | None = None
    status: int = 200
    many: bool = False  # answers one result each, without being a list that can be paged
    conflicts: bool = False  # what it changes may have ended
    versioned: bool = False
    labels: bool = False
    shows_version: bool = False  # it answers an ETag, and takes no If-Match
    repeats: bool = False  # a POST that is done each time it comes: it takes no Idempotency-Key
    filters: Mapping[str, Schema] = field(default_factory=dict)
    includes: tuple[str, ...] = ()
    names_organization: bool = False  # it takes X-Organization-ID without needing one

    @property
    def models(self) -> tuple[type[Answer], ...]:
        return self.gives if isinstance(self.gives, tuple) else (self.gives,)


_TEXT: Schema = {"type": "string"}
_OF_EVENTS = {
    **dict.fromkeys(("branch_id", "event_type", "external_id"), _TEXT),
    "text": fields.SEARCHED,
    **dict.fromkeys(("created_after", "created_before"), fields.TIME),
}
# In a query several values are separated by commas.
_OF_DELIVERIES: Mapping[str, Schema] = {
    **fields.SELECTION,
    "status": fields.commas([str(one) for one in State]),
    "error": fields.commas([*map(str, ErrorKind), NO_ERROR]),
    "outcome": fields.commas([str(one) for one in ItemOutcome]),
    "reason": fields.commas(REASONS),
    "status_code": _TEXT | {"pattern": "^[0-9]{3}$"},
    "ids": _TEXT | {"description": fields.SELECTION["ids"]["description"]},
}
_OF_SUBSCRIPTIONS: Mapping[str, Schema] = {"status": _TEXT | {"enum": [str(one) for one in SubscriptionStatus]}}
_OF_AUDIT_LOG: Mapping[str, Schema] = {
    **dict.fromkeys(("actor", "action", "resource"), _TEXT),
    **dict.fromkeys(("created_after", "created_before"), fields.TIME),
}
_OF_REPLAYS: Mapping[str, Schema] = {"status": _TEXT | {"enum": [str(one) for one in ReplayStatus]}}
_OF_ITEMS: Mapping[str, Schema] = {"outcome": _TEXT | {"enum": [str(one) for one in ItemOutcome]}}


def _deliveries(summary: str, *chosen: str) -> Operation:
    filters = {name: schema for name, schema in _OF_DELIVERIES.items() if name not in chosen}
    return Operation(summary, answers.DeliveryListed, filters=filters, includes=("attempts",))


def _operation_on_replay(summary: str) -> Operation:
    return Operation(summary, answers.Replay, inputs.Nothing)


OPERATIONS: Mapping[str, Mapping[str, Operation]] = {
    "/v1/events": {
        "POST": Operation(
            "accepts an event; it is durable when the answer leaves",
            answers.Accepted,
            inputs.EventIn,
            202,
            labels=True,
        ),
        "GET": Operation("lists events", answers.Event, filters=_OF_EVENTS),
    },
    "/v1/events/batch": {
        "POST": Operation(
            "accepts up to 1,000 events, all or none",
            answers.AcceptedInBatch,
            inputs.BatchIn,
            202,
            many=True,
            labels=True,
        )
    },
    "/v1/events/{id}": {"GET": Operation("shows an event with its data", answers.EventWithData)},
    "/v1/events/{id}/redact": {
        "POST": Operation("removes its data for good; the record of it stays", answers.EventWithData, inputs.Nothing)
    },
    "/v1/events/{id}/copy": {
        "POST": Operation("accepts it again as a new event, with other data", answers.Accepted, inputs.CopyIn, 202)
    },
    "/v1/events/{id}/deliveries": {"GET": _deliveries("lists the deliveries of an event", "event_id")},
    "/v1/deliveries": {"GET": _deliveries("lists deliveries; dead letters with `filters[status]=dead`")},
    "/v1/deliveries/{id}": {"GET": Operation("shows a delivery with its attempts", answers.DeliveryWithAttempts)},
    "/v1/deliveries/{id}/replay": {
        "POST": Operation("sends it again, as a fresh series of attempts", answers.Delivery, inputs.Nothing, 202)
    },
    "/v1/deliveries/{id}/discard": {
        "POST": Operation("takes a pending or dead one out", answers.Delivery, inputs.Nothing)
    },
    "/v1/webhooks/subscriptions": {
        "POST": Operation(
            "creates a subscription",
            answers.SubscriptionCreated,
            inputs.SubscriptionIn,
            201,
            versioned=True,
            labels=True,
        ),
        "GET": Operation("lists them, without the deleted ones", answers.Subscription, filters=_OF_SUBSCRIPTIONS),
    },
    "/v1/webhooks/subscriptions/check": {
        "POST": Operation(
            "which of the latest events patterns and a filter would have matched",
            answers.SubscriptionChecked,
            inputs.CheckIn,
            repeats=True,
        )
    },
    "/v1/webhooks/subscriptions/{id}": {
        "GET": Operation("shows one, and when its secrets expire", answers.SubscriptionWithSecrets, versioned=True),
        "PATCH": Operation(
            "changes what the body names", answers.Subscription, inputs.SubscriptionPatch, versioned=True
        ),
        "DELETE": Operation(
            "ends it; what is pending is discarded, history stays", answers.SubscriptionDeleted, versioned=True
        ),
    },
    "/v1/webhooks/subscriptions/{id}/pause": {
        "POST": Operation("holds its deliveries", answers.Subscription, inputs.Nothing, versioned=True)
    },
    "/v1/webhooks/subscriptions/{id}/resume": {
        "POST": Operation(
            "sends what was held and, on request, missed",
            answers.SubscriptionResumed,
            inputs.ResumeIn,
            versioned=True,
        )
    },
    "/v1/webhooks/subscriptions/{id}/secret/rotate": {
        "POST": Operation(
            "makes a new secret; the old sign along", answers.SubscriptionRotated, inputs.RotateIn, versioned=True
        )
    },
    "/v1/webhooks/subscriptions/{id}/secret/reveal": {
        "POST": Operation(
            "shows the secrets that sign now; the audit log says so",
            answers.SecretsRevealed,
            inputs.Nothing,
            shows_version=True,
            repeats=True,
        )
    },
    "/v1/webhooks/subscriptions/{id}/test": {
        "POST": Operation("sends an event to it alone", answers.AcceptedTest, inputs.TestIn, 202)
    },
    "/v1/webhooks/subscriptions/{id}/deliveries": {"GET": _deliveries("lists its deliveries", "subscription_id")},
    "/v1/webhooks/subscriptions/{id}/circuit-breaker": {
        "GET": Operation("shows whether deliveries are held back from a failing receiver", answers.CircuitBreaker)
    },
    "/v1/webhooks/subscriptions/{id}/circuit-breaker/history": {
        "GET": Operation("lists when it opened, half-opened and closed", answers.CircuitBreakerChange)
    },
    "/v1/webhooks/subscriptions/{id}/circuit-breaker/reset": {
        "POST": Operation("lets the next few through to decide", answers.CircuitBreaker, inputs.Nothing)
    },
    "/v1/webhooks/subscriptions/{id}/health": {
        "GET": Operation("says how its receiver is doing", answers.SubscriptionHealth)
    },
    "/v1/webhooks/subscriptions/{id}/performance": {
        "GET": Operation("its figures of the last 24 hours", answers.Performance)
    },
    "/v1/webhooks/performance": {
        "GET": Operation("the organization's figures of the last 24 hours", answers.Performance)
    },
    "/v1/replays": {
        "POST": Operation(
            "previews or starts a replay or a bulk discard",
            (answers.ReplayPreview, answers.ReplayCreated),
            inputs.ReplayIn,
            202,
        ),
        "GET": Operation("lists replays", answers.Replay, filters=_OF_REPLAYS),
    },
    "/v1/replays/{id}": {
        "GET": Operation("shows how far one is", answers.Replay),
        "PATCH": Operation("changes the rate of what is left", answers.Replay, inputs.ReplayPatch, conflicts=True),
    },
    "/v1/replays/{id}/items": {
        "GET": Operation("lists what came of each delivery", answers.ReplayItem, filters=_OF_ITEMS)
    },
    "/v1/replays/{id}/pause": {"POST": _operation_on_replay("pauses a queued or running one")},
    "/v1/replays/{id}/resume": {"POST": _operation_on_replay("goes on with a paused one")},
    "/v1/replays/{id}/cancel": {"POST": _operation_on_replay("ends it; what was sent stays sent")},
    "/v1/event-types": {
        "POST": Operation(
            "adds to the catalogue, which describes and refuses nothing",
            answers.EventType,
            inputs.EventTypeIn,
            201,
        ),
        "GET": Operation("lists the catalogue", answers.EventType),
    },
    "/v1/event-types/{name}": {
        "GET": Operation("shows an event type", answers.EventType),
        "PATCH": Operation("changes description, schema or example", answers.EventType, inputs.EventTypePatch),
        "DELETE": Operation("removes it; its events stay", answers.EventType),
    },
    "/v1/organizations": {
        "POST": Operation("creates a tenant", answers.Organization, inputs.OrganizationIn, 201, versioned=True),
        "GET": Operation("lists tenants", answers.Organization),
    },
    "/v1/organizations/{id}": {
        "GET": Operation("shows one", answers.Organization, versioned=True),
        "PATCH": Operation("renames it", answers.Organization, inputs.OrganizationIn, versioned=True),
        "DELETE": Operation("ends it at once; all that it had is erased", answers.OrganizationDeleted, status=202),
    },
    "/v1/api-keys": {
        "POST": Operation(
            "makes a key for the organization named in the header", answers.ApiKeyCreated, inputs.ApiKeyIn, 201
        ),
        "GET": Operation("lists its keys, never the keys themselves", answers.ApiKey),
    },
    "/v1/audit-log": {
        "GET": Operation("lists who did what", answers.AuditEntry, filters=_OF_AUDIT_LOG, names_organization=True)
    },
    "/v1/audit-log/export": {
        "GET": Operation(
            "the same as a whole, in JSON lines",
            answers.AuditEntry,
            filters=_OF_AUDIT_LOG,
            names_organization=True,
        )
    },
    "/v1/api-keys/{id}": {
        "PATCH": Operation("changes its name or its tier", answers.ApiKey, inputs.ApiKeyPatch),
        "DELETE": Operation("revokes a key, at once and everywhere", answers.ApiKey),
    },
}
