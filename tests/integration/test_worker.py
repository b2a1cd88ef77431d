"""A whole worker: what it takes, what it leaves, and what it does when things around it fail."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from core import ids, settings
from core.hints import Hints
from core.storage import partitions
from tests.platform import Platform, environment, eventually, platform
from tests.receiver import Receiver
from tests.seeds import Seeds, seeded
from tests.services import as_owner
from worker import loops
from worker import main as worker

NEVER_S = "60"  # a sweep interval that does not come


async def states(p: Platform) -> dict[str, int]:
    rows = await p.sql("SELECT coalesce(state || '/' || reason, state) AS s, count(*) AS n FROM deliveries GROUP BY 1")
    return {row["s"]: row["n"] for row in rows}


async def until(p: Platform, **wanted: int) -> None:
    """Waits until the deliveries are in exactly these states; `pending_paused` stands for pending/paused."""
    expected = {name.replace("_", "/", 1): count for name, count in wanted.items()}

    async def there() -> bool:
        return await states(p) == expected

    await eventually(there, what=str(expected))


def loading(database_url: str, redis_url: str, **more: str) -> settings.Settings:
    return settings.load(environment(database_url, redis_url, **more))


# --- taking --------------------------------------------------------------------------------------------------------


def test_a_hint_is_enough_without_a_sweep(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, SWEEP_INTERVAL_S=NEVER_S) as p:
            await p.subscribe(receiver.url())
            await p.send()
            await p.settled(1, "delivered", within_s=5)

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_the_sweep_is_enough_without_a_hint(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hints, "send", lambda *_: None)

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url())
            for _ in range(5):
                await p.send()
            await p.settled(5, "delivered")
            assert receiver.count == 5

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_several_workers_send_each_delivery_once(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        chosen = loading(database_url, redis_url, SWEEP_INTERVAL_S="0.05")
        async with (
            platform(database_url, redis_url, SWEEP_INTERVAL_S="0.05") as p,
            worker.working(chosen),
            worker.working(chosen),
        ):
            await p.subscribe(receiver.url())
            events = [{"event_type": "order.paid", "data": {"n": n}} for n in range(300)]
            await p.call("POST", "/v1/events/batch", {"events": events})
            await until(p, delivered=300)
            assert receiver.count == 300
            [row] = await p.sql("SELECT count(*) AS n FROM attempts")
            assert row["n"] == 300

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_no_more_is_claimed_than_can_be_sent(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, WORKER_MAX_IN_FLIGHT="3") as p:
            await p.subscribe(receiver.url("/slow/0.1"))
            events = [{"event_type": "order.paid", "data": {"n": n}} for n in range(12)]
            await p.call("POST", "/v1/events/batch", {"events": events})
            most = 0

            async def all_delivered() -> bool:
                nonlocal most
                found = await states(p)
                most = max(most, found.get("sending", 0))
                return found == {"delivered": 12}

            await eventually(all_delivered)
            assert 1 <= most <= 3
            assert receiver.connections <= 3

    with Receiver() as receiver:
        asyncio.run(run(receiver))


# --- what can't be sent --------------------------------------------------------------------------------------------


async def _lose_event(p: Platform, delivery_id: UUID) -> None:
    await p.sql("DELETE FROM events WHERE id = (SELECT event_id FROM deliveries WHERE id = $1)", delivery_id)


async def _spoil_secret(p: Platform, delivery_id: UUID) -> None:
    await p.sql(
        "UPDATE subscription_secrets SET sealed = 'nonsense'"
        " WHERE subscription_id = (SELECT subscription_id FROM deliveries WHERE id = $1)",
        delivery_id,
    )


@pytest.mark.parametrize("fault", [_lose_event, _spoil_secret], ids=["its event is gone", "its secret can't be opened"])
def test_a_delivery_that_cannot_be_sent_holds_up_no_other_and_spends_no_attempt(
    database_url: str, redis_url: str, fault: Any
) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            await p.subscribe(receiver.url(), ["order.*"])
            await p.subscribe(receiver.url(), ["user.*"])
            await p.send("user.created")
            [row] = await p.sql("SELECT id FROM deliveries")
            await fault(p, row["id"])
            for _ in range(5):
                await p.send("order.paid")
            async with worker.working(loading(database_url, redis_url)):
                await until(p, delivered=5, pending_retry=1)
            [left] = await p.sql(
                "SELECT *, extract(epoch FROM due_at - updated_at)::float8 AS s FROM deliveries WHERE state = 'pending'"
            )
            assert (left["id"], left["attempt_count"], left["s"]) == (row["id"], 0, pytest.approx(60))
            assert receiver.count == 5

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_what_cannot_be_stored_of_an_answer_does_not_cost_its_outcome(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/nul"))
            await p.send()
            [delivered] = await p.settled(1, "delivered")
            shown = (await p.call("GET", f"/v1/deliveries/{delivered['id']}"))["data"]
            assert "<script>" in shown["attempts"][0]["response_body"]

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_an_attempt_whose_day_has_no_partition_is_recorded_once(
    database_url: str, owner_url: str, redis_url: str
) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/slow/0.2"))
            await p.send()
            await asyncio.to_thread(receiver.wait_for, 1)  # the worker's housekeeping has been, or finds nothing to do
            await as_owner(owner_url, f"DROP TABLE {partitions.name_of('attempts', datetime.now(UTC).date())}")
            await p.settled(1, "delivered")
            [row] = await p.sql("SELECT count(*) AS n FROM attempts")
            assert (row["n"], receiver.count) == (1, 1)

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_an_outcome_is_recorded_although_every_connection_was_cut_meanwhile(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            await p.subscribe(receiver.url("/slow/0.3"))
            for _ in range(5):
                await p.send()
            await asyncio.to_thread(receiver.wait_for, 5)
            cut = await p.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'hookwright-worker' AND datname = current_database()"
            )
            assert cut
            await p.settled(5, "delivered")
            assert receiver.count == 5

    with Receiver() as receiver:
        asyncio.run(run(receiver))


# --- stopping ------------------------------------------------------------------------------------------------------


def test_a_worker_that_stops_hands_back_what_it_could_not_finish(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_S", 0.2)

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            created = await p.subscribe(receiver.url("/hang"))
            async with worker.working(loading(database_url, redis_url)):
                await p.send()
                await until(p, sending=1)
                await asyncio.to_thread(receiver.wait_for, 1)
            assert await states(p) == {"pending/retry": 1}
            [row] = await p.sql("SELECT *, due_at <= now() AS due FROM deliveries")
            assert (row["attempt_count"], row["lease_token"], row["due"]) == (1, None, True)
            [tried] = await p.sql("SELECT * FROM attempts")  # the request was written, so it is in the history
            assert (tried["error_kind"], tried["error_message"]) == (
                "reset",
                "The sender was stopped before the answer came",
            )
            await p.call("PATCH", f"/v1/webhooks/subscriptions/{created['id']}", {"url": receiver.url("/ok")})
            async with worker.working(loading(database_url, redis_url)):
                await p.settled(1, "delivered", within_s=5)  # at once, not after the lease

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_worker_that_stops_lets_what_is_under_way_finish(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            await p.subscribe(receiver.url("/slow/0.3"))
            async with worker.working(loading(database_url, redis_url)):
                await p.send()
                await asyncio.to_thread(receiver.wait_for, 1)
            assert await states(p) == {"delivered": 1}

    with Receiver() as receiver:
        asyncio.run(run(receiver))


# --- subscriptions that change -------------------------------------------------------------------------------------


def test_a_paused_subscription_gets_nothing_until_it_is_resumed_and_then_everything(
    database_url: str, redis_url: str
) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            created = await p.subscribe(receiver.url())
            path = f"/v1/webhooks/subscriptions/{created['id']}"
            await p.call("POST", f"{path}/pause")
            for _ in range(5):
                await p.send()
            await until(p, pending_paused=5)
            assert (await p.deliveries(status="pending"))[0]["next_attempt_at"] is None
            await p.call("POST", f"{path}/resume")
            await until(p, delivered=5)
            assert receiver.count == 5
            assert {one["attempt_count"] for one in await p.deliveries()} == {1}

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_pausing_and_resuming_under_load_leaves_nothing_behind(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, SWEEP_INTERVAL_S="0.05") as p:
            created = await p.subscribe(receiver.url())
            path = f"/v1/webhooks/subscriptions/{created['id']}"

            async def produce() -> None:
                for n in range(30):
                    events = [{"event_type": "order.paid", "data": {"n": n}}] * 5
                    await p.call("POST", "/v1/events/batch", {"events": events})

            async def steer() -> None:
                for _ in range(15):
                    await p.call("POST", f"{path}/pause")
                    await p.call("POST", f"{path}/resume")

            await asyncio.gather(produce(), steer())
            await until(p, delivered=150)
            assert receiver.count == 150

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_worker_releases_what_a_killed_web_process_left_held(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            created = await p.subscribe(receiver.url())
            path = f"/v1/webhooks/subscriptions/{created['id']}"
            await p.call("POST", f"{path}/pause")
            await p.send()
            await until(p, pending_paused=1)
            # All that the resume committed before the process was killed.
            await p.sql("UPDATE subscriptions SET status = 'active', settled = false, version = version + 1")
            await until(p, delivered=1)

            async def settled() -> bool:
                [row] = await p.sql("SELECT settled FROM subscriptions")
                return bool(row["settled"])

            await eventually(settled)

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_deleting_lets_what_is_under_way_end_and_discards_the_rest(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, WORKER_MAX_IN_FLIGHT="1") as p:
            created = await p.subscribe(receiver.url("/slow/0.4"))
            for _ in range(4):
                await p.send()
            await asyncio.to_thread(receiver.wait_for, 1)
            await p.call("DELETE", f"/v1/webhooks/subscriptions/{created['id']}")
            found = await states(p)
            assert found == {"sending": 1, "discarded/subscription_deleted": 3}
            await until(p, delivered=1, discarded_subscription_deleted=3)
            assert receiver.count == 1
            [row] = await p.sql("SELECT count(*) AS n FROM attempts")
            assert row["n"] == 1
            assert (await p.send())["matched_subscriptions"] == 0

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_what_was_missed_is_sent_on_resume(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            receiver.script("/hook", [410, 200])
            created = await p.subscribe(receiver.url("/hook"), ["order.*"])
            since = datetime.now(UTC) - timedelta(minutes=1)
            await p.send()
            await p.settled(1, "dead")
            missed = [(await p.send())["event_id"] for _ in range(3)]
            await p.send("user.created")
            path = f"/v1/webhooks/subscriptions/{created['id']}/resume"
            body = {"sync_from": since.isoformat(), "priority": "high"}
            assert (await p.call("POST", path, body))["data"]["missed_deliveries_created"] == 3
            await until(p, delivered=3, dead_gone=1)
            sent = {request.header("webhook-id") for request in receiver.requests[1:]}
            assert sent == set(missed)

    with Receiver() as receiver:
        asyncio.run(run(receiver))


# --- housekeeping --------------------------------------------------------------------------------------------------


def test_a_worker_makes_and_drops_partitions_by_itself(database_url: str, owner_url: str, redis_url: str) -> None:
    today = datetime.now(UTC).date()
    ahead, old = today + timedelta(days=7), today - timedelta(days=40)

    async def prepare(seeds: Seeds) -> None:
        await partitions.ensure(seeds.driver, [old])
        await as_owner(owner_url, f"DROP TABLE {partitions.name_of('events', ahead)}")

    async def run() -> None:
        async with platform(database_url, redis_url) as p:

            async def done() -> bool:
                [row] = await p.sql(
                    "SELECT to_regclass($1::text) IS NOT NULL AND to_regclass($2::text) IS NULL AS done",
                    partitions.name_of("events", ahead),
                    partitions.name_of("deliveries", old),
                )
                return bool(row["done"])

            await eventually(done)

    seeded(database_url, prepare)
    asyncio.run(run())


def test_breakers_of_deleted_subscriptions_are_removed_and_no_others(database_url: str, redis_url: str) -> None:
    async def run() -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            kept, deleted = [await p.subscribe("http://127.0.0.1:8099/") for _ in range(2)]
            await p.call("DELETE", f"/v1/webhooks/subscriptions/{deleted['subscription_id']}")
            store = p.services.breakers
            ours = [ids.parse(ids.SUBSCRIPTION, one["subscription_id"]) for one in (kept, deleted)]
            for one in (*ours, uuid4()):
                await store.reset(one, 1)
            await loops.forget_breakers(p.database, store)
            assert [*await store.all()] == ours[:1]

    asyncio.run(run())


def test_a_delivery_of_a_dead_worker_is_sent_by_another_after_its_lease(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            await p.subscribe(receiver.url())
            await p.send()
            # As a worker that was killed leaves it: leased, and the lease ends in a moment.
            await p.sql(
                "UPDATE deliveries SET state = 'sending', reason = NULL, lease_token = $1,"
                " due_at = now() + interval '500 ms'",
                ids.new_id(),
            )
            async with worker.working(loading(database_url, redis_url)):
                [delivered] = await p.settled(1, "delivered", within_s=5)
                assert delivered["attempt_count"] == 1

    with Receiver() as receiver:
        asyncio.run(run(receiver))
