"""The pages of subscriptions over HTTP: who may what, what forms do and keep, secrets, and many at a time."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from core import ids
from core.access.models import Role
from core.ids import new_id
from core.limiting.breaker import BLANK, BreakerSettings
from tests.api import SUBSCRIPTIONS, make_organization, run, shown_organization
from tests.pages import Visitor, audited, signed_in
from tests.platform import Platform, shown

URL = "https://partner.example.com/hook"
HOSTILE = '"><script>alert(1)</script>'
RAW = re.compile(r"<script>|<img|javascript:alert|\son\w+=")


def fields_of(page: httpx.Response) -> dict[str, str]:
    """What the page's form of a subscription would send, were it sent as it is."""
    [form] = re.findall(r'<form class="panel" id="subscription".*?</form>', page.text, re.S)
    fields = {
        html.unescape(name): html.unescape(value)
        for name, value in re.findall(r'<input id="[^"]*" name="([^"]+)"[^>]*?value="([^"]*)"', form)
    }
    for name, value in re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form):
        fields[name] = html.unescape(value)
    for name, value in re.findall(r'<textarea id="[^"]*" name="([^"]+)".*?>\n(.*?)</textarea>', form, re.S):
        fields[name] = html.unescape(value)
    for name, options in re.findall(r'<select id="[^"]*" name="([^"]+)".*?>(.*?)</select>', form, re.S):
        fields[name] = next(iter(re.findall(r'<option value="([^"]*)" selected', options)), "")
    return fields


def error_of(page: httpx.Response, field: str) -> str:
    """What stands beside a field."""
    found = re.search(rf'<p class="error" id="{re.escape(field)}-error">(.*?)</p>', page.text)
    assert found, f"nothing is said of {field}"
    return html.unescape(found[1])


def text_of(page: httpx.Response) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.text)).split())


async def submit(visitor: Visitor, path: str, fields: dict[str, str]) -> httpx.Response:
    """As `Visitor.post`, for a form that has a field `headers`."""
    answer = await visitor.client.post(path, data={"form_token": visitor.form_token, **fields})
    if not answer.is_redirect:
        visitor.page = answer
    return answer


async def stored(p: Platform, subscription_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await p.call("GET", f"{SUBSCRIPTIONS}/{subscription_id}"))["data"]
    return found


