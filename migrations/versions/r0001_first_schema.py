"""The first schema: organizations, keys, subscriptions, events, deliveries, attempts, replays

Written as SQL, since that is what runs: core.models holds the same tables, and a test compares the two catalogues.

Revision: 0001, the first
"""

from alembic import op

revision = "0001"
down_revision = None

DDL = """
CREATE TABLE attempts (
    id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    series smallint NOT NULL,
    number smallint NOT NULL,
    replay_id uuid,
    started_at timestamptz NOT NULL,
    duration_ms integer NOT NULL,
    status_code smallint,
    error_kind text,
    error_message text,
    url text NOT NULL,
    request_headers text NOT NULL,
    response_headers text,
    response_body bytea,
    CONSTRAINT pk_attempts PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX ix_attempts_delivery_id_id ON attempts (delivery_id, id);

CREATE TABLE deliveries (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    subscription_id uuid NOT NULL,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    state text NOT NULL,
    reason text,
    due_at timestamptz,
    lease_token uuid,
    series smallint DEFAULT 0 NOT NULL,
    attempt_count smallint DEFAULT 0 NOT NULL,
    replay_id uuid,
    status_code smallint,
    error_kind text,
    error_message text,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_deliveries PRIMARY KEY (id),
    CONSTRAINT ck_deliveries_state CHECK (state IN ('pending', 'sending', 'delivered', 'dead', 'discarded')),
    CONSTRAINT ck_deliveries_lease CHECK ((state = 'sending') = (lease_token IS NOT NULL)),
    CONSTRAINT ck_deliveries_due CHECK (
        (due_at IS NOT NULL) = (state = 'sending' OR (state = 'pending' AND reason <> 'paused'))
    ),
    CONSTRAINT ck_deliveries_reason CHECK (
        CASE state
            WHEN 'pending' THEN reason IS NOT NULL
                AND reason IN ('new', 'retry', 'replay', 'rate_limited', 'breaker_open', 'paused')
            WHEN 'dead' THEN reason IS NOT NULL
                AND reason IN ('exhausted', 'gone', 'aborted', 'rejected', 'subscription_disabled')
            WHEN 'discarded' THEN reason IS NOT NULL
                AND reason IN ('requested', 'subscription_deleted')
            ELSE reason IS NULL
        END
    )
) PARTITION BY RANGE (id);
CREATE INDEX ix_deliveries_dead ON deliveries (organization_id, id) WHERE state = 'dead';
CREATE INDEX ix_deliveries_dead_subscription ON deliveries (subscription_id, id) WHERE state = 'dead';
CREATE INDEX ix_deliveries_due ON deliveries (due_at) WHERE state IN ('pending', 'sending');
CREATE INDEX ix_deliveries_held ON deliveries (subscription_id, id) WHERE state = 'pending' AND reason = 'paused';
CREATE INDEX ix_deliveries_organization_id_id ON deliveries (organization_id, id);
CREATE INDEX ix_deliveries_replay ON deliveries (replay_id, id) WHERE replay_id IS NOT NULL;
CREATE INDEX ix_deliveries_subscription_id_id ON deliveries (subscription_id, id);

CREATE TABLE event_keys (
    organization_id uuid NOT NULL,
    external_id text NOT NULL,
    event_id uuid NOT NULL,
    CONSTRAINT pk_event_keys PRIMARY KEY (organization_id, external_id)
);
CREATE INDEX ix_event_keys_event_id ON event_keys (event_id);

CREATE TABLE events (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    event_type text NOT NULL,
    occurred_at timestamptz NOT NULL,
    external_id text,
    branch_id text,
    metadata text,
    payload bytea NOT NULL,
    data_at integer NOT NULL,
    matched_subscriptions integer NOT NULL,
    only_for uuid,
    CONSTRAINT pk_events PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX ix_events_organization_id_id ON events (organization_id, id);

CREATE TABLE idempotency_keys (
    organization_id uuid NOT NULL,
    route text NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    response bytea NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (organization_id, route, key)
);
CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at);

CREATE TABLE organizations (
    id uuid NOT NULL,
    name text NOT NULL,
    subscriptions_version bigint DEFAULT 0 NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_organizations PRIMARY KEY (id),
    CONSTRAINT ck_organizations_name CHECK (length(name) BETWEEN 1 AND 200)
);

CREATE TABLE replay_items (
    replay_id uuid NOT NULL,
    delivery_id uuid NOT NULL,
    outcome text DEFAULT 'waiting' NOT NULL,
    CONSTRAINT pk_replay_items PRIMARY KEY (replay_id, delivery_id),
    CONSTRAINT ck_replay_items_outcome CHECK (outcome IN ('waiting', 'sent', 'succeeded', 'failed', 'skipped'))
);
CREATE INDEX ix_replay_items_delivery_id ON replay_items (delivery_id);
CREATE INDEX ix_replay_items_open ON replay_items (replay_id, delivery_id) WHERE outcome IN ('waiting', 'sent');

CREATE TABLE api_keys (
    id uuid NOT NULL,
    organization_id uuid,
    name text NOT NULL,
    prefix text NOT NULL,
    hash bytea NOT NULL,
    hash_key_id bytea NOT NULL,
    scopes text[] DEFAULT '{}' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    last_used_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT uq_api_keys_prefix UNIQUE (prefix),
    CONSTRAINT fk_api_keys_organization_id FOREIGN KEY(organization_id) REFERENCES organizations (id)
);
CREATE INDEX ix_api_keys_organization_id_id ON api_keys (organization_id, id);

CREATE TABLE event_types (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    name text NOT NULL,
    description text DEFAULT '' NOT NULL,
    schema jsonb,
    example jsonb,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_event_types PRIMARY KEY (id),
    CONSTRAINT uq_event_types_organization_id_name UNIQUE (organization_id, name),
    CONSTRAINT fk_event_types_organization_id FOREIGN KEY(organization_id) REFERENCES organizations (id)
);

CREATE TABLE replays (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    filters jsonb DEFAULT '{}' NOT NULL,
    rate_per_second integer NOT NULL,
    status text NOT NULL,
    total integer DEFAULT 0 NOT NULL,
    sent integer DEFAULT 0 NOT NULL,
    succeeded integer DEFAULT 0 NOT NULL,
    failed integer DEFAULT 0 NOT NULL,
    skipped integer DEFAULT 0 NOT NULL,
    created_by text DEFAULT '' NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    paced_at timestamptz,
    CONSTRAINT pk_replays PRIMARY KEY (id),
    CONSTRAINT ck_replays_status CHECK (status IN ('queued', 'running', 'paused', 'completed', 'cancelled')),
    CONSTRAINT ck_replays_rate_per_second CHECK (rate_per_second BETWEEN 1 AND 10000),
    CONSTRAINT fk_replays_organization_id FOREIGN KEY(organization_id) REFERENCES organizations (id)
);
CREATE INDEX ix_replays_organization_id_id ON replays (organization_id, id);
CREATE INDEX ix_replays_unfinished ON replays (id) WHERE status IN ('queued', 'running');

CREATE TABLE subscriptions (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    url text NOT NULL,
    events text[] DEFAULT '{}' NOT NULL,
    filters jsonb DEFAULT '{}' NOT NULL,
    authentication_type text DEFAULT 'standard' NOT NULL,
    payload_format text DEFAULT 'default' NOT NULL,
    retry_policy jsonb,
    headers bytea,
    timeout_ms integer DEFAULT 15000 NOT NULL,
    description text DEFAULT '' NOT NULL,
    metadata jsonb DEFAULT '{}' NOT NULL,
    branch_id text,
    status text DEFAULT 'active' NOT NULL,
    status_reason text,
    settled boolean DEFAULT true NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_subscriptions PRIMARY KEY (id),
    CONSTRAINT ck_subscriptions_status CHECK (status IN ('active', 'paused', 'disabled', 'deleted')),
    CONSTRAINT ck_subscriptions_timeout_ms CHECK (timeout_ms BETWEEN 1000 AND 30000),
    CONSTRAINT ck_subscriptions_events CHECK (cardinality(events) > 0),
    CONSTRAINT fk_subscriptions_organization_id FOREIGN KEY(organization_id) REFERENCES organizations (id)
);
CREATE INDEX ix_subscriptions_organization_id_id ON subscriptions (organization_id, id);
CREATE INDEX ix_subscriptions_unsettled ON subscriptions (id) WHERE NOT settled;

CREATE TABLE subscription_secrets (
    id uuid NOT NULL,
    subscription_id uuid NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz,
    CONSTRAINT pk_subscription_secrets PRIMARY KEY (id),
    CONSTRAINT fk_subscription_secrets_subscription_id FOREIGN KEY(subscription_id) REFERENCES subscriptions (id)
);
CREATE INDEX ix_subscription_secrets_subscription_id_id ON subscription_secrets (subscription_id, id);
CREATE UNIQUE INDEX uq_subscription_secrets_current ON subscription_secrets (subscription_id) WHERE expires_at IS NULL;

"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
