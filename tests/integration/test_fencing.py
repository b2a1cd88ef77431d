"""A worker that lost its lease changes nothing, however it lost it; and what one worker records twice stands once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import deliveries, ids, replays
from core.deliveries import Claimed, Finish, Verdict, requests
from core.states import DeadReason, State
from core.storage import partitions
from tests.seeds import EXHAUSTED, LATER, MARGIN_S, SUCCESS, Seeds, claim_due, ended, seeded, tried
from tests.services import as_owner

VERDICTS = {"success": SUCCESS, "retry": LATER, "end": EXHAUSTED}


async def _token_changed(seeds: Seeds, claimed: Claimed) -> None:
    await seeds.driver.execute("UPDATE deliveries SET lease_token = $2 WHERE id = $1", claimed.id, uuid4())


async def _reclaimed_by_another(seeds: Seeds, claimed: Claimed) -> None:
    await seeds.make_due(claimed.id)
    assert (await seeds.claim_one(claimed.id)).token != claimed.token


async def _finished_by_another(seeds: Seeds, claimed: Claimed) -> None:
    await seeds.make_due(claimed.id)
    other = await seeds.claim_one(claimed.id)
    assert await deliveries.finish(seeds.driver, [ended(other, EXHAUSTED)]) == [True]


async def _rescheduled_by_another(seeds: Seeds, claimed: Claimed) -> None:
    await seeds.make_due(claimed.id)
    other = await seeds.claim_one(claimed.id)
    assert await deliveries.finish(seeds.driver, [ended(other, LATER)]) == [True]


async def _replayed_since(seeds: Seeds, claimed: Claimed) -> None:
    await _finished_by_another(seeds, claimed)
    async with seeds.database.session() as session:
        await replays.replay_one(session, claimed.organization_id, claimed.id, created_by="test")


LOSSES: dict[str, Callable[[Seeds, Claimed], Awaitable[None]]] = {
    "token changed": _token_changed,
    "reclaimed": _reclaimed_by_another,
    "finished": _finished_by_another,
    "rescheduled": _rescheduled_by_another,
    "replayed": _replayed_since,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_worker_that_lost_its_lease_does_not_record(database_url: str, loss: str) -> None:
    async def run(seeds: Seeds) -> None:
        for verdict in VERDICTS.values():
            claimed = await seeds.claim_one(await seeds.delivery())
            await LOSSES[loss](seeds, claimed)
            before = await seeds.row(claimed.id)
            finish = ended(claimed, verdict)
            assert await deliveries.finish(seeds.driver, [finish]) == [False]
            assert await seeds.row(claimed.id) == before
            # The attempt was made, so it is told.
            assert finish.tried is not None
            assert finish.tried.id in {row["id"] for row in await seeds.attempts(claimed.id)}

    seeded(database_url, run)


def test_a_lease_that_ended_still_holds_until_another_worker_claims(database_url: str) -> None:
    """Late, but nobody else began: the outcome counts, and nothing is sent twice."""

    async def run(seeds: Seeds) -> None:
        claimed = await seeds.claim_one(await seeds.delivery())
        await seeds.make_due(claimed.id)
        assert await deliveries.finish(seeds.driver, [ended(claimed)]) == [True]
        assert await seeds.state(claimed.id) == ("delivered", None)

    seeded(database_url, run)


def test_a_dead_workers_delivery_is_claimed_again_with_its_attempts_counted(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claimed = await seeds.claim_one(await seeds.delivery(attempt_count=3, series=1))
        assert await claim_due(seeds.driver, 10, margin_s=MARGIN_S) == []
        await seeds.make_due(claimed.id)
        [again] = await claim_due(seeds.driver, 10, margin_s=MARGIN_S)
        assert (again.id, again.attempt_count, again.series) == (claimed.id, 3, 1)
        assert again.token != claimed.token

    seeded(database_url, run)


def test_a_worker_that_lost_its_lease_does_not_disable_the_subscription(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claimed = await seeds.claim_one(await seeds.delivery())
        await _reclaimed_by_another(seeds, claimed)
        gone = Verdict(State.DEAD, DeadReason.GONE, disables=True)
        assert await deliveries.finish(seeds.driver, [ended(claimed, gone, status_code=410)]) == [False]
        assert await seeds.driver.fetchval("SELECT bool_and(status = 'active') FROM subscriptions")

    seeded(database_url, run)


def test_a_worker_that_holds_two_claims_of_one_delivery_records_the_later(database_url: str) -> None:
    """It stood still, its lease ended, its own sweep claimed anew: both outcomes then come in one batch."""

    async def run(seeds: Seeds) -> None:
        delivery_id = await seeds.delivery(State.DEAD)
        async with seeds.database.session() as session:
            replay = await replays.replay_one(session, seeds.organization_id, delivery_id, created_by="test")
        stale = await seeds.claim_one(delivery_id)
        await seeds.make_due(delivery_id)
        fresh = await seeds.claim_one(delivery_id)
        moved = await deliveries.finish(seeds.driver, [ended(stale, LATER), ended(fresh, SUCCESS)])
        assert moved == [False, True]
        assert await seeds.state(delivery_id) == ("delivered", None)
        row = await seeds.driver.fetchrow("SELECT * FROM replays WHERE id = $1", replay.id)
        assert (row["sent"], row["succeeded"], row["failed"], row["skipped"]) == (1, 1, 0, 0)

    seeded(database_url, run)


def test_an_outcome_recorded_again_because_its_answer_was_lost_stands_once(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claims = await seeds.claim(await seeds.delivery(), await seeds.delivery())
        batch = [ended(one, LATER) for one in claims]
        assert await deliveries.finish(seeds.driver, batch) == [True, True]
        rows = [await seeds.row(one.id) for one in claims]
        assert await deliveries.finish(seeds.driver, batch) == [False, False]
        assert [await seeds.row(one.id) for one in claims] == rows
        for one in claims:
            assert len(await seeds.attempts(one.id)) == 1

    seeded(database_url, run)


def test_one_that_lost_its_lease_does_not_hold_up_its_batch(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claims = await seeds.claim(*[await seeds.delivery() for _ in range(5)])
        await _token_changed(seeds, claims[2])
        moved = await deliveries.finish(seeds.driver, [ended(one) for one in claims])
        assert moved == [True, True, False, True, True]

    seeded(database_url, run)


def test_a_batch_of_many_kinds_records_each_as_it_ended(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claims = await seeds.claim(*[await seeds.delivery(attempt_count=1, error_kind="timeout") for _ in range(4)])
        yesterday = await seeds.claim_one(await seeds.delivery(at=datetime.now(UTC) - timedelta(days=1)))
        finishes = [
            ended(claims[0], SUCCESS),
            ended(claims[1], LATER, status_code=503),
            ended(claims[2], EXHAUSTED),
            Finish(claims[3], Verdict(State.PENDING, "retry", 0.0)),  # handed back untried
            ended(yesterday, SUCCESS),
        ]
        assert all(await deliveries.finish(seeds.driver, finishes))
        rows = [await seeds.row(one.claimed.id) for one in finishes]
        assert [(row["state"], row["attempt_count"], row["status_code"], row["error_kind"]) for row in rows] == [
            ("delivered", 2, 200, None),
            ("pending", 2, 503, "status"),
            ("dead", 2, 500, "status"),
            ("pending", 1, None, "timeout"),
            ("delivered", 1, 200, None),
        ]
        delay_s = await seeds.driver.fetchval(
            "SELECT extract(epoch FROM due_at - updated_at)::float8 FROM deliveries WHERE id = $1", claims[1].id
        )
        assert delay_s == pytest.approx(60.0)

    seeded(database_url, run)


def test_an_attempt_whose_day_has_no_partition_is_recorded_all_the_same(database_url: str, owner_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        today = datetime.now(UTC).date()
        claimed = await seeds.claim_one(await seeds.delivery())
        replayed = await seeds.delivery(State.DEAD)
        async with seeds.database.session() as session:
            await replays.replay_one(session, seeds.organization_id, replayed, created_by="test")
        of_replay = await seeds.claim_one(replayed)
        for batch in ([claimed], [of_replay]):  # alone, and within a transaction
            await as_owner(owner_url, f"DROP TABLE {partitions.name_of('attempts', today)}")
            finishes = [ended(one) for one in batch]
            assert await deliveries.finish(seeds.driver, finishes) == [True]
            assert len(await seeds.attempts(batch[0].id)) == 1
            assert (await seeds.state(batch[0].id))[0] == "delivered"

    seeded(database_url, run)


def test_an_outcome_that_cannot_be_stored_changes_nothing(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        claims = await seeds.claim(await seeds.delivery(), await seeds.delivery())
        before = [await seeds.row(one.id) for one in claims]
        bad = ended(claims[0], LATER)
        assert bad.tried is not None
        bad = bad._replace(tried=bad.tried._replace(error_message="nul \0"))
        with pytest.raises(asyncpg.PostgresError):
            await deliveries.finish(seeds.driver, [bad, ended(claims[1])])
        assert [await seeds.row(one.id) for one in claims] == before

    seeded(database_url, run)


# --- any order of events, against a small model --------------------------------------------------------------------

STEPS = (
    "claim",
    "claim",
    "lose lease",
    "succeed",
    "retry",
    "give up",
    "make due",
    "replay",
    "discard",
    "hold",
    "resume",
)
plans = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), min_size=5, max_size=30)


class Model:
    """What must be true of one delivery, whatever befell it."""

    def __init__(self) -> None:
        self.state = State.PENDING
        self.due = True
        self.series = 0
        self.count = 0  # within the series
        self.attempts = 0
        self.claims: list[Claimed] = []  # every claim ever made; only the last may be alive
        self.alive = False


async def _step(seeds: Seeds, delivery_id: UUID, model: Model, step: str, which: int) -> None:
    driver = seeds.driver
    match step:
        case "claim":
            claimed = await seeds.claim(delivery_id)
            assert bool(claimed) == (model.state in {State.PENDING, State.SENDING} and model.due)
            if claimed:
                assert (claimed[0].series, claimed[0].attempt_count) == (model.series, model.count)
                model.claims += claimed
                model.state, model.due, model.alive = State.SENDING, False, True
        case "lose lease" | "make due":
            if model.state is (State.SENDING if step == "lose lease" else State.PENDING):
                held = (await seeds.row(delivery_id))["due_at"] is None
                if not held:
                    await seeds.make_due(delivery_id)
                    model.due = True
        case "succeed" | "retry" | "give up":
            if model.claims:
                claimed_ = model.claims[-1 - which % len(model.claims)]  # an old claim, or the latest
                verdict = {"succeed": SUCCESS, "retry": LATER, "give up": EXHAUSTED}[step]
                current = claimed_ is model.claims[-1] and model.alive
                assert await deliveries.finish(driver, [Finish(claimed_, verdict, tried())]) == [current]
                model.attempts += 1
                if current:
                    model.count += 1
                    model.state, model.due, model.alive = verdict.state, False, False
        case "replay":
            allowed = model.state is not State.SENDING
            async with driver.transaction():
                moved = await deliveries.replay(driver, [delivery_id], ids.new_id())
            assert bool(moved) == allowed
            if allowed:
                model.state, model.due, model.alive = State.PENDING, True, False
                model.series, model.count = model.series + 1, 0
        case "discard":
            allowed = model.state in {State.PENDING, State.DEAD}
            moved = await driver.fetch(requests._DISCARD, delivery_id, seeds.organization_id, "requested")
            assert bool(moved) == allowed
            if allowed:
                model.state, model.due = State.DISCARDED, False
        case "hold":
            if model.claims:
                await driver.execute("UPDATE subscriptions SET status = 'paused'")
                await deliveries.hold(driver, [model.claims[-1]])
                await driver.execute("UPDATE subscriptions SET status = 'active'")
                if model.alive:
                    model.state, model.due, model.alive = State.PENDING, False, False
        case _:
            held = (await seeds.row(delivery_id))["reason"] == "paused"
            released = await deliveries.release_held(driver, seeds.subscription_id)  # an earlier plan's too
            assert released or not held
            model.due = model.due or held


def test_whatever_befalls_a_delivery_it_is_where_the_model_says_and_can_be_reached(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        async def follow(plan: list[tuple[str, int]]) -> None:
            delivery_id = await seeds.delivery()
            model = Model()
            for step, which in plan:
                await _step(seeds, delivery_id, model, step, which)
                row: dict[str, Any] = await seeds.row(delivery_id)
                found = (row["state"], row["series"], row["attempt_count"], row["lease_token"])
                token = model.claims[-1].token if model.alive else None
                assert found == (model.state, model.series, model.count, token)
                # Never lost: it has ended, or it will be due, or it is held and a resume would release it.
                assert model.state not in {State.PENDING, State.SENDING} or row["due_at"] or row["reason"] == "paused"
            assert len(await seeds.attempts(delivery_id)) == model.attempts

        plans_found: list[list[tuple[str, int]]] = []

        @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(plans)
        def gather(plan: list[tuple[str, int]]) -> None:
            plans_found.append(plan)

        gather()  # hypothesis is not asynchronous: it chooses the plans, and they are followed here
        for plan in plans_found:
            try:
                await follow(plan)
            except AssertionError as error:
                error.add_note(f"the plan was {plan}")
                raise

    seeded(database_url, run)
