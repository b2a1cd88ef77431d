"""Every operation on a delivery, from every state: where it is allowed, and where it must change nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from core import deliveries, ids, replays, settling, subscriptions
from core.deliveries import Choice, Claimed, Due, Finish, Park, Verdict, bulk, requests
from core.errors import Conflict, NotFound, ValidationFailed
from core.matching import catch_up
from core.models import Subscription
from core.states import TRANSITIONS, DeadReason, DiscardReason, PendingReason, State
from core.storage.database import Database
from tests.seeds import EXHAUSTED, LATER, MARGIN_S, SUCCESS, TIMEOUT_S, Seeds, claim_due, ended, seeded

DROPPED = Verdict(State.DISCARDED, DiscardReason.SUBSCRIPTION_DELETED)


# --- every operation from every state ------------------------------------------------------------------------------


def _held_by(row: dict[str, Any]) -> Claimed:
    """The claim of whoever holds this row; of nobody, when it isn't held."""
    return Claimed(
        id=row["id"],
        organization_id=row["organization_id"],
        subscription_id=row["subscription_id"],
        event_id=row["event_id"],
        event_type=row["event_type"],
        series=row["series"],
        attempt_count=row["attempt_count"],
        replay_id=row["replay_id"],
        subscription_version=1,
        subscription_status="active",
        timeout_ms=15_000,
        token=row["lease_token"] or uuid4(),
    )


async def _pause(seeds: Seeds) -> None:
    await seeds.driver.execute("UPDATE subscriptions SET status = 'paused'")


Operation = Callable[[Seeds, dict[str, Any]], Awaitable[Any]]


def _finishing(verdict: Verdict, *, tried: bool = True) -> Operation:
    async def operate(seeds: Seeds, row: dict[str, Any]) -> Any:
        finish = ended(_held_by(row), verdict) if tried else Finish(_held_by(row), verdict)
        return await deliveries.finish(seeds.driver, [finish])

    return operate


async def _claim(seeds: Seeds, row: dict[str, Any]) -> Any:
    return await seeds.claim(row["id"])


async def _park(seeds: Seeds, row: dict[str, Any]) -> Any:
    async def choose(due: Sequence[Due]) -> list[Choice | Park]:
        parked = Park(PendingReason.RATE_LIMITED, 0.0)
        return [parked if one.id == row["id"] else Choice.LEAVE for one in due]

    return await deliveries.sweep(seeds.driver, 100, choose, margin_s=MARGIN_S)


async def _hold(seeds: Seeds, row: dict[str, Any]) -> Any:
    await _pause(seeds)
    return await deliveries.hold(seeds.driver, [_held_by(row)])


async def _discard(seeds: Seeds, row: dict[str, Any]) -> Any:
    return await deliveries.discard(seeds.driver, row["organization_id"], row["id"])


async def _replay(seeds: Seeds, row: dict[str, Any]) -> Any:
    async with seeds.database.session() as session:
        return await replays.replay_one(session, row["organization_id"], row["id"], created_by="test")


OPERATIONS: dict[str, Operation] = {
    "claim": _claim,
    "succeed": _finishing(SUCCESS),
    "reschedule": _finishing(LATER),
    "give_up": _finishing(EXHAUSTED),
    "reclaim": _claim,
    "park": _park,
    "hold": _hold,
    "drop": _finishing(DROPPED, tried=False),
    "discard": _discard,
    "replay": _replay,
}


def test_every_operation_of_the_table_is_tried_here() -> None:
    assert OPERATIONS.keys() == TRANSITIONS.keys()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_moves_what_it_may_and_changes_nothing_else(database_url: str, operation: str) -> None:
    seeded(database_url, lambda seeds: _from_every_state(seeds, operation))