def test_a_new_one_from_an_empty_list_to_its_secret(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, "ada@example.com", Role.ADMIN) as admin:
            empty = await admin.get("/subscriptions")
            assert "No subscriptions yet" in empty.text
            chooses = await admin.get("/subscriptions/new")
            assert f'<option value="{shown(p)}">Test</option>' in chooses.text
            refused = await submit(admin, "/subscriptions", fields_of(chooses) | {"url": URL, "events": "order.*"})
            assert error_of(refused, "organization") == "Choose the organization that it belongs to"
            assert fields_of(refused)["url"] == URL

            await p.send("order.paid", {"total": 5})
            await p.call("POST", "/v1/event-types", {"name": "order.refunded"})
            page = await admin.get(f"/subscriptions/new?organization={shown(p)}")
            suggested = re.findall(r'<option value="([a-z.]+)"></option>', page.text)
            assert suggested == ["order.paid", "order.refunded"]
            given = fields_of(page) | {
                "url": f"{URL}?a={HOSTILE}",
                "events": "order.paid\r\n\r\n a b \r\nx*",
                "filters": '{"total": {"$near": 1},\n "vip" true}',
                "description": HOSTILE,
                "limits.per_second": "lots",
                "timeout_ms": "5",
                "retry_policy.backoff_strategy": "fixed",
                "retry_policy.max_attempts": "1000",
                "retry_policy.schedule": "5, soon",
                "circuit_breaker.failure_threshold": "0",
                "headers": "X-Token: s3cret\r\nno colon",
                "metadata": "[1]",
                "branch_id": "x" * 200,
                "authentication.secret": "short",
            }
            refused = await submit(admin, "/subscriptions", given)
            assert refused.status_code == 400
            assert {name: error_of(refused, name) for name in given if f'id="{name}-error"' in refused.text} == {
                "url": error_of(refused, "url"),
                "events": "Line 2: Must be segments of A-Z a-z 0-9 _ - or *, separated by single dots, as order.paid or"
                " order.* Line 3: A * stands for whole segments: write order.* rather than order* or order.pa*",
                "filters": "Is not JSON: Expecting ':' delimiter, line 2, column 8",
                "limits.per_second": "Must be a number",
                "timeout_ms": "Must be from 1000 to 30000",
                "retry_policy.schedule": "Must be seconds, such as 5, 300, 1800",
                "circuit_breaker.failure_threshold": "Must be a whole number from 1 to 1000",
                "headers": "Line 2 has no colon; write a header as X-Token: secret",
                "metadata": 'Must be a JSON object, such as {"total": {"$gte": 100}}',
                "branch_id": "Must be 1 to 128 printable characters",
                "authentication.secret": error_of(refused, "authentication.secret"),
            }
            kept = fields_of(refused)
            assert {name: kept[name] for name in given if name in kept and name not in ("form_token", "base")} == {
                name: value.replace("\r\n", "\n").strip()
                for name, value in given.items()
                if name in kept and name not in ("form_token", "base")
            }, "nothing is lost"
            assert not RAW.search(refused.text)
            assert await audited(p, "subscription.created") == []

            given |= {
                "url": URL,
                "events": "order.paid",
                "one_more": "order.refunded",
                "filters": '{"total": {"$gte": 3}}',
                "limits.per_second": "0.5",
                "timeout_ms": "",
                "retry_policy.max_attempts": "3",
                "retry_policy.schedule": "",
                "retry_policy.base_delay_ms": "1500",
                "circuit_breaker.failure_threshold": "7",
                "headers": "X-Token: s3cret",
                "metadata": '{"team": "a"}',
                "branch_id": "berlin",
                "authentication.secret": "",
            }
            made = await submit(admin, "/subscriptions", given)
            assert made.status_code == 200
            [secret] = re.findall(r'value="(whsec_[^"]+)"', made.text)
            [path] = set(re.findall(r'action="(/subscriptions/sub_\w+)/test"', made.text))
            assert made.headers["cache-control"] == "no-store"
            assert not RAW.search(made.text)
            row = await stored(p, path.rsplit("/", 1)[1])
            assert {name: row[name] for name in ("webhook_url", "events", "filters", "description", "branch_id")} == {
                "webhook_url": URL,
                "events": ["order.paid", "order.refunded"],
                "filters": {"total": {"$gte": 3}},
                "description": HOSTILE,
                "branch_id": "berlin",
            }
            assert row["timeout_ms"] == 15_000
            assert row["limits"]["per_second"] == 0.5
            assert row["circuit_breaker"]["failure_threshold"] == 7
            assert (row["retry_policy"]["max_attempts"], row["retry_policy"]["base_delay_ms"]) == (3, 1500)
            assert row["headers"] == {"X-Token": "••••"}
            assert row["metadata"] == {"team": "a"}
            [(_, actor, resource, address)] = await audited(p, "subscription.created")
            assert (actor[:4], resource, address) == ("usr_", row["id"], "203.0.113.7")

            for page in (await admin.get(path), await admin.get(f"{path}/edit"), await admin.get("/subscriptions")):
                assert page.status_code == 200
                assert "s3cret" not in page.text
                assert secret not in page.text
                assert not RAW.search(page.text)
            assert "3 attempts over 3 s: at once, then after 1.5 s (2 times)" in text_of(await admin.get(path))

    run(database_url, redis_url, check)


