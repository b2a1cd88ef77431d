"""The pages of deliveries over HTTP: what they show of hostile payloads and answers, what they do, and for whom."""

from __future__ import annotations

import asyncio
import html
import re
from typing import Any

import pytest
from sqlalchemy import Boolean, literal_column, text

from app.admin import attempts
from core import ids, redaction
from core.access.models import Role
from core.errors import ValidationFailed
from core.listing import delivery_lists, lists, merged, selection
from core.replay_preview import in_time
from core.storage.database import TooSlow, within
from tests.api import FAST, make_organization, run
from tests.pages import Visitor, audited, signed_in
from tests.platform import Platform
from tests.receiver import Receiver
from tests.seeds import Seeds, seeded

HOSTILE = "</pre><script>alert(1)</script>'\"\\ $(id) \u202eevil\u202c \u200b\x7f é 🐴"


async def make(p: Platform, url: str = "https://example.com/hook", **fields: Any) -> dict[str, Any]:
    """An event of one subscription's own type; its delivery."""
    event_type = f"for.this.n{ids.new_id().hex}"
    subscription = await p.subscribe(url, [event_type], **fields)
    await p.send(event_type, {"total": 1})
    [delivery] = await p.deliveries(subscription_id=subscription["id"])
    return delivery


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def rows_of(page: str) -> list[str]:
    return re.findall(r'<tr role="row" data-row="(\w+)"', page)


def check_markup(page: str) -> None:
    """Nothing that came from elsewhere has become markup, and nothing breaks the content policy."""
    main = page[page.index("<main") :]
    assert not re.search(r"<script|<style|<img|\bstyle=|<[^>]*\son\w+=", main[: main.index("</main>")])
    assert "\u202e" not in page
    assert "\u200b" not in page


