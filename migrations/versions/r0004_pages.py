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
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
