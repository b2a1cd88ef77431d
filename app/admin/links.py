"""From an id to the page of what it names. Templates show ids by the macro of `shared/links.html`, which links them."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urlencode

from core import ids
from core.access import users
from core.access.models import Role
from core.errors import InvalidId


class _Place(NamedTuple):
    folder: str  # the page is below it, by the id; empty: what it belongs to has the page, and `/go` finds that
    role: Role  # the least that may open it


_PLACES = {
    ids.EVENT: _Place("/events", Role.VIEWER),
    ids.DELIVERY: _Place("/deliveries", Role.VIEWER),
    ids.ATTEMPT: _Place("", Role.VIEWER),
    ids.SUBSCRIPTION: _Place("/subscriptions", Role.VIEWER),
    ids.ORGANIZATION: _Place("/organizations", Role.VIEWER),
    ids.REPLAY: _Place("/replays", Role.VIEWER),
    ids.API_KEY: _Place("/api-keys", Role.ADMIN),
    ids.USER: _Place("/users", Role.ADMIN),
    ids.SESSION: _Place("", Role.ADMIN),
    ids.AUDIT_ENTRY: _Place("/audit-log", Role.ADMIN),
    ids.SECRET: _Place("", Role.VIEWER),
    ids.BREAKER_CHANGE: _Place("", Role.VIEWER),
}
PREFIXES = tuple(_PLACES)


def link_of(text: str, role: str = Role.ADMIN) -> str | None:
    """The path of the page of `sub_…`, `evt_…` and so on, for somebody of this role. None for what is no id, and where
    the page would be refused them."""
    prefix = text.partition("_")[0]
    place = _PLACES.get(prefix)
    if place is None or not users.may(role, place.role):
        return None
    try:
        shown = ids.show(prefix, ids.parse(prefix, text))
    except InvalidId:
        return None
    return f"{place.folder}/{shown}" if place.folder else f"/go?{urlencode({'q': shown})}"


def event_type(organization_id: str, name: str) -> str:
    """The path of the page of an event type, which is named by its organization's id and its name."""
    return f"/event-types/{organization_id}/{quote(name, safe='')}"