async def _from_every_state(seeds: Seeds, operation: str) -> None:
    transition = TRANSITIONS[operation]
    for state in State:
        # A claim is one statement for both: from sending it is a reclaim.
        claims = operation in {"claim", "reclaim"} and state in {State.PENDING, State.SENDING}
        delivery_id, bystander = await seeds.delivery(state), await seeds.delivery(state)
        before, beside = await seeds.row(delivery_id), await seeds.row(bystander)
        refusal = await _refusal(OPERATIONS[operation](seeds, before))
        after = await seeds.row(delivery_id)
        if state in transition.before or claims:
            assert refusal is None, state
            assert after != before, state
            assert after["state"] in transition.after, state
        else:
            assert after == before, state
            if operation in {"discard", "replay"}:  # a person asked, so a person is told
                assert refusal is not None, state
                assert refusal.details == {"status": state, "allowed": sorted(transition.before)}
        assert await seeds.row(bystander) == beside, state


async def _refusal(operation: Awaitable[Any]) -> Conflict | None:
    try:
        await operation
    except Conflict as error:
        return error
    return None


# --- claiming ------------------------------------------------------------------------------------------------------


def test_a_claim_leases_for_the_timeout_and_the_margin(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        quick = await seeds.subscription(timeout_ms=2_500)
        for subscription_id, timeout_s in ((seeds.subscription_id, TIMEOUT_S), (quick, 2.5)):
            delivery_id = await seeds.delivery(subscription_id=subscription_id)
            async with seeds.driver.transaction():  # one now() for both statements
                claimed = await seeds.claim_one(delivery_id)
                lease_s = await seeds.driver.fetchval(
                    "SELECT extract(epoch FROM due_at - now())::float8 FROM deliveries WHERE id = $1", delivery_id
                )
            assert lease_s == pytest.approx(timeout_s + MARGIN_S)
            row = await seeds.row(delivery_id)
            assert (row["state"], row["reason"], row["lease_token"]) == ("sending", None, claimed.token)

    seeded(database_url, run)


def test_what_is_not_due_is_not_claimed(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        later = await seeds.delivery(due_at=datetime.now(UTC) + timedelta(seconds=5))
        held = await seeds.delivery(reason=PendingReason.PAUSED, due_at=None)
        leased = await seeds.delivery(State.SENDING, due_at=datetime.now(UTC) + timedelta(seconds=5))
        assert await seeds.claim(later, held, leased) == []
        assert await claim_due(seeds.driver, 100, margin_s=MARGIN_S) == []
        assert await seeds.claim() == []

    seeded(database_url, run)


def test_the_longest_due_are_claimed_first(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        minutes = [3, 1, 5, 2, 4]
        by_age = {}
        for age in minutes:
            by_age[age] = await seeds.delivery(due_at=datetime.now(UTC) - timedelta(minutes=age))
        claimed = await claim_due(seeds.driver, 2, margin_s=MARGIN_S)
        assert {one.id for one in claimed} == {by_age[5], by_age[4]}

    seeded(database_url, run)


def test_a_claim_reaches_over_days(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        both = [await seeds.delivery(at=yesterday), await seeds.delivery()]
        assert {one.id for one in await seeds.claim(*both)} == set(both)

    seeded(database_url, run)


def test_claiming_a_large_backlog_takes_each_once(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        ids_ = [await seeds.delivery() for _ in range(120)]

        async def claimer(by_ids: bool) -> list[UUID]:
            taken: list[UUID] = []
            async with seeds.database.driver() as driver:
                while True:
                    claimed = (
                        await deliveries.claim(driver, ids_, margin_s=MARGIN_S)
                        if by_ids
                        else await claim_due(driver, 7, margin_s=MARGIN_S)
                    )
                    if not claimed:
                        return taken
                    taken += [one.id for one in claimed]

        taken = await asyncio.gather(*(claimer(by_ids) for by_ids in (False, False, False, True)))
        # One claimer may find nothing while another still holds its rows' locks; whatever is left is left due.
        together = [one for some in taken for one in some]
        together += [one.id for one in await claim_due(seeds.driver, 500, margin_s=MARGIN_S)]
        assert sorted(together) == sorted(ids_)

    seeded(database_url, run)


def test_the_second_of_two_claimers_gets_none_of_the_firsts(database_url: str) -> None:
    """The second comes while the first has not committed: the sweep and a hint's claim both pass over."""

    async def run(seeds: Seeds) -> None:
        both = [await seeds.delivery(), await seeds.delivery()]
        third = await seeds.delivery()
        async with seeds.database.driver() as other:
            transaction = seeds.driver.transaction()
            await transaction.start()
            assert len(await seeds.claim(*both)) == 2
            passing = await claim_due(other, 10, margin_s=MARGIN_S)
            assert [one.id for one in passing] == [third]
            assert await deliveries.claim(other, [*both], margin_s=MARGIN_S) == []
            await transaction.commit()
            assert await deliveries.claim(other, [*both], margin_s=MARGIN_S) == []

    seeded(database_url, run)


async def blocked(seeds: Seeds, count: int = 1, within_s: float = 5) -> None:
    """Waits until that many connections of this database wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(within_s), seeds.database.driver() as looking:
        while await looking.fetchval(query) < count:  # noqa: ASYNC110 - what it looks at is in another process
            await asyncio.sleep(0.005)


# --- pause and resume ----------------------------------------------------------------------------------------------


async def _subscription(session: AsyncSession, seeds: Seeds) -> Subscription:
    return await subscriptions.get(session, seeds.organization_id, seeds.subscription_id, lock=True)


async def _resume(seeds: Seeds) -> None:
    async with seeds.database.session() as session:
        await subscriptions.resume(session, await _subscription(session, seeds))


async def _never_due(seeds: Seeds) -> int:
    """Deliveries that nothing would ever take up again."""
    count: int = await seeds.driver.fetchval(
        "SELECT count(*) FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id"
        " WHERE d.state = 'pending' AND d.due_at IS NULL AND s.status <> 'paused' AND s.settled"
    )
    return count


def test_holding_spends_no_attempt_and_resuming_releases(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await _pause(seeds)
        new = await seeds.delivery(reason=PendingReason.NEW)
        retry = await seeds.delivery(attempt_count=2, status_code=500, error_kind="status")
        replayed = await seeds.delivery(reason=PendingReason.REPLAY, series=1)
        everything = [new, retry, replayed]
        await deliveries.hold(seeds.driver, await seeds.claim(*everything))
        for one in everything:
            row = await seeds.row(one)
            assert (row["state"], row["reason"], row["due_at"], row["lease_token"]) == ("pending", "paused", None, None)
            assert await seeds.attempts(one) == []
        assert (await seeds.row(retry))["attempt_count"] == 2
        assert (await seeds.row(retry))["error_kind"] == "status"
        assert await claim_due(seeds.driver, 10, margin_s=MARGIN_S) == []
        await _resume(seeds)
        assert await deliveries.release_held(seeds.driver, seeds.subscription_id) == 3
        reasons = [(await seeds.state(one))[1] for one in everything]
        assert reasons == ["new", "retry", "replay"]
        assert len(await claim_due(seeds.driver, 10, margin_s=MARGIN_S)) == 3

    seeded(database_url, run)


def test_a_resume_that_comes_during_a_hold_waits_and_then_releases(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await _pause(seeds)
        claimed = await seeds.claim_one(await seeds.delivery())
        transaction = seeds.driver.transaction()
        await transaction.start()
        await deliveries.hold(seeds.driver, [claimed])
        resuming = asyncio.create_task(_resume(seeds))
        await blocked(seeds)
        await transaction.commit()
        await resuming
        await settling.settle_all(seeds.database)
        assert await seeds.state(claimed.id) == ("pending", "new")
        assert await _never_due(seeds) == 0

    seeded(database_url, run)


def test_a_hold_that_comes_during_a_resume_leaves_it_due_and_does_not_wait(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await _pause(seeds)
        claimed = await seeds.claim_one(await seeds.delivery())
        async with seeds.database.session() as session:
            await subscriptions.resume(session, await _subscription(session, seeds))
            async with asyncio.timeout(2):
                await deliveries.hold(seeds.driver, [claimed])
        row = await seeds.row(claimed.id)
        assert (row["state"], row["reason"]) == ("pending", "new")
        assert row["due_at"] is not None
        assert await _never_due(seeds) == 0

    seeded(database_url, run)


def test_a_hold_that_comes_after_the_resume_leaves_it_due(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await _pause(seeds)
        claimed = await seeds.claim_one(await seeds.delivery(attempt_count=1))
        await _resume(seeds)
        await deliveries.hold(seeds.driver, [claimed])
        row = await seeds.row(claimed.id)
        assert (row["state"], row["reason"]) == ("pending", "retry")
        assert row["due_at"] is not None

    seeded(database_url, run)


def test_a_worker_that_lost_its_lease_does_not_hold(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await _pause(seeds)
        stale = await seeds.claim_one(await seeds.delivery())
        await seeds.make_due(stale.id)
        fresh = await seeds.claim_one(stale.id)
        await deliveries.hold(seeds.driver, [stale])
        row = await seeds.row(stale.id)
        assert (row["state"], row["lease_token"]) == ("sending", fresh.token)

    seeded(database_url, run)


def test_holding_deliveries_of_several_subscriptions_holds_only_the_paused(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        paused = await seeds.subscription(status="paused")
        theirs = await seeds.claim_one(await seeds.delivery(subscription_id=paused))
        ours = await seeds.claim_one(await seeds.delivery())
        await deliveries.hold(seeds.driver, [theirs, ours])
        assert await seeds.state(theirs.id) == ("pending", "paused")
        assert await seeds.state(ours.id) == ("pending", "new")

    seeded(database_url, run)


@pytest.mark.parametrize("operation", ["resume", "delete"])
def test_a_process_that_ends_right_after_resuming_or_deleting_leaves_nothing_held_for_ever(
    database_url: str, operation: str
) -> None:
    async def run(seeds: Seeds) -> None:
        held = await seeds.delivery(reason=PendingReason.PAUSED, due_at=None)
        waiting = await seeds.delivery()
        await _pause(seeds)
        async with seeds.database.session() as session:
            subscription = await _subscription(session, seeds)
            if operation == "resume":
                await subscriptions.resume(session, subscription)
            else:
                await subscriptions.delete(session, subscription)
        # Here it was killed: nothing follows the commit. Any worker's next look finishes it.
        await settling.settle_all(seeds.database)
        released = ("pending", "new") if operation == "resume" else ("discarded", "subscription_deleted")
        assert await seeds.state(held) == released
        assert (await seeds.state(waiting))[0] == ("pending" if operation == "resume" else "discarded")
        assert await seeds.driver.fetchval("SELECT settled FROM subscriptions WHERE id = $1", seeds.subscription_id)

    seeded(database_url, run)


def test_settling_one_that_was_paused_again_holds_on(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        held = await seeds.delivery(reason=PendingReason.PAUSED, due_at=None)
        await seeds.driver.execute("UPDATE subscriptions SET status = 'paused', settled = false")
        await settling.settle_all(seeds.database)
        assert await seeds.state(held) == ("pending", "paused")

    seeded(database_url, run)


def test_a_settler_that_is_overtaken_by_a_later_resume_does_not_mark_it_settled(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(seeds: Seeds) -> None:
        await _pause(seeds)
        await _resume(seeds)
        genuine = deliveries.release_held

        async def overtaken(driver: Any, subscription_id: UUID) -> int:
            count = await genuine(driver, subscription_id)
            async with seeds.database.session() as session:
                await subscriptions.pause(session, await _subscription(session, seeds))
            await seeds.delivery(reason=PendingReason.PAUSED, due_at=None)
            await _resume(seeds)
            return count

        monkeypatch.setattr(deliveries, "release_held", overtaken)
        await settling.settle(seeds.driver, seeds.subscription_id)
        monkeypatch.undo()
        assert not await seeds.driver.fetchval("SELECT settled FROM subscriptions WHERE id = $1", seeds.subscription_id)
        await settling.settle_all(seeds.database)
        assert await _never_due(seeds) == 0

    seeded(database_url, run)


# --- bulk changes --------------------------------------------------------------------------------------------------


def test_deleting_discards_all_that_waits_and_keeps_the_rest(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BULK", 7)

    async def run(seeds: Seeds) -> None:
        waiting = [await seeds.delivery() for _ in range(20)]
        held = [await seeds.delivery(reason=PendingReason.PAUSED, due_at=None) for _ in range(10)]
        finished = [await seeds.delivery(state) for state in (State.DELIVERED, State.DEAD, State.DISCARDED)]
        under_way = await seeds.claim_one(await seeds.delivery())
        other = await seeds.delivery(subscription_id=await seeds.subscription())
        before = [await seeds.row(one) for one in [*finished, under_way.id, other]]
        assert await deliveries.discard_pending(seeds.driver, seeds.subscription_id) == 30
        for one in [*waiting, *held]:
            row = await seeds.row(one)
            assert (row["state"], row["reason"], row["due_at"]) == ("discarded", "subscription_deleted", None)
        assert [await seeds.row(one) for one in [*finished, under_way.id, other]] == before
        # What was under way ends as it ends; a retry of it is dropped when it comes due.
        assert await deliveries.finish(seeds.driver, [ended(under_way, LATER)]) == [True]
        await seeds.driver.execute("UPDATE subscriptions SET status = 'deleted'")
        await seeds.make_due(under_way.id)
        again = await seeds.claim_one(under_way.id)
        verdict = deliveries.verdict_without_sending(again)
        assert verdict == DROPPED
        assert await deliveries.finish(seeds.driver, [Finish(again, DROPPED)]) == [True]
        assert await seeds.state(under_way.id) == ("discarded", "subscription_deleted")
        assert len(await seeds.attempts(under_way.id)) == 1

    seeded(database_url, run)


def test_two_processes_that_discard_the_same_do_not_lock_each_other_out(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BULK", 5)

    async def run(seeds: Seeds) -> None:
        for _ in range(60):
            await seeds.delivery()

        async def discard() -> int:
            async with seeds.database.driver() as driver:
                return await deliveries.discard_pending(driver, seeds.subscription_id)

        assert sum(await asyncio.gather(*(discard() for _ in range(4)))) == 60

    seeded(database_url, run)


def test_whoever_waited_for_another_that_failed_discards_its_share_too(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BULK", 5)

    async def run(seeds: Seeds) -> None:
        for _ in range(12):
            await seeds.delivery()
        async with seeds.database.driver() as first, seeds.database.driver() as second:
            transaction = first.transaction()
            await transaction.start()
            await first.execute("SELECT FROM deliveries FOR UPDATE")
            discarding = asyncio.create_task(deliveries.discard_pending(second, seeds.subscription_id))
            await blocked(seeds)
            await transaction.rollback()
            assert await discarding == 12

    seeded(database_url, run)


def test_whoever_waited_for_another_that_then_ended_discards_what_that_one_left(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was killed after one of its steps: the second found that step's rows done, and must not stop there."""
    monkeypatch.setattr(bulk, "BULK", 5)

    async def run(seeds: Seeds) -> None:
        for _ in range(12):
            await seeds.delivery()
        async with seeds.database.driver() as first, seeds.database.driver() as second:
            transaction = first.transaction()
            await transaction.start()
            step = [row["id"] for row in await first.fetch(bulk._PENDING, seeds.subscription_id, 5)]
            assert len(await first.fetch(bulk._DISCARD_PENDING, step, step[0], step[-1])) == 5
            discarding = asyncio.create_task(deliveries.discard_pending(second, seeds.subscription_id))
            await blocked(seeds)
            await transaction.commit()
            assert await discarding == 7
        assert await seeds.driver.fetchval("SELECT count(*) FROM deliveries WHERE state = 'pending'") == 0

    seeded(database_url, run)


def test_releasing_what_was_held_goes_in_steps(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BULK", 4)

    async def run(seeds: Seeds) -> None:
        for _ in range(13):
            await seeds.delivery(reason=PendingReason.PAUSED, due_at=None)
        assert await deliveries.release_held(seeds.driver, seeds.subscription_id) == 13
        assert len(await claim_due(seeds.driver, 100, margin_s=MARGIN_S)) == 13

    seeded(database_url, run)


# --- discarding ----------------------------------------------------------------------------------------------------


def test_discarding_what_is_not_there_or_anothers_is_not_found(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery(State.DEAD)
        for organization_id, one in ((seeds.organization_id, ids.new_id()), (ids.new_id(), delivery_id)):
            with pytest.raises(NotFound):
                await deliveries.discard(seeds.driver, organization_id, one)
        assert await seeds.state(delivery_id) == ("dead", "exhausted")

    seeded(database_url, run)


def test_a_dead_letter_keeps_why_until_it_is_replayed(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claimed = await seeds.claim_one(await seeds.delivery(attempt_count=4))
        finish = ended(claimed, EXHAUSTED, status_code=503, error_message="The receiver answered 503")
        assert await deliveries.finish(seeds.driver, [finish]) == [True]
        row = await seeds.row(claimed.id)
        assert (row["reason"], row["attempt_count"], row["status_code"], row["error_kind"], row["error_message"]) == (
            "exhausted",
            5,
            503,
            "status",
            "The receiver answered 503",
        )

    seeded(database_url, run)


def test_a_delivery_replayed_more_often_than_its_counter_holds_is_still_sent(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery(State.DEAD, series=requests.MAX_SERIES)
        await _replay(seeds, await seeds.row(delivery_id))
        assert (await seeds.row(delivery_id))["series"] == requests.MAX_SERIES
        assert await seeds.state(delivery_id) == ("pending", "replay")

    seeded(database_url, run)


# --- disabling -----------------------------------------------------------------------------------------------------

GONE = Verdict(State.DEAD, DeadReason.GONE, disables=True)


async def _status(seeds: Seeds, subscription_id: UUID | None = None) -> str:
    status: str = await seeds.driver.fetchval(
        "SELECT status FROM subscriptions WHERE id = $1", subscription_id or seeds.subscription_id
    )
    return status


def test_a_receiver_that_is_gone_disables_its_subscription_once(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claims = await seeds.claim(*[await seeds.delivery() for _ in range(3)])
        waiting = await seeds.delivery()
        async with seeds.database.session() as session:
            before = await _subscription(session, seeds)
        versions = "SELECT subscriptions_version FROM organizations WHERE id = $1"
        organization_before = await seeds.driver.fetchval(versions, seeds.organization_id)
        assert (
            await deliveries.finish(seeds.driver, [ended(one, GONE, status_code=410) for one in claims]) == [True] * 3
        )
        assert await _status(seeds) == "disabled"
        async with seeds.database.session() as session:
            after = await _subscription(session, seeds)
        assert (after.version, after.status_reason) == (before.version + 1, "the receiver asked for it")
        assert await seeds.driver.fetchval(versions, seeds.organization_id) == organization_before + 1
        # What waits is given up when it comes due, without being sent.
        claimed = await seeds.claim_one(waiting)
        verdict = deliveries.verdict_without_sending(claimed)
        assert verdict == Verdict(State.DEAD, DeadReason.SUBSCRIPTION_DISABLED)
        assert await deliveries.finish(seeds.driver, [Finish(claimed, verdict)]) == [True]
        assert await seeds.state(waiting) == ("dead", "subscription_disabled")
        assert await seeds.attempts(waiting) == []

    seeded(database_url, run)


def test_the_answer_to_an_earlier_version_of_a_subscription_disables_nothing(database_url: str) -> None:
    """It was given another URL meanwhile, or a person resumed it."""

    async def run(seeds: Seeds) -> None:
        claimed = await seeds.claim_one(await seeds.delivery())
        await seeds.driver.execute("UPDATE subscriptions SET version = version + 1, url = 'https://example.com/new'")
        assert await deliveries.finish(seeds.driver, [ended(claimed, GONE, status_code=410)]) == [True]
        assert await seeds.state(claimed.id) == ("dead", "gone")
        assert await _status(seeds) == "active"

    seeded(database_url, run)


def test_two_workers_that_disable_the_same_subscriptions_do_not_lock_each_other_out(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        many = [await seeds.subscription() for _ in range(8)]
        batches = []
        for order in (many, many[::-1]):
            claims = [await seeds.claim_one(await seeds.delivery(subscription_id=one)) for one in order]
            batches.append([ended(one, GONE, status_code=410) for one in claims])

        async def record(batch: list[Finish]) -> None:
            async with seeds.database.driver() as driver:
                assert all(await deliveries.finish(driver, batch))

        await asyncio.gather(*map(record, batches))
        assert {await _status(seeds, one) for one in many} == {"disabled"}

    seeded(database_url, run)


# --- catching up ---------------------------------------------------------------------------------------------------


async def _catch_up(seeds: Seeds, since: datetime, *, first: bool = False) -> list[UUID]:
    async with seeds.database.session() as session:
        subscription = await _subscription(session, seeds)
    async with seeds.database.driver() as driver, driver.transaction():
        return await catch_up.create_missed(driver, subscription, since, first=first)


def test_catching_up_creates_what_is_missing_and_matches(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "CHUNK", 3)

    async def run(seeds: Seeds) -> None:
        await seeds.driver.execute("UPDATE subscriptions SET events = '{order.*}'")
        now = datetime.now(UTC)
        await seeds.event(at=now - timedelta(hours=5))  # before what is asked
        missed = [await seeds.event(at=now - timedelta(minutes=60 - n)) for n in range(8)]
        await seeds.event("user.created", at=now - timedelta(minutes=30))
        there = await seeds.event(at=now - timedelta(minutes=20))
        await seeds.delivery(State.DEAD, event_id=there)
        created = await _catch_up(seeds, now - timedelta(hours=1, minutes=1))
        rows = [await seeds.row(one) for one in created]
        assert [row["event_id"] for row in rows] == missed
        assert {(row["state"], row["reason"], row["event_type"]) for row in rows} == {("pending", "new", "order.paid")}
        assert await _catch_up(seeds, now - timedelta(hours=1, minutes=1)) == []  # asked again, nothing is doubled
        assert len(await seeds.claim(*created)) == len(missed)

    seeded(database_url, run)


def test_catching_up_leaves_other_organizations_events_alone(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.event()
        await seeds.driver.execute("UPDATE events SET organization_id = $1", ids.new_id())
        assert await _catch_up(seeds, datetime.now(UTC) - timedelta(hours=1)) == []

    seeded(database_url, run)


@pytest.mark.parametrize("first", [True, False])
def test_with_priority_what_was_missed_goes_before_what_is_due(database_url: str, first: bool) -> None:
    async def run(seeds: Seeds) -> None:
        now = datetime.now(UTC)
        missed = [await seeds.event(at=now - timedelta(minutes=n)) for n in (50, 40, 30)]
        due = await seeds.delivery(reason="new", due_at=now - timedelta(seconds=1))
        created = await _catch_up(seeds, now - timedelta(hours=1), first=first)
        [taken] = await claim_due(seeds.driver, 1, margin_s=MARGIN_S)
        assert taken.id == (created[0] if first else due)
        assert len(created) == len(missed)

    seeded(database_url, run)


def test_catching_up_with_too_much_creates_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "MAX_DELIVERIES", 4)
    monkeypatch.setattr(catch_up, "CHUNK", 2)

    async def run(seeds: Seeds) -> None:
        for _ in range(5):
            await seeds.event()
        with pytest.raises(ValidationFailed) as caught:
            await _catch_up(seeds, datetime.now(UTC) - timedelta(hours=1))
        assert "sync_from" in caught.value.details
        assert await seeds.driver.fetchval("SELECT count(*) FROM deliveries") == 0

    seeded(database_url, run)


def test_a_database_that_is_closed_while_claiming_loses_no_delivery(database_url: str) -> None:
    """The connection dies before the claim commits: the delivery stays as it was."""

    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery()
        before = await seeds.row(delivery_id)
        other = Database(database_url)
        async with other.driver() as driver:
            transaction = driver.transaction()
            await transaction.start()
            assert len(await deliveries.claim(driver, [delivery_id], margin_s=MARGIN_S)) == 1
            driver.terminate()
        await other.close()
        assert await seeds.row(delivery_id) == before

    seeded(database_url, run)
