"""Limits and circuit breakers, queues of what is due and what is parked, statistics, workers, lists that scale

Building the indexes locks events and deliveries: nothing is accepted meanwhile. Stop the workers of 0001 before: their
sweep has no index afterwards, and they know neither limits nor breakers.

Each statement may find its work done: for a while 0001 itself held all of this.

Revision: 0002, after 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"

DDL = """
-- In the order in which sweeps and outcomes lock them, so that none of those is met crosswise.
LOCK TABLE deliveries, events, subscriptions IN ACCESS EXCLUSIVE MODE;

ALTER TABLE subscriptions
    ADD COLUMN IF NOT EXISTS limits jsonb, ADD COLUMN IF NOT EXISTS circuit_breaker jsonb;

DROP INDEX IF EXISTS ix_deliveries_dead;
DROP INDEX IF EXISTS ix_deliveries_dead_subscription;
DROP INDEX IF EXISTS ix_deliveries_due;
CREATE INDEX IF NOT EXISTS ix_deliveries_due ON deliveries
    ((CASE reason WHEN 'retry' THEN 1 WHEN 'replay' THEN 2 ELSE 0 END), due_at)
    WHERE state IN ('pending', 'sending') AND (reason IS NULL OR reason IN ('new', 'retry', 'replay'));
CREATE INDEX IF NOT EXISTS ix_deliveries_parked ON deliveries
    (subscription_id, (CASE WHEN attempt_count > 0 THEN 1 WHEN series > 0 THEN 2 ELSE 0 END), id)
    WHERE state = 'pending' AND reason IN ('rate_limited', 'breaker_open');
CREATE INDEX IF NOT EXISTS ix_deliveries_off_path ON deliveries (
    organization_id, id, state, reason, error_kind, status_code, event_type, subscription_id
) WHERE reason <> 'new' OR error_kind IS NOT NULL;
CREATE INDEX IF NOT EXISTS ix_deliveries_off_path_subscription ON deliveries (
    organization_id, subscription_id, id, state, reason, error_kind, status_code, event_type
) WHERE (reason <> 'new' OR error_kind IS NOT NULL) AND subscription_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS ix_deliveries_pending ON deliveries (organization_id, id) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS ix_events_organization_id_event_type_id ON events (organization_id, event_type, id);

CREATE TABLE IF NOT EXISTS delivery_stats (
    organization_id uuid NOT NULL,
    subscription_id uuid NOT NULL,
    minute timestamptz NOT NULL,
    error_kind text DEFAULT '' NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    retries integer DEFAULT 0 NOT NULL,
    dead integer DEFAULT 0 NOT NULL,
    dead_retried integer DEFAULT 0 NOT NULL,
    duration_ms bigint DEFAULT 0 NOT NULL,
    CONSTRAINT pk_delivery_stats PRIMARY KEY (organization_id, subscription_id, minute, error_kind)
) WITH (fillfactor = 70);
CREATE INDEX IF NOT EXISTS ix_delivery_stats_minute ON delivery_stats (minute);

CREATE TABLE IF NOT EXISTS workers (
    id uuid NOT NULL,
    seen_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_workers PRIMARY KEY (id)
);
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
