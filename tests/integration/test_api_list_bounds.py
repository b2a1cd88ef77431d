"""What a page reads is bounded; and however near the bounds are, no row is lost, repeated or shown out of order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any
from uuid import uuid4

import pytest

from core import ids, replays, timestamps
from core.failures import ErrorKind
from core.listing import deliveries_by_type, delivery_lists, lists
from core.listing.selection import REASONS
from core.states import DeadReason, DiscardReason, PendingReason, State
from tests.api import faults_of, run, success_of
from tests.platform import Platform

REASONS_OF = {
    State.PENDING: tuple(PendingReason),
    State.SENDING: (None,),
    State.DELIVERED: (None,),
    State.DEAD: tuple(DeadReason),
    State.DISCARDED: tuple(DiscardReason),
}
# As attempts end: a status that is no 2xx has a kind of error.
OUTCOMES = (
    (None, None),
    (200, None),
    (204, None),
    (503, "status"),
    (410, "status"),
    (None, "timeout"),
    (200, "protocol"),
)
TYPES = ("a.one", "a.two")


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test's few rows reach."""
    monkeypatch.setattr(lists, "REACH", 7)
    monkeypatch.setattr(delivery_lists, "REACH_IN_INDEX", 11)
    monkeypatch.setattr(deliveries_by_type, "EVENTS_REACH", 5)
    monkeypatch.setattr(deliveries_by_type, "DELIVERIES_REACH", 6)


