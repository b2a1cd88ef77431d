"""The main job, end to end: accepted, signed, delivered, retried, dead-lettered, replayed."""

from __future__ import annotations

import asyncio
import json

from standardwebhooks import Webhook

from tests.platform import platform
from tests.receiver import Receiver

QUICK = {"backoff_strategy": "fixed", "base_delay_ms": 50, "max_attempts": 3}


def test_an_event_is_delivered_and_verifies(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            created = await p.subscribe(receiver.url("/ok"))
            event = await p.send(data={"total": 12345678901234567890123, "name": "Zoë"})
            [delivery] = await p.settled(1, "delivered")
            assert delivery["event_id"] == event["event_id"]
            assert event["matched_subscriptions"] == 1
            [request] = receiver.requests
            headers = {name.lower(): value for name, value in request.headers}
            body = Webhook(created["secret_key"]).verify(request.body, headers)
            assert body["data"] == {"total": 12345678901234567890123, "name": "Zoë"}
            assert headers["webhook-id"] == event["event_id"]

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_failures_end_in_the_dead_letter_queue_and_a_replay_delivers_them(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/hook"), retry_policy=QUICK)
            receiver.set("/hook", 500)
            event = await p.send()
            [dead] = await p.settled(1, "dead")
            assert (dead["reason"], dead["attempt_count"], dead["error"], dead["status_code"]) == (
                "exhausted",
                3,
                "status",
                500,
            )
            receiver.set("/hook", 200)
            replayed = (await p.call("POST", f"/v1/deliveries/{dead['id']}/replay", expect=202))["data"]
            assert replayed["status"] == "pending"
            [delivered] = await p.settled(1, "delivered")
            assert delivered["attempt_count"] == 1
            shown = (await p.call("GET", f"/v1/deliveries/{dead['id']}"))["data"]
            assert [(one["series"], one["number"]) for one in shown["attempts"]] == [(0, 1), (0, 2), (0, 3), (1, 1)]
            ids = {{n.lower(): v for n, v in one.headers}["webhook-id"] for one in receiver.requests}
            assert ids == {event["event_id"]}
            json.dumps(shown)

    with Receiver() as receiver:
        asyncio.run(run(receiver))
