"""What the pages stand on: figures of the whole installation, groups of dead letters, copies of events, bulk discards

Building the index of dead letters reads every delivery once, and nothing is accepted meanwhile.

Revision: 0004, after 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    "LOCK TABLE events, deliveries, replays, delivery_stats IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE events ADD COLUMN copied_from uuid",
    "ALTER TABLE delivery_stats ADD COLUMN accepted integer DEFAULT 0 NOT NULL, ADD COLUMN durations integer[]",
    """
    ALTER TABLE replays ADD COLUMN action text DEFAULT 'replay' NOT NULL,
        ADD CONSTRAINT ck_replays_action CHECK (action IN ('replay', 'discard')),
        ADD CONSTRAINT ck_replays_discard CHECK (action = 'replay' OR sent = succeeded)
    """,
    """
    CREATE TABLE breaker_changes (
        id uuid NOT NULL,
        organization_id uuid NOT NULL,
        subscription_id uuid NOT NULL,
        state text NOT NULL,
        failures integer NOT NULL,
        CONSTRAINT pk_breaker_changes PRIMARY KEY (id)
    )
    """,
    "CREATE INDEX ix_breaker_changes_subscription_id_id ON breaker_changes (subscription_id, id)",
    "CREATE INDEX ix_breaker_changes_organization_id ON breaker_changes (organization_id)",
    """
    CREATE INDEX ix_deliveries_dead ON deliveries (organization_id, subscription_id, error_kind, id)
    WHERE state = 'dead'
    """,
    # The installation's rows, which workers add from now on, for as far back as the pages show them: else these would
    # say that nothing was delivered up to the upgrade.
    """
    INSERT INTO delivery_stats (
        organization_id, subscription_id, minute, error_kind, attempts, retries, dead, dead_retried, duration_ms
    )
    SELECT '00000000-0000-0000-0000-000000000000', kept.subscription_id, kept.minute, kept.error_kind,
        sum(attempts), sum(retries), sum(dead), sum(dead_retried), sum(duration_ms)
    FROM organizations CROSS JOIN LATERAL (
        SELECT * FROM delivery_stats
        WHERE organization_id = organizations.id AND subscription_id = '00000000-0000-0000-0000-000000000000'
            AND minute > now() - interval '8 days'
    ) AS kept
    GROUP BY kept.subscription_id, kept.minute, kept.error_kind
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
