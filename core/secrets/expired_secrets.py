"""Secrets that serve no more are removed: those whose grace period is over, and all of deleted subscriptions."""

from __future__ import annotations

from typing import Any


async def forget(driver: Any) -> None:
    """What housekeeping does. A deleted subscription keeps its secrets until nothing waits for it any more."""
    await driver.execute(_EXPIRED)
    await driver.execute(_SECRETS_OF_DELETED)
    await driver.execute(_HEADERS_OF_DELETED)


_EXPIRED = "DELETE FROM subscription_secrets WHERE expires_at < now()"
_SECRETS_OF_DELETED = """
DELETE FROM subscription_secrets k USING subscriptions s
WHERE s.id = k.subscription_id AND s.status = 'deleted' AND s.settled
"""
_HEADERS_OF_DELETED = """
UPDATE subscriptions SET headers = NULL WHERE status = 'deleted' AND settled AND headers IS NOT NULL
"""
