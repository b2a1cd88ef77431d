"""Links by which somebody chooses a password, once: the first admin, the invited, and who has forgotten theirs."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import delete, func, insert
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core.access.models import SignInLink
from core.access.set_up_link import LIFETIME, hash_of, new_token
from core.errors import NotFound


class LinkEnded(NotFound):
    """This link was used, has expired, or was replaced by a newer one; ask for another"""


async def make(session: AsyncSession, user_id: UUID) -> str:
    """A link for a user; those of before end."""
    token = new_token()
    await drop(session, user_id)
    values = {"token_hash": hash_of(token), "user_id": user_id, "expires_at": func.now() + LIFETIME}
    await session.exec(insert(SignInLink).values(values))
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
    row = (await session.exec(used)).one_or_none()
    if row is None:
        raise LinkEnded
    user_id: UUID | None = row[0]
    return user_id


async def drop(session: AsyncSession, user_id: UUID) -> None:
    """Ends every link of a user."""
    await session.exec(delete(SignInLink).where(col(SignInLink.user_id) == user_id))
