"""Signing in, with a password; and what every way of signing in ends with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from core import audit, ids
from core.access import passwords, sessions, throttle, users
from core.access.models import User, UserSession
from core.audit import ANYBODY, Actor
from core.errors import AuthenticationFailed, Unavailable
from core.secrets.sealing import Sealer
from core.storage.database import Database


class SignInFailed(AuthenticationFailed):
    """Email or password is wrong"""


class SignInThrottled(SignInFailed):
    """Too many failed attempts; wait"""

    def __init__(self, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(f"Too many failed attempts. Try again in {_duration(retry_after_s)}.")


@dataclass(frozen=True, slots=True)
class Browser:
    """What is known of the one who signs in."""

    address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None
    token: str | None = None  # of the session that it has so far

    @property
    def anybody(self) -> Actor:
        return Actor(ANYBODY.id, ANYBODY.name, self.address, self.request_id)

    def actor(self, user: User) -> Actor:
        return Actor(users.shown_id(user), user.name or user.email, self.address, self.request_id)


@dataclass(frozen=True, slots=True)
class SignedIn:
    user: User
    session: UserSession
    token: str  # for the cookie


async def with_password(database: Database, sealer: Sealer, email: str, password: str, browser: Browser) -> SignedIn:
    """Raises `SignInFailed`, in the same words and the same time whether or not there is such an account;
    `SignInThrottled`; `Unavailable`."""
    email = users.normal_email(email)
    counted = throttle.subjects(sealer, email, browser.address)
    attempt, user = await admit(database, counted, email, browser)
    # In no transaction: it takes long, and would hold a connection.
    renewed = None
    async with looking(database, attempt):
        right = await passwords.is_right(password, None if user is None else user.password_hash)
        if right and user is not None and user.disabled_at is None and passwords.is_dated(user.password_hash or ""):
            renewed = await passwords.hash_of(password)
    if user is None or not right or user.disabled_at is not None:
        await note_failure(database, user, browser, by="password")
        raise SignInFailed
    async with database.session() as session:
        # What was looked at may have changed since: another password, or none may sign in as this user any more.
        now = await users.get(session, user.id, lock=True)
        if now.password_hash == user.password_hash and now.disabled_at is None:
            now.password_hash = renewed or now.password_hash
            await throttle.succeeded(session, attempt)
            return await finish(session, now, browser, by="password")
    await note_failure(database, user, browser, by="password")
    raise SignInFailed


async def admit(
    database: Database, counted: throttle.Subjects, email: str, browser: Browser
) -> tuple[throttle.Attempt, User | None]:
    """Counts an attempt to sign in to this account; and the account's user. Raises `SignInThrottled`."""
    async with database.session() as session:
        attempt = await throttle.admit(session, counted)
        user = None
        # Of an address that waits, whom it tries is not looked at.
        if attempt.waits != counted.address and "\0" not in email:
            user = await users.find(session, email)
        if attempt.is_to_note:
            resource, after = "" if user is None else users.shown_id(user), {"wait_s": attempt.wait_s}
            audit.record(session, browser.anybody, "sign_in.throttled", resource, organization_id=None, after=after)
    if attempt.wait_s:
        raise SignInThrottled(attempt.wait_s)
    return attempt, user


@asynccontextmanager
async def looking(database: Database, attempt: throttle.Attempt) -> AsyncIterator[None]:
    """Around looking at a password. When that is `Unavailable`, nothing was guessed, and so nothing counts."""
    try:
        yield
    except Unavailable:
        async with database.session() as session:
            await throttle.take_back(session, attempt)
        raise


async def finish(session: AsyncSession, user: User, browser: Browser, *, by: str) -> SignedIn:
    """Starts the session, in the caller's transaction, which has locked the user's row. The one that the browser had
    ends."""
    user.last_signed_in_at = datetime.now(UTC)
    session.add(user)
    if browser.token is not None:
        await sessions.end_with(session, browser.token)
    started, token = await sessions.start(session, user.id, address=browser.address, user_agent=browser.user_agent)
    audit.record(
        session,
        browser.actor(user),
        "sign_in.succeeded",
        users.shown_id(user),
        organization_id=None,
        after={"by": by, "session_id": ids.show(ids.SESSION, started.id)},
    )
    return SignedIn(user, started, token)


async def sign_out(database: Database, actor: Actor, user_id: UUID, session_id: UUID) -> None:
    """Ends the session. Raises `NotFound` when it has ended already."""
    async with database.session() as session:
        await sessions.end(session, user_id, session_id)
        audit.record(session, actor, "session.signed_out", ids.show(ids.SESSION, session_id), organization_id=None)


async def drop_expired(driver: Any) -> None:
    """Housekeeping: removes what has expired of sessions, links, unfinished sign-ins and counted failures."""
    for statement in _DROP_EXPIRED:
        await driver.execute(statement)


async def note_failure(database: Database, user: User | None, browser: Browser, *, by: str) -> None:
    """In the audit log. Of an account that there is not, nothing: what was typed may have been a password."""
    async with database.session() as session:
        resource, after = "" if user is None else users.shown_id(user), {"by": by}
        audit.record(session, browser.anybody, "sign_in.failed", resource, organization_id=None, after=after)


def _duration(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} seconds"
    return f"{-(-seconds // 60)} minutes"


_DROP_EXPIRED = (
    "DELETE FROM user_sessions WHERE expires_at < now()",
    "DELETE FROM sign_in_links WHERE expires_at < now()",
    "DELETE FROM oidc_sign_ins WHERE expires_at < now()",
    "DELETE FROM sign_in_failures WHERE first_at < now() - interval '1 day'",
)
