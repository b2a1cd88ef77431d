"""The tables. Migrations build the same schema step by step; a test holds the two equal.

Events, deliveries and attempts are partitioned by the time inside their id, one partition a UTC day
(`core.storage.partitions`). They carry no foreign keys: the checks would cost more than the insert itself, and a
partition could not be dropped alone. What they refer to is never deleted, only marked.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from core.states import DeadReason, DiscardReason, PendingReason, State
from core.storage.columns import id_, integer, json_, now, one_of, text_, texts, time_, uuid_

DAILY = {"postgresql_partition_by": "RANGE (id)"}


class SubscriptionStatus(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"  # by a person: deliveries are held and sent on resume
    DISABLED = "disabled"  # by the receiver (410): nothing is created or sent until resumed
    DELETED = "deleted"  # kept for the history that refers to it


class ReplayAction(StrEnum):
    """What a replay's job does with each delivery."""

    REPLAY = "replay"
    DISCARD = "discard"


class ReplayStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


UNFINISHED = (ReplayStatus.QUEUED, ReplayStatus.RUNNING, ReplayStatus.PAUSED)


class ItemOutcome(StrEnum):
    """What came of one delivery in a replay."""

    WAITING = "waiting"  # not sent yet
    SENT = "sent"  # handed to the workers; no attempt has ended
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # its last attempt failed; a later retry may still turn it into succeeded
    SKIPPED = "skipped"  # its state or its subscription did not allow it


class Organization(SQLModel, table=True):
    """A tenant; owns everything below it."""

    __tablename__ = "organizations"
    __table_args__ = (
        CheckConstraint("length(name) BETWEEN 1 AND 200", name="name"),
        Index("ix_organizations_deleted", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: UUID = Field(sa_column=id_())
    name: str = Field(sa_column=text_())
    # When somebody deleted it: nobody sees it since, and workers erase what it had, at last this row (core.erasure).
    deleted_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))
    erased: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))  # rows by table, so far
    # Raised by every change to a subscription of this organization; acceptance compares it with what it has cached.
    subscriptions_version: int = Field(default=0, sa_column=integer(0, BigInteger))
    version: int = Field(default=1, sa_column=integer(1))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    updated_at: datetime = Field(default_factory=now, sa_column=time_(now=True))


class RateTier(StrEnum):
    """How many requests an API key may make (core.limiting.rate_limits)."""

    DEFAULT = "default"
    PREMIUM = "premium"
    BULK = "bulk"


