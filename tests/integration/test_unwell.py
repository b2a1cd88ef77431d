"""Which subscriptions are not well: found without judging all, since when, and what waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from core import audit, ids, stats, unwell
from core.audit import WORKER
from core.failures import ErrorKind
from core.health import Health
from core.limiting.breaker import BLANK, Breaker, BreakerSettings
from core.states import PendingReason, State
from core.stats import Waiting, counts
from core.unwell import Judged, Reach
from tests.seeds import Seeds, seeded

BREAKER = BreakerSettings()


async def happened(
    seeds: Seeds, subscription_id: UUID, minutes_ago: int, delivered: int = 0, failed: int = 0, kind: str = "status"
) -> None:
    """As workers add it up."""
    for error_kind, attempts in (("", delivered), (kind, failed)):
        if attempts:
            await seeds.driver.execute(
                "INSERT INTO delivery_stats (organization_id, subscription_id, minute, error_kind, attempts)"
                " VALUES ($1, $2, date_trunc('minute', now()) - make_interval(mins => $3), $4, $5)",
                *(seeds.organization_id, subscription_id, minutes_ago, error_kind, attempts),
            )


async def judged(
    seeds: Seeds, breakers: Mapping[UUID, Breaker] | None = None, organization_id: UUID | None = None
) -> Judged:
    return await unwell.judge(seeds.driver, breakers or {}, datetime.now(UTC), organization_id)


def opened(now_ms: int) -> Breaker:
    breaker = BLANK
    for _ in range(BREAKER.failure_threshold):
        breaker = breaker.after(BREAKER, False, now_ms)
    return breaker


def now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1000)


def test_each_health_is_counted_and_the_worst_come_first(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        healthy, idle = seeds.subscription_id, await seeds.subscription()
        almost, degraded, failing, open_, stale = [await seeds.subscription() for _ in range(5)]
        paused, disabled = await seeds.subscription("paused"), await seeds.subscription("disabled")
        await seeds.subscription("deleted")
        await happened(seeds, healthy, 1, delivered=100)
        await happened(seeds, almost, 1, delivered=95, failed=5)
        await happened(seeds, degraded, 1, delivered=94, failed=6)
        await happened(seeds, failing, 1, delivered=1, failed=99)
        await happened(seeds, stale, 61, failed=99)  # more than an hour ago
        fails_still = {failing: replace(BLANK, failures=1), open_: opened(now_ms())}
        found = await judged(seeds, fails_still)
        assert found.counts == {
            Health.HEALTHY: 4,
            Health.DEGRADED: 1,
            Health.FAILING: 2,
            Health.PAUSED: 1,
            Health.DISABLED: 1,
        }
        assert [one.id for one in found.unwell] == [failing, open_, degraded, disabled, paused]
        assert [one.health for one in found.unwell] == ["failing", "failing", "degraded", "disabled", "paused"]
        assert (found.total, found.not_shown) == (9, 0)
        first = found.unwell[0]
        assert (first.attempts, first.failed, first.organization, first.url) == (
            *(100, 99, "Test", "https://example.com/hook"),
        )
        assert await judged(seeds, fails_still, seeds.organization_id) == found
        assert (await judged(seeds, fails_still, uuid4())).total == 0
        # Once its breaker has closed, one that failed for most of the hour is being better.
        assert (await judged(seeds)).counts[Health.DEGRADED] == 2
        assert idle not in {one.id for one in found.unwell}

    seeded(database_url, run)


def test_without_redis_they_are_judged_by_what_is_stored(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await happened(seeds, seeds.subscription_id, 1, failed=3)
        found = await unwell.judge(seeds.driver, None, datetime.now(UTC))
        assert [one.health for one in found.unwell] == [Health.FAILING]

    seeded(database_url, run)


def test_since_when_what_and_how_many(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        one = seeds.subscription_id
        await happened(seeds, one, 600, failed=1)  # came and went
        await happened(seeds, one, 300, delivered=5)
        await happened(seeds, one, 250, failed=2, kind="timeout")
        await happened(seeds, one, 10, failed=20)
        on_and_off = await seeds.subscription()
        await happened(seeds, on_and_off, 5, delivered=5, failed=5)
        for _ in range(2):
            await seeds.delivery(State.DEAD, error_kind="status", status_code=503)
        await seeds.delivery(reason=PendingReason.BREAKER_OPEN, attempt_count=1, error_kind="status", status_code=500)
        latest = await seeds.delivery(attempt_count=1, error_kind="dns", error_message="no address")
        await seeds.delivery(State.DELIVERED)
        await seeds.delivery(reason=PendingReason.NEW)
        found = {row.id: row for row in (await judged(seeds, {one: replace(BLANK, failures=1)})).unwell}
        row = found[one]
        minute = await seeds.driver.fetchval("SELECT date_trunc('minute', now())")
        assert row.since is not None
        assert abs(row.since - (minute - timedelta(minutes=250))) <= timedelta(minutes=1)
        assert row.delivered_at is not None
        assert abs(row.delivered_at - (minute - timedelta(minutes=300))) <= timedelta(minutes=1)
        assert (row.failed_delivery_id, row.error_kind, row.status_code) == (latest, ErrorKind.DNS, None)
        assert row.error_message == "no address"
        assert row.waiting == Waiting(pending=2, dead=2), "a new one that is due waits for nobody"
        assert found[on_and_off].since is None
        assert found[on_and_off].waiting == Waiting(0, 0)

    seeded(database_url, run)


def test_a_stopped_one_says_since_when_it_stands(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        paused = await seeds.subscription("paused")
        await seeds.delivery(reason=PendingReason.PAUSED, due_at=None, subscription_id=paused)
        async with seeds.database.session() as session:
            for action in ("subscription.paused", "subscription.updated"):
                shown = ids.show(ids.SUBSCRIPTION, paused)
                audit.record(session, WORKER, action, shown, organization_id=seeds.organization_id)
        [row] = (await judged(seeds)).unwell
        assert row.since is not None
        assert datetime.now(UTC) - row.since < timedelta(seconds=30)
        assert row.waiting == Waiting(1, 0)

    seeded(database_url, run)


def test_only_the_worst_are_shown_and_the_others_counted(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwell, "MOST_SHOWN", 2)

    async def run(seeds: Seeds) -> None:
        for failed in (3, 9, 6):
            await happened(seeds, await seeds.subscription(), 1, failed=failed)
        await seeds.subscription("paused")
        found = await unwell.judge(seeds.driver, None, datetime.now(UTC))
        assert [one.failed for one in found.unwell] == [9, 6]
        assert found.not_shown == 2

    seeded(database_url, run)


# --- what waits ----------------------------------------------------------------------------------------------------


def test_counts_have_a_bound_in_number_and_in_time(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MOST_COUNTED", 3)

    async def run(seeds: Seeds) -> None:
        pair = (seeds.organization_id, seeds.subscription_id)
        for _ in range(4):
            await seeds.delivery(State.DEAD)
            await seeds.delivery()
        assert await stats.waiting(seeds.driver, [pair]) == {seeds.subscription_id: Waiting(3, 3)}
        assert await stats.waiting(seeds.driver, []) == {}
        queue = await stats.queue(seeds.driver)
        assert (queue.pending, queue.dead) == (3, 3)
        assert queue.oldest_due_at is not None
        assert datetime.now(UTC) - queue.oldest_due_at > timedelta(seconds=59)
        other = await stats.queue(seeds.driver, uuid4())
        assert (other.pending, other.dead) == (0, 0)

        # Somebody's are beyond counting: then theirs are not said, and those of others are.
        real = counts._rows

        async def hopeless(driver: Any, timeout_ms: float, statement: str, whose: list[UUID], *rest: Any) -> Any:
            return None if seeds.organization_id in whose else await real(driver, timeout_ms, statement, whose, *rest)

        monkeypatch.setattr(counts, "_rows", hopeless)
        stranger = uuid4()
        for budget_ms, theirs in ((60_000, Waiting(0, 0)), (0, Waiting(None, None))):
            monkeypatch.setattr(counts, "BUDGET_MS", budget_ms)
            found = await stats.waiting(seeds.driver, [pair, (uuid4(), stranger)])
            assert found == {seeds.subscription_id: Waiting(None, None), stranger: theirs}

    seeded(database_url, run)


def test_nothing_is_late_while_all_that_is_due_comes_later(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        later = datetime.now(UTC) + timedelta(hours=1)
        await seeds.delivery(due_at=later)
        await seeds.delivery(reason=PendingReason.BREAKER_OPEN)  # waits for its receiver, not for a worker
        assert (await stats.queue(seeds.driver)).oldest_due_at is None
        for reason in (PendingReason.NEW, PendingReason.RETRY, PendingReason.REPLAY):
            due = await seeds.delivery(reason=reason)
            assert (await stats.queue(seeds.driver)).oldest_due_at == (await seeds.row(due))["due_at"]
            await seeds.driver.execute("UPDATE deliveries SET due_at = $1 WHERE id = $2", later, due)

    seeded(database_url, run)


# --- is it us? -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tried", "unreached", "is_ours"),
    [(0, 0, False), (2, 2, False), (3, 3, True), (10, 5, False), (10, 6, True), (1000, 3, False)],
)
def test_it_is_our_network_when_most_can_not_be_reached(tried: int, unreached: int, is_ours: bool) -> None:
    assert Reach(tried, unreached).is_ours is is_ours


def test_reach_counts_subscriptions_and_not_attempts(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        async def reach() -> Reach:
            return await unwell.reach(seeds.driver, datetime.now(UTC))

        assert await reach() == Reach(0, 0)
        cases = [(100, 0, ""), (1, 9, "dns"), (0, 9, "status"), (9, 1, "timeout"), (0, 1, "refused"), (0, 5, "tls")]
        for delivered, failed, kind in cases:
            await happened(seeds, await seeds.subscription(), 1, delivered, failed, kind)
        await happened(seeds, await seeds.subscription(), 10, failed=5, kind="dns")  # was reached since, or not tried
        await happened(seeds, stats.WHOLE, 1, 100, 100, "dns")
        assert await reach() == Reach(6, 3)

    seeded(database_url, run)
