"""Users, sessions and ways to sign in; tiers of API keys; the audit log; redaction and erasure; partitions by function

What it changes of tables that are in use needs their locks for a moment and reads no row of events or deliveries: that
their rows meet the wider constraint is looked at afterwards, while everybody works (`core.storage.schema`).

Revision: 0003, after 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"

DDL = """
LOCK TABLE organizations, api_keys, events, deliveries IN ACCESS EXCLUSIVE MODE;
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
) NOT VALID;
ALTER TABLE events ADD COLUMN redacted_at timestamptz;
ALTER TABLE deliveries ADD COLUMN redacted_at timestamptz;
CREATE TABLE unfinished_redactions (event_id uuid NOT NULL, CONSTRAINT pk_unfinished_redactions PRIMARY KEY (event_id));
ALTER TABLE organizations ADD COLUMN deleted_at timestamptz, ADD COLUMN erased jsonb;
CREATE INDEX ix_organizations_deleted ON organizations (id) WHERE deleted_at IS NOT NULL;
ALTER TABLE api_keys
    ADD COLUMN tier text DEFAULT 'default' NOT NULL,
    ADD CONSTRAINT ck_api_keys_tier CHECK (tier IN ('default', 'premium', 'bulk'));
CREATE INDEX ix_subscriptions_kept ON subscriptions (organization_id, id) WHERE status <> 'deleted';

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
    first_at timestamptz DEFAULT now() NOT NULL,
    last_at timestamptz DEFAULT now() NOT NULL,
    noted_at timestamptz,
    CONSTRAINT pk_sign_in_failures PRIMARY KEY (subject)
);
CREATE INDEX ix_sign_in_failures_first_at ON sign_in_failures (first_at);

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
CREATE INDEX ix_audit_log_actor_id ON audit_log (actor, id);
"""

# A row may go only with its whole organization, and only once that was marked as deleted, which can't be taken back.
# `search_path` is fixed: who may make temporary tables could otherwise put an organization of their own in its place.
APPEND_ONLY = """
CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF EXISTS (SELECT FROM organizations WHERE id = OLD.organization_id AND deleted_at IS NOT NULL) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit log is only ever added to' USING ERRCODE = 'insufficient_privilege';
END
$$
"""
# Whoever deletes entries can't help leaving one that says so. It is of no organization, so it can't be deleted; run
# with the rights of the owner, it doesn't need the caller's. `gone` is looked up before any table. Its id and the
# organization's are made as core.ids does it.
ERASED = """
CREATE FUNCTION audit_log_says_what_was_erased() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
BEGIN
    INSERT INTO audit_log (id, actor, action, resource, after)
    SELECT
        overlay(
            lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
            || substr(replace(gen_random_uuid()::text, '-', ''), 13) PLACING '7' FROM 13 FOR 1
        )::uuid,
        'database',
        'audit_log.erased',
        'org_' || (
            SELECT string_agg(substr(
                '0123456789ABCDEFGHJKMNPQRSTVWXYZ',
                substring(B'00' || ('x' || replace(organization_id::text, '-', ''))::bit(128) FROM 5 * n + 1 FOR 5)
                    ::bit(5)::integer + 1,
                1
            ), '' ORDER BY n)
            FROM generate_series(0, 25) AS n
        ),
        jsonb_build_object('entries', count(*))
    FROM gone GROUP BY organization_id;
    RETURN NULL;
END
$$
"""
DELETED_FOR_GOOD = """
CREATE FUNCTION organizations_are_deleted_for_good() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a deleted organization stays deleted' USING ERRCODE = 'insufficient_privilege';
END
$$
"""
TRIGGERS = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_log
    FOR EACH ROW EXECUTE FUNCTION audit_log_is_append_only();
CREATE TRIGGER append_only_as_a_whole BEFORE TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();
CREATE TRIGGER erased AFTER DELETE ON audit_log REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION audit_log_says_what_was_erased();
CREATE TRIGGER deleted_for_good BEFORE UPDATE ON organizations
    FOR EACH ROW WHEN (OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS DISTINCT FROM OLD.deleted_at)
    EXECUTE FUNCTION organizations_are_deleted_for_good();
"""

