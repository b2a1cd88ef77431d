"""The pages of events over HTTP, and sending one again with another payload, by page and by API."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from core import ids
from core.acceptance import Answer, Request
from core.access.models import Role
from core.errors import Unavailable
from tests.api import FAST, error_of, run
from tests.integration.test_delivery_pages import HOSTILE, check_markup, rows_of, text_of, walk
from tests.pages import Visitor, audited, signed_in
from tests.platform import Platform
from tests.receiver import Receiver

EDIT = '{\n  "total": 200,\n  "odd": "\\u202e",\n  "big": 12345678901234567890123\n}'


def draft_in(page: str) -> str:
    """What stands in the text area."""
    [found] = re.findall(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)
    return html.unescape(found)


def field_in(page: str, name: str) -> str:
    [found] = re.findall(rf'name="{name}" value="([^"]*)"', page)
    return html.unescape(found)


async def look(visitor: Visitor, path: str, data: str) -> str:
    await visitor.get(path)
    return (await visitor.post(path, data=data, step="look")).text


def test_an_event_and_its_deliveries(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            await p.subscribe(receiver.url("/ok"), ["order.*"])
            await p.subscribe(receiver.url("/status/500"), ["order.*"], retry_policy=FAST)
            data = {"hostile": HOSTILE, "big": 12345678901234567890123}
            event = await p.send("order.paid", data, event_id="stock-4711", metadata={"m": "<b>"}, branch_id="berlin")
            await p.settled(1, "delivered")
            await p.settled(1, "dead")
            path = f"/events/{event['event_id']}"
            async with (
                signed_in(p, "viewer@example.com", Role.VIEWER) as viewer,
                signed_in(p, "admin@example.com", Role.ADMIN) as admin,
            ):
                page = (await viewer.get(path)).text
                check_markup(page)
                said = text_of(page)
                for shown in ("stock-4711", "berlin", "12345678901234567890123", "delivered", "dead", '"m": "<b>"'):
                    assert shown in said
                assert len(rows_of(page)) == 2
                for hidden in ("/copy", "/redact", "/replays/new"):
                    assert hidden not in page
                [request, *_] = receiver.requests
                assert (await viewer.get(f"{path}/body")).content == request.body

                page = html.unescape((await admin.get(path)).text)
                assert f"event={event['event_id']}&status=delivered,dead,discarded,pending" in page
                assert (await admin.post(f"{path}/redact")).headers["location"] == f"{path}?done=redacted"
                page = (await admin.get(path)).text
                assert "Redacted" in page
                for gone in ("/copy", 'redact"', "/replays/new", "hostile", "stock&lt;"):
                    assert gone not in page, gone
                assert (await admin.get(f"{path}/body")).status_code == 404
                assert (await admin.get(f"{path}/copy")).status_code == 409
                assert (await admin.post(f"{path}/copy", data="{}", step="send")).status_code in (403, 409)
                assert await audited(p, "event.redacted") != []
                error_of(await p.client.post(f"/v1{path}/copy", json={"data": {}}), 409, "CONFLICT")

    run(database_url, redis_url, check, with_worker=True)


def test_an_edited_payload_is_looked_at_and_then_sent(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            await p.subscribe(receiver.url("/ok"), ["order.*"])
            data = {"total": 100, "odd": "\u202e", "big": 12345678901234567890123}
            first = await p.send("order.paid", data, event_id="stock-4711", metadata={"m": 1}, branch_id="berlin")
            await p.settled(1, "delivered")
            path = f"/events/{first['event_id']}/copy"
            async with signed_in(p, "operator@example.com", Role.OPERATOR) as operator:
                assert draft_in((await operator.get(path)).text) == EDIT.replace("200", "100")
                for wrong, said in (
                    ('{\n  "total": 200,,\n}', "line 2 column 16"),
                    ("[1]", "must be a JSON object"),
                    ("", "not valid JSON"),
                    ('{"a": 1e999}', "not valid JSON"),
                    (f"{'[' * 70}", "not valid JSON"),
                ):
                    page = await look(operator, path, wrong)
                    assert operator.page.status_code == 400
                    assert said in text_of(page), wrong
                    assert draft_in(page) == wrong, "nothing is lost"
                    assert 'aria-invalid="true"' in page
                same = await look(operator, path, EDIT.replace("200", "100"))
                assert "Nothing: the data is the same" in same
                page = await look(operator, path, EDIT.replace("\n", "\r\n"))  # as browsers send it
                check_markup(page)
                assert re.findall(r"<(ins|del)><span[^>]*>(\w+: )</span>(.*?)</", page) == [
                    ("del", "removed: ", "  &#34;total&#34;: 100,"),
                    ("ins", "added: ", "  &#34;total&#34;: 200,"),
                ]
                assert [row["copied_from"] for row in await p.sql("SELECT copied_from FROM events")] == [None]

                fields = {"data": field_in(page, "data"), "key": field_in(page, "key"), "step": "send"}
                sent = await operator.post(path, **fields)
                assert sent.status_code == 303, sent.text
                again = await operator.post(path, **fields)
                assert again.headers["location"] == sent.headers["location"], "sent twice by mistake, it is sent once"
                new = re.fullmatch(r"/events/(evt_\w+)\?done=sent", sent.headers["location"])
                assert new is not None
                await p.settled(2, "delivered")
                assert receiver.requests[-1].header("webhook-id") == new[1]
                assert (
                    b'"data":{"total":200,"odd":"\xe2\x80\xae","big":12345678901234567890123}'
                    in receiver.requests[-1].body
                )
                page = (await operator.get(sent.headers["location"])).text
                assert f'<a href="/events/{first["event_id"]}">' in page
                assert f'<a href="/events/{new[1]}">' in (await operator.get(f"/events/{first['event_id']}")).text

                shown = (await p.call("GET", f"/v1/events/{new[1]}"))["data"]
                old = (await p.call("GET", f"/v1/events/{first['event_id']}"))["data"]
                assert shown["copied_from"] == first["event_id"]
                for kept in ("event_type", "occurred_at", "branch_id", "metadata", "organization_id"):
                    assert shown[kept] == old[kept]
                assert shown["external_id"] is None, "which stays with the first"
                [(_, actor, resource, _)] = await audited(p, "event.copied")
                assert actor.startswith("usr_")
                assert resource == first["event_id"]

    run(database_url, redis_url, check, with_worker=True)


def test_a_copy_by_the_api(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        one, other = await p.subscribe("https://one.example/"), await p.subscribe("https://other.example/")
        event = await p.send("order.paid", {"total": 1})
        path = f"/v1/events/{event['event_id']}/copy"
        made = await p.client.post(path, json={"data": {"total": 2}}, headers={"Idempotency-Key": "k"})
        assert made.status_code == 202
        copied = made.json()["data"]
        assert (copied["event_type"], copied["matched_subscriptions"]) == ("order.paid", 2)
        await p.call("POST", f"/v1/events/{event['event_id']}/redact")
        again = await p.client.post(path, json={"data": {"total": 2}}, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["data"]) == (200, copied), "whatever has become of the first"
        other_body = await p.client.post(path, json={"data": {"total": 3}}, headers={"Idempotency-Key": "k"})
        error_of(other_body, 422, "IDEMPOTENCY_KEY_REUSED")
        assert (await p.call("GET", f"/v1/events/{copied['event_id']}"))["data"]["data"] == {"total": 2}

        error_of(await p.client.post(path, json={"data": [1]}), 400, "VALIDATION_FAILED")
        error_of(await p.client.post(path, json={"data": {}, "event_type": "x"}), 400, "VALIDATION_FAILED")
        nothing = f"/v1/events/{ids.show(ids.EVENT, ids.new_id())}/copy"
        error_of(await p.client.post(nothing, json={"data": {}}), 404, "NOT_FOUND")

        # A test event's copy goes where that went, and nowhere else.
        tested = (await p.call("POST", f"/v1/webhooks/subscriptions/{one['id']}/test"))["data"]
        path = f"/v1/events/{tested['event_id']}/copy"
        copied = (await p.call("POST", path, {"data": {}}))["data"]
        [delivery] = await p.deliveries(event_id=copied["event_id"])
        assert delivery["subscription_id"] == one["id"] != other["id"]
        await p.call("POST", f"/v1/webhooks/subscriptions/{one['id']}/pause")
        error_of(await p.client.post(path, json={"data": {}}), 409, "CONFLICT")

    run(database_url, redis_url, check)


def test_as_large_as_an_event_may_be(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        data: dict[str, Any] = {"rows": [{"n": n, "é\u202e": "🐴" * 20} for n in range(8_000)]}
        event = await p.send("order.paid", data)
        path = f"/events/{event['event_id']}/copy"
        async with signed_in(p, "operator@example.com", Role.OPERATOR) as operator:
            text = draft_in((await operator.get(path)).text)
            assert len(text) > 500_000
            page = await look(operator, path, text.replace('"n": 7,', '"n": -7,'))
            assert "too long to compare" in page
            sent = await operator.post(path, data=field_in(page, "data"), key=field_in(page, "key"), step="send")
            assert sent.status_code == 303
            row = (await p.call("GET", sent.headers["location"].replace("/events", "/v1/events").split("?")[0]))["data"]
            assert row["data"]["rows"][7]["n"] == -7
            assert row["data"]["rows"][8] == data["rows"][8]
            check_markup((await operator.get(sent.headers["location"])).text)
            too_large = await look(operator, path, '{"x": "' + "y" * 1_200_000 + '"}')
            assert operator.page.status_code == 200
            sent = await operator.post(path, data=field_in(too_large, "data"), key="k", step="send")
            assert sent.status_code == 413
            assert "exceeds 1048576 bytes" in sent.text
            assert len(draft_in(sent.text)) > 1_200_000, "and nothing is lost"

    run(database_url, redis_url, check, EVENT_MAX_BYTES="1048576")


def test_the_list_of_events(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        subscription = await p.subscribe("https://one.example/", ["order.n1"])
        for number in range(60):
            await p.send(f"order.n{number % 2}", {"number": f"no-{number}"}, event_id=f"producer-{number}")
        every = [ids.show(ids.EVENT, row["id"]) for row in await p.sql("SELECT id FROM events ORDER BY id DESC")]
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            found, _ = await walk(viewer, "/events")
            assert found == every
            assert (await walk(viewer, "/events?event_type=order.n1"))[0] == every[::2]
            assert (await walk(viewer, "/events?text=producer-58"))[0] == [every[1]]
            assert (await walk(viewer, "/events?text=no-59%22"))[0] == [every[0]]
            assert (await walk(viewer, f"/events?text={every[5]}"))[0] == [every[5]]
            [delivery, *_] = await p.deliveries(subscription_id=subscription["id"])
            assert (await walk(viewer, f"/events?text={delivery['id']}"))[0] == [delivery["event_id"]]
            [whose] = await p.sql("SELECT id FROM organizations")
            shown = ids.show(ids.ORGANIZATION, whose["id"])
            assert len((await walk(viewer, f"/events?organization={shown}&created_after=1h"))[0]) == 60
            assert (await walk(viewer, f"/events?organization={shown}&created_before=1h"))[0] == []
            assert "60 events." in (await viewer.get("/events")).text
            assert "Nothing matches" in (await viewer.get("/events?event_type=none.such")).text
        external = (await p.call("GET", "/v1/events?filters[external_id]=producer-3"))["data"]
        assert [one["id"] for one in external] == [every[56]]

    run(database_url, redis_url, check)


def test_what_to_do_first(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            assert "No events yet" in (await viewer.get("/events")).text
            assert "No deliveries yet" in (await viewer.get("/deliveries")).text
            assert "Nothing matches" in (await viewer.get("/deliveries?status=dead")).text

    run(database_url, redis_url, check)


def test_a_copy_whose_answer_did_not_come_is_sent_once(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        event = await p.send()
        path = f"/events/{event['event_id']}/copy"
        accept = p.services.acceptance.accept

        async def stored_and_silent(request: Request) -> Answer:
            await accept(request)
            monkeypatch.undo()
            raise Unavailable

        async with signed_in(p, "operator@example.com", Role.OPERATOR) as operator:
            await operator.get(path)
            page = await operator.post(path, data='{"total": 2}', step="look")
            monkeypatch.setattr(p.services.acceptance, "accept", stored_and_silent)
            [key] = re.findall(r'name="key" value="(\w+)"', page.text)
            page = await operator.post(path, data='{"total": 2}', step="send", key=key)
            assert page.status_code == 503
            assert "It was not stored in time. Send it again from here" in page.text
            [key] = re.findall(r'name="key" value="(\w+)"', page.text)
            answer = await operator.post(path, data='{"total": 2}', step="send", key=key)
            assert answer.status_code == 303
        [copied] = await p.sql("SELECT id FROM events WHERE copied_from IS NOT NULL")
        assert answer.headers["location"] == f"/events/{ids.show(ids.EVENT, copied['id'])}?done=sent"

    run(database_url, redis_url, check)