class ApiKey(SQLModel, table=True):
    """A credential. The key itself is shown once; a keyed hash of it is stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("prefix"),
        CheckConstraint(one_of("tier", RateTier), name="tier"),
        Index(None, "organization_id", "id"),
    )

    id: UUID = Field(sa_column=id_())
    organization_id: UUID | None = Field(
        default=None, sa_column=uuid_(nullable=True, of="organizations")
    )  # none: a platform key
    name: str = Field(sa_column=text_())
    prefix: str = Field(sa_column=text_())  # the first characters of the key: what lists show and look-ups use
    hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    hash_key_id: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # which secret key made the hash
    scopes: list[str] = Field(sa_column=texts())
    tier: str = Field(default=RateTier.DEFAULT, sa_column=text_(default="default"))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    last_used_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))
    revoked_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))


class EventType(SQLModel, table=True):
    """A catalogue entry: what a producer says about a kind of event."""

    __tablename__ = "event_types"
    __table_args__ = (UniqueConstraint("organization_id", "name"),)

    id: UUID = Field(sa_column=id_())
    organization_id: UUID = Field(sa_column=uuid_(of="organizations"))
    name: str = Field(sa_column=text_())
    description: str = Field(default="", sa_column=text_(default=""))
    schema_: dict[str, Any] | None = Field(default=None, sa_column=Column("schema", JSONB(none_as_null=True)))
    example: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))


class Subscription(SQLModel, table=True):
    """A URL plus what it wants to hear, how it is signed and how it is retried."""

    __tablename__ = "subscriptions"
    __table_args__ = (
        CheckConstraint(one_of("status", SubscriptionStatus), name="status"),
        CheckConstraint("timeout_ms BETWEEN 1000 AND 30000", name="timeout_ms"),
        CheckConstraint("cardinality(events) > 0", name="events"),
        Index(None, "organization_id", "id"),
        Index("ix_subscriptions_unsettled", "id", postgresql_where=text("NOT settled")),
        Index("ix_subscriptions_kept", "organization_id", "id", postgresql_where=text("status <> 'deleted'")),
    )

    id: UUID = Field(sa_column=id_())
    organization_id: UUID = Field(sa_column=uuid_(of="organizations"))
    url: str = Field(sa_column=text_())
    events: list[str] = Field(sa_column=texts())
    filters: dict[str, Any] = Field(default_factory=dict, sa_column=json_())
    authentication_type: str = Field(default="standard", sa_column=text_(default="standard"))
    payload_format: str = Field(default="default", sa_column=text_(default="default"))
    retry_policy: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))  # none: the default
    headers: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # sealed JSON object
    timeout_ms: int = Field(default=15_000, sa_column=integer(15_000))
    limits: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))  # none: the defaults
    circuit_breaker: dict[str, Any] | None = Field(default=None, sa_column=json_(nullable=True))  # none: the defaults
    description: str = Field(default="", sa_column=text_(default=""))
    metadata_: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column("metadata", JSONB, nullable=False, server_default=text("'{}'"))
    )
    branch_id: str | None = Field(default=None, sa_column=text_(nullable=True))
    status: str = Field(default=SubscriptionStatus.ACTIVE, sa_column=text_(default="active"))
    status_reason: str | None = Field(default=None, sa_column=text_(nullable=True))
    # False: its last change of status left deliveries to release or to discard (core.settling).
    settled: bool = Field(default=True, sa_column=Column(Boolean, nullable=False, server_default=text("true")))
    version: int = Field(default=1, sa_column=integer(1))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    updated_at: datetime = Field(default_factory=now, sa_column=time_(now=True))


class SubscriptionSecret(SQLModel, table=True):
    """One signing secret. The one that never expires is current; the others live through their grace period."""

    __tablename__ = "subscription_secrets"
    __table_args__ = (
        Index(
            "uq_subscription_secrets_current",
            "subscription_id",
            unique=True,
            postgresql_where=text("expires_at IS NULL"),
        ),
        Index(None, "subscription_id", "id"),
    )

    id: UUID = Field(sa_column=id_())
    subscription_id: UUID = Field(sa_column=uuid_(of="subscriptions"))
    sealed: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    expires_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))


class Event(SQLModel, table=True):
    """One accepted message. `payload` is the exact body of the default format; its time of acceptance is in its id."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "organization_id", "id"), Index(None, "organization_id", "event_type", "id"), DAILY)

    id: UUID = Field(sa_column=id_())
    organization_id: UUID = Field(sa_column=uuid_())
    event_type: str = Field(sa_column=text_())
    occurred_at: datetime = Field(sa_column=time_())
    external_id: str | None = Field(default=None, sa_column=text_(nullable=True))  # the producer's own `event_id`
    branch_id: str | None = Field(default=None, sa_column=text_(nullable=True))
    metadata_: str | None = Field(default=None, sa_column=Column("metadata", Text))  # JSON text, never queried
    payload: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    data_at: int = Field(sa_column=Column(Integer, nullable=False))  # `data` is payload[data_at:-1]
    matched_subscriptions: int = Field(sa_column=Column(Integer, nullable=False))
    only_for: UUID | None = Field(default=None, sa_column=uuid_(nullable=True))  # a test event's one subscription
    copied_from: UUID | None = Field(default=None, sa_column=uuid_(nullable=True))  # whose payload was changed for it
    # Since then `data` is {} and nothing is sent any more (core.redaction).
    redacted_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))


