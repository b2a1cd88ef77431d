"""Statistics are kept as long as deliveries are."""

from __future__ import annotations

from typing import Any


async def prune(driver: Any, retention_days: int) -> None:
    """Drops what is older than `retention_days`, by the database's clock, `PRUNE_BATCH` rows a statement."""
    while await driver.fetchval(_PRUNE, retention_days, PRUNE_BATCH) == PRUNE_BATCH:
        pass


PRUNE_BATCH = 10_000
_PRUNE = """
WITH gone AS (
    DELETE FROM delivery_stats WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM delivery_stats WHERE minute < now() - make_interval(days => $1) LIMIT $2
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
