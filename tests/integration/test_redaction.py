"""Redaction: what an event said is gone from everywhere, its record stays, and nothing of it is sent any more."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlmodel import select

from core import deliveries, ids, redaction
from core.deliveries import Verdict
from core.matching import catch_up
from core.models import Subscription
from core.states import PendingReason, State
from tests.api import FAST, SUBSCRIPTIONS, error_of, run
from tests.dumps import dump, leaks
from tests.integration.test_deliveries import blocked
from tests.platform import Platform, eventually
from tests.receiver import Receiver
from tests.seeds import LATER, SUCCESS, Seeds, ended, seeded
from worker import loops
from worker.recorder import Recorder

CANARY = "canary-5f1c9b7e2d"
SLOWLY = {"backoff_strategy": "fixed", "base_delay_ms": 60_000, "max_attempts": 5, "jitter": False}
AT_ONCE = {"backoff_strategy": "fixed", "base_delay_ms": 1, "max_attempts": 50, "jitter": False}


def test_a_redacted_event_is_gone_but_for_its_record(database_url: str, owner_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        receiver.hold()
        wants = {
            "delivered": {"url": receiver.url("/ok")},
            "retrying": {"url": receiver.url("/status/503"), "retry_policy": SLOWLY},
            "dead": {"url": receiver.url("/status/500"), "retry_policy": FAST},
            "held": {"url": receiver.url("/ok")},
            "sending": {"url": receiver.url("/hold"), "retry_policy": AT_ONCE},
        }
        subscriptions = {name: (await p.subscribe(**fields))["id"] for name, fields in wants.items()}
        await p.call("POST", f"{SUBSCRIPTIONS}/{subscriptions['held']}/pause")
        body = {"event_type": "order.paid", "data": {"card": CANARY}, "metadata": {"note": CANARY}, "event_id": "mine"}
        accepted = (await p.call("POST", "/v1/events", body, Idempotency_Key="once"))["data"]
        path = f"/v1/events/{accepted['event_id']}"

        async def states() -> dict[str, tuple[str, str | None]]:
            found = {one["subscription_id"]: (one["status"], one["reason"]) for one in await p.deliveries()}
            return {name: found[id_] for name, id_ in subscriptions.items()}

        async def spread() -> bool:
            return await states() == {
                "delivered": ("delivered", None),
                "retrying": ("pending", "retry"),
                "dead": ("dead", "exhausted"),
                "held": ("pending", "paused"),
                "sending": ("sending", None),
            }

        await eventually(spread)
        assert leaks(await asyncio.to_thread(dump, owner_url), [CANARY])  # the dump shows what is there
        [idempotent] = await p.sql("SELECT response FROM idempotency_keys")
        assert idempotent  # and says no more than that it was accepted: the answer has no data

        redacted = (await p.call("POST", f"{path}/redact", Idempotency_Key="redacted"))["data"]
        assert (redacted["data"], redacted["metadata"], redacted["external_id"]) == ({}, {}, "mine")
        assert redacted["redacted_at"] is not None
        assert (await p.call("POST", f"{path}/redact"))["data"] == redacted  # again: nothing changes
        assert (await p.call("GET", path))["data"] == redacted
        [entry] = await p.sql("SELECT action, resource, organization_id FROM audit_log WHERE action LIKE 'event.%'")
        assert tuple(entry) == ("event.redacted", accepted["event_id"], p.organization_id)
        assert await states() == {
            "delivered": ("delivered", None),
            "retrying": ("discarded", "event_redacted"),
            "dead": ("dead", "exhausted"),
            "held": ("discarded", "event_redacted"),
            "sending": ("sending", None),
        }

        # The one under way fails, and would be tried again at once.
        receiver.release(500)

        async def dropped() -> bool:
            return (await states())["sending"] == ("discarded", "event_redacted")

        await eventually(dropped)
        [tried] = await p.sql(
            "SELECT a.* FROM attempts a JOIN deliveries d ON d.id = a.delivery_id WHERE d.subscription_id = $1",
            ids.parse(ids.SUBSCRIPTION, subscriptions["sending"]),
        )
        assert (tried["status_code"], tried["response_body"], tried["response_headers"]) == (500, None, None)
        for one in (await p.call("GET", "/v1/deliveries?include=attempts"))["data"]:
            assert [(a["response_body"], a["response_headers"]) for a in one["attempts"]] == (
                [] if one["subscription_id"] == subscriptions["held"] else [(None, None)]
            )
        assert not leaks(await asyncio.to_thread(dump, owner_url), [CANARY])
        await nothing_sends_it_again(p, subscriptions, path)

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


async def nothing_sends_it_again(p: Platform, subscriptions: dict[str, str], path: str) -> None:
    sent = await p.sql("SELECT count(*) FROM attempts")
    for delivery in await p.deliveries():
        answer = await p.client.post(f"/v1/deliveries/{delivery['id']}/replay")
        assert "Its event was redacted" in error_of(answer, 409, "CONFLICT")["message"]
    replay = (await p.call("POST", "/v1/replays", {"filters": {"status": "dead,delivered,discarded"}}))["data"]

    async def completed() -> dict[str, Any] | None:
        found: dict[str, Any] = (await p.call("GET", f"/v1/replays/{replay['id']}"))["data"]
        return found if found["status"] == "completed" else None

    found = await eventually(completed)
    assert (found["total"], found["skipped"], found["sent"]) == (5, 5, 0)
    # Catching up: of a subscription that has no delivery of it, since it takes none when the event comes.
    late = await p.subscribe("https://example.com/late")
    await p.call("POST", f"{SUBSCRIPTIONS}/{late['id']}/pause")
    resumed = await p.call("POST", f"{SUBSCRIPTIONS}/{late['id']}/resume", {"sync_from": "2020-01-01T00:00:00Z"})
    assert resumed["data"]["missed_deliveries_created"] == 0
    # A worker died with it: another takes it up, and drops it.
    await p.sql(
        "UPDATE deliveries SET state = 'sending', reason = NULL, lease_token = $1, due_at = now() - interval '1 hour'"
        " WHERE state = 'dead'",
        uuid4(),
    )
    await p.settled(4, "discarded", reason="event_redacted")
    assert await p.sql("SELECT count(*) FROM attempts") == sent
    assert (await p.call("GET", path))["data"]["matched_subscriptions"] == 5


async def redacting(
    seeds: Seeds, event_id: UUID, go: asyncio.Event, locked: asyncio.Event, *, at_event: bool = False
) -> None:
    """Redacts; the transaction over the deliveries, or the one before over the event, is committed once `go` is set."""
    async with seeds.database.session() as session:
        await redaction.redact(session, seeds.organization_id, event_id)
        if at_event:
            locked.set()
            await go.wait()
    async with seeds.database.driver() as driver, driver.transaction():
        await redaction.step(driver, event_id)
        locked.set()
        await go.wait()
    assert await redaction.finish(seeds.database, event_id)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [(SUCCESS, ("delivered", None)), (LATER, ("discarded", "event_redacted"))],
    ids=["succeeded", "to be tried again"],
)
def test_an_answer_that_is_recorded_during_a_redaction_is_not_stored(
    database_url: str, verdict: Verdict, state: tuple[str, str | None]
) -> None:
    """Whoever records waits for the redaction. Its statement has begun before that was committed."""

    async def check(seeds: Seeds) -> None:
        event_id = await seeds.event()
        claimed = await seeds.claim_one(await seeds.delivery(event_id=event_id))
        go, locked = asyncio.Event(), asyncio.Event()
        redacts = asyncio.create_task(redacting(seeds, event_id, go, locked))
        await locked.wait()
        finish = ended(claimed, verdict, response_body=CANARY.encode(), response_headers=f'[["x", "{CANARY}"]]')
        records = asyncio.create_task(deliveries.finish(seeds.driver, [finish]))
        await blocked(seeds)
        go.set()
        await redacts
        assert await records == [True]
        [attempt] = await seeds.attempts(claimed.id)
        assert (attempt["response_body"], attempt["response_headers"]) == (None, None)
        assert await seeds.state(claimed.id) == state

    seeded(database_url, check)


def test_a_redaction_during_a_recording_waits_and_removes_what_that_stored(database_url: str) -> None:
    async def check(seeds: Seeds) -> None:
        event_id = await seeds.event()
        claimed = await seeds.claim_one(await seeds.delivery(event_id=event_id))
        transaction = seeds.driver.transaction()
        await transaction.start()
        await deliveries.finish(seeds.driver, [ended(claimed, LATER, response_body=CANARY.encode())])
        go, locked = asyncio.Event(), asyncio.Event()
        go.set()
        redacts = asyncio.create_task(redacting(seeds, event_id, go, locked))
        await blocked(seeds)
        await transaction.commit()
        await redacts
        [attempt] = await seeds.attempts(claimed.id)
        assert attempt["response_body"] is None
        assert await seeds.state(claimed.id) == ("discarded", "event_redacted")

    seeded(database_url, check)


def test_what_others_hold_is_recorded_later_and_the_rest_at_once(database_url: str) -> None:
    async def check(seeds: Seeds) -> None:
        mine = await seeds.claim_one(await seeds.delivery(event_id=await seeds.event()))
        seeds.organization_id = ids.new_id()
        await seeds.prepare()
        others = [await seeds.claim_one(await seeds.delivery()) for _ in range(3)]
        recorder = Recorder(seeds.database, 100)
        recorder.start()
        async with seeds.database.driver() as driver, driver.transaction():
            await driver.execute("SELECT FROM deliveries WHERE id = $1 FOR UPDATE", mine.id)
            held = asyncio.create_task(recorder.keep(ended(mine)))
            async with asyncio.timeout(1.0):
                await asyncio.gather(*(recorder.keep(ended(one)) for one in others))
            assert not held.done()
        await held
        assert {await seeds.state(one.id) for one in (mine, *others)} == {("delivered", None)}
        gone = mine._replace(id=ids.new_id())  # erased, or its day dropped
        assert await deliveries.finish(seeds.driver, [ended(gone)], wait=False) == [False]
        await recorder.close()

    seeded(database_url, check)


def test_a_redaction_that_was_cut_short_is_finished_by_a_worker(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is recorded or replayed in between is removed, and not sent."""
    monkeypatch.setattr(redaction, "BATCH", 2)

    async def check(seeds: Seeds) -> None:
        event_id = await seeds.event()
        claims = [await seeds.claim_one(await seeds.delivery(event_id=event_id)) for _ in range(5)]
        for one in claims[:3]:
            await deliveries.finish(seeds.driver, [ended(one, SUCCESS, response_body=CANARY.encode())])
        async with seeds.database.session() as session:
            await redaction.redact(session, seeds.organization_id, event_id)
        assert not await redaction.finish(seeds.database, event_id, within_s=0.0)
        await deliveries.finish(seeds.driver, [ended(claims[3], LATER, response_body=CANARY.encode())])
        await loops.redact(seeds.database)
        await deliveries.finish(seeds.driver, [ended(claims[4], LATER, response_body=CANARY.encode())])
        for one, state in zip(claims, [("delivered", None)] * 3 + [("discarded", "event_redacted")] * 2, strict=True):
            assert await seeds.state(one.id) == state
            assert [row["response_body"] for row in await seeds.attempts(one.id)] == [None]
        assert await seeds.driver.fetch("SELECT FROM unfinished_redactions") == []

    seeded(database_url, check)