def test_two_people_change_the_same_one(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL, ["order.*"], headers={"X-One": "one", "X-Two": "two"}, description="first")
        path = f"/subscriptions/{made['id']}"
        async with signed_in(p, "ada@example.com", Role.ADMIN) as ada:
            mine = fields_of(await ada.get(f"{path}/edit"))
            saved = await submit(ada, f"{path}/edit", mine)
            assert saved.headers["location"] == f"{path}?done=saved"
            assert (await stored(p, made["id"]))["version"] == 1, "nothing was changed, so nothing is"
            changed = mine | {"description": "mine", "timeout_ms": "9000", "remove.X-One": "1", "headers": "x-two: 2"}
            await submit(ada, f"{path}/edit", changed)
            row = await stored(p, made["id"])
            assert (row["description"], row["timeout_ms"], list(row["headers"])) == ("mine", 9000, ["x-two"])
            [entry] = await p.sql("SELECT before, after FROM audit_log WHERE action = 'subscription.updated'")
            assert entry["after"] == {
                "description": "mine",
                "timeout_ms": 9000,
                "headers": {"x-two": "••••"},
                "version": 2,
                "updated_at": row["updated_at"],
            }

            mine = fields_of(await ada.get(f"{path}/edit")) | {"description": "mine again", "limits.per_second": "7"}
            theirs = {"description": "theirs", "events": ["*"], "timeout_ms": 8000}
            await p.call("PATCH", f"{SUBSCRIPTIONS}/{made['id']}", theirs)
            conflict = await submit(ada, f"{path}/edit", mine)
            assert conflict.status_code == 409
            assert "Somebody changed it meanwhile" in conflict.text
            assert re.findall(r"Changed meanwhile to:</p><pre>(.*?)</pre>", conflict.text) == ["theirs"]
            merged = fields_of(conflict)
            assert (merged["description"], merged["limits.per_second"]) == ("mine again", "7")
            assert (merged["events"], merged["timeout_ms"], merged["version"]) == ("*", "8000", "3")
            assert (await stored(p, made["id"]))["description"] == "theirs", "nothing is saved yet"
            await submit(ada, f"{path}/edit", merged)
            row = await stored(p, made["id"])
            assert (row["description"], row["limits"]["per_second"], row["events"]) == ("mine again", 7, ["*"])

            emptied = fields_of(await ada.get(f"{path}/edit")) | {"url": "", "events": "", "timeout_ms": ""}
            refused = await submit(ada, f"{path}/edit", emptied)
            assert error_of(refused, "events") == "Must list 1 to 100 event types or patterns"
            assert error_of(refused, "timeout_ms") == "Is required"
            assert error_of(refused, "url")
            # Whatever becomes of the hidden fields, core has the last word.
            for base in ("", "{}", "[]", "x", '{"url": 5}', '{"secret": "x"}'):
                odd = fields_of(await ada.get(f"{path}/edit")) | {"base": base, "authentication.secret": "x" * 30}
                assert (await submit(ada, f"{path}/edit", odd)).status_code == 303, base
            assert (await stored(p, made["id"]))["description"] == "mine again"
            reset = fields_of(await ada.get(f"{path}/edit")) | {"limits.per_second": "", "limits.max_in_flight": ""}
            await submit(ada, f"{path}/edit", reset)
            assert (await stored(p, made["id"]))["limits"] == {"max_in_flight": 200, "per_second": None}

    run(database_url, redis_url, check)


