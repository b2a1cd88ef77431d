"""The filters of deliveries, as they stand in the URL of every page that chooses some."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlmodel.ext.asyncio.session import AsyncSession

from app.admin import badges
from app.admin.lists import Filter
from core import ids, organizations
from core.failures import ErrorKind
from core.listing import selection
from core.listing.delivery_lists import Deliveries
from core.models import ItemOutcome
from core.states import State

MAX_OPTIONS = 100  # organizations to choose from; where there are more, their ids are asked for

ERRORS = {**{str(one): badges.of("error", one).label for one in ErrorKind}, selection.NO_ERROR: "no error"}
TEXT = Filter.text("text", "Text", hint="an id, or in the payload")
ORGANIZATION = Filter.of_id("organization", "Organization", ids.ORGANIZATION)
FILTERS = (
    TEXT,
    Filter.choice("status", "State", State),
    ORGANIZATION,
    Filter.of_id("subscription", "Subscription", ids.SUBSCRIPTION, field="subscription_id"),
    Filter.time("created_after", "Since"),
    Filter.time("created_before", "Before"),
    Filter.text("event_type", "Event type"),
    Filter.choice("error", "Error", ERRORS),
    Filter.choice("reason", "Reason", {one: badges.of("reason", one).label for one in selection.REASONS}),
    Filter.text("status_code", "Status code", hint="of the last answer"),
    Filter.of_id("event", "Event", ids.EVENT, field="event_id"),
    Filter.of_id("replay", "Replay", ids.REPLAY, field="replay_id"),
    Filter.choice("outcome", "Outcome in it", ItemOutcome),
)


async def with_organizations(session: AsyncSession, filters: tuple[Filter, ...]) -> tuple[Filter, ...]:
    """The same, with the organizations' names to choose from, as long as they are few."""
    every = await organizations.oldest(session, MAX_OPTIONS + 1)
    if len(every) > MAX_OPTIONS:
        return filters
    named = sorted(every, key=lambda one: one.name.casefold())
    options = {ids.show(ids.ORGANIZATION, one.id): one.name for one in named}
    chosen = Filter.choice(ORGANIZATION.name, ORGANIZATION.label, options)
    return tuple(chosen if one is ORGANIZATION else one for one in filters)


def organization_of(asked: Mapping[str, str]) -> UUID | None:
    """None: all of them."""
    shown = asked.get(ORGANIZATION.field)
    return ids.parse(ids.ORGANIZATION, shown) if shown else None


def without_organization(asked: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in asked.items() if name != ORGANIZATION.field}


def chosen(asked: Mapping[str, str]) -> Deliveries:
    """Raises `InvalidId` where the organization is no single one."""
    return Deliveries(organization_of(asked), without_organization(asked))
