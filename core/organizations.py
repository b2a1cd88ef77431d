"""Organizations: the tenants. They are made, renamed and listed. One that was deleted (`core.erasure`) is not there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.errors import InvalidId, NotFound, ValidationFailed
from core.listing.lists import REACH, Walk
from core.models import Organization

MAX_NAME_CHARS = 200  # the table's CHECK says the same
MOST_COUNTED = 10_000
MOST_LISTED = 1_000  # subscriptions of each organization in a list
MOST_ERASED = 100  # organizations, in the list of those that are being erased
COUNT_MS = 250


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


def walk(text: str = "") -> Walk:
    """Those whose name holds `text`, in whatever case, or whose id it is; all without one."""
    listed = [col(Organization.deleted_at).is_(None)]
    if not text:
        return Walk(Organization, listed, (), REACH)
    try:
        return Walk(Organization, [*listed, col(Organization.id) == ids.parse(ids.ORGANIZATION, text)], (), REACH)
    except InvalidId:
        return Walk(Organization, listed, [col(Organization.name).icontains(text, autoescape=True)], REACH)


async def count_subscriptions(driver: Any, organization_ids: Sequence[UUID]) -> dict[UUID, int]:
    """How many subscriptions each has that were not deleted, `MOST_LISTED` at most."""
    rows = await driver.fetch(_COUNT, list(organization_ids), MOST_LISTED)
    return {row["id"]: row["count"] for row in rows}


_COUNT = """
SELECT given.id, (
    SELECT count(*) FROM (
        SELECT FROM subscriptions WHERE organization_id = given.id AND status <> 'deleted' LIMIT $2
    ) AS found
) AS count
FROM unnest($1::uuid[]) AS given(id)
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What an organization has now, each counted up to `MOST_COUNTED`. None where that takes longer than `COUNT_MS`."""

    subscriptions: int | None
    pending: int | None
    dead: int | None
    api_keys: int | None  # that were not revoked
    event_types: int | None


async def count(driver: Any, organization_id: UUID) -> Counts:
    """Reads no more rows than it counts: an index serves each."""
    counted = {}
    for name, rows in _COUNTED.items():
        try:
            async with driver.transaction():
                await driver.execute(
                    f"SET LOCAL statement_timeout = {COUNT_MS}; SET LOCAL plan_cache_mode = force_custom_plan"
                )
                statement = f"SELECT count(*) FROM (SELECT FROM {rows} LIMIT $2) AS found"
                counted[name] = await driver.fetchval(statement, organization_id, MOST_COUNTED)
        except asyncpg.QueryCanceledError:
            counted[name] = None
    return Counts(**counted)


_COUNTED = {
    "subscriptions": "subscriptions WHERE organization_id = $1 AND status <> 'deleted'",
    "pending": "deliveries WHERE organization_id = $1 AND state = 'pending'",
    "dead": "deliveries WHERE organization_id = $1 AND state = 'dead'",
    "api_keys": "api_keys WHERE organization_id = $1 AND revoked_at IS NULL",
    "event_types": "event_types WHERE organization_id = $1",
}


async def names(session: AsyncSession, organization_ids: Iterable[UUID]) -> dict[UUID, str]:
    """What those of them are called that are there, deleted or not."""
    query = select(Organization.id, Organization.name).where(col(Organization.id).in_(set(organization_ids)))
    return dict((await session.exec(query)).all())


async def being_erased(session: AsyncSession) -> Sequence[Organization]:
    """Those that were deleted and whose rows workers still erase (`core.erasure`), the oldest deletion first."""
    query = select(Organization).where(col(Organization.deleted_at).is_not(None))
    return (await session.exec(query.order_by(col(Organization.deleted_at)).limit(MOST_ERASED))).all()


async def find(session: AsyncSession, organization_id: UUID) -> Organization:
    """Also one that is being erased. Raises `NotFound`."""
    found = await session.get(Organization, organization_id)
    if found is None:
        raise unknown(organization_id)
    return found


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