class EventKey(SQLModel, table=True):
    """Which event a producer's own `event_id` became: the same id again is the same event."""

    __tablename__ = "event_keys"
    __table_args__ = (Index(None, "event_id"),)

    organization_id: UUID = Field(sa_column=id_())
    external_id: str = Field(sa_column=Column(Text, primary_key=True))
    event_id: UUID = Field(sa_column=uuid_())


# Deliveries that left the straight path from new over sending to delivered: failed, waiting for another reason, dead,
# discarded. Few of all, and most of what anybody looks for.
OFF_PATH = "reason <> 'new' OR error_kind IS NOT NULL"
_FILTERED = ("state", "reason", "error_kind", "status_code", "event_type")


class Delivery(SQLModel, table=True):
    """One event for one subscription. Written by `core.deliveries` alone."""

    __tablename__ = "deliveries"
    __table_args__ = (
        CheckConstraint(one_of("state", State), name="state"),
        CheckConstraint("(state = 'sending') = (lease_token IS NOT NULL)", name="lease"),
        # Held deliveries (paused) have no due time; everything else that is unfinished has one.
        CheckConstraint(
            "(due_at IS NOT NULL) = (state = 'sending' OR (state = 'pending' AND reason <> 'paused'))",
            name="due",
        ),
        CheckConstraint(
            "CASE state"
            f" WHEN 'pending' THEN reason IS NOT NULL AND {one_of('reason', PendingReason)}"
            f" WHEN 'dead' THEN reason IS NOT NULL AND {one_of('reason', DeadReason)}"
            f" WHEN 'discarded' THEN reason IS NOT NULL AND {one_of('reason', DiscardReason)}"
            " ELSE reason IS NULL END",
            name="reason",
        ),
        Index(None, "organization_id", "id"),
        Index(None, "subscription_id", "id"),
        Index(
            "ix_deliveries_due",
            text("(CASE reason WHEN 'retry' THEN 1 WHEN 'replay' THEN 2 ELSE 0 END)"),
            "due_at",
            postgresql_where=text(
                "state IN ('pending', 'sending') AND (reason IS NULL OR reason IN ('new', 'retry', 'replay'))"
            ),
        ),
        Index(
            "ix_deliveries_parked",
            "subscription_id",
            text("(CASE WHEN attempt_count > 0 THEN 1 WHEN series > 0 THEN 2 ELSE 0 END)"),
            "id",
            postgresql_where=text("state = 'pending' AND reason IN ('rate_limited', 'breaker_open')"),
        ),
        Index(
            "ix_deliveries_held",
            "subscription_id",
            "id",
            postgresql_where=text("state = 'pending' AND reason = 'paused'"),
        ),
        Index("ix_deliveries_pending", "organization_id", "id", postgresql_where=text("state = 'pending'")),
        # Behind the id, which gives the order, stands what lists filter by: it is checked in the index.
        Index(
            "ix_deliveries_off_path",
            "organization_id",
            "id",
            *_FILTERED,
            "subscription_id",
            postgresql_where=text(OFF_PATH),
        ),
        # The last condition always holds. It keeps PostgreSQL from reading this index where no subscription is named.
        Index(
            "ix_deliveries_off_path_subscription",
            "organization_id",
            "subscription_id",
            "id",
            *_FILTERED,
            postgresql_where=text(f"({OFF_PATH}) AND subscription_id IS NOT NULL"),
        ),
        # Groups of dead letters are counted in it.
        Index(
            "ix_deliveries_dead",
            "organization_id",
            "subscription_id",
            "error_kind",
            "id",
            postgresql_where=text("state = 'dead'"),
        ),
        Index("ix_deliveries_replay", "replay_id", "id", postgresql_where=text("replay_id IS NOT NULL")),
        # A preview counts in the indexes above, and takes off what it finds in this one.
        Index("ix_deliveries_redacted", "organization_id", "id", postgresql_where=text("redacted_at IS NOT NULL")),
        DAILY,
    )

    id: UUID = Field(sa_column=id_())
    organization_id: UUID = Field(sa_column=uuid_())
    subscription_id: UUID = Field(sa_column=uuid_())
    event_id: UUID = Field(sa_column=uuid_())
    event_type: str = Field(sa_column=text_())
    state: str = Field(sa_column=text_())
    reason: str | None = Field(default=None, sa_column=text_(nullable=True))
    due_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))  # sending: when the lease ends
    lease_token: UUID | None = Field(default=None, sa_column=uuid_(nullable=True))
    series: int = Field(default=0, sa_column=integer(0, SmallInteger))  # raised by every replay
    attempt_count: int = Field(default=0, sa_column=integer(0, SmallInteger))  # within the series
    replay_id: UUID | None = Field(default=None, sa_column=uuid_(nullable=True))
    status_code: int | None = Field(default=None, sa_column=Column(SmallInteger))  # of the last attempt, like error_*
    error_kind: str | None = Field(default=None, sa_column=text_(nullable=True))
    error_message: str | None = Field(default=None, sa_column=text_(nullable=True))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    updated_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    # As its event's. Here too, so that whoever waits for this row's lock sees it.
    redacted_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))