# Run with the rights of the schema's owner, so that the application's role can make and drop days, and nothing else,
# without owning a table. They take a table that is known and a day; no text of the caller's becomes part of a
# statement. A partition carries no grants: it is reached through its table, which has them.
MAKE_PARTITION = """
CREATE FUNCTION make_partition(parent text, day date) RETURNS void
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
DECLARE
    name text := parent || '_p' || to_char(day, 'YYYYMMDD');
    low text;
    high text;
BEGIN
    IF parent NOT IN ('events', 'deliveries', 'attempts') OR day NOT BETWEEN '1970-01-01' AND '9999-12-30' THEN
        RAISE EXCEPTION 'there are partitions of events, deliveries and attempts, from 1970 to 9999'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    low := to_hex((extract(epoch FROM day) * 1000)::bigint);  -- an id begins with its milliseconds since 1970
    high := to_hex((extract(epoch FROM day + 1) * 1000)::bigint);
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name, parent);
    EXECUTE format(
        'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, name,
        (lpad(low, 12, '0') || repeat('0', 20))::uuid, (lpad(high, 12, '0') || repeat('0', 20))::uuid
    );
END
$$
"""
# While this waits for the transactions before it, all others wait behind it: so not for long. That no delivery is
# unfinished is looked at under the locks: a replay may have turned a finished one into a pending one. So it is asked in
# the words of two partial indexes, ix_deliveries_pending and ix_deliveries_due, and never reads the whole day.
DROP_PARTITIONS = """
CREATE FUNCTION drop_partitions(day date) RETURNS boolean
LANGUAGE plpgsql STRICT SECURITY DEFINER SET search_path = {schema}, pg_temp
SET lock_timeout = '500ms' SET enable_seqscan = off
AS $$
DECLARE
    parent text;
    name text;
    unfinished boolean;
BEGIN
    LOCK TABLE ONLY events, ONLY deliveries, ONLY attempts IN ACCESS EXCLUSIVE MODE;
    FOREACH parent IN ARRAY ARRAY['deliveries', 'events', 'attempts'] LOOP
        name := parent || '_p' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN NOT EXISTS (
            SELECT FROM pg_inherits WHERE inhrelid = to_regclass(quote_ident(name)) AND inhparent = to_regclass(parent)
        );
        IF parent = 'deliveries' THEN
            EXECUTE format(
                'SELECT EXISTS (SELECT FROM %1$I WHERE state = ''pending'')'
                ' OR EXISTS (SELECT FROM %1$I WHERE state = ''sending'' AND reason IS NULL)', name
            ) INTO unfinished;
            IF unfinished THEN
                RETURN false;
            END IF;
        END IF;
        EXECUTE format('DROP TABLE %I', name);
    END LOOP;
    RETURN true;
END
$$
"""
NOT_FOR_ALL = """
REVOKE ALL ON FUNCTION make_partition(text, date) FROM PUBLIC;
REVOKE ALL ON FUNCTION drop_partitions(date) FROM PUBLIC;
REVOKE ALL ON FUNCTION audit_log_says_what_was_erased() FROM PUBLIC;
"""


def upgrade() -> None:
    _execute_each(DDL)
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    for function in (APPEND_ONLY, ERASED, DELETED_FOR_GOOD, MAKE_PARTITION, DROP_PARTITIONS):
        op.execute(function.replace("{schema}", schema))
    _execute_each(TRIGGERS)
    _execute_each(NOT_FOR_ALL)


def _execute_each(statements: str) -> None:
    for statement in statements.split(";\n"):
        if statement.strip():
            op.execute(statement)
