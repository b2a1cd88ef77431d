"""Previews are counted in indexes: which of the chosen deliveries were redacted is found in one of its own

Building it reads every delivery once, and nothing is accepted meanwhile.

Revision: 0005, after 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    "LOCK TABLE deliveries IN SHARE MODE",
    """
    CREATE INDEX ix_deliveries_redacted ON deliveries (organization_id, id)
    WHERE redacted_at IS NOT NULL
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