def test_catching_up_during_a_redaction_creates_nothing(database_url: str) -> None:
    async def check(seeds: Seeds) -> None:
        event_id = await seeds.event()
        go, locked = asyncio.Event(), asyncio.Event()
        redacts = asyncio.create_task(redacting(seeds, event_id, go, locked, at_event=True))
        await locked.wait()
        async with seeds.database.session() as session:
            query = select(Subscription).where(Subscription.id == seeds.subscription_id)
            subscription = (await session.exec(query)).one()
        since = datetime.now(UTC) - timedelta(hours=1)

        async def catch() -> list[UUID]:
            async with seeds.driver.transaction():
                return await catch_up.create_missed(seeds.driver, subscription, since, first=False)

        catches = asyncio.create_task(catch())
        await blocked(seeds)
        go.set()
        await redacts
        assert await catches == []

    seeded(database_url, check)


def test_a_replay_ends_although_what_it_sent_is_redacted(database_url: str) -> None:
    """One waits, one is handed back untried, one has failed: none leaves its replay waiting for an answer."""

    async def check(seeds: Seeds) -> None:
        replay_id = ids.new_id()
        await seeds.driver.execute(
            "INSERT INTO replays (id, organization_id, rate_per_second, status, total)"
            " VALUES ($1, $2, 50, 'running', 3)",
            replay_id,
            seeds.organization_id,
        )
        event_id = await seeds.event()
        waiting, untried, failed = [await seeds.delivery(State.DEAD, event_id=event_id) for _ in range(3)]
        for one in (waiting, untried, failed):
            await seeds.driver.execute(
                "INSERT INTO replay_items (replay_id, delivery_id) VALUES ($1, $2)", replay_id, one
            )
        async with seeds.driver.transaction():
            assert len(await deliveries.replay(seeds.driver, [waiting, untried, failed], replay_id)) == 3
        claims = [await seeds.claim_one(one) for one in (untried, failed)]
        go, locked = asyncio.Event(), asyncio.Event()
        go.set()
        await redacting(seeds, event_id, go, locked)
        handed_back = deliveries.Finish(claims[0], Verdict(State.PENDING, PendingReason.REPLAY, 0.0))
        assert await deliveries.finish(seeds.driver, [handed_back, ended(claims[1], LATER)]) == [True, True]
        rows = await seeds.driver.fetch("SELECT delivery_id, outcome FROM replay_items")
        assert {row["delivery_id"]: row["outcome"] for row in rows} == {
            waiting: "skipped",
            untried: "skipped",
            failed: "failed",
        }
        assert {await seeds.state(one) for one in (waiting, untried, failed)} == {("discarded", "event_redacted")}

    seeded(database_url, check)
