"""What a preview says a job will do is what the job then does; and nobody starts one twice by accident."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlmodel.ext.asyncio.session import AsyncSession

from core import deliveries, ids, replay_items, replay_preview, replays
from core.errors import Conflict, ValidationFailed
from core.hints import Hint
from core.listing.lists import Paging
from core.models import ItemOutcome, Replay, ReplayAction, ReplayStatus
from core.replay_preview import Overlap, Preview, SkipReason, why_skipped
from core.replays import CountChanged
from core.states import State
from core.storage.database import Database
from tests.integration.test_replays import counters, let_pass
from tests.seeds import SUCCESS, Seeds, ended, seeded

ANY_STATE = {"status": ",".join(State)}
STATUSES = ("active", "paused", "disabled", "deleted")


async def preview(seeds: Seeds, filters: dict[str, Any], action: ReplayAction = ReplayAction.REPLAY) -> Preview:
    async with seeds.database.session() as session:
        return await replays.preview(session, seeds.organization_id, filters, action)


async def create(seeds: Seeds, filters: dict[str, Any], **more: Any) -> Replay:
    async with seeds.database.session() as session:
        made, _ = await replays.create(
            session, seeds.organization_id, filters, **{"rate_per_second": 10_000, "created_by": "test"} | more
        )
    return made


async def outcomes(seeds: Seeds, replay_id: UUID) -> dict[UUID, str]:
    rows = await seeds.driver.fetch("SELECT delivery_id, outcome FROM replay_items WHERE replay_id = $1", replay_id)
    return {row["delivery_id"]: row["outcome"] for row in rows}


async def plant(seeds: Seeds) -> dict[UUID, dict[str, Any]]:
    """A delivery for each combination that a job may meet, some several times. Returns them as they are stored."""
    chance = random.Random(11)
    for status in STATUSES:
        subscription_id = await seeds.subscription(status)
        for state in State:
            for redacted in (False, True):
                for _ in range(chance.randint(1, 2)):
                    await seeds.delivery(
                        state,
                        subscription_id=subscription_id,
                        error_kind=chance.choice(["status", "timeout", None]),
                        redacted_at=datetime.now(UTC) if redacted else None,
                    )
    return {row["id"]: dict(row) for row in await seeds.driver.fetch("SELECT * FROM deliveries")}


@pytest.mark.parametrize("action", ReplayAction)
def test_what_a_preview_says_is_what_the_job_does(database_url: str, action: ReplayAction) -> None:
    async def run(seeds: Seeds) -> None:
        before = await plant(seeds)
        said = await preview(seeds, ANY_STATE, action)
        assert said.details is not None
        assert said.total == len(before)
        assert {(one.subscription_id, one.error_kind): one.count for one in said.groups} == Counter(
            (row["subscription_id"], row["error_kind"]) for row in before.values()
        )
        assert said.details.by_state == Counter(row["state"] for row in before.values())
        job = await create(seeds, ANY_STATE, action=action)
        due = await replays.tick(seeds.database)
        came = await outcomes(seeds, job.id)
        skipped = [before[one] for one, outcome in came.items() if outcome == ItemOutcome.SKIPPED]
        taken = {one for one, outcome in came.items() if outcome != ItemOutcome.SKIPPED}
        assert said.details.skipped == len(skipped)
        told: Counter[tuple[UUID, str | None]] = Counter()
        for one in said.details.skips:
            told[one.subscription_id, one.error_kind] += one.count
        assert told == Counter((row["subscription_id"], row["error_kind"]) for row in skipped)
        reasons = {one.reason for one in said.details.skips}
        after = {row["id"]: dict(row) for row in await seeds.driver.fetch("SELECT * FROM deliveries")}
        assert all(after[one] == before[one] for one in after if one not in taken), "what is skipped is left alone"
        if action is ReplayAction.REPLAY:
            assert reasons == {
                SkipReason.SUBSCRIPTION_DELETED,
                SkipReason.SUBSCRIPTION_DISABLED,
                SkipReason.EVENT_REDACTED,
                SkipReason.SENDING,
            }
            assert {one.delivery_id for one in due} == taken
            assert {(one.status, one.count) for one in said.details.targets} == {
                (status, sum(after[one]["subscription_id"] == subscription_id for one in taken))
                for status, subscription_id in await seeds.driver.fetch(
                    "SELECT status, id FROM subscriptions WHERE status IN ('active', 'paused') AND id <> $1",
                    seeds.subscription_id,
                )
            }
            assert all((after[one]["state"], after[one]["reason"]) == ("pending", "replay") for one in taken)
        else:
            assert reasons == {SkipReason.SENDING, SkipReason.DELIVERED, SkipReason.DISCARDED}
            assert (due, said.details.targets) == ([], [])
            assert all((after[one]["state"], after[one]["reason"]) == ("discarded", "requested") for one in taken)
            done = ("completed", len(before), len(taken), len(taken), 0, len(skipped))
            assert await counters(seeds, job.id) == done

    seeded(database_url, run)


@pytest.mark.parametrize(
    "filters",
    [
        {"status": "dead"},
        {"status": "dead", "error": "timeout"},
        {"status": "dead", "error": "none", "created_after": "2020-01-01T00:00:00Z"},
        {"status": "dead", "reason": "exhausted"},
        {"status": "dead", "created_before": "8999-01-01T00:00:00Z"},
        {"status": "dead,dead"},
        {"status": ["delivered"]},
        {"status": "pending"},
        {"status": "dead,discarded"},
        {"error": "timeout"},
    ],
)
def test_a_preview_counts_what_the_filters_choose(database_url: str, filters: dict[str, Any]) -> None:
    def chosen(row: dict[str, Any]) -> bool:
        states = filters.get("status", list(State))
        return (
            row["state"] in (states if isinstance(states, list) else states.split(","))
            and filters.get("error", row["error_kind"] or "none") == (row["error_kind"] or "none")
            and filters.get("reason", row["reason"]) == row["reason"]
        )

    async def run(seeds: Seeds) -> None:
        rows = [row for row in (await plant(seeds)).values() if chosen(row)]
        said = await preview(seeds, filters)
        assert rows
        assert said.details is not None
        assert {(one.subscription_id, one.error_kind): one.count for one in said.groups} == Counter(
            (row["subscription_id"], row["error_kind"]) for row in rows
        )
        assert said.details.by_state == Counter(row["state"] for row in rows)
        sent = await seeds.driver.fetch("SELECT id FROM subscriptions WHERE status IN ('active', 'paused')")
        alive = {row["id"] for row in sent}
        redacted = sum(one.count for one in said.details.skips if one.reason is SkipReason.EVENT_REDACTED)
        assert redacted == sum(row["redacted_at"] is not None and row["subscription_id"] in alive for row in rows)

    seeded(database_url, run)


def test_every_state_that_a_job_does_not_take_has_a_reason() -> None:
    from core.models import SubscriptionStatus
    from core.states import TRANSITIONS

    for action in ReplayAction:
        for state in State:
            reason = why_skipped(action, state, False, SubscriptionStatus.ACTIVE)
            assert (reason is None) == (state in TRANSITIONS[action].before)


def test_other_jobs_with_the_same_deliveries_are_named(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(6)]
        shown = [ids.show(ids.DELIVERY, one) for one in chosen]
        some = {"status": "dead", "ids": shown[:4]}
        assert (await preview(seeds, {"status": "dead"})).details.overlaps == []  # type: ignore[union-attr]
        first = await create(seeds, some, rate_per_second=1)
        second = await create(seeds, {"status": "dead", "ids": shown[3:5]}, action=ReplayAction.DISCARD)
        await replays.tick(seeds.database)  # the first sends one, the second discards both
        third = await create(seeds, some, rate_per_second=5)
        async with seeds.database.session() as session:
            await replays.operate(session, seeds.organization_id, third.id, "pause")
        details = (await preview(seeds, {"status": "dead"})).details
        assert details is not None
        assert details.overlaps == [
            Overlap(first.id, ReplayAction.REPLAY, ReplayStatus.RUNNING, 2),
            Overlap(third.id, ReplayAction.REPLAY, ReplayStatus.PAUSED, 2),
        ]
        assert (await counters(seeds, second.id))[0] == "completed"

    seeded(database_url, run)


def test_a_selection_too_large_for_a_job_is_counted_all_the_same(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.replay_preview.MAX_SELECTION", 2)

    async def run(seeds: Seeds) -> None:
        for _ in range(3):
            await seeds.delivery(State.DEAD, error_kind="status")
        said = await preview(seeds, {"status": "dead"})
        assert (said.total, said.details) == (3, None)

    seeded(database_url, run)


def test_nothing_is_made_where_the_number_is_another_by_now(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(3)]
        await deliveries.discard(seeds.driver, seeds.organization_id, chosen[0])
        with pytest.raises(CountChanged) as caught:
            await create(seeds, {"status": "dead"}, expected=3)
        assert caught.value.details == {"expected": 3, "total": 2}
        for table in ("replays", "replay_items"):
            assert await seeds.driver.fetchval(f"SELECT count(*) FROM {table}") == 0
        assert (await create(seeds, {"status": "dead"}, expected=2)).total == 2

    seeded(database_url, run)


def test_a_discard_ends_the_wait_of_an_earlier_replay(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        both = [await seeds.delivery(State.DEAD) for _ in range(2)]
        earlier = await create(seeds, {"status": "dead"})
        await replays.tick(seeds.database)
        claimed = await seeds.claim_one(both[0])
        later = await create(seeds, ANY_STATE, action=ReplayAction.DISCARD)
        await replays.tick(seeds.database)
        assert await counters(seeds, later.id) == ("completed", 2, 1, 1, 0, 1), "what is being sent is let finish"
        assert await deliveries.finish(seeds.driver, [ended(claimed, SUCCESS)]) == [True]
        await let_pass(seeds, 1.0)
        await replays.tick(seeds.database)
        assert await counters(seeds, earlier.id) == ("completed", 2, 1, 1, 0, 1)

    seeded(database_url, run)


def test_a_discard_is_paced_paused_cancelled_and_goes_on_after_a_restart(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = sorted([await seeds.delivery(State.DEAD) for _ in range(9)])
        job = await create(seeds, {"status": "dead"}, action=ReplayAction.DISCARD, rate_per_second=3)

        async def steer(operation: str) -> None:
            async with seeds.database.session() as session:
                await replays.operate(session, seeds.organization_id, job.id, operation)

        async def step() -> int:
            fresh = Database(seeds.database.engine.url.render_as_string(hide_password=False))
            try:  # a worker that knows nothing of the last one
                assert await replays.tick(fresh) == []
            finally:
                await fresh.close()
            await let_pass(seeds, 1.0)
            return (await counters(seeds, job.id))[3]

        assert [await step(), await step()] == [3, 6]
        await steer("pause")
        assert await step() == 6
        await steer("resume")
        await steer("cancel")
        assert await step() == 6
        assert await counters(seeds, job.id) == ("cancelled", 9, 6, 6, 0, 0)
        assert [(await seeds.state(one))[0] for one in chosen] == ["discarded"] * 6 + ["dead"] * 3

    seeded(database_url, run)


def test_what_can_not_be_compared_in_time_is_said_to_be_unknown_and_all_else_is_known(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(session: AsyncSession, *_: Any) -> None:
        await (await session.connection()).exec_driver_sql("SELECT pg_sleep(60)")

    async def run(seeds: Seeds) -> None:
        for _ in range(3):
            await seeds.delivery(State.DEAD)
        await create(seeds, {"status": "dead"})
        monkeypatch.setattr(replay_preview, "_overlaps", slow)
        monkeypatch.setattr(replay_preview, "_left_ms", lambda _: 0)
        found = await preview(seeds, {"status": "dead"})
        assert (found.total, found.details is not None) == (3, True)
        assert found.details.overlaps is None  # type: ignore[union-attr]
        assert found.details.by_state == {State.DEAD: 3}  # type: ignore[union-attr]

    seeded(database_url, run)


def test_a_worker_of_the_release_before_sends_nothing_that_is_to_be_discarded(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(State.DEAD) for _ in range(3)]
        job = await create(seeds, {"status": "dead"}, action=ReplayAction.DISCARD)

        async def as_before(driver: Any, replay_id: UUID, action: str, chosen: list[UUID]) -> list[Hint]:
            return await deliveries.replay(driver, chosen, replay_id)

        with monkeypatch.context() as patched:
            patched.setattr(replays, "_act", as_before)
            assert await replays.tick(seeds.database) == []
        assert {(await seeds.state(one))[0] for one in chosen} == {"dead"}
        await replays.tick(seeds.database)
        assert await counters(seeds, job.id) == ("completed", 3, 3, 3, 0, 0)
        assert {(await seeds.state(one))[0] for one in chosen} == {"discarded"}

    seeded(database_url, run)


def test_another_rate_holds_from_the_next_step_on(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(30):
            await seeds.delivery(State.DEAD)
        job = await create(seeds, {"status": "dead"}, rate_per_second=2)
        assert len(await replays.tick(seeds.database)) == 2
        for rate in (0, 10_001):
            with pytest.raises(ValidationFailed):
                await set_rate(seeds, job.id, rate)
        await set_rate(seeds, job.id, 20)
        await let_pass(seeds, 1.0)
        assert len(await replays.tick(seeds.database)) == 20
        async with seeds.database.session() as session:
            await replays.operate(session, seeds.organization_id, job.id, "cancel")
        with pytest.raises(Conflict, match="cancelled"):
            await set_rate(seeds, job.id, 5)

    async def set_rate(seeds: Seeds, replay_id: UUID, rate: int) -> None:
        async with seeds.database.session() as session:
            await replays.set_rate(session, seeds.organization_id, replay_id, rate)

    seeded(database_url, run)


def test_what_came_of_each_is_chosen_again_by_its_outcome(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = sorted([await seeds.delivery(State.DEAD) for _ in range(5)])
        job = await create(seeds, {"status": "dead"})
        await seeds.driver.execute("UPDATE deliveries SET state = 'dead', reason = 'exhausted', replay_id = $1", job.id)
        for at, outcome in enumerate(("failed", "failed", "succeeded", "skipped", "waiting")):
            statement = "UPDATE replay_items SET outcome = $2 WHERE delivery_id = $1"
            await seeds.driver.execute(statement, chosen[at], outcome)
        of_it = {"replay_id": ids.show(ids.REPLAY, job.id)}
        assert (await preview(seeds, of_it | {"outcome": "failed"})).total == 2
        assert (await preview(seeds, of_it | {"outcome": "failed,skipped"})).total == 3
        await create(seeds, of_it | {"outcome": "failed", "status": "dead"})
        with pytest.raises(ValidationFailed) as caught:
            await preview(seeds, {"outcome": "failed"})
        assert list(caught.value.details) == ["filters.outcome"]

        async def page(outcome: ItemOutcome | None, **paging: Any) -> list[tuple[UUID, str, bool]]:
            async with seeds.database.session() as session:
                found = await replay_items.page(session, job.id, outcome, Paging(**{"limit": 10} | paging))
            return [(one.id, one.outcome, one.delivery is not None) for one in found.rows]

        assert [one[0] for one in await page(None, descending=False)] == chosen
        assert [one[0] for one in await page(ItemOutcome.FAILED)] == [chosen[1], chosen[0]]
        assert [one[0] for one in await page(ItemOutcome.FAILED, after=chosen[1])] == [chosen[0]]
        await seeds.driver.execute("DELETE FROM deliveries WHERE id = $1", chosen[4])  # as retention does
        assert await page(ItemOutcome.WAITING) == [(chosen[4], "waiting", False)]

    seeded(database_url, run)


def test_a_form_older_than_a_day_makes_no_job(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for age in (timedelta(days=1, minutes=1), timedelta(minutes=-6)):
            async with seeds.database.session() as session:
                old = ids.lowest_at(datetime.now(UTC) - age)
                with pytest.raises(Conflict, match="day old"):
                    await replays.reserve(session, seeds.organization_id, old, created_by="test")

    seeded(database_url, run)
