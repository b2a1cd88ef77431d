"""What people call things: looked up for the ids that a page shows, so that it need not show ids alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.access.models import User
from core.errors import InvalidId
from core.models import ApiKey, Organization, Subscription, SubscriptionStatus

MAX_CHARS = 48


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

    @property
    def label(self) -> str:
        return of_url(self.url)


def of_url(url: str) -> str:
    """Host, port and path, which tell subscriptions apart, cut to `MAX_CHARS`. Not the query, which may be a secret."""
    label = url.partition("?")[0].partition("://")[2].removesuffix("/")
    return label if len(label) <= MAX_CHARS else f"{label[: MAX_CHARS - 1]}…"


async def subscriptions(session: AsyncSession, of: Iterable[UUID]) -> dict[UUID, Target]:
    """Those of `of` that there are."""
    columns = col(Subscription.id), col(Subscription.organization_id), col(Subscription.url), col(Subscription.status)
    rows = await session.exec(select(*columns).where(columns[0].in_(set(of))))
    return {one: Target(one, owner, url, SubscriptionStatus(status)) for one, owner, url, status in rows.all()}


async def organizations(session: AsyncSession, of: Iterable[UUID]) -> dict[UUID, str]:
    """Their names."""
    rows = await session.exec(select(Organization.id, Organization.name).where(col(Organization.id).in_(set(of))))
    return dict(rows.all())


class Labels(NamedTuple):
    """By their ids. What is missing was erased."""

    organizations: Mapping[UUID, str]
    subscriptions: Mapping[UUID, str]


async def of_rows(session: AsyncSession, rows: Sequence[Any]) -> Labels:
    """Of rows that have an `organization_id`, and maybe a `subscription_id`."""
    named = await organizations(session, {row.organization_id for row in rows})
    targets = await subscriptions(session, {row.subscription_id for row in rows if hasattr(row, "subscription_id")})
    return Labels(named, {one: target.label for one, target in targets.items()})


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
