"""The index of unfinished jobs holds the paused ones too: a preview asks it whether there is any job to compare with

Revision: 0007, after 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    "DROP INDEX ix_replays_unfinished",
    "CREATE INDEX ix_replays_unfinished ON replays (id) WHERE status IN ('queued', 'running', 'paused')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
