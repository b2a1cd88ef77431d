"""Organizations: the tenants. They are made, renamed and listed. One that was deleted (`core.erasure`) is not there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.errors import NotFound, ValidationFailed
from core.models import Organization

MAX_NAME_CHARS = 200  # the table's CHECK says the same


async def create(session: AsyncSession, name: str) -> Organization:
    """Makes an organization. Raises `ValidationFailed` for a name that can't be stored or read."""
    organization = Organization(id=ids.new_id(), name=check_name(name))
    session.add(organization)
    await session.flush()
    return organization


async def get(session: AsyncSession, organization_id: UUID, *, lock: bool = False) -> Organization:
    """Raises `NotFound`. With `lock` nobody else changes it until the transaction ends."""
    query = select(Organization).where(Organization.id == organization_id, col(Organization.deleted_at).is_(None))
    if lock:
        query = query.with_for_update()
    found = (await session.exec(query)).one_or_none()
    if found is None:
        raise unknown(organization_id)
    return found


def unknown(organization_id: UUID) -> NotFound:
    return NotFound(f"There is no organization {ids.show(ids.ORGANIZATION, organization_id)}")


async def every(session: AsyncSession) -> Sequence[Organization]:
    """All of them, the oldest first."""
    query = select(Organization).where(col(Organization.deleted_at).is_(None)).order_by(col(Organization.id))
    return (await session.exec(query)).all()


async def oldest(session: AsyncSession, limit: int) -> Sequence[Organization]:
    """The first `limit` of them."""
    query = select(Organization).where(col(Organization.deleted_at).is_(None)).order_by(col(Organization.id))
    return (await session.exec(query.limit(limit))).all()


async def rename(session: AsyncSession, organization: Organization, name: str) -> Organization:
    """Changes the name and raises the version. Raises `ValidationFailed`."""
    organization.name = check_name(name)
    organization.version += 1
    organization.updated_at = datetime.now(UTC)
    session.add(organization)
    await session.flush()
    return organization


def check_name(name: str, path: str = "name") -> str:
    """The name without surrounding white space. Raises `ValidationFailed`."""
    trimmed = name.strip()
    if not 1 <= len(trimmed) <= MAX_NAME_CHARS or not trimmed.isprintable():
        raise ValidationFailed.of(path, f"Must be 1 to {MAX_NAME_CHARS} printable characters")
    return trimmed
