"""What people call the organizations and subscriptions that rows name by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core.models import Organization, Subscription


class Names(NamedTuple):
    """By their ids. One that is missing was erased."""

    organizations: Mapping[UUID, str]
    hosts: Mapping[UUID, str]  # of subscriptions' URLs


async def of(session: AsyncSession, rows: Iterable[Any]) -> Names:
    """Of rows that have an `organization_id`, and maybe a `subscription_id`."""
    rows = list(rows)
    organizations = {row.organization_id for row in rows}
    subscriptions = {row.subscription_id for row in rows if hasattr(row, "subscription_id")}
    return Names(
        {one.id: one.name for one in await _rows(session, Organization, organizations)},
        {one.id: host_of(one.url) for one in await _rows(session, Subscription, subscriptions)},
    )


async def _rows(session: AsyncSession, model: Any, wanted: set[UUID]) -> Sequence[Any]:
    if not wanted:
        return ()
    return (await session.exec(select(model).where(col(model.id).in_(wanted)))).all()


def host_of(url: str) -> str:
    """Host and port of a subscription's URL: what tells receivers apart."""
    return urlsplit(url).netloc
