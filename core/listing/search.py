"""Finding things by what people have at hand: an id, a producer's own event id, a name, an address, a receiver's host.

None of this has an index of its own over all organizations, so each search may take `SEARCH_MS` and no longer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from core import ids
from core.errors import InvalidId

SEARCH_MS = 500
MOST = 10  # of a kind
MAX_CHARS = 500
_ID = re.compile(r"(?<![A-Za-z0-9])([a-z]{3}_[0-9A-Za-z]{26})(?![A-Za-z0-9])")
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?")

EVENT, ORGANIZATION, EVENT_TYPE, SUBSCRIPTION, USER = "event", "organization", "event type", "subscription", "user"
API_KEY = "API key"


class Hit(NamedTuple):
    """Something found. `name` is what it is called; an event type has no other id."""

    kind: str
    id: UUID
    name: str
    organization_id: UUID | None


@dataclass(slots=True)
class Found:
    hits: list[Hit] = field(default_factory=list)
    too_slow: list[str] = field(default_factory=list)  # kinds that could not be searched in time
    host: str = ""  # of the text, when it can be one


def id_in(text: str) -> str | None:
    """The first id of ours in a text: people paste lines of logs, and links."""
    for candidate in _ID.findall(text):
        try:
            return ids.show(candidate[:3], ids.parse(candidate[:3], candidate))
        except InvalidId:
            continue
    return None


async def owner_of(driver: Any, text: str) -> str | None:
    """For the id of what has no page of its own, the id of what it belongs to: an attempt's delivery, a session's user,
    the subscription of a secret or of a change of its breaker. None when there is none such."""
    prefix = text[:3]
    statement, owner = _OWNERS[prefix]
    found = await driver.fetchval(statement, ids.parse(prefix, text))
    return None if found is None else ids.show(owner, found)


_OWNERS = {
    ids.ATTEMPT: ("SELECT delivery_id FROM attempts WHERE id = $1", ids.DELIVERY),
    ids.SESSION: ("SELECT user_id FROM user_sessions WHERE id = $1", ids.USER),
    ids.SECRET: ("SELECT subscription_id FROM subscription_secrets WHERE id = $1", ids.SUBSCRIPTION),
    ids.BREAKER_CHANGE: ("SELECT subscription_id FROM breaker_changes WHERE id = $1", ids.SUBSCRIPTION),
}


async def search(driver: Any, text: str, *, access: bool) -> Found:
    """What `text` may mean, the likeliest first. `access`: whether whoever asks may see users and API keys."""
    found = Found(host=host_in(text))
    asked: list[tuple[str, str, str]] = [(EVENT, _EVENTS, text), (EVENT_TYPE, _EVENT_TYPES, text)]
    asked.append((ORGANIZATION, _ORGANIZATIONS, _like(text)))
    if found.host:
        asked.append((SUBSCRIPTION, _SUBSCRIPTIONS, _like(found.host)))
    if access:
        asked += [(API_KEY, _API_KEYS, text), (USER, _USERS, _like(text))]
    for kind, statement, value in asked:
        try:
            async with driver.transaction():
                await driver.execute(
                    f"SET LOCAL statement_timeout = {SEARCH_MS}; SET LOCAL plan_cache_mode = force_custom_plan"
                )
                rows: Sequence[Any] = await driver.fetch(statement, value, MOST)
        except asyncpg.QueryCanceledError:
            found.too_slow.append(kind)
        else:
            found.hits += [Hit(kind, *row) for row in rows]
    return found


def host_in(text: str) -> str:
    """The host of a URL, with its port, or the text itself where it can be one; else empty."""
    try:
        host = urlsplit(text).netloc.rpartition("@")[2] if "://" in text else text
    except ValueError:
        return ""
    return host.lower() if _HOST.fullmatch(host) else ""


def _like(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


# By the key of the table, once for each organization: an index on the producer's id alone there is not.
_EVENTS = """
SELECT found.event_id, $1, organizations.id FROM organizations CROSS JOIN LATERAL (
    SELECT event_id FROM event_keys WHERE organization_id = organizations.id AND external_id = $1
) AS found
LIMIT $2
"""
_EVENT_TYPES = "SELECT id, name, organization_id FROM event_types WHERE name = $1 ORDER BY id LIMIT $2"
_ORGANIZATIONS = """
SELECT id, name, id FROM organizations WHERE deleted_at IS NULL AND name ILIKE $1 ORDER BY id LIMIT $2
"""
_SUBSCRIPTIONS = """
SELECT id, url, organization_id FROM subscriptions
WHERE status <> 'deleted' AND split_part(url, '/', 3) ILIKE $1 ORDER BY id LIMIT $2
"""
_API_KEYS = "SELECT id, name, organization_id FROM api_keys WHERE prefix = $1 LIMIT $2"
_USERS = "SELECT id, email, NULL::uuid FROM users WHERE email ILIKE $1 OR name ILIKE $1 ORDER BY id LIMIT $2"
