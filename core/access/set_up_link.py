"""The link by which the first admin is made; and what all links by which a password is chosen have in common.

Apart from `core.access.sign_in_links`, so that `hookwright up` can make one without all that the tables need.

A link holds 256 random bits. Only their SHA-256 rests in `sign_in_links`: there is nothing in so many bits to guess, so
neither salt nor key is needed.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

LIFETIME = timedelta(hours=24)


def new_token() -> str:
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> bytes:
    return hashlib.sha256(f"hookwright link {token}".encode("utf-8", "surrogatepass")).digest()


def path(token: str) -> str:
    """Where the link leads."""
    return f"/set-up/{token}"


async def make(driver: Any) -> str | None:
    """The token of a link for the first admin; such links of before end. None once there is a user."""
    token = new_token()
    async with driver.transaction():
        await driver.execute(LOCK)
        return token if await driver.fetchval(_MAKE, hash_of(token), LIFETIME) else None


# Held to the end of the transaction by whoever makes such a link or the first admin: two at once would not see each
# other, and leave two of either.
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('hookwright set-up', 0))"
_MAKE = """
WITH ended AS (DELETE FROM sign_in_links WHERE user_id IS NULL)
INSERT INTO sign_in_links (token_hash, expires_at)
SELECT $1, now() + $2::interval WHERE NOT EXISTS (SELECT FROM users) RETURNING true
"""
