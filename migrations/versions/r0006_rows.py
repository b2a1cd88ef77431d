"""What is accepted and what is recorded of a delivery comes as rows instead of arrays of columns: types for these rows

A release that needs other columns makes types of other names, since processes of the last one still use these.

Revision: 0006, after 0005
"""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    """
    CREATE TYPE accepted_event AS (
        id uuid, organization_id uuid, event_type text, occurred_at timestamptz, external_id text, branch_id text,
        metadata text, payload bytea, data_at integer, matched_subscriptions integer, only_for uuid, copied_from uuid
    )
    """,
    """
    CREATE TYPE accepted_delivery AS (
        id uuid, organization_id uuid, subscription_id uuid, event_id uuid, event_type text
    )
    """,
    """
    CREATE TYPE finished_claim AS (
        id uuid, token uuid, series smallint, replay_id uuid, attempt_count smallint,
        state text, reason text, delay_s float8,
        attempt_id uuid, started_at timestamptz, duration_ms integer, status_code smallint, error_kind text,
        error_message text, url text, request_headers text, response_headers text, response_body bytea
    )
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
