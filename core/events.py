"""Events: what one is, the bytes that are fixed at acceptance, and reading them back to send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from core import ids, jsontext, timestamps
from core.errors import Conflict
from core.models import Event
from core.payloads import StoredEvent


# Tuples: a frozen dataclass takes twice as long to make, field by field.
class NewEvent(NamedTuple):
    """An event that passed validation, with the bytes that will be sent."""

    id: UUID
    organization_id: UUID
    event_type: str
    occurred_at: datetime
    external_id: str | None
    branch_id: str | None
    metadata: str | None
    payload: bytes
    data_at: int
    envelope: Mapping[str, Any]  # what filters see
    only_for: UUID | None = None  # a test event goes to this subscription, whatever it subscribes to
    copied_from: UUID | None = None  # the event whose payload was changed for this one


class Accepted(NamedTuple):
    """One accepted event. `duplicate`: it was there before, under the same `event_id` of the producer."""

    id: UUID
    event_type: str
    occurred_at: datetime
    matched_subscriptions: int
    duplicate: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "event_id": ids.show(ids.EVENT, self.id),
            "event_type": self.event_type,
            "occurred_at": timestamps.show(self.occurred_at),
            "matched_subscriptions": self.matched_subscriptions,
            "created_at": timestamps.show(ids.time_of(self.id)),
        }


def build(
    *,
    organization_id: UUID,
    event_type: str,
    data: Mapping[str, Any],
    occurred_at: datetime | None = None,
    external_id: str | None = None,
    branch_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    event_id: UUID | None = None,
    only_for: UUID | None = None,
    copied_from: UUID | None = None,
) -> NewEvent:
    """Fixes the bytes of an event: the default body, with `data` last, so that other formats can slice it out."""
    event_id = event_id or ids.new_id()
    occurred_at = occurred_at or ids.time_of(event_id)
    head: dict[str, Any] = {
        "event_id": ids.show(ids.EVENT, event_id),
        "event_type": event_type,
        "occurred_at": timestamps.show(occurred_at),
        "organization_id": ids.show(ids.ORGANIZATION, organization_id),
    }
    if branch_id is not None:
        head["branch_id"] = branch_id
    opening = orjson.dumps(head)[:-1] + b',"data":'
    return NewEvent(
        id=event_id,
        organization_id=organization_id,
        event_type=event_type,
        occurred_at=occurred_at,
        external_id=external_id,
        branch_id=branch_id,
        metadata=jsontext.dumps(metadata).decode() if metadata else None,
        payload=opening + jsontext.dumps(data) + b"}",
        data_at=len(opening),
        envelope={**head, "metadata": metadata or {}, "data": data},
        only_for=only_for,
        copied_from=copied_from,
    )


def copy(event: Event, data: Mapping[str, Any]) -> NewEvent:
    """The same with other `data`, as a new event: what happened, and when, is as it was, and a test event stays one.
    The producer's `event_id` stays with the first. Raises `Conflict` where that was redacted."""
    if event.redacted_at is not None:
        raise Conflict("The event was redacted, so there is nothing left to copy")
    return build(
        organization_id=event.organization_id,
        event_type=event.event_type,
        data=data,
        occurred_at=event.occurred_at,
        branch_id=event.branch_id,
        metadata=jsontext.loads(event.metadata_.encode()) if event.metadata_ else None,
        only_for=event.only_for,
        copied_from=event.id,
    )


def envelope_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What filters see of a stored event: the `envelope` that it had when it was new."""
    return {
        "event_id": ids.show(ids.EVENT, row["id"]),
        "event_type": row["event_type"],
        "occurred_at": timestamps.show(row["occurred_at"]),
        "organization_id": ids.show(ids.ORGANIZATION, row["organization_id"]),
        **({} if row["branch_id"] is None else {"branch_id": row["branch_id"]}),
        "metadata": jsontext.loads(row["metadata"].encode()) if row["metadata"] else {},
        "data": jsontext.loads(row["payload"][row["data_at"] : -1]),
    }


async def stored(driver: Any, event_ids: Sequence[UUID]) -> dict[UUID, StoredEvent]:
    """What workers need of these events to send them, by id."""
    rows = await driver.fetch(_STORED, list(event_ids), min(event_ids), max(event_ids))
    return {row["id"]: StoredEvent(**row) for row in rows}


_STORED = """
SELECT id, organization_id, event_type, occurred_at, payload, data_at, redacted_at IS NOT NULL AS redacted FROM events
WHERE id = ANY($1::uuid[]) AND id BETWEEN $2 AND $3
"""
