"""Users, sessions and ways to sign in; tiers of API keys; the audit log; redaction and erasure

Adding the reason for redacted events reads all of `deliveries` once, under its lock.

Revision: 0003, after 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"

DDL = """
LOCK TABLE deliveries, events IN ACCESS EXCLUSIVE MODE;
ALTER TABLE deliveries DROP CONSTRAINT ck_deliveries_reason, ADD CONSTRAINT ck_deliveries_reason CHECK (
    CASE state
        WHEN 'pending' THEN reason IS NOT NULL
            AND reason IN ('new', 'retry', 'replay', 'rate_limited', 'breaker_open', 'paused')
        WHEN 'dead' THEN reason IS NOT NULL
            AND reason IN ('exhausted', 'gone', 'aborted', 'rejected', 'subscription_disabled')
        WHEN 'discarded' THEN reason IS NOT NULL
            AND reason IN ('requested', 'subscription_deleted', 'event_redacted')
        ELSE reason IS NULL
    END
);
ALTER TABLE events ADD COLUMN redacted_at timestamptz;
ALTER TABLE organizations ADD COLUMN deleted_at timestamptz;
ALTER TABLE api_keys
    ADD COLUMN tier text DEFAULT 'default' NOT NULL,
    ADD CONSTRAINT ck_api_keys_tier CHECK (tier IN ('default', 'premium', 'bulk'));

CREATE TABLE users (
    id uuid NOT NULL,
    email text NOT NULL,
    name text DEFAULT '' NOT NULL,
    role text NOT NULL,
    password_hash text,
    oidc_issuer text,
    oidc_subject text,
    version integer DEFAULT 1 NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    updated_at timestamptz DEFAULT now() NOT NULL,
    last_signed_in_at timestamptz,
    disabled_at timestamptz,
    CONSTRAINT pk_users PRIMARY KEY (id),
    CONSTRAINT uq_users_email UNIQUE (email),
    CONSTRAINT uq_users_oidc_issuer_oidc_subject UNIQUE (oidc_issuer, oidc_subject),
    CONSTRAINT ck_users_role CHECK (role IN ('viewer', 'operator', 'admin')),
    CONSTRAINT ck_users_email CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    CONSTRAINT ck_users_oidc CHECK ((oidc_issuer IS NULL) = (oidc_subject IS NULL))
);

CREATE TABLE user_sessions (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    token_hash bytea NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    seen_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz NOT NULL,
    address text,
    user_agent text,
    CONSTRAINT pk_user_sessions PRIMARY KEY (id),
    CONSTRAINT fk_user_sessions_user_id FOREIGN KEY (user_id) REFERENCES users (id),
    CONSTRAINT uq_user_sessions_token_hash UNIQUE (token_hash)
);
CREATE INDEX ix_user_sessions_user_id_id ON user_sessions (user_id, id);
CREATE INDEX ix_user_sessions_expires_at ON user_sessions (expires_at);

CREATE TABLE sign_in_links (
    token_hash bytea NOT NULL,
    user_id uuid,
    created_at timestamptz DEFAULT now() NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_sign_in_links PRIMARY KEY (token_hash),
    CONSTRAINT fk_sign_in_links_user_id FOREIGN KEY (user_id) REFERENCES users (id)
);
CREATE INDEX ix_sign_in_links_user_id ON sign_in_links (user_id);

CREATE TABLE sign_in_failures (
    subject bytea NOT NULL,
    count integer DEFAULT 0 NOT NULL,
    last_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_sign_in_failures PRIMARY KEY (subject)
);
CREATE INDEX ix_sign_in_failures_last_at ON sign_in_failures (last_at);

CREATE TABLE oidc_sign_ins (
    state_hash bytea NOT NULL,
    sealed bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT pk_oidc_sign_ins PRIMARY KEY (state_hash)
);
CREATE INDEX ix_oidc_sign_ins_expires_at ON oidc_sign_ins (expires_at);

CREATE TABLE audit_log (
    id uuid NOT NULL,
    organization_id uuid,
    actor text NOT NULL,
    actor_name text DEFAULT '' NOT NULL,
    action text NOT NULL,
    resource text DEFAULT '' NOT NULL,
    before jsonb,
    after jsonb,
    address text,
    request_id text,
    CONSTRAINT pk_audit_log PRIMARY KEY (id)
);
CREATE INDEX ix_audit_log_organization_id_id ON audit_log (organization_id, id);
CREATE INDEX ix_audit_log_resource_id ON audit_log (resource, id);
"""

# A row may go only with its whole organization, and only once that was marked as deleted.
APPEND_ONLY = """
CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND EXISTS (
        SELECT FROM organizations WHERE id = OLD.organization_id AND deleted_at IS NOT NULL
    ) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is only ever added to' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_append_only();
CREATE TRIGGER append_only_as_a_whole BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();
"""


def upgrade() -> None:
    for statement in DDL.split(";\n"):
        if statement.strip():
            op.execute(statement)
    for statement in APPEND_ONLY.split(";\nCREATE TRIGGER"):
        op.execute(statement if statement.startswith("\nCREATE FUNCTION") else f"CREATE TRIGGER{statement}")
