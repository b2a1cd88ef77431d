"""Dead letters by cause: the groups, and what is in one of them, to be replayed or discarded."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlencode
from uuid import UUID

from starlette.responses import Response

from app.admin import delivery_filters
from app.admin.explanations import Explanation, explain
from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from core import ids
from core.errors import NotFound, ValidationFailed
from core.failures import ErrorKind
from core.listing import dead_letters, labels
from core.listing.dead_letters import Group, Groups, TooMany
from core.listing.labels import Target
from core.listing.selection import NO_ERROR

UNTRIED = Explanation(
    "They were given up without an attempt",
    explain(ErrorKind.STATUS).fault,
    "Mostly they came due while their subscription was disabled. Resume it, then replay them.",
)
ERRORS = delivery_filters.ERRORS | {NO_ERROR: "never tried"}
FILTERS = (
    delivery_filters.ORGANIZATION,
    Filter.of_id("subscription", "Subscription", ids.SUBSCRIPTION),
    Filter.choice("error", "Error", ERRORS),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A group, and what people call what is in it."""

    group: Group
    target: Target | None
    organization: str

    @property
    def path(self) -> str:
        return path_of(self.group.subscription_id, self.group.error)

    @property
    def replay_path(self) -> str:
        """The preview of replaying all of it."""
        chosen = _selection(self.group.organization_id, self.group.subscription_id, self.group.error)
        return f"/replays/new?{urlencode(chosen)}"

    @property
    def organization_shown(self) -> str:
        return ids.show(ids.ORGANIZATION, self.group.organization_id)

    @property
    def explained(self) -> Explanation:
        return explained(self.group)


async def index(visit: Visit) -> Response:
    async with visit.transaction() as session:
        filters = await delivery_filters.with_organizations(session, FILTERS)
    query = PageQuery.of(visit, filters, ids.DELIVERY)
    number = _page_number(visit)
    found, problem = Groups((), False, 0, 0), ""
    if not query.errors:
        try:
            found = await _groups(visit, query, number)
        except ValidationFailed as error:
            query.refuse(error)
        except TooMany as error:
            problem = str(error)
    return visit.render(
        "dead_letters/index.html",
        query.status,
        query=query,
        found=found,
        problem=problem,
        shown=await _with_labels(visit, found),
        most=dead_letters.MOST_COUNTED,
        first=(number - 1) * dead_letters.PAGE_SIZE + 1,
        previous=_at(query, number - 1) if number > 1 else None,
        next=_at(query, number + 1) if found.more else None,
    )


async def show(visit: Visit) -> Response:
    """One group: its letters, the newest first."""
    subscription_id = visit.path_id(ids.SUBSCRIPTION, "subscription_id")
    error: str = visit.request.path_params["error"]
    if error not in ERRORS:
        raise NotFound
    async with visit.transaction() as session:
        target = (await labels.subscriptions(session, [subscription_id])).get(subscription_id)
        if target is None:
            raise NotFound
        walk = dead_letters.walk(target.organization_id, subscription_id, error)
        query = PageQuery.of(visit, (), ids.DELIVERY)
        page = await query.page(session, lambda _: walk)
        names = await labels.organizations(session, [target.organization_id])
    found = await _one(visit, target, error)
    return visit.render(
        "dead_letters/show.html",
        query.status,
        target=target,
        organization_id=ids.show(ids.ORGANIZATION, target.organization_id),
        organization=names[target.organization_id],
        error=error,
        kind=None if error == NO_ERROR else error,
        group=found,
        explained=UNTRIED if found is None or error == NO_ERROR else explained(found),
        page=page,
        rows=[(ids.show(ids.DELIVERY, row.id), row, ids.time_of(row.id)) for row in page.rows],
        most=dead_letters.MOST_COUNTED,
        selection=_selection(target.organization_id, subscription_id, error),
    )


def _selection(organization_id: UUID, subscription_id: UUID, error: str) -> dict[str, str]:
    """What chooses a whole group, as the pages of deliveries and replays read it in their URLs."""
    return {
        "status": "dead",
        "organization": ids.show(ids.ORGANIZATION, organization_id),
        "subscription": ids.show(ids.SUBSCRIPTION, subscription_id),
        "error": error,
    }


def path_of(subscription_id: UUID, error: str) -> str:
    return f"/dead-letters/{ids.show(ids.SUBSCRIPTION, subscription_id)}/{error}"


def explained(group: Group) -> Explanation:
    return UNTRIED if group.error_kind is None else explain(group.error_kind, group.last_status_code)


async def _groups(visit: Visit, query: PageQuery, number: int) -> Groups:
    of, error = query.asked.get("subscription"), query.asked.get("error")
    if error is not None and "," in error:
        raise ValidationFailed.of("error", "Choose one")
    async with visit.services.database.driver() as driver:
        return await dead_letters.groups(
            driver,
            organization_id=delivery_filters.organization_of(query.asked),
            subscription_id=ids.parse(ids.SUBSCRIPTION, of) if of else None,
            error=error,
            page=number,
        )


async def _one(visit: Visit, target: Target, error: str) -> Group | None:
    """The group's figures; None when it is empty by now."""
    async with visit.services.database.driver() as driver:
        found = await dead_letters.groups(driver, subscription_id=target.id, error=error)
    return found.rows[0] if found.rows else None


async def _with_labels(visit: Visit, found: Groups) -> list[Shown]:
    if not found.rows:
        return []
    async with visit.transaction() as session:
        targets = await labels.subscriptions(session, [one.subscription_id for one in found.rows])
        names = await labels.organizations(session, [one.organization_id for one in found.rows])
    return [Shown(one, targets.get(one.subscription_id), names.get(one.organization_id, "")) for one in found.rows]


def _page_number(visit: Visit) -> int:
    given = visit.request.query_params.get("page", "1")
    return int(given) if given.isascii() and given.isdecimal() and len(given) <= 4 and int(given) > 0 else 1


def _at(query: PageQuery, number: int) -> str:
    """Another page of the same groups."""
    return f"{query.path}?{urlencode({**query.given, 'page': number})}"
