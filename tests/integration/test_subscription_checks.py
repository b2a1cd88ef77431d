"""Which of the latest events patterns and a filter would have matched: the same as acceptance says, and why not."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from core import ids
from core.errors import Unavailable
from core.ids import new_id
from core.matching.filters import compile_filter
from core.matching.subscription_checks import AT_ONCE, Outcome
from tests.api import SUBSCRIPTIONS, client, error_of, faults_of, make_key, make_organization, run, shown_organization
from tests.platform import Platform

CHECK = f"{SUBSCRIPTIONS}/check"
TYPES = ("order.paid", "order.created", "customer.updated", "customer.deleted.soon")


async def checked(p: Platform, events: list[str], filters: Any = None) -> dict[str, Any]:
    body = {"events": events} | ({} if filters is None else {"filters": filters})
    found: dict[str, Any] = (await p.call("POST", CHECK, body, 200))["data"]
    assert found["matched"] == sum(one["outcome"] == "matched" for one in found["sample"])
    assert found["looked_at"] == len(found["sample"])
    return found


def a_value(rng: random.Random) -> Any:
    return rng.choice([1, 5, 10, 10.5, "gold", "silver", "", True, False, None])


def an_event(rng: random.Random) -> dict[str, Any]:
    return {
        "total": rng.choice([0, 5, 10, 10.5, 100, "10", None]),
        "customer": rng.choice([{"tier": a_value(rng)}, {}, "nobody"]),
        "items": [{"sku": rng.choice("abc"), "price": rng.randrange(20)} for _ in range(rng.randrange(4))],
        "paid": rng.random() < 0.5,
    }


def a_field(rng: random.Random) -> dict[str, Any]:
    path = rng.choice(["total", "customer.tier", "items.sku", "items.price", "items.0.price", "paid", "missing"])
    kind = rng.randrange(4)
    if kind == 0:
        return {path: a_value(rng)}
    if kind == 1:
        return {path: [a_value(rng), a_value(rng)]}
    if kind == 2:
        return {path: {"$gte": rng.randrange(12), "$lt": rng.randrange(8, 25)}}
    return {path: rng.choice([{"$ne": a_value(rng)}, {"$exists": rng.random() < 0.5}, {"$nin": [1, "gold", True]}])}


def a_filter(rng: random.Random, depth: int = 1) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for _ in range(rng.randrange(1, 3)):
        spec |= a_field(rng)
    if depth < 3 and rng.random() < 0.5:
        name = rng.choice(["$and", "$or", "$not"])
        spec[name] = a_filter(rng, depth + 1) if name == "$not" else [a_filter(rng, depth + 1) for _ in range(2)]
    return spec


def part_of(spec: dict[str, Any], condition: str) -> dict[str, Any]:
    """The filter that `condition`, a path such as `filters.$and.0.total.$gte`, leads to: it alone must not match."""
    rest = condition.removeprefix("filters.")
    for key, value in spec.items():
        if rest == key:
            return {key: value}
        if not rest.startswith(f"{key}."):
            continue
        inner = rest.removeprefix(f"{key}.")
        if key == "$and":
            index, _, inner = inner.partition(".")
            return part_of(value[int(index)], f"filters.{inner}")
        return {key: {inner: value[inner]}}
    raise AssertionError(f"{condition} is not in {spec}")


def test_it_says_what_acceptance_did_for_any_filter(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        rng = random.Random(6)
        made = []
        for number in range(40):
            patterns = rng.sample(["*", "order.*", "*.updated", "customer.*", "order.paid"], 2)
            spec = a_filter(rng)
            if number < 20:
                made.append(
                    (patterns, spec, await p.subscribe(f"https://a{number}.example.com", patterns, filters=spec))
                )
            else:
                made.append((patterns, spec, None))
        sent = {}
        for _ in range(30):
            data, event_type = an_event(rng), rng.choice(TYPES)
            sent[(await p.send(event_type, data))["event_id"]] = (event_type, data)
        await p.call("POST", f"{SUBSCRIPTIONS}/{made[0][2]['id']}/test")  # which no pattern is asked about
        outcomes = set()
        for patterns, spec, subscription in made:
            found = await checked(p, patterns, spec)
            assert found["complete"]
            assert [one["event_id"] for one in found["sample"]] == list(sent)[::-1], (
                "the latest first, without the test"
            )
            matched = {one["event_id"] for one in found["sample"] if one["outcome"] == "matched"}
            if subscription is not None:
                got = await p.deliveries(subscription_id=subscription["id"])
                assert matched == {one["event_id"] for one in got if one["event_type"] != "webhook.test"}
            for one in found["sample"]:
                outcomes.add(one["outcome"])
                event_type, data = sent[one["event_id"]]
                assert one["event_type"] == event_type
                envelope = {"event_type": event_type, "data": data, "metadata": {}}
                assert (one["condition"] is not None) == (one["outcome"] == "filtered_out")
                if one["outcome"] == "filtered_out":
                    assert not compile_filter(spec).matches(envelope)
                    assert not compile_filter(part_of(spec, one["condition"])).matches(envelope), one["condition"]
        assert outcomes == {"matched", "other_type", "filtered_out"}

    run(database_url, redis_url, check)


def test_what_it_says_of_each_event(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await p.send("order.paid", {"total": 40, "lines": [{"sku": "a" * 200}, {"sku": "b"}]})
        redacted = await p.send("order.paid", {"total": 500})
        await p.call("POST", f"/v1/events/{redacted['event_id']}/redact")

        async def told(spec: Any) -> tuple[str, str | None, list[str]]:
            [one] = (await checked(p, ["order.*"], spec))["sample"]
            return one["outcome"], one["condition"], one["found"]

        assert await told({}) == ("matched", None, [])
        assert await told({"total": {"$lt": 50, "$gte": 100}}) == ("filtered_out", "filters.total.$gte", ["40"])
        assert await told({"total": 41}) == ("filtered_out", "filters.total", ["40"])
        assert await told({"vip": True}) == ("filtered_out", "filters.vip", [])
        clipped = f'"{"a" * 79}…'
        assert await told({"lines.sku": "c"}) == ("filtered_out", "filters.lines.sku", [clipped, '"b"'])
        assert await told({"$or": [{"total": 1}, {"total": 2}]}) == ("filtered_out", "filters.$or", [])
        assert await told({"$not": {"total": 40}}) == ("filtered_out", "filters.$not", [])
        deep = {"$and": [{"total": 40}, {"$and": [{"total": {"$gt": 40}}]}]}
        assert await told(deep) == ("filtered_out", "filters.$and.1.$and.0.total.$gt", ["40"])
        [other] = (await checked(p, ["customer.*"], {"total": 1}))["sample"]
        assert other["outcome"] == "other_type"

    run(database_url, redis_url, check)


def test_what_is_wrong_is_told_at_once_and_nobody_else_is_looked_at(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        wrong = {"events": ["order.*", "a b"], "filters": {"total": {"$near": 1}}}
        assert set(faults_of(await p.client.post(CHECK, json=wrong))) == {"events.1", "filters.total.$near"}
        assert set(faults_of(await p.client.post(CHECK, json={"filters": []}))) == {"events", "filters"}
        assert set(faults_of(await p.client.post(CHECK, json={"events": None}))) == {"events"}
        assert (await checked(p, ["*"]))["sample"] == []
        await p.send("order.paid")
        assert (await checked(p, ["*"], {}))["matched"] == 1

        other = await make_organization(p)
        headers = {"X-Organization-ID": shown_organization(other)}
        async with client(p.app, await make_key(p, None)) as platform_key:
            answer = await platform_key.post(CHECK, json={"events": ["*"]}, headers=headers)
            assert answer.json()["data"]["looked_at"] == 0
            nobody = {"X-Organization-ID": ids.show(ids.ORGANIZATION, new_id())}
            error_of(await platform_key.post(CHECK, json={"events": ["*"]}, headers=nobody), 404, "NOT_FOUND")
        async with client(p.app, await make_key(p, p.organization_id, ["subscriptions.read"])) as reader:
            error_of(await reader.post(CHECK, json={"events": ["*"]}), 403, "PERMISSION_DENIED")
        error_of(await p.client.get(CHECK), 405, "METHOD_NOT_ALLOWED")

    run(database_url, redis_url, check)


def test_the_costliest_filter_ends_in_time_and_lets_others_work(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        lines = [{"n": number} for number in range(20_000)]
        for _ in range(15):
            await p.send("order.paid", {"lines": lines})
        await p.send("order.paid", {"lines": lines[:1_000]})
        costly = {"$or": [{f"lines.n{number}": 1, "lines.n": {"$lt": 0}} for number in range(30)]}
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0)
                longest = max(longest, time.perf_counter() - began)

        watching = asyncio.create_task(watch())
        found = await p.services.checks.check(p.organization_id, ["*"], costly, work_s=0.05)
        watching.cancel()
        assert {one.outcome for one in found.seen} <= {Outcome.UNDECIDED, Outcome.FILTERED_OUT}
        assert found.is_cut
        assert 1 <= len(found.seen) < 16
        assert longest < 2.0, "a slice, and one event that is read whole"
        [one, *_] = (await p.services.checks.check(p.organization_id, ["*"], {"lines.n": 999_999})).seen
        assert one.outcome is Outcome.FILTERED_OUT

        checks = p.services.checks
        for _ in range(AT_ONCE):
            await checks._turn.acquire()
        waiting = asyncio.create_task(checks.check(p.organization_id, ["*"], {}))
        await asyncio.sleep(0)
        assert not waiting.done()
        checks._turn.release()
        assert len((await waiting).seen) == 16

    run(database_url, redis_url, check)


def test_who_waits_too_long_for_a_turn_is_told(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.matching.subscription_checks.TURN_TIMEOUT_S", 0.01)

    async def check(p: Platform) -> None:
        for _ in range(AT_ONCE):
            await p.services.checks._turn.acquire()
        with pytest.raises(Unavailable, match="Too much is being checked"):
            await p.services.checks.check(p.organization_id, ["*"], {})

    run(database_url, redis_url, check)
