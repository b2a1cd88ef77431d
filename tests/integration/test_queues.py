"""What is due and what is parked: who finds what, in which order, through which index."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from core import deliveries, settling
from core.deliveries import Choice, Chooser, Due, Park, ParkedRoom, queues
from core.states import PendingReason, State
from core.storage.database import Database
from tests.seeds import MARGIN_S, Seeds, claim_due, seeded

LIMITED = Park(PendingReason.RATE_LIMITED, 0.0)


def choosing(choice: Choice | Park) -> Chooser:
    async def choose(due: Sequence[Due]) -> list[Choice | Park]:
        return [choice] * len(due)

    return choose


async def parked(seeds: Seeds, *delivery_ids: UUID, reason: str = "rate_limited") -> None:
    await seeds.driver.execute("UPDATE deliveries SET reason = $2 WHERE id = ANY($1)", delivery_ids, reason)


def test_what_is_parked_is_claimed_for_its_subscription_alone(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        mine = [await seeds.delivery(reason="new") for _ in range(3)]
        other = await seeds.delivery(reason="new", subscription_id=uuid4())
        swept = await deliveries.sweep(seeds.driver, 10, choosing(LIMITED), margin_s=MARGIN_S)
        assert (swept.claims, len(swept.parked)) == ([], 4)
        assert await seeds.state(mine[0]) == ("pending", "rate_limited")
        assert await claim_due(seeds.driver, 10, margin_s=MARGIN_S) == []
        assert await seeds.claim(*mine) == []  # a hint that comes late
        claims = await deliveries.claim_parked(seeds.driver, [ParkedRoom(seeds.subscription_id, 2)], margin_s=MARGIN_S)
        assert [one.id for one in claims] == mine[:2]
        assert {one.waiting_reason for one in claims} == {PendingReason.NEW}
        assert await seeds.state(other) == ("pending", "rate_limited")

    seeded(database_url, run)


def test_a_parked_delivery_says_when_it_may_go_on(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        one = await seeds.delivery(reason="retry")
        await deliveries.sweep(seeds.driver, 10, choosing(Park(PendingReason.BREAKER_OPEN, 60.0)), margin_s=MARGIN_S)
        row = await seeds.row(one)
        assert (row["state"], row["reason"]) == ("pending", "breaker_open")
        assert timedelta(seconds=59) < row["due_at"] - row["updated_at"] <= timedelta(seconds=60)
        # The breaker may be reset before: what counts is that there is room.
        assert (
            len(await deliveries.claim_parked(seeds.driver, [ParkedRoom(seeds.subscription_id, 1)], margin_s=MARGIN_S))
            == 1
        )

    seeded(database_url, run)


def test_of_what_is_parked_first_attempts_come_before_retries_before_replays(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        replay = await seeds.delivery(reason="replay", series=1)
        retry = await seeds.delivery(reason="retry", attempt_count=1)
        first = await seeds.delivery(reason="new")
        await parked(seeds, replay, retry, first)
        order = []
        for _ in range(3):
            [one] = await deliveries.claim_parked(
                seeds.driver, [ParkedRoom(seeds.subscription_id, 1)], margin_s=MARGIN_S
            )
            order.append(one.id)
        assert order == [first, retry, replay]

    seeded(database_url, run)


@pytest.mark.parametrize(("rank", "order"), [(0, [0, 1, 2]), (1, [1, 2, 0]), (2, [2, 1, 0])])
def test_another_rank_may_come_first_of_what_is_parked(database_url: str, rank: int, order: list[int]) -> None:
    async def run(seeds: Seeds) -> None:
        new = await seeds.delivery(reason="new")
        retries = [await seeds.delivery(reason="retry", attempt_count=1) for _ in range(2)]
        replay = await seeds.delivery(reason="replay", series=1)
        await parked(seeds, new, *retries, replay)
        wanted = ParkedRoom(seeds.subscription_id, 3, rank)
        claims = await deliveries.claim_parked(seeds.driver, [wanted], margin_s=MARGIN_S)
        ranked = {new: 0, retries[0]: 1, retries[1]: 1, replay: 2}
        inorder = [one for at in order for one in ranked if ranked[one] == at]
        assert sorted(one.id for one in claims) == sorted(inorder[:3])

    seeded(database_url, run)


def test_of_what_is_due_first_attempts_come_first_and_leave_a_share(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        for reason in ("replay", "retry"):
            for _ in range(20):
                await seeds.delivery(reason=reason, due_at=long_ago)
        for _ in range(20):
            await seeds.delivery(reason="new")
        seen: list[int] = []

        async def look(due: Sequence[Due]) -> list[Choice | Park]:
            seen.extend(one.rank for one in due)
            return [Choice.LEAVE] * len(due)

        swept = await deliveries.sweep(seeds.driver, 8, look, margin_s=MARGIN_S)
        assert seen == [0] * 8 + [1] * 4 + [2] * 2
        assert swept.more is False  # nothing was moved: looking again at once would find the same

    seeded(database_url, run)


def test_new_ones_are_left_to_their_hint_for_a_moment(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await seeds.delivery(reason="new", due_at=datetime.now(UTC))
        retry = await seeds.delivery(reason="retry", due_at=datetime.now(UTC))
        swept = await deliveries.sweep(seeds.driver, 8, choosing(Choice.CLAIM), margin_s=MARGIN_S, grace_s=30.0)
        assert [one.id for one in swept.claims] == [retry]
        swept = await deliveries.sweep(seeds.driver, 8, choosing(Choice.CLAIM), margin_s=MARGIN_S)
        assert len(swept.claims) == 1

    seeded(database_url, run)


def test_one_sweeps_at_a_time(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(10):
            await seeds.delivery(reason="new")
        database = Database(database_url, pool_size=2)
        meanwhile: list[bool | None] = []

        async def choose(due: Sequence[Due]) -> list[Choice | Park]:
            async with database.driver() as other:
                swept = await deliveries.sweep(other, 10, choosing(Choice.CLAIM), margin_s=MARGIN_S)
            meanwhile.append(swept.more)
            return [Choice.CLAIM] * len(due)

        swept = await deliveries.sweep(seeds.driver, 10, choose, margin_s=MARGIN_S)
        assert (len(swept.claims), meanwhile) == (10, [None])
        await database.close()

    seeded(database_url, run)


def test_parked_subscriptions_are_found_a_page_at_a_time(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        subscriptions = sorted([await seeds.subscription() for _ in range(7)])
        for subscription_id in subscriptions:
            for day in (0, 1):
                at = datetime.now(UTC) - timedelta(days=day)
                await parked(seeds, await seeds.delivery(at=at, subscription_id=subscription_id))
        await seeds.delivery()  # not parked
        found: list[UUID] = []
        while page := await deliveries.parked_subscriptions(seeds.driver, found[-1] if found else UUID(int=0), 3):
            found += [one.id for one in page]
        assert found == subscriptions

    seeded(database_url, run)


def test_for_those_with_a_rate_it_is_known_whether_first_attempts_are_parked(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        waiting: dict[UUID, bool] = {}
        for has_rate in (True, False):
            for columns in ({"attempt_count": 1}, {"series": 1}, {}):
                one = await seeds.subscription()
                if has_rate:
                    limits = "UPDATE subscriptions SET limits = '{\"per_second\": 2.5}' WHERE id = $1"
                    await seeds.driver.execute(limits, one)
                for more in (columns, {"attempt_count": 2}):
                    await parked(seeds, await seeds.delivery(subscription_id=one, **more))
                waiting[one] = not has_rate or not columns
        found = await deliveries.parked_subscriptions(seeds.driver, UUID(int=0), 10)
        assert {one.id: one.first for one in found} == waiting

    seeded(database_url, run)


def test_what_is_parked_for_a_deleted_subscription_is_discarded(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        one, two, held = [await seeds.delivery(reason="new") for _ in range(3)]
        await parked(seeds, one)
        await parked(seeds, two, reason="breaker_open")
        await seeds.driver.execute("UPDATE deliveries SET reason = 'paused', due_at = NULL WHERE id = $1", held)
        await seeds.driver.execute("UPDATE subscriptions SET status = 'deleted', settled = false")
        await settling.settle_all(seeds.database)
        assert {await seeds.state(each) for each in (one, two, held)} == {("discarded", "subscription_deleted")}

    seeded(database_url, run)


async def _plan(seeds: Seeds, statement: str, *values: Any) -> str:
    async with seeds.driver.transaction():
        await seeds.driver.execute(queues._IN_ORDER)
        rows = await seeds.driver.fetch(f"EXPLAIN {statement}", *values)
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize("analyzed", [False, True])
def test_each_queue_is_read_through_its_own_index_in_order(database_url: str, analyzed: bool) -> None:
    async def run(seeds: Seeds) -> None:
        for _ in range(20):
            await seeds.delivery(State.DELIVERED)
        if analyzed:
            await seeds.driver.execute("ANALYZE deliveries")
        plans = [
            await _plan(seeds, queues._DUE, 100, 50, 25, 0.5),
            await _plan(seeds, queues._PARKED, [seeds.subscription_id], [100]),
            await _plan(seeds, queues._PARKED_RANKED, [seeds.subscription_id], [100], [1]),
        ]
        for plan, index in zip(plans, ("due_at", "case_id", "case_id"), strict=True):
            assert "Seq Scan" not in plan, plan
            assert "Sort  " not in plan, plan
            assert f"{index}_idx" in plan, plan

    seeded(database_url, run)


def test_claims_of_what_is_parked_take_each_once(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        chosen = [await seeds.delivery(reason="new") for _ in range(60)]
        await parked(seeds, *chosen)
        database = Database(database_url, pool_size=4)

        async def pull() -> list[UUID]:
            async with database.driver() as driver:
                claims = await deliveries.claim_parked(
                    driver, [ParkedRoom(seeds.subscription_id, 7)], margin_s=MARGIN_S
                )
            return [one.id for one in claims]

        taken: list[UUID] = []
        while len(taken) < 60:
            found = [one for some in await asyncio.gather(*(pull() for _ in range(4))) for one in some]
            assert found
            taken += found
        assert sorted(taken) == sorted(chosen)
        await database.close()

    seeded(database_url, run)
