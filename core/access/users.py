"""Users: the people who sign in to the pages. Each has one role; somebody who can administer is always left."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import audit, ids, timestamps
from core.access import sessions, sign_in_links
from core.access.models import Role, User
from core.audit import Actor
from core.errors import Conflict, NotFound, ValidationFailed
from core.listing.lists import REACH, Walk

MAX_EMAIL_CHARS, MAX_NAME_CHARS = 254, 200
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_RANKS = list(Role)  # each may all that the one before may


def may(role: str, needed: Role) -> bool:
    """Whether somebody of this role may do what `needed` may."""
    return _RANKS.index(Role(role)) >= _RANKS.index(needed)


async def create(session: AsyncSession, actor: Actor, *, email: str, role: str, name: str = "") -> User:
    """Adds a user, who can't sign in yet. Raises `ValidationFailed`, or `Conflict` when the email is somebody's."""
    check_all(partial(check_email, email), partial(check_role, role), partial(check_name, name))
    values = {"id": ids.new_id(), "email": check_email(email), "role": check_role(role), "name": check_name(name)}
    added = insert(User).values(**values).on_conflict_do_nothing().returning(User)
    user: User | None = (await session.exec(added)).scalar_one_or_none()
    if user is None:
        raise Conflict(f"There is a user {values['email']} already")
    audit.record(session, actor, "user.created", shown_id(user), organization_id=None, after=view(user))
    return user


async def invite(session: AsyncSession, actor: Actor, *, email: str, role: str, name: str = "") -> tuple[User, str]:
    """Adds a user; returns the token of the link by which they choose a password, once."""
    user = await create(session, actor, email=email, role=role, name=name)
    return user, await sign_in_links.make(session, user.id)


async def reset(session: AsyncSession, actor: Actor, user_id: UUID) -> tuple[User, str]:
    """The token of a link by which a user chooses a new password. The old one holds until then.

    Raises `NotFound`, or `Conflict` for somebody who is disabled.
    """
    user = await get(session, user_id, lock=True)
    if user.disabled_at is not None:
        raise Conflict(f"{user.email} is disabled; enable them first")
    audit.record(session, actor, "user.link_created", shown_id(user), organization_id=None)
    return user, await sign_in_links.make(session, user.id)


async def update(session: AsyncSession, actor: Actor, user_id: UUID, *, name: str, role: str) -> User:
    """Changes name and role. Raises `NotFound`, `ValidationFailed`, or `Conflict` where no admin would be left."""
    chosen = check_role(role)
    admins = await _lock_admins(session)
    user = await get(session, user_id, lock=True)
    before = view(user)
    if chosen != Role.ADMIN:
        _check_somebody_is_left(user, admins)
    user.name, user.role = check_name(name), chosen
    return await _changed(session, actor, user, "user.updated", before)


async def rename(session: AsyncSession, actor: Actor, user_id: UUID, name: str) -> User:
    """Raises `NotFound` or `ValidationFailed`."""
    user = await get(session, user_id, lock=True)
    before = view(user)
    user.name = check_name(name)
    return await _changed(session, actor, user, "user.updated", before)


async def disable(session: AsyncSession, actor: Actor, user_id: UUID) -> User:
    """Ends all sessions of a user, and lets them sign in no more.

    Raises `NotFound`, or `Conflict` where no admin would be left.
    """
    admins = await _lock_admins(session)
    user = await get(session, user_id, lock=True)
    if user.disabled_at is not None:
        return user
    _check_somebody_is_left(user, admins)
    before = view(user)
    user.disabled_at = datetime.now(UTC)
    await sessions.end_all(session, user.id)
    await sign_in_links.drop(session, user.id)
    return await _changed(session, actor, user, "user.disabled", before)


async def enable(session: AsyncSession, actor: Actor, user_id: UUID) -> User:
    """Lets a user sign in again, as before. Raises `NotFound`."""
    user = await get(session, user_id, lock=True)
    if user.disabled_at is None:
        return user
    before = view(user)
    user.disabled_at = None
    return await _changed(session, actor, user, "user.enabled", before)


async def get(session: AsyncSession, user_id: UUID, *, lock: bool = False) -> User:
    """Raises `NotFound`. With `lock` nobody else changes it until the transaction ends."""
    query = select(User).where(User.id == user_id).execution_options(populate_existing=True)
    found = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
    if found is None:
        raise NotFound(f"There is no user {ids.show(ids.USER, user_id)}")
    return found


async def find(session: AsyncSession, email: str) -> User | None:
    """By email, in whatever case."""
    return (await session.exec(select(User).where(User.email == normal_email(email)))).one_or_none()


async def every(session: AsyncSession) -> Sequence[User]:
    """All of them, by email."""
    return (await session.exec(select(User).order_by(col(User.email)))).all()


def walk(text: str = "") -> Walk:
    """Those whose email or name holds `text`, in whatever case; all without one."""
    either = or_(col(User.email).icontains(text, autoescape=True), col(User.name).icontains(text, autoescape=True))
    return Walk(User, (), [either] if text else (), REACH)


async def there_are_any(session: AsyncSession) -> bool:
    return (await session.exec(select(User.id).limit(1))).first() is not None


def normal_email(text: str) -> str:
    """In lower case, if it is ASCII. What is not, is nobody's, and must not become somebody's: the lower case of a
    Kelvin sign is a plain k."""
    text = text.strip()
    return text.lower() if text.isascii() else text


def check_email(text: str) -> str:
    """The email in the one form that is stored. Raises `ValidationFailed`."""
    email = normal_email(text)
    if not email.isascii():
        raise ValidationFailed.of(
            "email", "Must be in ASCII, as name@example.com; a domain in other letters is written xn--…"
        )
    if len(email) > MAX_EMAIL_CHARS or not _EMAIL.fullmatch(email) or not email.isprintable():
        raise ValidationFailed.of("email", "Must be an email address, as name@example.com")
    return email


def check_role(text: str) -> Role:
    """Raises `ValidationFailed`."""
    try:
        return Role(text)
    except ValueError:
        raise ValidationFailed.of("role", f"Must be one of: {', '.join(Role)}") from None


def check_name(text: str) -> str:
    """The name without surrounding white space; it may be empty. Raises `ValidationFailed`."""
    name = text.strip()
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise ValidationFailed.of("name", f"Must be at most {MAX_NAME_CHARS} printable characters")
    return name


def check_all(*checks: Callable[[], object]) -> None:
    """Makes each check. Raises `ValidationFailed` with the faults of all, so that a form shows them at once."""
    faults: dict[str, list[str]] = {}
    for check in checks:
        try:
            check()
        except ValidationFailed as error:
            faults |= error.details
    if faults:
        raise ValidationFailed(details=faults)


def shown_id(user: User) -> str:
    return ids.show(ids.USER, user.id)


def view(user: User) -> dict[str, Any]:
    """What lists and the audit log show."""
    return {
        "user_id": shown_id(user),
        "email": user.email,
        "name": user.name,
        "role": str(user.role),
        "created_at": timestamps.show(user.created_at),
        "last_signed_in_at": None if user.last_signed_in_at is None else timestamps.show(user.last_signed_in_at),
        "disabled_at": None if user.disabled_at is None else timestamps.show(user.disabled_at),
    }


async def _changed(session: AsyncSession, actor: Actor, user: User, action: str, before: dict[str, Any]) -> User:
    after = view(user)
    if after == before:
        return user
    user.version += 1
    user.updated_at = datetime.now(UTC)
    session.add(user)
    await session.flush()
    audit.record(session, actor, action, shown_id(user), organization_id=None, before=before, after=after)
    return user


async def _lock_admins(session: AsyncSession) -> set[UUID]:
    """The enabled admins who have a way to sign in. Locked, all in the same order, so that of two who would disable
    each other the second sees what the first has done."""
    query = (
        select(User.id)
        .where(User.role == Role.ADMIN, col(User.disabled_at).is_(None))
        .where(or_(col(User.password_hash).is_not(None), col(User.oidc_subject).is_not(None)))
        .order_by(col(User.id))
        .with_for_update()
    )
    return set((await session.exec(query)).all())


def _check_somebody_is_left(user: User, admins: set[UUID]) -> None:
    if user.role == Role.ADMIN and user.disabled_at is None and not admins - {user.id}:
        raise Conflict(f"{user.email} is the last admin who can sign in; make somebody else one first")