async def plant(p: Platform) -> list[dict[str, Any]]:
    """Deliveries of every legal state, reason and outcome, several of some events; the oldest first. Every third event
    begins like the one before it, as those of two processes may."""
    subscriptions = [ids.parse(ids.SUBSCRIPTION, (await p.subscribe("https://example.com/hook"))["id"]) for _ in "ab"]
    fates = [(state, reason, *out) for state in State for reason, out in product(REASONS_OF[state], OUTCOMES)]
    rows: list[dict[str, Any]] = []
    event_id = ids.new_id()
    async with p.database.driver() as driver:
        for number, (state, reason, status_code, error_kind) in enumerate(fates):
            if number % 2 == 0:
                event_id = ids.new_id.within(event_id) if number % 6 == 4 else ids.new_id()
                event_type = TYPES[number // 2 % 5 == 0]
                await driver.execute(
                    "INSERT INTO events (id, organization_id, event_type, occurred_at, branch_id, payload, data_at,"
                    " matched_subscriptions) VALUES ($1, $2, $3, now(), $4, '{}', 1, 2)",
                    event_id,
                    p.organization_id,
                    event_type,
                    "berlin" if number % 32 == 0 else None,
                )
            row = {
                "id": ids.new_id.within(event_id),
                "organization_id": p.organization_id,
                "subscription_id": subscriptions[number % 3 == 0],
                "event_id": event_id,
                "event_type": event_type,
                "state": state,
                "reason": reason,
                "status_code": status_code,
                "error_kind": error_kind,
                "lease_token": uuid4() if state is State.SENDING else None,
            }
            due = (
                "now() + interval '1 day'" if state in {State.PENDING, State.SENDING} and reason != "paused" else "NULL"
            )
            places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
            await driver.execute(
                f"INSERT INTO deliveries ({', '.join(row)}, due_at) VALUES ({places}, {due})", *row.values()
            )
            rows.append(row)
    return sorted(rows, key=lambda row: row["id"])


async def walk(p: Platform, path: str, limit: int, sort: str) -> tuple[list[str], int]:
    """The ids of all pages, and how many of these ended early."""
    found: list[str] = []
    early = 0
    after = ""
    while True:
        body = success_of(await p.client.get(f"{path}&sort={sort}&limit={limit}{after}"), 200)
        found += [one["id"] for one in body["data"]]
        pagination = body["meta"]["pagination"]
        assert pagination["hasMore"] is (pagination["nextCursor"] is not None)
        assert ("searchedTo" in pagination) is (pagination["hasMore"] and len(body["data"]) < limit)
        early += "searchedTo" in pagination
        if not pagination["hasMore"]:
            return found, early
        assert f"&after_key={pagination['nextCursor']}" != after, "the search goes on where it began"
        after = f"&after_key={pagination['nextCursor']}"


def by(**wanted: Sequence[Any]) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(row[name] in values for name, values in wanted.items())


def cases(rows: Sequence[dict[str, Any]]) -> dict[str, Callable[[dict[str, Any]], bool]]:
    subscription, happened = rows[0]["subscription_id"], rows[9]["event_id"]
    middle = ids.lowest_at(ids.time_of(rows[len(rows) // 2]["id"]))
    shown = ids.show(ids.SUBSCRIPTION, subscription)
    since = f"filters[created_after]={timestamps.show(ids.time_of(middle))}"

    def later(row: dict[str, Any]) -> bool:
        return bool(row["id"] >= middle)

    mine = by(subscription_id=[subscription])
    dead = by(state=["dead"])
    of_type = by(event_type=["a.two"])
    found: dict[str, Callable[[dict[str, Any]], bool]] = {
        "": by(),
        **{f"filters[status]={state}": by(state=[state]) for state in State},
        "filters[status]=dead,discarded": by(state=["dead", "discarded"]),
        "filters[status]=pending,sending": by(state=["pending", "sending"]),
        **{f"filters[reason]={reason}": by(reason=[reason]) for reason in REASONS},
        "filters[reason]=new,exhausted": by(reason=["new", "exhausted"]),
        **{f"filters[error]={kind}": by(error_kind=[kind]) for kind in ErrorKind},
        **{f"filters[status_code]={code}": by(status_code=[code]) for code in (200, 204, 302, 410, 503)},
        "filters[event_type]=a.two": of_type,
        "filters[event_type]=a.none": by(event_type=[]),
        f"filters[event_type]=a.two&{since}": lambda row: of_type(row) and later(row),
        "filters[event_type]=a.two&filters[status]=delivered": by(event_type=["a.two"], state=["delivered"]),
        "filters[event_type]=a.two&filters[status]=dead": by(event_type=["a.two"], state=["dead"]),
        f"filters[event_type]=a.two&filters[subscription_id]={shown}": lambda row: of_type(row) and mine(row),
        f"filters[subscription_id]={shown}": mine,
        f"filters[subscription_id]={shown}&filters[status]=dead": lambda row: mine(row) and dead(row),
        f"filters[subscription_id]={shown}&filters[status]=pending": lambda row: (
            mine(row) and row["state"] == "pending"
        ),
        f"filters[subscription_id]={shown}&filters[status_code]=200": lambda row: (
            mine(row) and row["status_code"] == 200
        ),
        f"filters[status]=dead&{since}": lambda row: dead(row) and later(row),
        f"filters[event_id]={ids.show(ids.EVENT, happened)}": by(event_id=[happened]),
        f"filters[event_id]={ids.show(ids.EVENT, happened)}&filters[status]=dead": by(
            event_id=[happened], state=["dead"]
        ),
    }
    return found


@pytest.mark.parametrize(
    ("sort", "limit", "every"), [("created_at", 4, 1), ("-created_at", 1, 4), ("-created_at", 200, 2)]
)
def test_pages_that_end_early_lose_nothing(
    database_url: str, redis_url: str, near: None, sort: str, limit: int, every: int
) -> None:
    """`every`: of the queries, each that far from the one before: walks in pages of one row take many requests."""

    async def check(p: Platform) -> None:
        rows = await plant(p)
        ended_early = 0
        for query, wanted in [*cases(rows).items()][::every]:
            expected = [ids.show(ids.DELIVERY, row["id"]) for row in rows if wanted(row)]
            found, early = await walk(p, f"/v1/deliveries?{query}", limit, sort)
            assert found == (expected if sort == "created_at" else expected[::-1]), query
            ended_early += early
        assert ended_early > 20
        branch, early = await walk(p, "/v1/events?filters[branch_id]=berlin", limit, sort)
        events = await p.sql("SELECT id FROM events WHERE branch_id = 'berlin' ORDER BY id")
        expected = [ids.show(ids.EVENT, row["id"]) for row in events]
        assert branch == (expected if sort == "created_at" else expected[::-1])
        assert early

    run(database_url, redis_url, check)


def test_a_total_says_whether_it_is_exact(
    database_url: str, redis_url: str, near: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        rows = await plant(p)
        for query, total, exact in (
            ("page=1", len(rows), True),
            ("page=1&pageSize=200", len(rows), True),
            ("page=2&pageSize=3&filters[status]=dead", None, False),  # it searched a part
            ("page=1&filters[event_type]=a.one", None, False),
            ("page=1&filters[event_type]=a.none", 0, True),
        ):
            pagination = (await p.call("GET", f"/v1/deliveries?{query}"))["meta"]["pagination"]
            assert pagination["totalIsExact"] is exact, query
            assert total is None or pagination["total"] == total, query
        monkeypatch.setattr(lists, "MAX_COUNTED", 10)
        counted = (await p.call("GET", "/v1/deliveries?page=2&pageSize=5"))["meta"]["pagination"]
        assert (counted["total"], counted["totalIsExact"]) == (10, False)
        beyond = faults_of(await p.client.get("/v1/deliveries?page=3&pageSize=5"))
        assert "after_key" in beyond["page"][0]

    run(database_url, redis_url, check)


def test_by_number_the_same_rows_come_as_by_key(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        rows = await plant(p)
        for query, wanted in cases(rows).items():
            expected = [ids.show(ids.DELIVERY, row["id"]) for row in rows if wanted(row)][::-1]
            body = await p.call("GET", f"/v1/deliveries?{query}&page=2&pageSize=3")
            assert [one["id"] for one in body["data"]] == expected[3:6], query
            pagination = body["meta"]["pagination"]
            assert (pagination["total"], pagination["totalIsExact"]) == (len(expected), True), query

    run(database_url, redis_url, check)


def test_a_wide_event_ends_the_page_that_it_fills(database_url: str, redis_url: str, near: None) -> None:
    """Its deliveries count against the bound, and are all shown before the search ends."""

    async def check(p: Platform) -> None:
        for _ in range(9):
            await p.subscribe("https://example.com/hook")
        sent = [await p.send("wide.one") for _ in range(3)]
        found, _ = await walk(p, "/v1/deliveries?filters[event_type]=wide.one", 4, "created_at")
        expected = await p.sql("SELECT id FROM deliveries ORDER BY id")
        assert len(sent) * 9 == len(expected)
        assert found == [ids.show(ids.DELIVERY, row["id"]) for row in expected]

    run(database_url, redis_url, check)


def test_a_preview_that_takes_too_long_is_refused_with_what_would_be_right(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "COUNT_TIMEOUT_MS", 50)

    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, driver.transaction():
            await driver.execute("LOCK TABLE deliveries")  # as slow as it gets
            for dry_run in (True, False):
                faults = faults_of(await p.client.post("/v1/replays", json={"dry_run": dry_run}))
                assert "created_after" in faults["filters"][0]
        assert (await p.call("POST", "/v1/replays", {"dry_run": True}))["data"]["total"] == 0

    run(database_url, redis_url, check)
