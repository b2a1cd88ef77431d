"""Sessions: browsers that are signed in. A cookie holds 256 random bits, `user_sessions` their SHA-256.

A session ends after `IDLE` without a request that a person made, `ABSOLUTE` after its start, when it is revoked or
signed out, and when its user is disabled or gets another password. Ended means that the row is gone, or past its
`expires_at`. The clock is the database's, which all processes share.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, insert, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.access.models import User, UserSession
from core.errors import NotFound

IDLE = timedelta(hours=12)
ABSOLUTE = timedelta(days=7)
SEEN_EVERY = timedelta(minutes=1)  # how exact `seen_at` is: at most one write a minute
MAX_AGENT_CHARS = 200


def hash_of(token: str) -> bytes:
    return hashlib.sha256(f"hookwright session {token}".encode()).digest()


async def start(
    session: AsyncSession, user_id: UUID, *, address: str | None = None, user_agent: str | None = None
) -> tuple[UserSession, str]:
    """A new session, and the token for its cookie. Always a new one at a sign-in: a token that somebody planted in the
    browser before is worth nothing after."""
    token = secrets.token_urlsafe(32)
    agent = "".join(char for char in user_agent or "" if char.isprintable())[:MAX_AGENT_CHARS]
    values = {
        "id": ids.new_id(),
        "user_id": user_id,
        "token_hash": hash_of(token),
        "expires_at": func.now() + IDLE,
        "address": address,
        "user_agent": agent or None,
    }
    started = (await session.exec(insert(UserSession).values(values).returning(UserSession))).scalar_one()
    return started, token


async def find(session: AsyncSession, token: str, *, is_seen: bool = True) -> tuple[User, UserSession] | None:
    """Who is signed in with this token; notes that they were seen, unless nobody need be there for it."""
    query = (
        select(User, UserSession, func.now() - col(UserSession.seen_at) >= SEEN_EVERY)
        .join(User, col(User.id) == col(UserSession.user_id))
        .where(
            UserSession.token_hash == hash_of(token),
            col(UserSession.expires_at) > func.now(),
            col(User.disabled_at).is_(None),
        )
    )
    found = (await session.exec(query)).one_or_none()
    if found is None:
        return None
    user, its, is_due = found
    if is_due and is_seen:
        ends = func.least(func.now() + IDLE, col(UserSession.created_at) + ABSOLUTE)
        seen = update(UserSession).where(col(UserSession.id) == its.id).values(seen_at=func.now(), expires_at=ends)
        await session.exec(seen.execution_options(synchronize_session=False))
    return user, its


async def of_user(session: AsyncSession, user_id: UUID) -> Sequence[UserSession]:
    """Those that have not ended, the one seen last first."""
    query = (
        select(UserSession)
        .where(UserSession.user_id == user_id, col(UserSession.expires_at) > func.now())
        .order_by(col(UserSession.seen_at).desc(), col(UserSession.id).desc())
    )
    return (await session.exec(query)).all()


async def end(session: AsyncSession, user_id: UUID, session_id: UUID) -> None:
    """Ends one session of this user. Raises `NotFound`, for another's as well."""
    ended = delete(UserSession).where(col(UserSession.id) == session_id, col(UserSession.user_id) == user_id)
    if (await session.exec(ended.returning(col(UserSession.id)))).first() is None:
        raise NotFound("There is no such session; it may have ended by itself")


async def end_with(session: AsyncSession, token: str) -> None:
    """Ends the session of a token, if there is one."""
    await session.exec(delete(UserSession).where(col(UserSession.token_hash) == hash_of(token)))


async def end_all(session: AsyncSession, user_id: UUID, *, but: UUID | None = None) -> int:
    """Ends every session of a user, `but` this one; how many."""
    ended = delete(UserSession).where(col(UserSession.user_id) == user_id)
    if but is not None:
        ended = ended.where(col(UserSession.id) != but)
    return len((await session.exec(ended.returning(col(UserSession.id)))).all())
