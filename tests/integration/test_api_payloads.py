"""What a receiver gets: the exact body of each format, headers, and signatures its own library verifies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from typing import Any

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from tests.api import SUBSCRIPTIONS, error_of, run
from tests.platform import Platform, shown
from tests.receiver import Receiver, Recorded

DATA = {"z": 10**25, "name": "Zoë", "list": [1, 2.5, None], "a": {"nul": "\0"}}
DATA_BYTES = '{"z":10000000000000000000000000,"name":"Zoë","list":[1,2.5,null],"a":{"nul":"\\u0000"}}'
AT = "2026-01-28T11:15:00.250+01:00"
SHOWN_AT = "2026-01-28T10:15:00.250Z"
BODIES = {
    "default": '{{"event_id":"{id}","event_type":"a.b","occurred_at":"{at}","organization_id":"{org}","data":{data}}}',
    "standard": '{{"type":"a.b","timestamp":"{at}","data":{data}}}',
    "data": "{data}",
    "cloudevents": '{{"specversion":"1.0","id":"{id}","source":"/organizations/{org}","type":"a.b","time":"{at}",'
    '"datacontenttype":"application/json","data":{data}}}',
}


def headers_of(request: Recorded) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers}


async def received(receiver: Receiver, number: int) -> list[Recorded]:
    return await asyncio.to_thread(receiver.wait_for, number)


@pytest.mark.parametrize("payload_format", BODIES)
def test_each_format_arrives_byte_for_byte_and_verifies(database_url: str, redis_url: str, payload_format: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(receiver.url("/ok"), payload_format=payload_format)
        event = await p.send("a.b", DATA, occurred_at=AT)
        [request] = await received(receiver, 1)
        expected = BODIES[payload_format].format(id=event["event_id"], org=shown(p), at=SHOWN_AT, data=DATA_BYTES)
        assert request.body.decode() == expected
        headers = headers_of(request)
        kind = "application/cloudevents+json; charset=utf-8" if payload_format == "cloudevents" else "application/json"
        assert headers["content-type"] == kind
        assert headers["webhook-id"] == event["event_id"]
        assert headers["content-length"] == str(len(request.body))
        assert Webhook(made["secret_key"]).verify(request.body, headers) == json.loads(request.body)
        assert "x-webhook-signature" not in headers

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_a_branch_is_in_the_body_and_comes_from_body_or_header(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(receiver.url("/ok"))
        post: list[tuple[dict[str, Any], str, str | None]] = [
            ({"branch_id": "berlin"}, "", "berlin"),
            ({}, "Zürich", "Zürich"),
            ({"branch_id": "berlin"}, "hamburg", "berlin"),
            ({}, "", None),
        ]
        for number, (fields, header, expected) in enumerate(post, start=1):
            headers = {"X-Branch-ID": header.encode()}
            body = {"event_type": "a.b", "data": {"n": 1}, **fields}
            answer = await p.client.post("/v1/events", json=body, headers=headers)
            assert answer.status_code == 202, answer.text
            sent = json.loads((await received(receiver, number))[-1].body)
            assert sent.get("branch_id") == expected
            names = ["event_id", "event_type", "occurred_at", "organization_id", "branch_id", "data"]
            assert list(sent) == [name for name in names if expected or name != "branch_id"]
        made = await p.client.post(
            SUBSCRIPTIONS,
            json={"url": receiver.url("/ok"), "events": ["x"]},
            headers={"X-Branch-ID": "Zürich".encode()},
        )
        assert made.json()["data"]["branch_id"] == "Zürich"

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_hmac_sha256_adds_its_own_header_over_the_body(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        secret = "correct horse battery staple"
        made = await p.subscribe(receiver.url("/ok"), authentication={"type": "hmac_sha256", "secret": secret})
        assert made["secret_key"] == secret
        await p.send("a.b", DATA)
        [request] = await received(receiver, 1)
        expected = hmac.new(secret.encode(), request.body, hashlib.sha256).hexdigest()
        assert headers_of(request)["x-webhook-signature"] == f"sha256={expected}"
        # The standard headers come along all the same, keyed with the same bytes.
        assert Webhook(secret.encode()).verify(request.body, headers_of(request))

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_custom_headers_are_sent_and_masked_in_the_attempts(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(
            receiver.url("/ok"), headers={"X-Token": "hidden-value", "Authorization": "Bearer hidden-too"}
        )
        await p.send()
        [request] = await received(receiver, 1)
        assert headers_of(request)["x-token"] == "hidden-value"
        assert headers_of(request)["authorization"] == "Bearer hidden-too"
        [delivery] = await p.settled(1, "delivered")
        answer = await p.client.get(f"/v1/deliveries/{delivery['id']}")
        assert "hidden" not in answer.text
        [attempt] = answer.json()["data"]["attempts"]
        shown_headers = {name.lower(): value for name, value in attempt["request_headers"].items()}
        assert (shown_headers["x-token"], shown_headers["authorization"]) == ("••••", "••••")
        assert shown_headers["webhook-id"] == delivery["event_id"]

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_old_and_new_secret_verify_through_the_grace_period(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(receiver.url("/ok"))
        path = f"{SUBSCRIPTIONS}/{made['id']}/secret/rotate"
        secrets = [made["secret_key"]]
        secrets.append((await p.call("POST", path, {"grace_period_s": 3600}))["data"]["secret_key"])
        await p.send()
        [first] = await received(receiver, 1)
        for secret in secrets:
            Webhook(secret).verify(first.body, headers_of(first))
        assert len(headers_of(first)["webhook-signature"].split(" ")) == 2
        # Without a grace period the old ones that are still in theirs sign along, the one replaced now does not.
        secrets.append((await p.call("POST", path, {"grace_period_s": 0}))["data"]["secret_key"])
        await p.send()
        second = (await received(receiver, 2))[-1]
        Webhook(secrets[2]).verify(second.body, headers_of(second))
        Webhook(secrets[0]).verify(second.body, headers_of(second))
        with pytest.raises(WebhookVerificationError):
            Webhook(secrets[1]).verify(second.body, headers_of(second))
        await p.sql("UPDATE subscription_secrets SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL")
        await p.call("PATCH", f"{SUBSCRIPTIONS}/{made['id']}", {"description": "read anew"})
        await p.send()
        third = (await received(receiver, 3))[-1]
        Webhook(secrets[2]).verify(third.body, headers_of(third))
        with pytest.raises(WebhookVerificationError):
            Webhook(secrets[0]).verify(third.body, headers_of(third))
        error_of(await p.client.get(path), 405, "METHOD_NOT_ALLOWED")

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_a_changed_url_and_format_apply_to_the_next_delivery(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(receiver.url("/ok"))
        await p.send()
        await received(receiver, 1)
        change = {"url": receiver.url("/status/201"), "payload_format": "data", "headers": {"X-New": "1"}}
        await p.call("PATCH", f"{SUBSCRIPTIONS}/{made['id']}", change)
        await p.send(data={"n": 2})
        request = (await received(receiver, 2))[-1]
        assert (request.path, request.body, request.header("x-new")) == ("/status/201", b'{"n":2}', "1")

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)
