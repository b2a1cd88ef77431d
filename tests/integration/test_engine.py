"""What keeps one delivery from holding up another: turns, locks, deadlines, faults of our own."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from core import deliveries, events, settings, subscriptions
from core.deliveries import Finish, Swept, Verdict
from core.hints import Hint
from core.states import PendingReason, State
from core.storage.database import Database
from tests.platform import environment, eventually, platform
from tests.receiver import Receiver
from tests.seeds import Seeds, seeded
from tests.services import plain_url
from worker import engine as engines
from worker import grace, room
from worker import main as worker


def received(receiver: Receiver, path: str) -> Counter[str]:
    """How often each webhook-id came to `path`."""
    return Counter(
        {name.lower(): value for name, value in one.headers}["webhook-id"]
        for one in receiver.requests
        if one.path == path
    )


def test_what_has_no_hint_takes_turns_with_what_has(database_url: str, redis_url: str) -> None:
    """4 slots and 160 hinted deliveries of 0.2 s each: 8 s of work, in which the sweep gets its turn."""

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, WORKER_MAX_IN_FLIGHT="4") as p:
            await p.subscribe(receiver.url("/slow/0.2"), ["bulk"])
            receiver.set("/lost", 200)
            await p.subscribe(receiver.url("/lost"), ["lost"])
            for _ in range(20):
                await p.send("bulk")
            hint, p.services.acceptance._hint = p.services.acceptance._hint, lambda _: None
            await p.send("lost")
            p.services.acceptance._hint = hint
            for _ in range(140):
                await p.send("bulk")
            await p.settled(1, "delivered", event_type="lost")
            bulk_before = len(received(receiver, "/slow/0.2"))
            assert bulk_before < 120, "the delivery without a hint came after most of the others"

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_where_claims_are_full_of_late_hints_the_sweep_leaves_them_more_time(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three that are due for a second, and one claim for each. As soon as no hint waits, it is as before."""
    monkeypatch.setattr(room, "MAX_CLAIM", 1)
    graces: list[float] = []

    async def noted(*_: Any, grace_s: float, **__: Any) -> Swept:
        graces.append(grace_s)
        return Swept([], [], more=False)

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, SWEEP_INTERVAL_S="60") as p:
            await p.subscribe(receiver.url("/ok"))
            kept: list[Hint] = []
            p.services.acceptance._hint = kept.extend
            monkeypatch.setattr(deliveries, "sweep", noted)
            for _ in range(3):
                await p.send()
            await p.sql("UPDATE deliveries SET due_at = now() - interval '1 second'")
            engine = p.engine
            assert engine is not None
            graces.clear()
            await engine.take(kept)
            engine.sweep()
            await p.settled(3, "delivered")
            assert graces
            # Not the first: a worker that has just started may sweep while the hints are looked up.
            assert grace.LEAST_S + 1 <= max(graces) <= grace.MOST_S
            before = len(graces)
            engine.sweep()

            async def swept() -> bool:
                return len(graces) > before

            await eventually(swept, what="another sweep")
            assert graces[-1] == grace.LEAST_S

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_what_finds_no_slot_does_not_wait_for_the_next_sweep(database_url: str, redis_url: str) -> None:
    """One slot, no hints, and a sweep each 4 s: 20 deliveries would take more than a minute."""

    async def run(receiver: Receiver) -> None:
        receiver.set("/ok", 200)
        async with platform(
            database_url, redis_url, with_worker=False, WORKER_MAX_IN_FLIGHT="1", SWEEP_INTERVAL_S="4"
        ) as p:
            await p.subscribe(receiver.url("/ok"))
            p.services.acceptance._hint = lambda _: None
            for _ in range(20):
                await p.send()
            chosen = environment(database_url, redis_url, WORKER_MAX_IN_FLIGHT="1", SWEEP_INTERVAL_S="4")
            async with worker.working(settings.load(chosen)):
                assert len(await p.settled(20, "delivered", within_s=30)) == 20

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_replay_that_others_hold_keeps_no_other_outcome_waiting(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, LEASE_MARGIN_S="2") as p:
            receiver.set("/held", 200)
            await p.subscribe(receiver.url("/held"), ["held"])
            await p.subscribe(receiver.url("/ok"), ["plain"], timeout_ms=1000)
            await p.send("held")
            [first] = await p.settled(1, "delivered")
            receiver.script("/held", [503, 200])  # so that an outcome is still to come once the row is locked
            await p.call("POST", f"/v1/deliveries/{first['id']}/replay")
            other = await asyncpg.connect(plain_url(database_url))
            async with other.transaction():
                await other.execute("SELECT 1 FROM replays FOR UPDATE")
                await p.sql("UPDATE deliveries SET due_at = now() WHERE state = 'pending'")
                for _ in range(20):
                    await p.send("plain")
                await p.settled(20, "delivered", event_type="plain", within_s=4)
            await other.close()
            await p.sql("UPDATE deliveries SET due_at = now() WHERE state = 'pending'")
            await p.settled(1, "delivered", event_type="held")
            assert set(received(receiver, "/ok").values()) == {1}

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_timeout_raised_after_the_claim_does_not_outlast_the_lease(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the subscription later than it was claimed still sends by the timeout of the claim."""

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False, LEASE_MARGIN_S="2") as p:
            created = await p.subscribe(receiver.url("/hang"), timeout_ms=1000)
            sweep = deliveries.sweep

            async def and_then_patched(*args: Any, **options: Any) -> Any:
                swept = await sweep(*args, **options)
                if swept.claims:
                    await p.sql("UPDATE subscriptions SET timeout_ms = 30000, version = version + 1")
                return swept

            monkeypatch.setattr(deliveries, "sweep", and_then_patched)
            p.services.acceptance._hint = lambda _: None
            await p.send()
            async with worker.working(settings.load(environment(database_url, redis_url, LEASE_MARGIN_S="2"))):

                async def failed() -> bool:
                    [row] = await p.sql("SELECT error_kind FROM deliveries")
                    return bool(row["error_kind"] == "timeout")

                await eventually(failed, 6, "the attempt's timeout")
            assert created["timeout_ms"] == 1000
            [tried] = await p.sql("SELECT duration_ms FROM attempts")
            assert 900 <= tried["duration_ms"] < 3000

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_fault_of_our_own_spends_attempts_and_ends(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "open_secret", lambda *_: "whsec_not base64")

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/ok"), retry_policy={"backoff_strategy": "fixed", "max_attempts": 1})
            await p.send()
            [dead] = await p.settled(1, "dead")
            assert (dead["reason"], dead["error"], dead["attempt_count"]) == ("exhausted", "protocol", 1)
            assert receiver.count == 0

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_hint_that_meets_a_broken_connection_is_left_to_the_sweep(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/ok"))
            assert p.engine is not None
            at, cut = p.engine._plans.at, asyncio.Event()

            async def once_cut(wanted: Any) -> Any:
                if not cut.is_set():
                    cut.set()
                    raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
                return await at(wanted)

            monkeypatch.setattr(p.engine._plans, "at", once_cut)
            await p.engine.take([Hint(p.organization_id, uuid4(), uuid4())])
            assert cut.is_set()
            await p.send()
            await p.settled(1, "delivered")

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_sweep_that_takes_long_keeps_no_hint_waiting(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = deliveries.sweep

    async def run(receiver: Receiver) -> None:
        reached, may = asyncio.Event(), asyncio.Event()

        async def held(*args: Any, **options: Any) -> Swept:
            reached.set()
            await may.wait()
            return await sweep(*args, **options)

        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/ok"))
            monkeypatch.setattr(deliveries, "sweep", held)
            assert p.engine is not None
            p.engine.sweep()
            await reached.wait()
            await p.send()
            await p.settled(1, "delivered")
            hint, p.services.acceptance._hint = p.services.acceptance._hint, lambda _: None
            await p.send()
            p.services.acceptance._hint = hint
            may.set()
            p.engine.sweep()
            await p.settled(2, "delivered")

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_what_was_claimed_and_could_not_be_sent_gives_its_slots_back_and_is_sent_later(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events can't be read: claiming pauses, or the next claims would be left lying as well."""
    monkeypatch.setattr(engines, "CLAIM_PAUSE_S", 2.0)
    claimed_at: list[float] = []
    read, claim = events.stored, deliveries.claim

    async def run(receiver: Receiver) -> None:
        clock = asyncio.get_running_loop().time
        refused = asyncio.Event()

        async def once_refused(*args: Any) -> Any:
            if not refused.is_set():
                refused.set()
                raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            return await read(*args)

        async def noted(*args: Any, **options: Any) -> Any:
            claims = await claim(*args, **options)
            claimed_at.extend([clock()] * bool(claims))
            return claims

        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/ok"))
            monkeypatch.setattr(events, "stored", once_refused)
            monkeypatch.setattr(deliveries, "claim", noted)
            await p.send()
            await refused.wait()
            assert p.engine is not None
            engine = p.engine

            async def free() -> bool:
                return not engine.under_way

            await eventually(free, what="the slot is given back")
            await p.send()
            await p.settled(1, "delivered")
            assert claimed_at[1] - claimed_at[0] >= 2.0
            await p.sql("UPDATE deliveries SET due_at = now() - interval '1 second' WHERE state = 'sending'")
            engine.sweep()
            await p.settled(2, "delivered")
            assert set(received(receiver, "/ok").values()) == {1}

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_stop_waits_for_the_outcome_of_what_was_sent(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than what is under way may take: only attempts are cut short."""
    finish = deliveries.finish

    async def run(receiver: Receiver) -> None:
        reached, may = asyncio.Event(), asyncio.Event()

        async def held(*args: Any, **options: Any) -> Any:
            reached.set()
            await may.wait()
            return await finish(*args, **options)

        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/ok"))
            monkeypatch.setattr(deliveries, "finish", held)
            await p.send()
            await reached.wait()
            await p.send()  # its outcome waits for the next batch
            assert p.engine is not None
            engine = p.engine

            async def both_sent() -> bool:
                return len(received(receiver, "/ok")) == 2 and not engine._sender._attempts

            await eventually(both_sent, what="both are sent")
            stopping = asyncio.create_task(engine.stop(0.0))

            async def has_cut_short() -> bool:
                return engine._recorder.give_up_at < float("inf")

            await eventually(has_cut_short, what="the stop begins")
            may.set()
            await stopping
            assert not engine._sender.tasks
            rows = await p.sql("SELECT state, attempt_count FROM deliveries")
            assert [(row["state"], row["attempt_count"]) for row in rows] == [("delivered", 1)] * 2

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_overlapping_claims_and_outcomes_in_any_order_do_not_deadlock(database_url: str) -> None:
    """Three sessions claim and finish the same 150 deliveries, each in another order, thirty times over."""

    async def check(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.PENDING) for _ in range(150)]
        database = Database(database_url, pool_size=4)

        async def play(order: list[Any]) -> int:
            moved = 0
            for _ in range(30):
                async with database.driver() as driver:
                    claims = await deliveries.claim(driver, order, margin_s=10.0)
                    later = Verdict(State.PENDING, PendingReason.RETRY, 0.0)
                    if claims:
                        moved += sum(await deliveries.finish(driver, [Finish(one, later) for one in claims]))
            return moved

        counts = await asyncio.gather(play(chosen), play(chosen[::-1]), play(chosen[75:] + chosen[:75]))
        await database.close()
        assert sum(counts) >= 150
        [row] = await seeds.driver.fetch("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert row["deadlocks"] == 0

    seeded(database_url, check)
