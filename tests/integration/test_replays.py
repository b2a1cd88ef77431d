"""Replays: a frozen selection, sent again at a rate, counted exactly, steered and restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks import Webhook

from core import deliveries, ids, replays
from core.deliveries import Finish, Verdict
from core.errors import Conflict, NotFound, ValidationFailed
from core.hints import Hint
from core.models import Replay, ReplayStatus
from core.replays import OPERATIONS, Group
from core.states import DeadReason, DiscardReason, State
from core.storage.database import Database
from tests.platform import eventually, platform
from tests.receiver import Receiver
from tests.seeds import EXHAUSTED, LATER, SUCCESS, Seeds, claim_due, ended, seeded

COUNTERS = ("total", "sent", "succeeded", "failed", "skipped")


async def create(
    seeds: Seeds, filters: Mapping[str, Any] | None = None, *, rate: int = 10_000
) -> tuple[Replay, list[Group]]:
    # "Up to now" is to the millisecond, and the last delivery may have been planted within it.
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    frozen = replays.freeze({"created_before": soon, **(filters or {})})
    async with seeds.database.session() as session:
        return await replays.create(session, seeds.organization_id, frozen, rate_per_second=rate, created_by="test")


async def one(seeds: Seeds, delivery_id: UUID) -> Replay:
    async with seeds.database.session() as session:
        return await replays.replay_one(session, seeds.organization_id, delivery_id, created_by="test")


async def operate(seeds: Seeds, replay_id: UUID, operation: str) -> Replay:
    async with seeds.database.session() as session:
        return await replays.operate(session, seeds.organization_id, replay_id, operation)


async def counters(seeds: Seeds, replay_id: UUID) -> tuple[str, int, int, int, int, int]:
    """Status, total, sent, succeeded, failed, skipped; and holds them against the items."""
    row = await seeds.driver.fetchrow("SELECT * FROM replays WHERE id = $1", replay_id)
    found = await seeds.driver.fetch(
        "SELECT outcome, count(*) AS n FROM replay_items WHERE replay_id = $1 GROUP BY 1", replay_id
    )
    items = {one["outcome"]: one["n"] for one in found}
    assert row["total"] == sum(items.values())
    assert row["sent"] == items.get("sent", 0) + items.get("succeeded", 0) + items.get("failed", 0)
    for name in ("succeeded", "failed", "skipped"):
        assert row[name] == items.get(name, 0), name
    return row["status"], row["total"], row["sent"], row["succeeded"], row["failed"], row["skipped"]


async def let_pass(seeds: Seeds, seconds: float) -> None:
    """As if that much time had passed since the last step."""
    await seeds.driver.execute("UPDATE replays SET paced_at = now() - make_interval(secs => $1)", seconds)


async def finish(seeds: Seeds, delivery_id: UUID, verdict: Verdict) -> None:
    assert await deliveries.finish(seeds.driver, [ended(await seeds.claim_one(delivery_id), verdict)]) == [True]


def tally(groups: Sequence[Group]) -> dict[tuple[UUID, str | None], int]:
    return {(group.subscription_id, group.error_kind): group.count for group in groups}


# --- choosing ------------------------------------------------------------------------------------------------------


def test_a_preview_counts_exactly_and_changes_nothing(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        other = await seeds.subscription()
        for error_kind, count in (("timeout", 3), ("status", 2)):
            for _ in range(count):
                await seeds.delivery(State.DEAD, error_kind=error_kind)
        await seeds.delivery(State.DEAD, subscription_id=other)
        await seeds.delivery(State.DELIVERED)
        await seeds.delivery(State.DEAD, organization_id=ids.new_id())  # another tenant's
        everything = "SELECT * FROM deliveries ORDER BY id"
        before = await seeds.driver.fetch(everything)
        async with seeds.database.session() as session:
            groups = (await replays.preview(session, seeds.organization_id, {"status": "dead"})).groups
        expected = {
            (seeds.subscription_id, "timeout"): 3,
            (seeds.subscription_id, "status"): 2,
            (other, None): 1,
        }
        assert tally(groups) == expected
        assert await seeds.driver.fetch(everything) == before
        assert await seeds.driver.fetchval("SELECT count(*) FROM replays") == 0
        assert await seeds.driver.fetchval("SELECT count(*) FROM replay_items") == 0
        # What is then made of the same filters is what was announced.
        replay, created = await create(seeds)
        assert (replay.total, tally(created)) == (6, expected)

    seeded(database_url, run)


def test_the_selection_is_frozen_when_the_replay_is_created(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(3)]
        replay, _ = await create(seeds)
        late = await seeds.delivery(State.DEAD)
        assert sorted(one.delivery_id for one in await replays.tick(seeds.database)) == sorted(chosen)
        assert await seeds.state(late) == ("dead", "exhausted")
        assert (await counters(seeds, replay.id))[:3] == ("running", 3, 3)

    seeded(database_url, run)


def test_frozen_filters_posted_again_choose_nothing_newer(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.delivery(State.DEAD, at=datetime.now(UTC) - timedelta(minutes=1))
        frozen = replays.freeze({})
        assert frozen["status"] == "dead"
        await seeds.delivery(State.DEAD, at=datetime.now(UTC) + timedelta(seconds=1))
        async with seeds.database.session() as session:
            preview = await replays.preview(session, seeds.organization_id, replays.freeze(frozen))
        assert preview.total == 1

    seeded(database_url, run)


@pytest.mark.parametrize(
    ("filters", "path"),
    [
        ({"colour": "red"}, "filters.colour"),
        ({"status": "lost"}, "filters.status"),
        ({"reason": "nul \0"}, "filters.reason"),
        ({"error": "boredom"}, "filters.error"),
        ({"ids": []}, "filters.ids"),
        ({"ids": ["evt_01JZ"]}, "filters.ids"),
        ({"created_after": "yesterday"}, "filters.created_after"),
        ({"created_before": "1970-01-01T00:00:00+14:00"}, "filters.created_before"),
        ({"status_code": "20"}, "filters.status_code"),
        ({"event_type": "nul \0"}, "filters.event_type"),
    ],
)
def test_a_wrong_filter_is_named_and_nothing_is_made(database_url: str, filters: dict[str, Any], path: str) -> None:
    async def run(seeds: Seeds) -> None:
        with pytest.raises(ValidationFailed) as caught:
            await create(seeds, filters)
        assert list(caught.value.details) == [path]
        assert await seeds.driver.fetchval("SELECT count(*) FROM replays") == 0

    seeded(database_url, run)


def test_too_large_a_selection_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "MAX_SELECTION", 2)

    async def run(seeds: Seeds) -> None:
        for _ in range(2):
            await seeds.delivery(State.DEAD)
        replay, groups = await create(seeds)
        assert (replay.total, tally(groups)) == (2, {(seeds.subscription_id, None): 2})
        await seeds.delivery(State.DEAD)
        with pytest.raises(ValidationFailed) as caught:
            await create(seeds)
        assert "more than 2" in caught.value.details["filters"][0]
        assert await seeds.driver.fetchval("SELECT count(*) FROM replays") == 1
        assert await seeds.driver.fetchval("SELECT count(*) FROM replay_items") == 2
        async with seeds.database.session() as session:  # and a preview counts any number
            groups = (await replays.preview(session, seeds.organization_id, {"status": "dead"})).groups
        assert tally(groups) == {(seeds.subscription_id, None): 3}

    seeded(database_url, run)


def test_an_empty_selection_is_complete_at_once(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        replay, groups = await create(seeds)
        assert (replay.status, replay.total, groups) == (ReplayStatus.COMPLETED, 0, [])
        assert replay.finished_at is not None

    seeded(database_url, run)


# --- pace ----------------------------------------------------------------------------------------------------------


def test_a_step_sends_what_its_time_allows(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(40):
            await seeds.delivery(State.DEAD)
        # So slow that a busy machine does not add one: it has most of a second.
        replay, _ = await create(seeds, rate=1)
        assert len(await replays.tick(seeds.database)) == 1  # the first counts as one second
        assert await replays.tick(seeds.database) == []
        for passed_s, allowed in ((1.2, 1), (3600.0, 2)):  # away for an hour, no flood: two seconds' worth
            await let_pass(seeds, passed_s)
            assert len(await replays.tick(seeds.database)) == allowed
        await let_pass(seeds, 1.4)
        assert len(await replays.tick(seeds.database)) == 1
        saved = "SELECT extract(epoch FROM now() - paced_at) FROM replays"
        assert await seeds.driver.fetchval(saved) >= Decimal("0.4"), "what is left of a second is saved"
        assert (await counters(seeds, replay.id))[:3] == ("running", 40, 5)

    seeded(database_url, run)


def test_rare_ticks_do_not_slow_a_replay_down(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(30):
            await seeds.delivery(State.DEAD)
        await create(seeds, rate=2)
        assert len(await replays.tick(seeds.database, interval_s=5.0)) == 2
        await let_pass(seeds, 5.0)
        assert len(await replays.tick(seeds.database, interval_s=5.0)) == 10
        await let_pass(seeds, 3600.0)
        assert len(await replays.tick(seeds.database, interval_s=5.0)) == 18  # of 20 that two intervals allow

    seeded(database_url, run)


def test_a_replay_that_only_waits_for_outcomes_takes_no_step(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(seeds: Seeds) -> None:
        waiting = [await one(seeds, await seeds.delivery(State.DEAD)) for _ in range(3)]
        genuine, stepped = replays._step, []

        async def noted(driver: Any, replay_id: UUID, max_s: float) -> list[UUID]:
            stepped.append(replay_id)
            return await genuine(driver, replay_id, max_s)

        monkeypatch.setattr(replays, "_step", noted)
        await replays.tick(seeds.database)
        assert stepped == []
        [delivery_id] = await seeds.driver.fetchrow(
            "SELECT delivery_id FROM replay_items WHERE replay_id = $1", waiting[0].id
        )
        await finish(seeds, delivery_id, SUCCESS)
        await let_pass(seeds, 1.0)
        await replays.tick(seeds.database)
        assert stepped == [waiting[0].id]
        assert await counters(seeds, waiting[0].id) == ("completed", 1, 1, 1, 0, 0)

    seeded(database_url, run)


def test_a_fraction_of_a_delivery_is_carried_over(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(10):
            await seeds.delivery(State.DEAD)
        await create(seeds, rate=2)
        await replays.tick(seeds.database)
        await let_pass(seeds, 0.9)
        assert len(await replays.tick(seeds.database)) == 1
        left_s = await seeds.driver.fetchval("SELECT extract(epoch FROM now() - paced_at)::float8 FROM replays")
        assert left_s >= 0.4  # of the 0.9 s only the one delivery's 0.5 s are spent

    seeded(database_url, run)


def test_a_ticker_that_comes_second_sends_nothing(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(30)]
        replay, _ = await create(seeds, rate=10)
        sent = await asyncio.gather(*(replays.tick(seeds.database) for _ in range(5)))
        together = [one.delivery_id for some in sent for one in some]
        assert len(together) == 10
        assert set(together) < set(chosen)
        assert (await counters(seeds, replay.id))[2] == 10

    seeded(database_url, run)


def test_overlapping_replays_advanced_by_several_workers_do_not_lock_each_other_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "spares_others", lambda _: False)  # a deadlock is not to be passed over here

    async def run(seeds: Seeds) -> None:
        for _ in range(60):
            await seeds.delivery(State.DEAD)
        made = [(await create(seeds, rate=20))[0].id for _ in range(4)]
        for _ in range(4):
            await let_pass(seeds, 1.0)
            async with asyncio.timeout(10):
                await asyncio.gather(*(replays.tick(seeds.database) for _ in range(4)))
        found = [await counters(seeds, replay_id) for replay_id in made]
        # Each delivery was sent by every replay in turn, and answers to the last of them alone.
        assert [row[1] for row in found] == [60] * 4
        assert sum(row[2] for row in found) == 60
        assert sum(row[5] for row in found) == 180
        last = {row["replay_id"] for row in await seeds.driver.fetch("SELECT replay_id FROM deliveries")}
        assert last <= set(made)

    seeded(database_url, run)


@pytest.mark.parametrize("error", [RuntimeError("something in it is poison"), TimeoutError()])
def test_a_replay_that_fails_does_not_hold_up_the_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.delivery(State.DEAD)
        bad, _ = await create(seeds)
        good, _ = await create(seeds)
        genuine = deliveries.replay

        async def failing(driver: Any, delivery_ids: Sequence[UUID], replay_id: UUID) -> list[Hint]:
            if replay_id == bad.id:
                raise error
            return await genuine(driver, delivery_ids, replay_id)

        monkeypatch.setattr(deliveries, "replay", failing)
        assert len(await replays.tick(seeds.database)) == 1
        assert (await counters(seeds, good.id))[2] == 1
        assert (await counters(seeds, bad.id))[:3] == ("queued", 1, 0)

    seeded(database_url, run)


# --- steering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ReplayStatus)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_allowed_or_refused_by_status(database_url: str, operation: str, status: ReplayStatus) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.delivery(State.DEAD)
        replay, _ = await create(seeds)
        await seeds.driver.execute("UPDATE replays SET status = $1", str(status))
        before = await seeds.driver.fetchrow("SELECT * FROM replays")
        allowed, after = OPERATIONS[operation]
        if status in allowed:
            assert (await operate(seeds, replay.id, operation)).status == after
            assert await seeds.driver.fetchval("SELECT status FROM replays") == after
        else:
            with pytest.raises(Conflict) as caught:
                await operate(seeds, replay.id, operation)
            assert caught.value.details["status"] == status
            assert await seeds.driver.fetchrow("SELECT * FROM replays") == before

    seeded(database_url, run)


def test_anothers_replay_is_not_found(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.delivery(State.DEAD)
        replay, _ = await create(seeds)
        async with seeds.database.session() as session:
            with pytest.raises(NotFound):
                await replays.operate(session, ids.new_id(), replay.id, "cancel")

    seeded(database_url, run)


def test_a_paused_replay_stands_still_and_does_not_make_up_for_it(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(30):
            await seeds.delivery(State.DEAD)
        replay, _ = await create(seeds, rate=5)
        assert len(await replays.tick(seeds.database)) == 5
        await operate(seeds, replay.id, "pause")
        await let_pass(seeds, 60)
        assert await replays.tick(seeds.database) == []
        await operate(seeds, replay.id, "resume")
        assert len(await replays.tick(seeds.database)) == 5

    seeded(database_url, run)


def test_a_cancelled_replay_sends_no_more_and_keeps_what_it_sent(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(10):
            await seeds.delivery(State.DEAD)
        replay, _ = await create(seeds, rate=4)
        sent = await replays.tick(seeds.database)
        cancelled = await operate(seeds, replay.id, "cancel")
        assert cancelled.finished_at is not None
        await let_pass(seeds, 60)
        assert await replays.tick(seeds.database) == []
        await finish(seeds, sent[0].delivery_id, SUCCESS)
        assert await counters(seeds, replay.id) == ("cancelled", 10, 4, 1, 0, 0)

    seeded(database_url, run)


@pytest.mark.parametrize("operation", ["pause", "cancel"])
def test_a_step_overtaken_by_a_person_sends_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery(State.DEAD)
        replay, _ = await create(seeds)
        before = await seeds.row(delivery_id)
        genuine = deliveries.replay

        async def overtaken(driver: Any, delivery_ids: Sequence[UUID], replay_id: UUID) -> list[Hint]:
            await operate(seeds, replay.id, operation)
            return await genuine(driver, delivery_ids, replay_id)

        monkeypatch.setattr(deliveries, "replay", overtaken)
        assert await replays.tick(seeds.database) == []
        assert await seeds.row(delivery_id) == before
        assert await counters(seeds, replay.id) == (OPERATIONS[operation][1], 1, 0, 0, 0, 0)

    seeded(database_url, run)


def test_a_replay_goes_on_after_a_restart(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(9)]
        replay, _ = await create(seeds, rate=3)
        sent: list[UUID] = []
        for _ in range(4):
            fresh = Database(database_url)  # a worker that knows nothing of the last one
            sent += [one.delivery_id for one in await replays.tick(fresh)]
            await fresh.close()
            await let_pass(seeds, 1.0)
        assert sorted(sent) == sorted(chosen)
        assert len(sent) == len(set(sent))
        for delivery_id in sent:
            await finish(seeds, delivery_id, SUCCESS)
        await replays.tick(seeds.database)
        assert await counters(seeds, replay.id) == ("completed", 9, 9, 9, 0, 0)

    seeded(database_url, run)


# --- what becomes of each ------------------------------------------------------------------------------------------


def test_outcomes_are_counted_and_the_replay_completes(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(5)]
        deleted = await seeds.delivery(State.DEAD, subscription_id=await seeds.subscription(status="deleted"))
        disabled = await seeds.delivery(State.DEAD, subscription_id=await seeds.subscription(status="disabled"))
        discarded = await seeds.delivery(State.DEAD)
        replay, _ = await create(seeds)
        await replays.tick(seeds.database)
        assert await counters(seeds, replay.id) == ("running", 8, 6, 0, 0, 2)
        for untouched in (deleted, disabled):
            assert await seeds.state(untouched) == ("dead", "exhausted")
        await finish(seeds, chosen[0], SUCCESS)
        await finish(seeds, chosen[1], LATER)
        await finish(seeds, chosen[2], EXHAUSTED)
        await deliveries.discard(seeds.driver, seeds.organization_id, discarded)
        assert await counters(seeds, replay.id) == ("running", 8, 5, 1, 2, 3)
        # Handed back, or held: nothing has come of it yet.
        claimed = await seeds.claim_one(chosen[3])
        assert await deliveries.finish(seeds.driver, [Finish(claimed, Verdict(State.PENDING, "replay", 0.0))]) == [True]
        assert await counters(seeds, replay.id) == ("running", 8, 5, 1, 2, 3)
        await finish(seeds, chosen[3], SUCCESS)
        dropped = Verdict(State.DISCARDED, DiscardReason.SUBSCRIPTION_DELETED)
        last = await seeds.claim_one(chosen[4])
        assert await deliveries.finish(seeds.driver, [Finish(last, dropped)]) == [True]
        await let_pass(seeds, 1.0)
        await replays.tick(seeds.database)
        assert await counters(seeds, replay.id) == ("completed", 8, 4, 2, 2, 4)
        # A later retry of one that failed still turns it into a success, although the replay is over.
        await seeds.make_due(chosen[1])
        await finish(seeds, chosen[1], SUCCESS)
        assert await counters(seeds, replay.id) == ("completed", 8, 4, 3, 1, 4)

    seeded(database_url, run)


def test_what_a_replay_sends_and_its_subscription_is_then_disabled_fails(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        replay = await one(seeds, await seeds.delivery(State.DEAD))
        [claimed] = await claim_due(seeds.driver, 1, margin_s=10.0)
        verdict = Verdict(State.DEAD, DeadReason.SUBSCRIPTION_DISABLED)
        assert await deliveries.finish(seeds.driver, [Finish(claimed, verdict)]) == [True]
        assert await counters(seeds, replay.id) == ("running", 1, 1, 0, 1, 0)

    seeded(database_url, run)


def test_a_pending_retry_is_superseded(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        later = datetime.now(UTC) + timedelta(hours=5)
        delivery_id = await seeds.delivery(attempt_count=4, due_at=later, status_code=500, error_kind="status")
        await one(seeds, delivery_id)
        row = await seeds.row(delivery_id)
        assert (row["state"], row["reason"], row["series"], row["attempt_count"]) == ("pending", "replay", 1, 0)
        assert (await seeds.claim_one(delivery_id)).series == 1

    seeded(database_url, run)


def test_a_later_replay_supersedes_an_earlier_one(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        both = [await seeds.delivery(State.DEAD), await seeds.delivery(State.DEAD)]
        earlier, _ = await create(seeds)
        await replays.tick(seeds.database)
        await finish(seeds, both[1], LATER)  # the earlier one has an answer for this
        later, _ = await create(seeds, {"status": "pending"})
        await replays.tick(seeds.database)
        assert await counters(seeds, earlier.id) == ("running", 2, 1, 0, 1, 1)
        for delivery_id in both:
            await finish(seeds, delivery_id, SUCCESS)
        await let_pass(seeds, 1.0)
        await replays.tick(seeds.database)
        assert await counters(seeds, earlier.id) == ("completed", 2, 1, 0, 1, 1)
        assert await counters(seeds, later.id) == ("completed", 2, 2, 2, 0, 0)

    seeded(database_url, run)


def test_what_is_being_sent_is_skipped(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        under_way = await seeds.claim_one(await seeds.delivery())
        before = await seeds.row(under_way.id)
        replay, _ = await create(seeds, {"status": "sending"})
        assert await replays.tick(seeds.database) == []
        assert await seeds.row(under_way.id) == before
        assert await counters(seeds, replay.id) == ("completed", 1, 0, 0, 0, 1)

    seeded(database_url, run)


@pytest.mark.parametrize("status", ["deleted", "disabled"])
def test_a_single_delivery_of_an_ended_subscription_is_refused(database_url: str, status: str) -> None:
    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery(State.DEAD)
        await seeds.driver.execute("UPDATE subscriptions SET status = $1", status)
        with pytest.raises(Conflict, match=status):
            await one(seeds, delivery_id)
        assert await seeds.driver.fetchval("SELECT count(*) FROM replays") == 0

    seeded(database_url, run)


def test_a_single_delivery_that_is_not_there_is_not_found(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for missing in (ids.new_id(), await seeds.delivery(State.DEAD, organization_id=ids.new_id())):
            with pytest.raises(NotFound):
                await one(seeds, missing)

    seeded(database_url, run)


def test_a_replay_while_the_subscription_is_paused_waits_with_it(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery(State.DEAD)
        await seeds.driver.execute("UPDATE subscriptions SET status = 'paused'")
        replay = await one(seeds, delivery_id)
        await deliveries.hold(seeds.driver, [await seeds.claim_one(delivery_id)])
        await replays.tick(seeds.database)
        assert (await counters(seeds, replay.id))[0] == "running"
        await seeds.driver.execute("UPDATE subscriptions SET status = 'active'")
        await deliveries.release_held(seeds.driver, seeds.subscription_id)
        assert await seeds.state(delivery_id) == ("pending", "replay")
        await finish(seeds, delivery_id, SUCCESS)
        await let_pass(seeds, 1.0)
        await replays.tick(seeds.database)
        assert await counters(seeds, replay.id) == ("completed", 1, 1, 1, 0, 0)

    seeded(database_url, run)


# --- the whole way -------------------------------------------------------------------------------------------------


def test_a_bulk_replay_keeps_the_ids_and_uses_the_current_url_and_secret(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as p:
            policy = {"backoff_strategy": "fixed", "base_delay_ms": 20, "max_attempts": 1}
            created = await p.subscribe(receiver.url("/status/500"), retry_policy=policy)
            sent = [(await p.send())["event_id"] for _ in range(5)]
            await p.settled(5, "dead")
            path = f"/v1/webhooks/subscriptions/{created['id']}"
            await p.call("PATCH", path, {"url": receiver.url("/ok")})
            rotated = (await p.call("POST", f"{path}/secret/rotate", {"grace_period_s": 0}))["data"]
            receiver.clear()
            dry = (await p.call("POST", "/v1/replays", {"dry_run": True}, expect=202))["data"]
            assert (dry["total"], dry["by_error"]) == (5, [{"error": "status", "count": 5}])
            replay = (await p.call("POST", "/v1/replays", {"rate_per_second": 100}, expect=202))["data"]
            delivered = await p.settled(5, "delivered")
            assert {one["replay_id"] for one in delivered} == {replay["id"]}
            assert {one["series"] for one in delivered} == {1}
            requests = receiver.wait_for(5)
            assert sorted(request.header("webhook-id") or "" for request in requests) == sorted(sent)
            assert {request.path for request in requests} == {"/ok"}
            for request in requests:
                headers = {name.lower(): value for name, value in request.headers}
                assert Webhook(rotated["secret_key"]).verify(request.body, headers)
            shown = (await p.call("GET", f"/v1/deliveries/{delivered[0]['id']}"))["data"]["attempts"]
            assert [(one["series"], one["number"], one["replay_id"]) for one in shown] == [
                (0, 1, None),
                (1, 1, replay["id"]),
            ]

            async def complete() -> dict[str, Any] | None:
                found: dict[str, Any] = (await p.call("GET", f"/v1/replays/{replay['id']}"))["data"]
                return found if found["status"] == "completed" else None

            done = await eventually(complete, what="the replay's completion")
            assert [done[name] for name in COUNTERS] == [5, 5, 5, 0, 0]

    with Receiver() as receiver:
        asyncio.run(run(receiver))
