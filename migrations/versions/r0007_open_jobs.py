"""An organization's open jobs have an index: a preview asks whether there is any to compare with

Nothing is dropped beside it: that would need a lock which a job's step, waiting for what 0005 holds, may be in the way
of.

Revision: 0007, after 0006
"""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX ix_replays_open ON replays (organization_id) WHERE status IN ('queued', 'running', 'paused')"
    )
