"""Choosing a password: as the first admin, by a link, or in place of the one there was.

Whoever chooses one is signed in with it, in the browser at hand; every other session of theirs ends.
"""

from __future__ import annotations

from functools import partial

from sqlmodel.ext.asyncio.session import AsyncSession

from core import audit
from core.access import passwords, sessions, set_up_link, sign_in, sign_in_links, throttle, users
from core.access.models import Role, User
from core.access.sign_in import Browser, SignedIn
from core.access.sign_in_links import LinkEnded
from core.errors import ValidationFailed
from core.secrets.sealing import Sealer
from core.storage.database import Database, driver_of


async def owner_of(database: Database, token: str) -> User | None:
    """Whose link this is; None: it sets up the installation. Raises `LinkEnded`."""
    async with database.session() as session:
        link = await sign_in_links.find(session, token)
        if link.user_id is not None:
            return await users.get(session, link.user_id)
        if await users.there_are_any(session):
            raise LinkEnded("Hookwright has been set up; ask an admin for an invitation")
        return None


async def set_up(
    database: Database, sealer: Sealer, token: str, *, email: str, name: str, password: str, browser: Browser
) -> SignedIn:
    """Makes the first admin. Raises `ValidationFailed`, `LinkEnded`."""
    if await owner_of(database, token) is not None:
        raise LinkEnded
    users.check_all(
        partial(users.check_email, email),
        partial(users.check_name, name),
        partial(passwords.check, password, users.normal_email(email)),
    )
    hashed = await passwords.hash_of(password)
    async with database.session() as session:
        await (await driver_of(session)).execute(set_up_link.LOCK)
        await sign_in_links.use(session, token)  # of two at once, one goes on
        if await users.there_are_any(session):
            raise LinkEnded
        user = await users.create(session, browser.anybody, email=email, role=Role.ADMIN, name=name)
        audit.record(session, browser.actor(user), "installation.set_up", users.shown_id(user), organization_id=None)
        return await _choose(session, sealer, user, hashed, browser, by="set-up link")


async def by_link(database: Database, sealer: Sealer, token: str, password: str, browser: Browser) -> SignedIn:
    """Gives the link's user this password. Raises `ValidationFailed`, `LinkEnded`."""
    owner = await owner_of(database, token)
    if owner is None:
        raise LinkEnded
    passwords.check(password, owner.email)
    hashed = await passwords.hash_of(password)
    async with database.session() as session:
        # The user before the link, as everywhere.
        user = await users.get(session, owner.id, lock=True)
        await sign_in_links.use(session, token)
        if user.disabled_at is not None:
            raise LinkEnded
        return await _choose(session, sealer, user, hashed, browser, by="link")


async def change(
    database: Database, sealer: Sealer, user: User, *, current: str, new: str, browser: Browser
) -> SignedIn:
    """Replaces a password by another, which counts as an attempt to sign in: else whoever finds a browser open could
    guess. Raises `ValidationFailed`, `SignInThrottled`."""
    passwords.check(new, user.email, "new_password")
    counted = throttle.subjects(sealer, user.email, browser.address)
    attempt, known = await sign_in.admit(database, counted, user.email, browser)
    async with sign_in.looking(database, attempt):
        right = known is not None and await passwords.is_right(current, known.password_hash)
        hashed = await passwords.hash_of(new) if right else ""
    if known is None or not right:
        await sign_in.note_failure(database, known, browser, by="change of password")
        raise ValidationFailed.of("current_password", "This is not your password")
    async with database.session() as session:
        now = await users.get(session, user.id, lock=True)
        if now.password_hash != known.password_hash or now.disabled_at is not None:
            raise ValidationFailed.of("current_password", "It was changed meanwhile")
        await throttle.succeeded(session, attempt)
        return await _choose(session, sealer, now, hashed, browser, by="change of password")


async def _choose(
    session: AsyncSession, sealer: Sealer, user: User, hashed: str, browser: Browser, *, by: str
) -> SignedIn:
    user.password_hash = hashed
    session.add(user)
    await sessions.end_all(session, user.id)
    await sign_in_links.drop(session, user.id)
    await throttle.forget(session, throttle.subjects(sealer, user.email, None).account)
    audit.record(session, browser.actor(user), "user.password_changed", users.shown_id(user), organization_id=None)
    return await sign_in.finish(session, user, browser, by=by)