def test_the_check_in_the_form_with_and_without_a_script(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.send("order.paid", {"total": 5, "note": HOSTILE})
        await p.send("customer.updated", {})
        async with signed_in(p, "ada@example.com", Role.ADMIN) as ada:
            page = await ada.get(f"/subscriptions/new?organization={shown(p)}")
            given = fields_of(page) | {"events": "order.*", "filters": '{"note": "x"}', "url": "half typed"}
            swapped = await ada.client.post("/subscriptions/check", data=given)
            assert swapped.status_code == 200
            assert "<html" not in swapped.text
            assert "Would have matched 0 of the last 2 events." in swapped.text
            assert not RAW.search(swapped.text)
            assert "No pattern matches its type" in swapped.text
            assert "<code>note</code> is" in swapped.text
            whole = await submit(ada, "/subscriptions", given | {"check": "1", "filters": ""})
            assert "Would have matched 1 of the last 2 events." in whole.text
            assert fields_of(whole)["url"] == "half typed"
            for wrong, said in (
                ({"filters": "{"}, "Filter: Is not JSON"),
                ({"filters": '{"a": {"$x": 1}}'}, "Filter: a.$x: Unknown operator"),
                ({"events": "a..b"}, "Events: Line 1:"),
                ({"events": ""}, "Say which events"),
                ({"organization": ""}, "Choose the organization first"),
                ({"organization": ids.show(ids.ORGANIZATION, new_id())}, "has had no event yet"),
            ):
                answer = await ada.client.post("/subscriptions/check", data=given | wrong)
                assert said in html.unescape(answer.text), wrong
            made = await p.subscribe(URL, ["customer.*"])
            edited = fields_of(await ada.get(f"/subscriptions/{made['id']}/edit"))
            looked = await submit(ada, f"/subscriptions/{made['id']}/edit", edited | {"check": "1", "events": "*"})
            assert "Would have matched 2 of the last 2 events." in looked.text
            assert (await stored(p, made["id"]))["events"] == ["customer.*"]
        assert await audited(p, "subscription.updated") == []

    run(database_url, redis_url, check)


def test_secrets_are_shown_once_to_admins_and_the_log_says_so(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path, secret = f"/subscriptions/{made['id']}", made["secret_key"]
        async with (
            signed_in(p, "ada@example.com", Role.ADMIN) as ada,
            signed_in(p, "olga@example.com", Role.OPERATOR) as olga,
            signed_in(p, "vera@example.com", Role.VIEWER) as vera,
        ):
            pages = {one: (await one.get(path)).text for one in (ada, olga, vera)}
            assert not any(secret in text for text in pages.values())
            actions = {
                one: set(re.findall(rf'(?:action|href)="{path}/([a-z-]+)"', text)) for one, text in pages.items()
            }
            admins = {"edit", "delete", "reveal", "rotate"}
            operators = {"pause", "test", "reset-breaker"}
            assert (actions[vera], actions[olga], actions[ada]) == (set(), operators, operators | admins)
            for action in admins | operators:
                for one in (vera, olga):
                    if (one, action) in [(olga, name) for name in operators]:
                        continue
                    answer = await one.client.post(f"{path}/{action}", data={"form_token": one.form_token})
                    assert answer.status_code == 403, (action, answer.status_code)
            assert await audited(p, "subscription.secret_revealed") == []

            shown_now = await ada.post(f"{path}/reveal")
            assert secret in shown_now.text
            assert secret not in (await ada.get(path)).text
            [(_, actor, resource, _)] = await audited(p, "subscription.secret_revealed")
            assert (actor[:4], resource) == ("usr_", made["id"])

            for hours, said in (("", "whole number of hours"), ("-1", "whole number"), ("9999", "from 0 to 2592000")):
                assert said in error_of(await ada.post(f"{path}/rotate", grace_hours=hours), "grace_hours")
            assert error_of(await ada.post(f"{path}/rotate", grace_hours="1", secret="x"), "secret")
            rotated = await ada.post(f"{path}/rotate", grace_hours="2")
            [new] = re.findall(r'value="(whsec_[^"]+)"', rotated.text)
            assert new != secret
            page = await ada.get(path)
            assert (secret in page.text, new in page.text) == (False, False)
            [end] = re.findall(r'datetime="([^"]+)"[^>]* data-countdown', page.text)
            assert timedelta(hours=1.9) < datetime.fromisoformat(end) - datetime.now(UTC) < timedelta(hours=2)
            both = await ada.post(f"{path}/reveal")
            assert secret in both.text
            assert new in both.text
            assert len(await audited(p, "subscription.secret_rotated")) == 1

    run(database_url, redis_url, check)


def test_pausing_resuming_and_deleting_say_what_they_do(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe("http://127.0.0.1:2222/")
        path = f"/subscriptions/{made['id']}"
        async with signed_in(p, "ada@example.com", Role.ADMIN) as ada:
            await ada.get(path)
            assert (await ada.post(f"{path}/pause")).headers["location"] == f"{path}?done=paused"
            paused = await ada.get(f"{path}?done=paused")
            assert "Paused by ada@example.com just now." in text_of(paused)
            assert "Nothing is held" in paused.text
            refused = await ada.post(f"{path}/test")
            assert refused.status_code == 409
            assert "The subscription is paused; resume it first" in refused.text
            for _ in range(102):
                await p.send()
            await p.sql("UPDATE deliveries SET reason = 'paused', due_at = NULL")
            page = await ada.get(path)
            assert "102 held deliveries will be sent." in page.text
            for given in ({}, {"counted": "0"}, {"counted": "102"}, {"counted": "102", "confirm_count": "101"}):
                refused = await submit(ada, f"{path}/resume", given)
                assert refused.status_code == 400, given
                assert error_of(refused, "confirm_count")
            for since in ("soon", "9" * 30, "2026-99-99"):
                answer = await ada.post(f"{path}/resume", counted="102", confirm_count="102", sync_from=since)
                assert error_of(answer, "sync_from")
                assert fields_after(answer, "sync_from") == since
            assert (await stored(p, made["id"]))["status"] == "paused"

            asked = await ada.get(f"{path}/delete")
            assert "102 pending deliveries are discarded: never sent." in text_of(asked)
            assert error_of(await ada.post(f"{path}/delete", counted="102", confirm_count="2"), "confirm_count")
            await p.call("PATCH", f"{SUBSCRIPTIONS}/{made['id']}", {"description": "changed meanwhile"})
            stale = await ada.post(f"{path}/delete", counted="102", confirm_count="102", version="1")
            assert stale.status_code == 409
            await p.sql("DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries LIMIT 100)")
            await p.send("order.paid", event_id="missed once")
            done = await ada.post(f"{path}/resume", sync_from="24h")
            # Of 103 events it has deliveries of three.
            assert done.headers["location"] == f"{path}?done=resumed&missed=100"
            assert "100 deliveries were made" in (await ada.get(done.headers["location"])).text
            assert [one[0] for one in await audited(p, "subscription.paused", "subscription.resumed")] == [
                "subscription.paused",
                "subscription.resumed",
            ]
            await p.sql("DELETE FROM deliveries")
            gone = await ada.post(f"{path}/delete")
            assert gone.headers["location"] == f"/subscriptions?organization={shown(p)}&done=deleted"
            gone = await ada.get(path)
            assert gone.status_code == 404
            assert "This subscription was deleted" in gone.text
            assert (await ada.get(f"{path}/edit")).status_code == 404
            assert (await ada.get("/subscriptions/org_1")).status_code == 404

    run(database_url, redis_url, check)


def fields_after(page: httpx.Response, name: str) -> str:
    [value] = re.findall(rf'name="{name}"[^>]*value="([^"]*)"', page.text)
    return html.unescape(value)


def test_the_breaker_is_shown_reset_and_in_the_way_of_a_test(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path, subscription_id = f"/subscriptions/{made['id']}", ids.parse(ids.SUBSCRIPTION, made["id"])
        breaker = BLANK
        for _ in range(5):
            breaker = breaker.after(BreakerSettings(), False, int(datetime.now(UTC).timestamp() * 1000))
        await p.services.breakers.swap([(subscription_id, BLANK, breaker)])
        async with signed_in(p, "olga@example.com", Role.OPERATOR) as olga:
            page = text_of(await olga.get(path))
            assert "failing Failing: most attempts of the last hour failed." in page
            assert "5 failures in a row" in page
            assert "As far back" not in page
            refused = await olga.post(f"{path}/test", event_type="order.paid")
            assert refused.status_code == 409
            assert "its circuit breaker is open. Reset it below" in refused.text
            listed = await olga.get("/subscriptions?status=breaker_open")
            assert made["id"] in listed.text
            assert made["id"] not in (await olga.get("/subscriptions?status=paused")).text
            assert (await olga.post(f"{path}/reset-breaker")).headers["location"] == f"{path}?done=reset#breaker"
            assert "half open" in text_of(await olga.get(path))
            assert len(await audited(p, "circuit_breaker.reset")) == 1
            for given, field in (
                ({"event_type": "a b"}, "event_type"),
                ({"data": "[]"}, "data"),
                ({"data": "{"}, "data"),
            ):
                assert error_of(await olga.post(f"{path}/test", **given), field)
            sent = await olga.post(f"{path}/test", event_type="order.paid", data='{"total": 1}')
            assert re.fullmatch(rf"{path}\?test=dlv_\w+#test", sent.headers["location"])
            watched = await olga.get(sent.headers["location"].removesuffix("#test"))
            assert "On its way" in watched.text
            await p.sql(
                "UPDATE deliveries SET state = 'delivered', reason = NULL, due_at = NULL, status_code = 204,"
                " attempt_count = 1"
            )
            arrived = await olga.get(sent.headers["location"].removesuffix("#test"))
            assert "It arrived." in arrived.text
            assert 'id="test" data-live' not in arrived.text, "it asks no more"
            assert [one[0] for one in await audited(p, "subscription.tested")] == ["subscription.tested"]
            for other in ("dlv_x", ids.show(ids.DELIVERY, new_id()), "%22%3E"):
                assert "Test event" not in (await olga.get(f"{path}?test={other}")).text

    run(database_url, redis_url, check)


def test_many_of_several_organizations_are_listed_page_by_page(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        other = await make_organization(p, "Other & co")
        rows = [(new_id(), p.organization_id if number % 2 else other, number) for number in range(120)]
        async with p.database.driver() as driver:
            await driver.executemany(
                "INSERT INTO subscriptions (id, organization_id, url, events, description)"
                " VALUES ($1, $2, 'https://host' || $3::text || '.example.com/hook?a=%25', '{*}',"
                " 'Number ' || $3::text)",
                [(one, whose, str(number)) for one, whose, number in rows],
            )
            for number in range(7):
                event_id = new_id()
                await driver.execute(
                    "INSERT INTO deliveries (id, organization_id, subscription_id, event_id, event_type, state, reason,"
                    " due_at) VALUES ($1, $2, $3, $1, 'a', $4, $5, CASE WHEN $4 = 'pending' THEN now() END)",
                    event_id,
                    rows[119][1],
                    rows[119][0],
                    "pending" if number < 4 else "dead",
                    "new" if number < 4 else "exhausted",
                )
            await driver.execute(
                "INSERT INTO delivery_stats (organization_id, subscription_id, minute, error_kind, attempts)"
                " VALUES ($1, $2, date_trunc('minute', now()), '', 1), ($1, $2, date_trunc('minute', now()), 'dns', 3)",
                rows[119][1],
                rows[119][0],
            )
        async with signed_in(p, "vera@example.com", Role.VIEWER) as vera:
            seen: list[str] = []
            url = "/subscriptions"
            while url:
                page = await vera.get(url)
                seen += re.findall(r'data-row="(sub_\w+)"', page.text)
                url = html.unescape(next(iter(re.findall(r'href="([^"]+)" rel="next"', page.text)), ""))
            assert seen == [ids.show(ids.SUBSCRIPTION, one) for one, _, _ in rows[::-1]]
            assert "New subscription" not in page.text
            first = await vera.get("/subscriptions")
            [row] = re.findall(r'<tr role="row" data-row.*?</tr>', first.text, re.S)[:1]
            told = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", row)).split())
            assert "host119.example.com /hook?•••• Number 119 Test degraded" in told
            assert told.endswith("25 % 4 3")
            narrowed = await vera.get(f"/subscriptions?organization={shown_organization(other)}&text=HOST11")
            assert len(re.findall(r"data-row=", narrowed.text)) == 5
            assert "Other &amp; co" in narrowed.text
            assert len(re.findall(r"data-row=", (await vera.get("/subscriptions?text=number 7")).text)) == 11
            assert "Nothing matches" in (await vera.get("/subscriptions?text=%25_nothing")).text
            for wrong in ("organization=x", "status=x", "after=x"):
                assert (await vera.get(f"/subscriptions?{wrong}")).status_code == 400

    run(database_url, redis_url, check)


def test_without_redis_all_is_shown_but_what_it_alone_knows(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)

        async def away(*_: object) -> None:
            raise ConnectionError("Redis is away")

        for name in ("all", "of", "get", "reset"):
            monkeypatch.setattr(p.services.breakers, name, away)
        async with signed_in(p, "olga@example.com", Role.OPERATOR) as olga:
            assert "healthy" in (await olga.get("/subscriptions")).text
            assert (await olga.get("/subscriptions?status=breaker_open")).status_code == 503
            page = await olga.get(f"/subscriptions/{made['id']}")
            assert "Its state is not known: Redis, which keeps it, does not answer." in page.text
            assert "reset-breaker" not in page.text
            reset = await olga.post(f"/subscriptions/{made['id']}/reset-breaker")
            assert reset.status_code == 503
            assert "Redis does not answer, and the state of circuit breakers is kept there" in reset.text
            assert await audited(p, "circuit_breaker.reset") == []
            assert (await olga.post(f"/subscriptions/{made['id']}/test")).status_code == 303, (
                "what may be sent, is tried"
            )

    run(database_url, redis_url, check)
