"""The shapes of what views.py shows, for the OpenAPI document. Nothing is made of them; a test holds every answer of a
walk through the API against them, so that a field added there and not here fails."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.api import fields
from core import ids
from core.failures import ErrorKind
from core.health import Health
from core.limiting.breaker import BreakerState
from core.matching.subscription_checks import Outcome
from core.models import ItemOutcome, RateTier, ReplayAction, ReplayStatus, SubscriptionStatus
from core.replay_preview import SkipReason
from core.states import State

Time = Annotated[str, WithJsonSchema(fields.TIME)]
EventId = Annotated[str, WithJsonSchema(fields.id_of(ids.EVENT))]
DeliveryId = Annotated[str, WithJsonSchema(fields.id_of(ids.DELIVERY))]
AttemptId = Annotated[str, WithJsonSchema(fields.id_of(ids.ATTEMPT))]
SubscriptionId = Annotated[str, WithJsonSchema(fields.id_of(ids.SUBSCRIPTION))]
OrganizationId = Annotated[str, WithJsonSchema(fields.id_of(ids.ORGANIZATION))]
ReplayId = Annotated[str, WithJsonSchema(fields.id_of(ids.REPLAY))]
KeyId = Annotated[str, WithJsonSchema(fields.id_of(ids.API_KEY))]
SecretId = Annotated[str, WithJsonSchema(fields.id_of(ids.SECRET))]
BreakerChangeId = Annotated[str, WithJsonSchema(fields.id_of(ids.BREAKER_CHANGE))]
AuditEntryId = Annotated[str, WithJsonSchema(fields.id_of(ids.AUDIT_ENTRY))]
Object = dict[str, Any]
NOT_ALWAYS: Any = None  # a field with this default is absent at times


class Answer(BaseModel):
    """A resource, or what else `data` is in a success."""

    model_config = ConfigDict(defer_build=True)  # nothing is made of these but schemas, and those rarely

    @classmethod
    def names(cls) -> list[str]:
        """Of its fields, as they are shown."""
        return [info.alias or name for name, info in cls.model_fields.items()]


class Accepted(Answer):
    event_id: EventId
    event_type: str
    occurred_at: Time
    matched_subscriptions: int
    created_at: Time


class AcceptedInBatch(Accepted):
    idempotent: Literal[True] = NOT_ALWAYS


class AcceptedTest(Accepted):
    delivery_id: DeliveryId


class Event(Answer):
    id: EventId
    event_id: EventId
    event_type: str
    external_id: str | None
    organization_id: OrganizationId
    occurred_at: Time
    branch_id: str | None
    metadata: Object
    matched_subscriptions: int
    copied_from: EventId | None
    created_at: Time
    redacted_at: Time | None


class EventWithData(Event):
    data: Object


class Attempt(Answer):
    id: AttemptId
    attempt_id: AttemptId
    delivery_id: DeliveryId
    series: int
    number: int
    replay_id: ReplayId | None
    status: Literal["succeeded", "failed"]
    status_code: int | None
    error: ErrorKind | None
    error_message: str | None
    started_at: Time
    duration_ms: int
    url: str
    request_headers: dict[str, str] | None
    response_headers: dict[str, str] | None
    response_body: str | None


class Delivery(Answer):
    id: DeliveryId
    delivery_id: DeliveryId
    event_id: EventId
    event_type: str
    subscription_id: SubscriptionId
    organization_id: OrganizationId
    status: State
    reason: str | None
    attempt_count: int
    series: int
    replay_id: ReplayId | None
    next_attempt_at: Time | None
    status_code: int | None
    error: ErrorKind | None
    error_message: str | None
    created_at: Time
    updated_at: Time


class DeliveryListed(Delivery):
    attempts: list[Attempt] = NOT_ALWAYS  # with include=attempts


class DeliveryWithAttempts(Delivery):
    attempts: list[Attempt]


class Secret(Answer):
    id: SecretId
    created_at: Time
    expires_at: Time | None


class SecretRevealed(Secret):
    secret_key: str


class SecretsRevealed(Answer):
    subscription_id: SubscriptionId
    secret_key: str
    secrets: list[SecretRevealed]


class AuthenticationShown(Answer):
    type: fields.Scheme


class RetryPolicyShown(Answer):
    """Which of the delays there are is up to the strategy."""

    backoff_strategy: str
    max_attempts: int
    max_delay_ms: int
    jitter: float
    base_delay_ms: int = NOT_ALWAYS
    backoff_multiplier: float = NOT_ALWAYS
    schedule: list[float] = NOT_ALWAYS


class LimitsShown(Answer):
    max_in_flight: int
    per_second: float | None


class BreakerSettingsShown(Answer):
    failure_threshold: int
    failure_rate_threshold: float
    timeout_ms: int
    half_open_max_calls: int
    half_open_success_threshold: int
    monitoring_window_ms: int


class Subscription(Answer):
    id: SubscriptionId
    subscription_id: SubscriptionId
    organization_id: OrganizationId
    status: SubscriptionStatus
    status_reason: str | None
    webhook_url: str
    events: list[str]
    filters: Object
    authentication: AuthenticationShown
    payload_format: fields.Format
    retry_policy: RetryPolicyShown
    headers: dict[str, str]
    timeout_ms: int
    limits: LimitsShown
    circuit_breaker: BreakerSettingsShown
    description: str
    metadata: Object
    branch_id: str | None
    version: int
    created_at: Time
    updated_at: Time


class SubscriptionCreated(Subscription):
    secret_key: str


class SubscriptionWithSecrets(Subscription):
    secrets: list[Secret]


class SubscriptionRotated(SubscriptionWithSecrets):
    secret_key: str


class SubscriptionResumed(Subscription):
    missed_deliveries_created: int


class EventChecked(Answer):
    event_id: EventId
    event_type: str
    created_at: Time
    outcome: Outcome
    condition: str | None
    found: list[str]


class SubscriptionChecked(Answer):
    matched: int
    looked_at: int
    complete: bool
    sample: list[EventChecked]


class SubscriptionDeleted(Answer):
    subscription_id: SubscriptionId
    status: Literal["deleted"]


class CircuitBreaker(Answer):
    subscription_id: SubscriptionId
    state: BreakerState
    failure_count: int
    success_count: int
    opened_at: Time | None
    half_open_at: Time | None
    next_attempt_at: Time | None
    last_failure_at: Time | None
    settings: BreakerSettingsShown


class CircuitBreakerChange(Answer):
    id: BreakerChangeId
    state: BreakerState
    failure_count: int
    at: Time


class Attempts(Answer):
    attempts: int
    success_rate: float | None
    average_time_ms: int | None


class SubscriptionHealth(Answer):
    subscription_id: SubscriptionId
    status: Health
    circuit_breaker: BreakerState | None
    consecutive_failures: int | None
    last_hour: Attempts
    last_24h: Attempts
    last_success_at: Time | None
    last_failure_at: Time | None
    pending_deliveries: int | None
    dead_deliveries: int | None


class Figures(Answer):
    delivery_success_rate: float | None
    average_delivery_time_ms: int | None
    p50_delivery_time_ms: int | None
    p95_delivery_time_ms: int | None
    failed_deliveries_24h: int
    retry_success_rate: float | None


class Performance(Answer):
    webhook_performance: Figures


class BySubscription(Answer):
    subscription_id: SubscriptionId
    count: int


class ByError(Answer):
    error: ErrorKind | None
    count: int


class ByBoth(Answer):
    subscription_id: SubscriptionId
    error: ErrorKind | None
    count: int


class ByStatus(Answer):
    status: State
    count: int


class Skips(ByBoth):
    reason: SkipReason


class Held(Answer):
    subscription_id: SubscriptionId
    reason: Literal["paused", "breaker_open"]
    count: int


class Overlap(Answer):
    replay_id: ReplayId
    action: ReplayAction
    status: ReplayStatus
    count: int


class ReplayPreview(Answer):
    dry_run: Literal[True]
    action: ReplayAction
    filters: Object
    rate_per_second: int
    total: int
    estimated_duration_s: int
    by_subscription: list[BySubscription]
    by_error: list[ByError]
    groups: list[ByBoth]
    by_status: list[ByStatus] | None
    skipped: int | None
    skips: list[Skips] | None
    held: list[Held] | None
    overlaps: list[Overlap] | None


class Replay(Answer):
    id: ReplayId
    replay_id: ReplayId
    organization_id: OrganizationId
    action: ReplayAction
    status: ReplayStatus
    filters: Object
    rate_per_second: int
    total: int
    sent: int
    succeeded: int
    failed: int
    skipped: int
    created_by: str
    created_at: Time
    started_at: Time | None
    finished_at: Time | None


class ReplayItem(Answer):
    id: DeliveryId
    delivery_id: DeliveryId
    replay_id: ReplayId
    outcome: ItemOutcome
    event_id: EventId | None
    event_type: str | None
    subscription_id: SubscriptionId | None
    status: State | None
    status_code: int | None
    error: ErrorKind | None
    error_message: str | None


class ReplayCreated(Replay):
    by_subscription: list[BySubscription]
    by_error: list[ByError]


class EventType(Answer):
    id: str
    name: str
    description: str
    schema_: Object | None = Field(alias="schema")
    example: Object | None
    created_at: Time


class Organization(Answer):
    id: OrganizationId
    organization_id: OrganizationId
    name: str
    version: int
    created_at: Time
    updated_at: Time


class OrganizationDeleted(Answer):
    id: OrganizationId
    organization_id: OrganizationId
    status: Literal["deleted"]
    deleted_at: Time


class ApiKey(Answer):
    id: KeyId
    key_id: KeyId
    organization_id: OrganizationId | None
    name: str
    prefix: str
    scopes: list[str]
    tier: RateTier
    created_at: Time
    last_used_at: Time | None
    revoked_at: Time | None


class AuditEntry(Answer):
    id: AuditEntryId
    at: Time
    organization_id: OrganizationId | None
    actor: str
    actor_name: str
    action: str
    resource: str
    before: Object | None
    after: Object | None
    address: str | None
    request_id: str | None


class ApiKeyCreated(ApiKey):
    key: str
