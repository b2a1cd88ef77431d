"""What happens in the demo: a tenant and its subscribers are made, events are sent, and each delivery is followed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from cli import target
from cli.demo import plot
from cli.demo.client import Client
from cli.demo.ending import ending
from cli.demo.receiver import Receiver
from cli.output import give

LOOK_EVERY_S = 0.1
ENDS_WITHIN_S = 60.0
ENDED = ("delivered", "dead", "discarded")
LABELS = {"pending": "will retry", "delivered": "delivered", "dead": "DEAD LETTER", "discarded": "discarded"}
State = tuple[str, int, int]  # status, attempts, series: a replay starts a new one


class Story:
    """Told once, by `tell`; `watch` then goes on for what the reader of it tries."""

    def __init__(self, url: str, data_dir: Path, receiver: Receiver) -> None:
        self._url = url
        self._data_dir = data_dir
        self._receiver = receiver
        self._key = ""
        self._entrance = ""
        self._subscribers: dict[str, plot.Subscriber] = {}  # by subscription id
        self._seen: dict[str, State] = {}  # by delivery id

    async def tell(self) -> bool:
        """Returns whether everything came as it must."""
        await self._make_tenant()
        async with Client(self._url, self._key) as client:
            await self._make_subscribers(client)
            await self._send_events(client)
            deliveries = await self._follow_to_the_end(client)
            states = Counter(one["status"] for one in deliveries)
            dead = next((one["delivery_id"] for one in deliveries if one["status"] == "dead"), "dlv_…")
            give(ending(self._url, self._entrance, self._key, self._receiver, states, dead))
        if states != plot.EXPECTED:
            give(f"This is not what should have come of it: {dict(plot.EXPECTED)}")
        return states == plot.EXPECTED

    async def watch(self) -> None:
        """Shows every further change, until cancelled."""
        async with Client(self._url, self._key) as client:
            while True:
                await asyncio.sleep(LOOK_EVERY_S * 3)
                self._show_changes(await self._deliveries(client))

    async def _make_tenant(self) -> None:
        """Anew at each start: an earlier one's subscriptions lead to a receiver that is gone."""
        from core import ids, organizations
        from core.access import api_keys, set_up_link
        from core.storage.database import driver_of

        settings = target.settings(self._data_dir, keys=True)
        target.refuse_newer_keys(self._data_dir)
        sealer = target.sealer(settings)
        async with target.session(settings) as session:
            organization = await organizations.create(session, f"Demo of {datetime.now():%Y-%m-%d %H:%M:%S}")
            _, self._key = await api_keys.create(session, sealer, organization_id=organization.id, name="demo")
            token = await set_up_link.make(await driver_of(session))
        self._entrance = "/sign-in" if token is None else set_up_link.path(token)
        give(f"\nA new organization: {organization.name} ({ids.show(ids.ORGANIZATION, organization.id)})")

    async def _make_subscribers(self, client: Client) -> None:
        for event_type in plot.EVENT_TYPES:
            await client.post("/v1/event-types", event_type, f"type {event_type['name']}")
        give(f"Its event types: {', '.join(str(one['name']) for one in plot.EVENT_TYPES)}")
        give("Its subscriptions, each retried after 0.5, 1 and 2 s:")
        for one in plot.SUBSCRIBERS:
            body = {
                "url": self._receiver.url(one.path),
                "events": list(one.events),
                "retry_policy": plot.RETRY_POLICY,
                "description": one.name,
            }
            made = await client.post("/v1/webhooks/subscriptions", body, f"subscription {one.name}")
            self._receiver.expect(one.path, made["secret_key"])
            self._subscribers[made["subscription_id"]] = one
            give(f"  {one.name:8}  {', '.join(one.events):16}  {one.behaviour}")

    async def _send_events(self, client: Client) -> None:
        give(f"\nSending {len(plot.EVENTS)} events\n")
        for number, (event_type, data) in enumerate(plot.EVENTS, 1):
            await client.post("/v1/events", {"event_type": event_type, "data": data}, f"event {number}")

    async def _follow_to_the_end(self, client: Client) -> list[dict[str, Any]]:
        deadline = time.monotonic() + ENDS_WITHIN_S
        while True:
            found = await self._deliveries(client)
            self._show_changes(found)
            ended = len(found) == sum(plot.EXPECTED.values()) and all(one["status"] in ENDED for one in found)
            if ended or time.monotonic() > deadline:
                return found
            await asyncio.sleep(LOOK_EVERY_S)

    async def _deliveries(self, client: Client) -> list[dict[str, Any]]:
        """The latest, the oldest of them first."""
        found: list[dict[str, Any]] = await client.get("/v1/deliveries", {"limit": "100"})
        return found[::-1]

    def _show_changes(self, deliveries: list[dict[str, Any]]) -> None:
        for one in sorted(deliveries, key=lambda each: str(each["updated_at"])):
            state = one["status"], one["attempt_count"], one["series"]
            if one["status"] == "sending" or self._seen.get(one["delivery_id"]) == state:
                continue
            self._seen[one["delivery_id"]] = state
            if one["attempt_count"] or one["status"] in ENDED:
                give(self._line(one))

    def _line(self, one: Mapping[str, Any]) -> str:
        subscriber = self._subscribers.get(one["subscription_id"])
        name = subscriber.name if subscriber else one["subscription_id"]
        holds = subscriber is not None and self._receiver.verified(subscriber.path, one["event_id"])
        at = datetime.fromisoformat(one["updated_at"]).astimezone()
        attempts = f"{one['attempt_count']} attempt" + ("s" if one["attempt_count"] != 1 else "")
        return (
            f"{at:%H:%M:%S}.{at.microsecond // 1000:03}  {one['event_type']:15}  {name:8}  {LABELS[one['status']]:11}  "
            f"{attempts:10}  signature {'verified ✓' if holds else 'NOT verified ✗'}"
            + (f"  last answer: {one['status_code'] or one['error']}" if one["error"] else "")
        )