def test_what_was_sent_and_what_came_back_byte_for_byte(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            data = {"hostile": HOSTILE, "big": 12345678901234567890123, "long": "x" * 1_000_000}
            async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
                for path, answer in {
                    "/ok": "not JSON",
                    "/all-bytes": "not text",
                    "/nul": "not text",
                    "/large/20000": "The first 4 KiB; no more is kept",
                    "/body-on-204": "204 after",
                    "/status/503": "Their server answered 503",
                    "/garbage": "None came",
                    "/latin-header": "200 after",
                }.items():
                    for payload_format in ("default", "cloudevents"):
                        subscription = await p.subscribe(
                            receiver.url(path),
                            ["shown.*"],
                            retry_policy=FAST,
                            payload_format=payload_format,
                            headers={"X-Token": "a-secret-in-a-header", "X-Other": "1"},
                        )
                        await p.send("shown.here", data)
                        [sent] = await p.settled(1, "delivered,dead", subscription_id=subscription["id"])
                        page = (await viewer.get(f"/deliveries/{sent['id']}")).text
                        check_markup(page)
                        said = text_of(page)
                        assert answer in said, path
                        assert "The signature above is of exactly these bytes" in said
                        assert "<dd>" in page
                        assert "a-secret-in-a-header" not in page
                        assert "X-Token••••" in re.sub(r"\s", "", said)
                        [attempt] = re.findall(r'data-row="(att_\w+)"', page)
                        download = await viewer.get(f"/deliveries/{sent['id']}/body?attempt={attempt}")
                        [request] = [one for one in receiver.requests if one.path == path]
                        assert download.content == request.body
                        assert download.headers["content-type"] == "application/octet-stream"
                        assert download.headers["content-disposition"] == f'attachment; filename="{attempt}.json"'
                        assert download.headers["x-content-type-options"] == "nosniff"
                        assert f"--data-binary @{attempt}.json" in said
                        for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
                            assert f"-H '{name}: {request.header(name)}'" in said
                        receiver.requests.clear()
                        await p.call("DELETE", f"/v1/webhooks/subscriptions/{subscription['id']}")

    run(database_url, redis_url, check, with_worker=True, EVENT_MAX_BYTES="2000000")


def test_the_format_that_an_attempt_had_is_told_by_its_signature(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            delivery = await make(p, receiver.url("/ok"), payload_format="data")
            one = f"/v1/webhooks/subscriptions/{delivery['subscription_id']}"
            await p.settled(1, "delivered")
            await p.call("PATCH", one, {"payload_format": "standard"})
            async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
                page = await viewer.get(f"/deliveries/{delivery['id']}")
                assert "exactly these bytes" in page.text
                assert (await viewer.get(f"/deliveries/{delivery['id']}/body")).content == b'{"total":1}'
                await p.call("POST", f"{one}/secret/rotate", {"grace_period_s": 0})
                page = await viewer.get(f"/deliveries/{delivery['id']}")
                assert "In the format that the subscription has now" in page.text, "and it says that it can't know"
                assert "Delivered: the receiver answered 200" in page.text

    run(database_url, redis_url, check, with_worker=True)


def test_what_follows_the_question_mark_of_an_address_is_not_a_viewers(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            url = receiver.url("/status/500?token=s3cr3t")
            delivery = await make(p, url, retry_policy={"max_attempts": 1})
            await p.settled(1, "dead")
        event_type = delivery["event_type"]
        organization = delivery["organization_id"]
        await p.call("POST", "/v1/event-types", {"name": event_type})
        paths = (
            f"/deliveries/{delivery['id']}",
            "/deliveries",
            "/subscriptions",
            f"/subscriptions/{delivery['subscription_id']}",
            f"/dead-letters/{delivery['subscription_id']}/status",
            f"/event-types/{organization}/{event_type}",
            "/dead-letters",
            "/",
        )
        for role, sees in ((Role.VIEWER, False), (Role.OPERATOR, True)):
            async with signed_in(p, f"{role}@example.com", role) as somebody:
                pages = {path: await somebody.get(path) for path in paths}
                assert {page.status_code for page in pages.values()} == {200}
                assert [path for path, page in pages.items() if "s3cr3t" in page.text] == [
                    path for path in paths if sees and path not in ("/deliveries", "/dead-letters", "/")
                ]

    run(database_url, redis_url, check, with_worker=True)


def test_replay_and_discard_by_role_and_state(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        delivery = await make(p)
        path = f"/deliveries/{delivery['id']}"
        async with (
            signed_in(p, "viewer@example.com", Role.VIEWER) as viewer,
            signed_in(p, "operator@example.com", Role.OPERATOR) as operator,
        ):
            page = (await viewer.get(path)).text
            assert re.search(rf"<title>Delivery of \S+, {delivery['id']} ", page), "each has a title of its own"
            assert "Not tried yet" in page
            assert f"{path}/replay" not in page
            assert f"{path}/discard" not in page
            assert "data-select" not in (await viewer.get("/deliveries")).text

            page = (await operator.get(path)).text
            assert 'hx-trigger="every 3s' in page, "its attempt is due"
            assert f'action="{path}/replay"' in page
            assert "instead of the attempt that is planned" in page
            assert (await operator.post(f"{path}/discard")).headers["location"] == f"{path}?done=discarded"
            page = (await operator.get(f"{path}?done=discarded")).text
            assert "It is discarded" in page
            assert "Discarded: somebody took it out" in page
            assert "hx-trigger" not in page, "nothing happens by itself any more"
            assert f'action="{path}/discard"' not in page, "what would be refused is not offered"
            answer = await operator.post(f"{path}/discard")
            assert answer.status_code == 409
            assert "Can&#39;t discard a delivery that is discarded;" in answer.text
            assert (await operator.post(f"{path}/replay")).headers["location"] == f"{path}?done=replayed"
            [row] = await p.sql("SELECT state, reason, series FROM deliveries")
            assert tuple(row) == ("pending", "replay", 1)
            assert "To be sent again, by a replay" in (await operator.get(path)).text
            await p.sql("UPDATE deliveries SET due_at = now() + interval '1 hour'")
            assert 'hx-trigger="every 15s' in (await operator.get(path)).text

            await p.sql("UPDATE deliveries SET state = 'sending', reason = NULL, lease_token = id")
            page = (await operator.get(path)).text
            assert "can't be replayed: It is being sent now" in html.unescape(page)
            assert (await operator.post(f"{path}/replay")).status_code == 409
            await p.sql(
                "UPDATE deliveries SET state = 'dead', reason = 'exhausted', lease_token = NULL, due_at = NULL,"
                " error_kind = 'status', status_code = 500, attempt_count = 2"
            )
            for status, why in (("disabled", "disabled: resume it first"), ("deleted", "Its subscription is deleted")):
                await p.sql("UPDATE subscriptions SET status = $1", status)
                page = html.unescape((await operator.get(path)).text)
                assert f"can't be replayed: {why}" in page or why in page
                assert f'action="{path}/replay"' not in page
                assert (await operator.post(f"{path}/replay")).status_code == 409
            names = [
                (action, resource)
                for action, _, resource, _ in await audited(p, "delivery.replayed", "delivery.discarded")
            ]
            assert names == [("delivery.discarded", delivery["id"]), ("delivery.replayed", delivery["id"])]
            users = {actor.split("_")[0] for _, actor, _, _ in await audited(p, "delivery.replayed")}
            assert users == {"usr"}

    run(database_url, redis_url, check)


def test_a_page_and_the_api_leave_the_same_entry(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, "operator@example.com", Role.OPERATOR) as operator:
            for operation in ("discard", "replay"):
                one, other = await make(p), await make(p)
                await operator.get(f"/deliveries/{one['id']}")
                assert (await operator.post(f"/deliveries/{one['id']}/{operation}")).status_code == 303
                await p.call("POST", f"/v1/deliveries/{other['id']}/{operation}")
                rows = await p.sql("SELECT * FROM audit_log WHERE action LIKE 'delivery.%' ORDER BY id DESC LIMIT 2")
                by_api, by_page = ({**row} for row in rows)
                assert by_page["resource"] == one["id"]
                for key in ("action", "organization_id"):
                    assert by_page[key] == by_api[key]
                assert set(by_page["after"]) == set(by_api["after"])

    run(database_url, redis_url, check)


def test_of_a_redacted_event_nothing_is_offered(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            delivery = await make(p, receiver.url("/ok"))
            await p.settled(1, "delivered")
            await p.call("POST", f"/v1/events/{delivery['event_id']}/redact")
            async with signed_in(p, "admin@example.com", Role.ADMIN) as admin:
                page = html.unescape((await admin.get(f"/deliveries/{delivery['id']}")).text)
                assert "can't be replayed: Its event was redacted" in page
                assert "The event was redacted: there is no body any more" in page
                assert "removed when the event was redacted" in page
                assert "curl" not in text_of(page)
                assert (await admin.get(f"/deliveries/{delivery['id']}/body")).status_code == 404
                assert (await admin.post(f"/deliveries/{delivery['id']}/replay")).status_code in (403, 409)

    run(database_url, redis_url, check, with_worker=True)


def test_an_answer_is_not_shown_while_a_redaction_goes_on(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        async def later(*_: object) -> bool:
            return False  # as of an event with so many deliveries that workers go on

        with Receiver() as receiver:
            delivery = await make(p, receiver.url("/ok"))
            await p.settled(1, "delivered")
            [stored] = (await p.call("GET", f"/v1/deliveries/{delivery['id']}"))["data"]["attempts"]
            assert stored["response_body"]
            async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
                assert 'id="response-body"' in (await viewer.get(f"/deliveries/{delivery['id']}")).text
                monkeypatch.setattr(redaction, "finish", later)
                await p.call("POST", f"/v1/events/{delivery['event_id']}/redact")
                [kept] = await p.sql("SELECT response_body FROM attempts")
                assert kept["response_body"], "it is not removed yet"
                page = (await viewer.get(f"/deliveries/{delivery['id']}")).text
                assert 'id="response-body"' not in page
                assert 'id="response-headers"' not in page
                assert "removed when the event was redacted" in page

    run(database_url, redis_url, check, with_worker=True)


async def many(p: Platform, url: str = "https://example.com/hook") -> dict[str, Any]:
    """Sixty deliveries, a third of them dead, half of those with another error."""
    subscription = await p.subscribe(url, ["order.*"], retry_policy=FAST)
    events = [{"event_type": f"order.n{n % 2}", "data": {"number": f"no-{n}", "word": "wörd"}} for n in range(60)]
    await p.call("POST", "/v1/events/batch", {"events": events})
    await p.sql(
        "UPDATE deliveries SET state = 'dead', reason = 'exhausted', due_at = NULL, attempt_count = 3,"
        " error_kind = CASE WHEN hashtext(id::text) % 2 = 0 THEN 'timeout' ELSE 'status' END,"
        " status_code = CASE WHEN hashtext(id::text) % 2 = 0 THEN NULL ELSE 503 END"
        " WHERE id IN (SELECT id FROM deliveries WHERE subscription_id = $1 ORDER BY id LIMIT 20)",
        ids.parse(ids.SUBSCRIPTION, subscription["id"]),
    )
    return subscription


async def walk(visitor: Visitor, path: str) -> tuple[list[str], list[list[str]]]:
    """All rows from the newest to the oldest, page by page; and back up again."""
    pages = []
    page = await visitor.get(path)
    while True:
        assert page.status_code == 200, page.text
        check_markup(page.text)
        pages.append(rows_of(page.text))
        older = re.search(r'href="([^"]+)" rel="next"', page.text)
        if older is None:
            break
        page = await visitor.get(html.unescape(older[1]))
    back = [pages[-1]]
    while newer := re.search(r'href="([^"]+)" rel="prev"', page.text):
        page = await visitor.get(html.unescape(newer[1]))
        back.append(rows_of(page.text))
    return [row for rows in pages for row in rows], back


def test_the_list_over_all_organizations_both_ways(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        await many(p)
        other = await make_organization(p, "Zoë's shop")
        headers = {"X-API-Key": p.platform_key, "X-Organization-ID": ids.show(ids.ORGANIZATION, other)}
        p.client.headers.update(headers)
        subscription = await many(p, "https://zoe.example/hook")
        p.client.headers["X-API-Key"] = p.key
        del p.client.headers["X-Organization-ID"]
        every = [ids.show(ids.DELIVERY, row["id"]) for row in await p.sql("SELECT id FROM deliveries ORDER BY id DESC")]
        dead = [
            ids.show(ids.DELIVERY, row["id"])
            for row in await p.sql("SELECT id FROM deliveries WHERE state = 'dead' ORDER BY id DESC")
        ]
        theirs = [
            ids.show(ids.DELIVERY, row["id"])
            for row in await p.sql("SELECT id FROM deliveries WHERE organization_id = $1 ORDER BY id DESC", other)
        ]
        async with signed_in(p, "operator@example.com", Role.OPERATOR) as operator:
            found, back = await walk(operator, "/deliveries")
            assert (len(every), found) == (120, every)
            assert back[-1] == every[:50]
            page = (await operator.get("/deliveries?status=dead")).text
            assert rows_of(page) == dead
            assert "40 deliveries." in page
            assert "example.com" in page
            assert "zoe.example" in page
            assert "Zoë&#39;s shop" in page
            shown = ids.show(ids.ORGANIZATION, other)
            assert (await walk(operator, f"/deliveries?organization={shown}"))[0] == theirs
            assert (await walk(operator, f"/deliveries?subscription={subscription['id']}"))[0] == theirs
            assert (await walk(operator, f"/deliveries?subscription={subscription['id']}&status=dead"))[0] == theirs[
                -20:
            ]
            wanted = await by_number(p, 7)
            assert (await walk(operator, "/deliveries?text=no-7%22"))[0] == [one for one in every if one in wanted]
            assert len((await walk(operator, "/deliveries?text=w%C3%B6rd&status=dead"))[0]) == 40
            assert (await walk(operator, f"/deliveries?text={every[3]}"))[0] == [every[3]]
            assert "Nothing matches" in (await operator.get("/deliveries?text=nowhere")).text
            assert "Nothing matches" in (await operator.get("/deliveries?event_type=none.such")).text
            assert len((await walk(operator, "/deliveries?event_type=order.n1"))[0]) == 60
            assert len((await walk(operator, "/deliveries?error=timeout,status"))[0]) == 40
            assert (await walk(operator, "/deliveries?status_code=503"))[0] == (
                await walk(operator, "/deliveries?error=status")
            )[0]

            wrong = await operator.get("/deliveries?status=lost&created_after=soon&status_code=5&organization=org_x")
            assert wrong.status_code == 400
            assert wrong.text.count('aria-invalid="true"') == 3, "and of the code, core is not asked before"
            assert (await operator.get("/deliveries?status_code=5")).status_code == 400

            with monkeypatch.context() as few:
                few.setattr(lists, "MAX_COUNTED", 30)
                assert "More than 30 deliveries" in (await operator.get("/deliveries?status=dead")).text

            # However little a page may look at, nothing is lost or repeated.
            monkeypatch.setattr(lists, "REACH", 7)
            monkeypatch.setattr(delivery_lists, "REACH_IN_INDEX", 11)
            monkeypatch.setattr(delivery_lists, "REACH_IN_PAYLOADS", 9)
            monkeypatch.setattr(merged, "LEAST_REACH", 3)
            for most in (200, 1):
                monkeypatch.setattr(merged, "MAX_MERGED", most)
                assert (await walk(operator, "/deliveries?status=dead"))[0] == dead
                assert (await walk(operator, "/deliveries?status=delivered"))[0] == []
                assert len((await walk(operator, "/deliveries?text=w%C3%B6rd&status=dead"))[0]) == 40
                assert len((await walk(operator, "/deliveries?status=pending&event_type=order.n1"))[0]) == 40
                assert len((await walk(operator, "/events?event_type=order.n1&text=no-1"))[0]) == 2 * 6
            assert "Looked back as far as" in (await operator.get("/deliveries?status=delivered")).text

            await p.sql("UPDATE organizations SET deleted_at = now() WHERE id = $1", other)
            found, _ = await walk(operator, "/deliveries")
            assert set(found) == set(every) - set(theirs), "what is being erased is not shown"
            assert (await operator.get(f"/deliveries/{theirs[0]}")).status_code == 404

    async def by_number(p: Platform, number: int) -> set[str]:
        rows = await p.sql(
            "SELECT d.id FROM deliveries d JOIN events e ON e.id = d.event_id"
            " WHERE position($1::bytea IN e.payload) > 0",
            f'"no-{number}"'.encode(),
        )
        return {ids.show(ids.DELIVERY, row["id"]) for row in rows}

    run(database_url, redis_url, check)


def test_a_search_that_takes_too_long_says_so(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        await many(p)
        # Each payload takes 10 ms to read.
        slowly = literal_column("(pg_sleep(0.01)::text = '' AND events.payload IS NOT NULL)", Boolean)
        monkeypatch.setattr(selection, "holding", lambda _: slowly)
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            page = await viewer.get("/deliveries?text=anything")
            assert page.status_code == 200
            assert "Many deliveries; counting them takes too long" in page.text
            monkeypatch.setattr(delivery_lists, "SEARCH_TIMEOUT_MS", 50)
            for path in ("/deliveries", "/events"):
                page = await viewer.get(f"{path}?text=anything")
                assert page.status_code == 400
                assert "Searching the payloads takes longer than 0.05 s; narrow it by" in page.text
                assert 'value="anything"' in page.text
            answer = await p.call("GET", "/v1/deliveries?filters[text]=anything", expect=400)
            assert "takes longer" in answer["error"]["details"]["filters.text"][0]

    run(database_url, redis_url, check)


def test_searches_leave_connections_for_others(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        await many(p)
        slowly = literal_column("(pg_sleep(0.02)::text = '' AND events.payload IS NOT NULL)", Boolean)
        monkeypatch.setattr(selection, "holding", lambda _: slowly)
        async with asyncio.TaskGroup() as group:
            paths = [f"/v1/{one}?filters[text]=anything" for one in ("deliveries", "events") * 10]
            searches = [group.create_task(p.client.get(path)) for path in paths]
            await asyncio.wait(searches, return_when=asyncio.FIRST_COMPLETED)
            await p.send("order.n1")
            assert not all(one.done() for one in searches), "it is accepted while some still search"
        answers = [one.result() for one in searches]
        refused = [one for one in answers if one.status_code == 503]
        assert len(refused) >= len(paths) - 2 * selection.SEARCHES_AT_ONCE
        assert refused[0].headers["Retry-After"] == "1"
        assert "Others are searching" in refused[0].text
        assert [one.status_code for one in answers if one not in refused][:2] == [200, 200]
        monkeypatch.undo()
        await p.call("GET", paths[0])
        dry_run = {"filters": {"text": "anything"}, "dry_run": True}
        with selection.turn(), selection.turn():
            await p.call("POST", "/v1/replays", dry_run, 503)
            await p.call("POST", "/v1/replays", dry_run | {"dry_run": False}, 503)
        await p.call("POST", "/v1/replays", dry_run)

    run(database_url, redis_url, check)


def test_what_comes_after_a_statement_that_took_too_long_has_its_time(database_url: str) -> None:
    async def check(seeds: Seeds) -> None:
        slow = text("SELECT pg_sleep(0.2)")
        async with seeds.database.session() as session:
            for _ in range(2):
                with pytest.raises(TooSlow):
                    async with within(session, 50):
                        await session.exec(slow)
                await session.exec(slow)
            async with within(session, 5_000):
                await session.exec(slow)
            with pytest.raises(ValidationFailed):
                async with session.begin_nested(), in_time(session, 100):
                    await session.exec(slow)
            await session.exec(slow)
            async with in_time(session, 5_000):
                await session.exec(slow)
            assert (await session.exec(text("SHOW statement_timeout"))).scalar_one() == "0"

    seeded(database_url, check)


def test_selected_rows_go_to_the_preview(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        subscription = await many(p)
        async with signed_in(p, "operator@example.com", Role.OPERATOR) as operator:
            page = (
                await operator.get(
                    f"/deliveries?subscription={subscription['id']}&error=status&text=no-&created_after=1h"
                )
            ).text
            form = page[page.index('<form id="selected"') :]
            fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form[: form.index("</form>")])
            assert [name for name, _ in fields] == ["select", "text", "subscription", "created_after", "error"]
            assert dict(fields)["created_after"].endswith("Z"), "an hour ago is as it was"
            rows = rows_of(page)
            preview = await operator.client.get("/replays/new", params=[*fields, ("ids", rows[0]), ("ids", rows[1])])
            assert "2 deliveries by hand" in preview.text
            every = await operator.client.get("/replays/new", params=[*fields, ("ids", rows[0]), ("all_matching", "1")])
            assert every.status_code == 200
            assert f"{len(rows)} deliver" in text_of(every.text)
            none = await operator.client.get("/replays/new", params=fields)
            assert "Nothing was selected" in none.text

    run(database_url, redis_url, check)


def test_the_attempt_that_is_named_is_shown(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with Receiver() as receiver:
            receiver.script("/in-turn", [500, 502, 200])
            delivery = await make(
                p, receiver.url("/in-turn"), retry_policy={**FAST, "max_attempts": 3, "base_delay_ms": 1}
            )
            await p.settled(1, "delivered")
            async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
                page = (await viewer.get(f"/deliveries/{delivery['id']}")).text
                tried = re.findall(r'data-row="(att_\w+)"', page)
                assert len(tried) == 3
                assert "Attempt 3," in page
                assert page.count("<rect") == 3
                first = (await viewer.get(f"/deliveries/{delivery['id']}?attempt={tried[0]}")).text
                assert "Attempt 1," in first
                assert "Their server answered 500" in first
                unknown = (await viewer.get(f"/deliveries/{delivery['id']}?attempt=att_nothing")).text
                assert "Attempt 3," in unknown
        assert attempts.KEPT_BYTES == 4096

    run(database_url, redis_url, check, with_worker=True)


def test_there_is_no_such_delivery(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, "viewer@example.com", Role.VIEWER) as viewer:
            for id_ in (ids.show(ids.DELIVERY, ids.new_id()), "dlv_x", ids.show(ids.EVENT, ids.new_id()), "é"):
                for path in (f"/deliveries/{id_}", f"/deliveries/{id_}/body", f"/events/{id_}"):
                    assert (await viewer.get(path)).status_code == 404, path

    run(database_url, redis_url, check)
