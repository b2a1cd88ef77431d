"""What people call things: looked up for the ids that a page shows, so that it need not show ids alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.errors import InvalidId
from core.models import ApiKey, Organization, Subscription, SubscriptionStatus
from core.models_access import User


@dataclass(frozen=True, slots=True)
class Target:
    """A subscription, as far as a list shows it."""

    id: UUID
    organization_id: UUID
    url: str
    status: SubscriptionStatus

    @property
    def shown(self) -> str:
        return ids.show(ids.SUBSCRIPTION, self.id)

    @property
    def host(self) -> str:
        try:
            return urlsplit(self.url).netloc or self.url
        except ValueError:
            return self.url


async def subscriptions(session: AsyncSession, of: Iterable[UUID]) -> dict[UUID, Target]:
    """Those of `of` that there are."""
    columns = col(Subscription.id), col(Subscription.organization_id), col(Subscription.url), col(Subscription.status)
    rows = await session.exec(select(*columns).where(columns[0].in_(set(of))))
    return {one: Target(one, owner, url, SubscriptionStatus(status)) for one, owner, url, status in rows.all()}


async def organizations(session: AsyncSession, of: Iterable[UUID]) -> dict[UUID, str]:
    """Their names."""
    rows = await session.exec(select(Organization.id, Organization.name).where(col(Organization.id).in_(set(of))))
    return dict(rows.all())


async def actors(session: AsyncSession, of: Iterable[str]) -> dict[str, str]:
    """The names of users (or their emails) and of API keys, by their ids as they are shown."""
    wanted = set(of)
    users = select(User.id, User.name, User.email).where(col(User.id).in_(_parsed(ids.USER, wanted)))
    keys = select(ApiKey.id, ApiKey.name).where(col(ApiKey.id).in_(_parsed(ids.API_KEY, wanted)))
    found = {ids.show(ids.USER, one): name or email for one, name, email in (await session.exec(users)).all()}
    return found | {ids.show(ids.API_KEY, one): name for one, name in (await session.exec(keys)).all()}


def _parsed(prefix: str, of: Iterable[str]) -> list[UUID]:
    found = []
    for one in of:
        try:
            found.append(ids.parse(prefix, one))
        except InvalidId:
            continue  # of another kind
    return found
