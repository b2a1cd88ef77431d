"""Links by which somebody chooses a password, once: to set up the installation, invited, or because it was forgotten.

The link holds 256 random bits. Only their SHA-256 rests here: there is nothing in so many bits to guess, so neither
salt nor key is needed.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core.errors import NotFound
from core.models_access import SignInLink

LIFETIME = timedelta(hours=24)


class LinkEnded(NotFound):
    """This link was used, has expired, or was replaced by a newer one; ask for another"""


def new_token() -> str:
    return secrets.token_urlsafe(32)


def hash_of(token: str) -> bytes:
    return hashlib.sha256(f"hookwright link {token}".encode()).digest()


def path(token: str) -> str:
    """Where the link leads."""
    return f"/set-up/{token}"


async def make(session: AsyncSession, user_id: UUID) -> str:
    """A link for a user; those of before end."""
    token = new_token()
    await drop(session, user_id)
    values = {"token_hash": hash_of(token), "user_id": user_id, "expires_at": func.now() + LIFETIME}
    await session.execute(insert(SignInLink).values(values))
    return token


async def find(session: AsyncSession, token: str) -> SignInLink:
    """Raises `LinkEnded`."""
    query = select(SignInLink).where(SignInLink.token_hash == hash_of(token), col(SignInLink.expires_at) > func.now())
    found = (await session.exec(query)).one_or_none()
    if found is None:
        raise LinkEnded
    return found


async def use(session: AsyncSession, token: str) -> UUID | None:
    """Ends the link; whose it was. Of several at once, one gets it. Raises `LinkEnded`."""
    used = (
        delete(SignInLink)
        .where(col(SignInLink.token_hash) == hash_of(token), col(SignInLink.expires_at) > func.now())
        .returning(col(SignInLink.user_id))
    )
    row = (await session.execute(used)).one_or_none()
    if row is None:
        raise LinkEnded
    user_id: UUID | None = row[0]
    return user_id


async def drop(session: AsyncSession, user_id: UUID) -> None:
    """Ends every link of a user."""
    await session.execute(delete(SignInLink).where(col(SignInLink.user_id) == user_id))


async def make_for_set_up(driver: Any) -> str | None:
    """A link for the first admin; those of before end. None once there is a user: from then on, admins invite."""
    token = new_token()
    return token if await driver.fetchval(_MAKE_FOR_SET_UP, hash_of(token), LIFETIME) else None


_MAKE_FOR_SET_UP = """
WITH ended AS (DELETE FROM sign_in_links WHERE user_id IS NULL)
INSERT INTO sign_in_links (token_hash, expires_at)
SELECT $1, now() + $2 WHERE NOT EXISTS (SELECT FROM users) RETURNING true
"""
