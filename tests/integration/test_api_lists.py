"""Lists: paging by key and by number, order, filters, fields and what can be included."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api import FAST, SUBSCRIPTIONS, URL, faults_of, make_key, run, success_of
from tests.platform import Platform, shown
from tests.receiver import Receiver

LISTS = [
    *("/v1/events", "/v1/deliveries", "/v1/replays", "/v1/event-types", SUBSCRIPTIONS),
    *("/v1/organizations", "/v1/api-keys"),
]


async def send_many(p: Platform, number: int, **fields: Any) -> list[str]:
    events = [{"event_type": "a.b", "data": {"n": n}, **fields} for n in range(number)]
    accepted = (await p.call("POST", "/v1/events/batch", {"events": events}))["data"]
    return [one["event_id"] for one in accepted]


async def walk(p: Platform, path: str, limit: int) -> list[list[dict[str, Any]]]:
    """All pages, by their cursors."""
    pages: list[list[dict[str, Any]]] = []
    after = ""
    while True:
        body = success_of(await p.client.get(f"{path}&limit={limit}{after}"), 200)
        pages.append(body["data"])
        pagination = body["meta"]["pagination"]
        assert pagination["pageSize"] == limit
        assert {"page", "total"}.isdisjoint(pagination)
        assert pagination["hasMore"] is (pagination["nextCursor"] is not None)
        if not pagination["hasMore"]:
            return pages
        assert len(body["data"]) == limit
        after = f"&after_key={pagination['nextCursor']}"


@pytest.mark.parametrize("limit", [1, 7, 65, 200])
def test_paging_by_key_shows_every_row_once_in_order(database_url: str, redis_url: str, limit: int) -> None:
    async def check(p: Platform) -> None:
        ids = await send_many(p, 65)
        assert ids == sorted(ids)
        for sort, expected in (("created_at", ids), ("-created_at", ids[::-1])):
            pages = await walk(p, f"/v1/events?sort={sort}", limit)
            assert [one["id"] for page in pages for one in page] == expected
            assert len(pages) == -(-65 // limit)

    run(database_url, redis_url, check)


def test_what_is_added_while_paging_moves_nothing(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        old = await send_many(p, 30)
        first = await p.call("GET", "/v1/events?limit=10")
        new = await send_many(p, 5)
        cursor = first["meta"]["pagination"]["nextCursor"]
        rest = await p.call("GET", f"/v1/events?limit=50&after_key={cursor}")
        assert [one["id"] for one in first["data"] + rest["data"]] == old[::-1]
        rising = await p.call("GET", "/v1/events?limit=200&sort=created_at")
        assert [one["id"] for one in rising["data"]] == old + new

    run(database_url, redis_url, check)


def test_paging_by_number_tells_page_and_total(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        ids = (await send_many(p, 25))[::-1]
        for query, page, size in [
            ("page=1&pageSize=10", 1, 10),
            ("page=3&pageSize=10", 3, 10),
            ("page=4&pageSize=10", 4, 10),
            ("page=2", 2, 25),
            ("pageSize=20", 1, 20),
            ("page=1&pageSize=25", 1, 25),
        ]:
            body = await p.call("GET", f"/v1/events?{query}")
            start = (page - 1) * size
            assert [one["id"] for one in body["data"]] == ids[start : start + size]
            pagination = body["meta"]["pagination"]
            assert (pagination["page"], pagination["total"], pagination["pageSize"]) == (page, 25, size)
            assert pagination["hasMore"] is (start + size < 25)
            assert pagination["sort"] == "-created_at"
        filtered = await p.call("GET", "/v1/events?page=1&filters[event_type]=other")
        assert (filtered["data"], filtered["meta"]["pagination"]["total"]) == ([], 0)

    run(database_url, redis_url, check)


WRONG = {
    "limit=0": "limit",
    "limit=201": "limit",
    "limit=-1": "limit",
    "limit=1.5": "limit",
    "limit=": "limit",
    "limit=%D9%A1": "limit",
    "limit=99999999999999999999": "limit",
    "limit=1&limit=2": "limit",
    "page=0": "page",
    "page=10001": "page",
    "pageSize=0": "pageSize",
    "page=1&limit=5": "limit",
    "page=1&after_key=AAAA": "after_key",
    "after_key=": "after_key",
    "after_key=AAAA": "after_key",
    "after_key=!!!!": "after_key",
    "after_key=%C3%A9": "after_key",
    "after_key=evt_01ARZ3NDEKTSV4RRFFQ69G5FAV": "after_key",
    "sort=": "sort",
    "sort=name": "sort",
    "sort=created_at;drop": "sort",
    "include=everything": "include",
    "filters[nonsense]=1": "filters",
    "filters=1": "filters",
    "filters[]=1": "filters[]",
    "filters[status][]=dead": "filters[status][]",
    "Limit=1": "Limit",
}


@pytest.mark.parametrize("path", LISTS)
def test_a_wrong_parameter_is_refused_by_name(database_url: str, redis_url: str, path: str) -> None:
    async def check(p: Platform) -> None:
        headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        for query, name in WRONG.items():
            faults = faults_of(await p.client.get(f"{path}?{query}", headers=headers))
            assert [one for one in faults if one.startswith(name)], (query, faults)
            assert all(said[0] for said in faults.values())
        both = faults_of(await p.client.get(f"{path}?limit=0&sort=x", headers=headers))
        assert sorted(both) == ["limit", "sort"]

    run(database_url, redis_url, check)


def test_fields_choose_what_is_shown(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.subscribe(URL)
        await send_many(p, 2)
        listed = await p.call("GET", "/v1/deliveries?fields=status,id")
        assert [list(one) for one in listed["data"]] == [["status", "id"]] * 2
        faults = faults_of(await p.client.get("/v1/deliveries?fields=id,secret_key"))
        assert "'secret_key'; there are: id, delivery_id" in faults["fields"][0]
        await p.call("GET", "/v1/deliveries?fields=attempts,id&include=attempts")
        # Whether there is anything to show or not.
        for query in ("fields=attempts", "fields=", "fields=id,", "filters[status]=dead&fields=nothing", "include="):
            assert list(faults_of(await p.client.get(f"/v1/deliveries?{query}"))) == [
                query.split("&")[-1].split("=")[0]
            ]
        assert "schema" in faults_of(await p.client.get("/v1/event-types?fields=schema_"))["fields"][0]

    run(database_url, redis_url, check)


def test_events_are_filtered(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        one = await p.send("a.one", event_id="mine", branch_id="berlin")
        two = await p.send("a.two")
        for query, expected in {
            "filters[event_type]=a.one": [one],
            "filters[branch_id]=berlin": [one],
            "filters[external_id]=mine": [one],
            "filters[external_id]=mine&filters[event_type]=a.two": [],
            f"filters[created_after]={two['created_at']}": [two],
            f"filters[created_before]={two['created_at']}": [one],
            "filters[created_after]=1970-01-01T00:00:00Z": [two, one],
            "filters[created_after]=2100-01-01T00:00:00%2B02:00": [],
        }.items():
            found = (await p.call("GET", f"/v1/events?{query}"))["data"]
            assert [it["id"] for it in found] == [it["event_id"] for it in expected], query
        for wrong in ("yesterday", "2026-01-28", "2026-01-28T10:15:00", "1969-12-31T23:59:59Z", "9000-01-01T00:00:00Z"):
            faults = faults_of(await p.client.get(f"/v1/events?filters[created_after]={wrong}"))
            assert list(faults) == ["filters.created_after"]
        before_epoch = "/v1/events?filters[created_after]=1970-01-01T00:00:00%2B01:00"
        assert "1970" in faults_of(await p.client.get(before_epoch))["filters.created_after"][0]

    run(database_url, redis_url, check)


def test_deliveries_are_filtered(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        good = await p.subscribe(receiver.url("/ok"), ["a.*"])
        bad = await p.subscribe(receiver.url("/status/503"), ["b.*"], retry_policy=FAST)
        one = await p.send("a.one")
        two = await p.send("b.two")
        [delivered] = await p.settled(1, "delivered")
        [dead] = await p.settled(1, "dead")
        both = [dead, delivered]
        for query, expected in {
            "filters[status]=dead": [dead],
            "filters[status]=dead,delivered,dead": both,
            "filters[status]=pending": [],
            "filters[error]=status": [dead],
            "filters[error]=status,timeout": [dead],
            "filters[error]=timeout": [],
            "filters[reason]=exhausted": [dead],
            "filters[status_code]=503": [dead],
            "filters[status_code]=200": [delivered],
            f"filters[subscription_id]={good['id']}": [delivered],
            f"filters[subscription_id]={bad['id']}&filters[status]=delivered": [],
            f"filters[event_id]={two['event_id']}": [dead],
            "filters[event_type]=a.one": [delivered],
            f"filters[ids]={dead['id']},{delivered['id']}": both,
            f"filters[created_after]={one['created_at']}": both,
            f"filters[created_before]={one['created_at']}": [],
        }.items():
            found = (await p.call("GET", f"/v1/deliveries?{query}"))["data"]
            assert [it["id"] for it in found] == [it["id"] for it in expected], query
        for wrong in (
            *("status=alive", "status=", "error=nonsense", "reason=because", "status_code=20", "status_code=abc"),
            *("subscription_id=x", f"subscription_id={one['event_id']}", "event_id=", "ids=", "ids=x", "replay_id=1"),
        ):
            faults = faults_of(
                await p.client.get(f"/v1/deliveries?filters[{wrong.partition('=')[0]}]={wrong.partition('=')[2]}")
            )
            assert list(faults) == [f"filters.{wrong.partition('=')[0]}"], wrong
        for path, chosen in (
            (f"/v1/events/{two['event_id']}/deliveries", "event_id"),
            (f"{SUBSCRIPTIONS}/{bad['id']}/deliveries", "subscription_id"),
        ):
            found = (await p.call("GET", f"{path}?include=attempts&filters[status]=dead"))["data"]
            assert [it["id"] for it in found] == [dead["id"]]
            assert [it["status_code"] for it in found[0]["attempts"]] == [503]
            assert (await p.call("GET", f"{path}?filters[status]=delivered"))["data"] == []
            faults = faults_of(await p.client.get(f"{path}?filters[{chosen}]={one['event_id']}"))
            assert list(faults) == [f"filters.{chosen}"]

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


def test_included_attempts_are_each_deliverys_own_latest(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        policy = FAST | {"max_attempts": 25, "jitter": False}
        patient = {"failure_threshold": 1000}
        await p.subscribe(receiver.url("/status/500"), retry_policy=policy, circuit_breaker=patient)
        await send_many(p, 3)
        await p.settled(3, "dead", within_s=30)
        plain = (await p.call("GET", "/v1/deliveries"))["data"]
        assert all("attempts" not in one for one in plain)
        listed = (await p.call("GET", "/v1/deliveries?include=attempts"))["data"]
        for one in listed:
            assert {attempt["delivery_id"] for attempt in one["attempts"]} == {one["id"]}
            assert [attempt["number"] for attempt in one["attempts"]] == list(range(6, 26))
            shown_whole = (await p.call("GET", f"/v1/deliveries/{one['id']}"))["data"]
            assert [attempt["number"] for attempt in shown_whole["attempts"]] == list(range(1, 26))

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True, SWEEP_INTERVAL_S="0.05")


def test_other_lists_have_their_own_filters(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        active = await p.subscribe(URL)
        paused = await p.subscribe(URL)
        deleted = await p.subscribe(URL)
        await p.call("POST", f"{SUBSCRIPTIONS}/{paused['id']}/pause")
        await p.call("DELETE", f"{SUBSCRIPTIONS}/{deleted['id']}")
        for status, expected in {"active": [active], "paused": [paused], "disabled": [], "deleted": []}.items():
            found = (await p.call("GET", f"{SUBSCRIPTIONS}?filters[status]={status}"))["data"]
            assert [one["id"] for one in found] == [one["id"] for one in expected], status
        assert len((await p.call("GET", SUBSCRIPTIONS))["data"]) == 2
        replay = (await p.call("POST", "/v1/replays", {}))["data"]
        assert replay["status"] == "completed"  # there was nothing to send
        assert [one["id"] for one in (await p.call("GET", "/v1/replays?filters[status]=completed"))["data"]] == [
            replay["id"]
        ]
        for path in (SUBSCRIPTIONS, "/v1/replays"):
            for query in ("status=nonsense", "name=x"):
                faults = faults_of(await p.client.get(f"{path}?filters[{query.split('=')[0]}]={query.split('=')[1]}"))
                assert list(faults) == [f"filters.{query.split('=')[0]}"]

    run(database_url, redis_url, check)


def test_every_list_pages(database_url: str, redis_url: str) -> None:
    """Each noun's list through two pages, in both directions."""

    async def check(p: Platform) -> None:
        headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        for n in range(3):
            await p.subscribe(URL)
            await p.call("POST", "/v1/replays", {})
            await p.call("POST", "/v1/event-types", {"name": f"type.{n}"})
            await p.client.post("/v1/organizations", json={"name": f"Org {n}"}, headers=headers)
            await make_key(p, p.organization_id)
        await send_many(p, 3)
        for path in LISTS:
            for sort in ("created_at", "-created_at"):
                whole = (await p.client.get(f"{path}?sort={sort}", headers=headers)).json()["data"]
                first = (await p.client.get(f"{path}?sort={sort}&limit=2", headers=headers)).json()
                cursor = first["meta"]["pagination"]["nextCursor"]
                rest = await p.client.get(f"{path}?sort={sort}&after_key={cursor}", headers=headers)
                assert len(whole) >= 3, path
                assert [one["id"] for one in first["data"] + rest.json()["data"]] == [one["id"] for one in whole], path

    run(database_url, redis_url, check)
