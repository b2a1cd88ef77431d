"""After a subscription was resumed or deleted: releasing what was held for it, or discarding what waits.

Either may be many rows, so neither is part of the change itself: the change marks the subscription as unsettled. The
process that made it settles it at once; should that end before, any worker does within a second.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog

from core import deliveries, ids
from core.models import SubscriptionStatus
from core.storage.database import Database, spares_others

log = structlog.get_logger(__name__)


async def settle_all(database: Database) -> None:
    """Finishes what other processes left. Costs one look into an empty index when there is nothing.

    One that fails does not hold up the others.
    """
    async with database.driver() as driver:
        unsettled = [row["id"] for row in await driver.fetch(_UNSETTLED)]
    for subscription_id in unsettled:
        try:
            async with database.driver() as driver:
                await settle(driver, subscription_id)
        except Exception as error:
            if not spares_others(error):
                raise
            log.exception(
                "a subscription could not be settled; it is tried again",
                subscription=ids.show(ids.SUBSCRIPTION, subscription_id),
            )


async def settle(driver: Any, subscription_id: UUID) -> int:
    """Releases or discards the deliveries of one subscription, as its status asks. Returns how many."""
    row = await driver.fetchrow(_STATUS, subscription_id)
    if row is None:
        return 0  # erased meanwhile, with its organization
    match row["status"]:
        case SubscriptionStatus.DELETED:
            count = await deliveries.discard_pending(driver, subscription_id)
        case SubscriptionStatus.ACTIVE:
            count = await deliveries.release_held(driver, subscription_id)
        case _:
            count = 0  # paused or disabled meanwhile: the next resume marks it again
    await driver.execute(_SETTLED, subscription_id, row["version"])
    return count


_UNSETTLED = "SELECT id FROM subscriptions WHERE NOT settled ORDER BY id"
_STATUS = "SELECT status, version FROM subscriptions WHERE id = $1"
# A later change of status raised the version, and is settled by itself.
_SETTLED = "UPDATE subscriptions SET settled = true WHERE id = $1 AND version = $2 AND NOT settled"
