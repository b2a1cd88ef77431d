"""The body that a receiver gets, in the format its subscription chose.

The default body is stored with the event, byte for byte. The other formats are put together from the same stored
bytes, `data` cut out of them unchanged, so a retry or a replay next month sends what the first attempt sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from core import ids, timestamps


class StoredEvent:
    """An event as workers read it."""

    __slots__ = ("data_at", "event_type", "id", "occurred_at", "organization_id", "payload", "redacted", "shown_id")

    def __init__(
        self,
        id: UUID,
        organization_id: UUID,
        event_type: str,
        occurred_at: datetime,
        payload: bytes,
        data_at: int,
        redacted: bool = False,
    ) -> None:
        self.id = id
        self.organization_id = organization_id
        self.event_type = event_type
        self.occurred_at = occurred_at
        self.payload = payload
        self.data_at = data_at
        self.redacted = redacted  # there is no payload left to send
        self.shown_id = ids.show(ids.EVENT, id)

    @property
    def data(self) -> bytes:
        return self.payload[self.data_at : -1]


def _standard(event: StoredEvent) -> bytes:
    """Standard Webhooks 1.0.0, "Payload structure"."""
    return _with_data({"type": event.event_type, "timestamp": timestamps.show(event.occurred_at)}, event)


def _cloudevents(event: StoredEvent) -> bytes:
    """CloudEvents 1.0, structured content mode."""
    head = {
        "specversion": "1.0",
        "id": event.shown_id,
        "source": f"/organizations/{ids.show(ids.ORGANIZATION, event.organization_id)}",
        "type": event.event_type,
        "time": timestamps.show(event.occurred_at),
        "datacontenttype": "application/json",
    }
    return _with_data(head, event)


def _with_data(head: dict[str, Any], event: StoredEvent) -> bytes:
    return orjson.dumps(head)[:-1] + b',"data":' + event.data + b"}"


JSON = "application/json"

FORMATS: Mapping[str, tuple[str, Callable[[StoredEvent], bytes]]] = {
    "default": (JSON, lambda event: event.payload),
    "standard": (JSON, _standard),
    "data": (JSON, lambda event: event.data),
    "cloudevents": ("application/cloudevents+json; charset=utf-8", _cloudevents),
}


def render(payload_format: str, event: StoredEvent) -> tuple[str, bytes]:
    """The content type and the exact body."""
    content_type, body = FORMATS[payload_format]
    return content_type, body(event)