class Attempt(SQLModel, table=True):
    """One HTTP try of a delivery. Only ever added to."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "delivery_id", "id"), DAILY)

    id: UUID = Field(sa_column=id_())
    delivery_id: UUID = Field(sa_column=uuid_())
    organization_id: UUID = Field(sa_column=uuid_())
    series: int = Field(sa_column=Column(SmallInteger, nullable=False))
    number: int = Field(sa_column=Column(SmallInteger, nullable=False))  # from 1 within the series
    replay_id: UUID | None = Field(default=None, sa_column=uuid_(nullable=True))
    started_at: datetime = Field(sa_column=time_())
    duration_ms: int = Field(sa_column=Column(Integer, nullable=False))
    status_code: int | None = Field(default=None, sa_column=Column(SmallInteger))
    error_kind: str | None = Field(default=None, sa_column=text_(nullable=True))
    error_message: str | None = Field(default=None, sa_column=text_(nullable=True))
    url: str = Field(sa_column=text_())
    request_headers: str = Field(sa_column=text_())  # JSON list of pairs, custom values masked
    response_headers: str | None = Field(default=None, sa_column=text_(nullable=True))  # JSON list of pairs
    response_body: bytes | None = Field(default=None, sa_column=Column(LargeBinary))  # the first 4 KiB


class UnfinishedRedaction(SQLModel, table=True):
    """An event that was emptied, while its deliveries are still to be (core.redaction)."""

    __tablename__ = "unfinished_redactions"

    event_id: UUID = Field(sa_column=id_())


class DeliveryStats(SQLModel, table=True):
    """What was accepted and what came of attempts within one minute. Written by `core.stats` alone.

    Rows are updated many times in their first minute and never after: room in each page lets that happen without
    touching an index.
    """

    __tablename__ = "delivery_stats"
    __table_args__ = (Index(None, "minute"), {"postgresql_with": {"fillfactor": 70}})

    organization_id: UUID = Field(sa_column=id_())  # or zero, in the rows of the whole installation
    subscription_id: UUID = Field(sa_column=id_())  # or zero, in the rows of the whole organization
    minute: datetime = Field(sa_column=Column(DateTime(timezone=True), primary_key=True))
    error_kind: str = Field(default="", sa_column=Column(Text, primary_key=True, server_default=text("''")))
    attempts: int = Field(default=0, sa_column=integer(0))
    retries: int = Field(default=0, sa_column=integer(0))  # of these, not the first of their delivery and series
    dead: int = Field(default=0, sa_column=integer(0))  # deliveries given up
    dead_retried: int = Field(default=0, sa_column=integer(0))  # of these, after more than one attempt
    duration_ms: int = Field(default=0, sa_column=integer(0, BigInteger))  # of all attempts, together
    # Events; only in rows without an error, of organizations and of the installation.
    accepted: int = Field(default=0, sa_column=integer(0))
    # How many successful attempts took up to each of the bounds in `core.stats`; only in rows without an error.
    durations: list[int] | None = Field(default=None, sa_column=Column(ARRAY(Integer)))


class BreakerChange(SQLModel, table=True):
    """That a subscription's circuit breaker opened, half-opened or closed; when is in the id. History, which nothing
    depends on: the breakers themselves are in Redis (`core.limiting.breakers`)."""

    __tablename__ = "breaker_changes"
    __table_args__ = (Index(None, "subscription_id", "id"), Index(None, "organization_id"))

    id: UUID = Field(sa_column=id_())
    organization_id: UUID = Field(sa_column=uuid_())
    subscription_id: UUID = Field(sa_column=uuid_())
    state: str = Field(sa_column=text_())
    failures: int = Field(sa_column=Column(Integer, nullable=False))  # in a row, up to then


class Replay(SQLModel, table=True):
    """A durable bulk job that sends chosen deliveries again, or discards them."""

    __tablename__ = "replays"
    __table_args__ = (
        CheckConstraint(one_of("status", ReplayStatus), name="status"),
        CheckConstraint(one_of("action", ReplayAction), name="action"),
        # A worker of a release that knows no discards would send what is to be discarded; so its step fails.
        CheckConstraint("action = 'replay' OR sent = succeeded", name="discard"),
        CheckConstraint("rate_per_second BETWEEN 1 AND 10000", name="rate_per_second"),
        Index(None, "organization_id", "id"),
        Index("ix_replays_unfinished", "id", postgresql_where=text("status IN ('queued', 'running')")),
        Index("ix_replays_open", "organization_id", postgresql_where=text(one_of("status", UNFINISHED))),
    )

    id: UUID = Field(sa_column=id_())
    organization_id: UUID = Field(sa_column=uuid_(of="organizations"))
    action: str = Field(default=ReplayAction.REPLAY, sa_column=text_(default="replay"))
    filters: dict[str, Any] = Field(default_factory=dict, sa_column=json_())
    rate_per_second: int = Field(sa_column=Column(Integer, nullable=False))
    status: str = Field(sa_column=text_())
    total: int = Field(default=0, sa_column=integer(0))
    sent: int = Field(default=0, sa_column=integer(0))
    succeeded: int = Field(default=0, sa_column=integer(0))
    failed: int = Field(default=0, sa_column=integer(0))
    skipped: int = Field(default=0, sa_column=integer(0))
    created_by: str = Field(default="", sa_column=text_(default=""))
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))
    started_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))
    finished_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))
    # Up to when the rate has been spent: a tick sends what the time since then allows.
    paced_at: datetime | None = Field(default=None, sa_column=time_(nullable=True))


class ReplayItem(SQLModel, table=True):
    """One delivery of a replay's frozen selection."""

    __tablename__ = "replay_items"
    __table_args__ = (
        CheckConstraint(one_of("outcome", ItemOutcome), name="outcome"),
        Index(
            "ix_replay_items_open",
            "replay_id",
            "delivery_id",
            postgresql_where=text("outcome IN ('waiting', 'sent')"),
        ),
        Index(None, "delivery_id"),  # retention forgets the items of deliveries that it dropped
    )

    replay_id: UUID = Field(sa_column=id_())
    delivery_id: UUID = Field(sa_column=id_())
    outcome: str = Field(default=ItemOutcome.WAITING, sa_column=text_(default="waiting"))


class IdempotencyKey(SQLModel, table=True):
    """The first answer to a POST that carried an `Idempotency-Key`, kept for 24 hours."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    organization_id: UUID = Field(sa_column=id_())
    route: str = Field(sa_column=Column(Text, primary_key=True))  # method and path
    key: str = Field(sa_column=Column(Text, primary_key=True))
    body_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    response: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # sealed: it may show a secret once
    created_at: datetime = Field(default_factory=now, sa_column=time_(now=True))


class Worker(SQLModel, table=True):
    """A worker process that said not long ago that it lives. Limits are divided among them."""

    __tablename__ = "workers"

    id: UUID = Field(sa_column=id_())
    seen_at: datetime = Field(sa_column=time_(now=True))
