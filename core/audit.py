"""The audit log: who did what to which resource, what it was before and is after, from where. The only writer of it.

An entry is written in the transaction of the change itself: neither is there without the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids, jsontext
from core.access.models import AuditEntry


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and from where."""

    id: str  # usr_…, key_…, or what of ours did it
    name: str = ""
    address: str | None = None
    request_id: str | None = None


# All that entries may say was done; a test holds the list against the code.
ACTIONS = (
    "api_key.created",
    "api_key.revoked",
    "api_key.updated",
    "audit_log.erased",  # by the database itself, where somebody else's hand than erasure's deleted entries
    "circuit_breaker.reset",
    "delivery.discarded",
    "delivery.replayed",
    "event.copied",
    "event.redacted",
    "event_type.created",
    "event_type.deleted",
    "event_type.updated",
    "installation.set_up",
    "organization.created",
    "organization.deleted",
    "organization.erased",
    "organization.updated",
    "replay.cancelled",
    "replay.created",
    "replay.paused",
    "replay.resumed",
    "replay.updated",
    "secret_keys.rotated",
    "session.all_revoked",
    "session.others_revoked",
    "session.revoked",
    "session.signed_out",
    "sign_in.failed",
    "sign_in.succeeded",
    "sign_in.throttled",
    "subscription.created",
    "subscription.deleted",
    "subscription.disabled",
    "subscription.paused",
    "subscription.resumed",
    "subscription.secret_revealed",
    "subscription.secret_rotated",
    "subscription.tested",
    "subscription.updated",
    "user.created",
    "user.disabled",
    "user.enabled",
    "user.identity_linked",
    "user.link_created",
    "user.password_changed",
    "user.updated",
)


COMMAND_LINE = Actor("command line")
ANYBODY = Actor("anybody")  # somebody who has not signed in
WORKER = Actor("worker")  # what the platform does by itself


def record(
    session: AsyncSession,
    actor: Actor,
    action: str,
    resource: str,
    *,
    organization_id: UUID | None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Adds an entry, made as by `entry`, to the caller's transaction."""
    session.add(entry(actor, action, resource, organization_id=organization_id, before=before, after=after))


def entry(
    actor: Actor,
    action: str,
    resource: str,
    *,
    organization_id: UUID | None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> AuditEntry:
    """`action` is noun and verb, as `subscription.created`; `resource` an id as the API shows it. Of `before` and
    `after`, where both are given, only what differs is kept. No secret may be in them: give what the API's views show.
    """
    if before is not None and after is not None:
        before, after = _differing(before, after), _differing(after, before)
    return AuditEntry(
        id=ids.new_id(),
        organization_id=organization_id,
        actor=actor.id,
        actor_name=actor.name,
        action=action,
        resource=resource,
        before=None if before is None else _without_queries(before),
        after=None if after is None else _without_queries(after),
        address=actor.address,
        request_id=actor.request_id,
    )


async def last(session: AsyncSession, resource: str, action: str) -> AuditEntry | None:
    """When and by whom this was last done to it."""
    query = select(AuditEntry).where(AuditEntry.resource == resource, AuditEntry.action == action)
    return (await session.exec(query.order_by(col(AuditEntry.id).desc()).limit(1))).one_or_none()


async def store(driver: Any, entries: Sequence[AuditEntry]) -> None:
    """The same for a transaction that holds the driver's own connection."""
    if entries:
        await driver.execute(
            _STORE,
            [one.id for one in entries],
            [one.organization_id for one in entries],
            [one.actor for one in entries],
            [one.actor_name for one in entries],
            [one.action for one in entries],
            [one.resource for one in entries],
            [_json(one.before) for one in entries],
            [_json(one.after) for one in entries],
            [one.address for one in entries],
            [one.request_id for one in entries],
        )


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else jsontext.dumps(value).decode()


_STORE = """
INSERT INTO audit_log (
    id, organization_id, actor, actor_name, action, resource, before, after, address, request_id
)
SELECT * FROM unnest(
    $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[]::jsonb[], $8::text[]::jsonb[],
    $9::text[], $10::text[]
)
"""


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in other or other[name] != value}


def _without_queries(values: Mapping[str, Any]) -> dict[str, Any]:
    """The query of a receiver's URL may be a credential. That it changed is still seen: the URL is in both."""
    return {name: _without_query(value) if name == "webhook_url" else value for name, value in values.items()}


def _without_query(url: str) -> str:
    head, mark, _ = url.partition("?")
    return f"{head}?••••" if mark else url
