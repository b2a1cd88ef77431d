"""Statistics per minute: counted once, added up by the database, read at a cost that does not grow."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from core import erasure, ids, stats
from core.deliveries import Claimed, Finish, Verdict
from core.failures import ErrorKind
from core.states import DeadReason, DiscardReason, PendingReason, State
from core.stats import INSTALLATION, WHOLE, Figures, Histories, Keeper, Tally, counts, durations, retention, totals
from tests.platform import eventually
from tests.seeds import EXHAUSTED, LATER, SUCCESS, Seeds, seeded, tried

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
UNTRIED = Verdict(State.DEAD, DeadReason.SUBSCRIPTION_DISABLED)


def finish(
    seeds: Seeds, verdict: Verdict = SUCCESS, attempts_before: int = 0, kind: str = ErrorKind.STATUS, ms: int = 10
) -> Finish:
    claimed = Claimed(
        id=ids.new_id(),
        organization_id=seeds.organization_id,
        subscription_id=seeds.subscription_id,
        event_id=ids.new_id(),
        event_type="order.paid",
        series=0,
        attempt_count=attempts_before,
        replay_id=None,
        subscription_version=1,
        subscription_status="active",
        timeout_ms=15_000,
        token=uuid4(),
    )
    failed = verdict is not SUCCESS
    return Finish(claimed, verdict, tried(500 if failed else 200, kind if failed else None, duration_ms=ms))


def untried(seeds: Seeds, verdict: Verdict, attempts_before: int = 0) -> Finish:
    return finish(seeds, verdict, attempts_before)._replace(tried=None)


async def kept(seeds: Seeds, finishes: list[Finish]) -> None:
    tally = Tally()
    for one in finishes:
        tally.add(one)
    await tally.flush(seeds.driver)


async def read(seeds: Seeds, subscription_id: UUID | None, since: datetime = LONG_AGO) -> Figures:
    return await stats.figures(seeds.driver, seeds.organization_id, subscription_id, since)


async def rows(seeds: Seeds) -> list[dict[str, Any]]:
    return [dict(row) for row in await seeds.driver.fetch("SELECT * FROM delivery_stats ORDER BY 1, 2, 3, 4")]


def test_every_figure_comes_from_what_was_counted(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await kept(
            seeds,
            [
                *[finish(seeds, ms=ms) for ms in (100, 200, 300)],
                finish(seeds, attempts_before=2, ms=400),
                finish(seeds, LATER, ms=15_000, kind=ErrorKind.TIMEOUT),
                finish(seeds, LATER, 1),
                finish(seeds, EXHAUSTED, 4),
                finish(seeds, EXHAUSTED, 0),  # its policy allows one attempt
                untried(seeds, UNTRIED),
                untried(seeds, UNTRIED, 1),
                untried(seeds, UNTRIED, 2),
                # Handed back, held and dropped: nothing came of these.
                untried(seeds, Verdict(State.PENDING, PendingReason.NEW, 0.0)),
                untried(seeds, Verdict(State.PENDING, PendingReason.BREAKER_OPEN, 9.0), 3),
                untried(seeds, Verdict(State.DISCARDED, DiscardReason.SUBSCRIPTION_DELETED)),
            ],
        )
        for whom in (seeds.subscription_id, None):
            found = await read(seeds, whom)
            counts = (found.attempts, found.delivered, found.delivered_retried, found.dead, found.dead_retried)
            assert counts == (8, 4, 1, 5, 2)
            assert found.average_ms == 250
            assert found.delivery_success_rate == 44.4  # 4 of 9
            assert found.retry_success_rate == 33.3  # 1 of 3
            assert found.attempt_success_rate == 50.0
            minute = await seeds.driver.fetchval("SELECT date_trunc('minute', now())")
            assert minute - timedelta(minutes=1) <= found.delivered_at == found.failed_at <= minute
        by_error = {row["error_kind"]: row["attempts"] for row in await rows(seeds) if row["subscription_id"] == WHOLE}
        assert by_error == {"": 4, "timeout": 1, "status": 3}

    seeded(database_url, run)


class NoBreakers:
    """Where nothing is known of any receiver."""

    async def forget(self, *_: UUID) -> None:
        pass


def test_workers_and_flushes_add_up(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await asyncio.gather(*(one_worker(seeds) for _ in range(4)))
        found = await read(seeds, None)
        assert (found.attempts, found.delivered, found.dead) == (4 * 5 * 3, 4 * 5, 4 * 5)

    async def one_worker(seeds: Seeds) -> None:
        tally = Tally()
        for _ in range(5):
            for verdict in (EXHAUSTED, SUCCESS, LATER):
                tally.add(finish(seeds, verdict))
            async with seeds.database.driver() as driver:
                await tally.flush(driver)

    seeded(database_url, run)


def test_workers_that_flush_the_same_rows_in_another_order_do_not_wait_crosswise(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        others = [await seeds.subscription() for _ in range(200)]

        async def worker(order: list[UUID]) -> None:
            for _ in range(10):
                tally = Tally()
                for subscription_id in order:
                    one = finish(seeds)
                    tally.add(one._replace(claimed=one.claimed._replace(subscription_id=subscription_id)))
                async with seeds.database.driver() as driver:
                    await tally.flush(driver)

        await asyncio.gather(worker(others), worker(others[::-1]), worker(others[100:] + others[:100]))
        assert (await read(seeds, None)).delivered == 3 * 10 * 200

    seeded(database_url, run)


def test_a_flush_that_fails_loses_nothing_and_what_came_meanwhile_is_kept_too(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        tally = Tally()
        tally.add(finish(seeds, ms=1))
        tally.add(finish(seeds, EXHAUSTED))

        class Away:
            async def execute(self, *_: Any) -> None:
                tally.add(finish(seeds, ms=3))
                raise asyncpg.ConnectionDoesNotExistError

        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await tally.flush(Away())
        await tally.flush(seeds.driver)
        await tally.flush(seeds.driver)  # nothing is left to count twice
        found = await read(seeds, seeds.subscription_id)
        assert (found.attempts, found.delivered, found.dead, found.delivered_ms) == (3, 2, 1, 4)

    seeded(database_url, run)


def test_nothing_to_flush_asks_the_database_nothing() -> None:
    asyncio.run(Tally().flush(None))


def test_figures_are_of_one_tenant_and_of_the_time_asked_for(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await kept(seeds, [finish(seeds), finish(seeds, EXHAUSTED)])
        await seeds.driver.execute("UPDATE delivery_stats SET minute = minute - interval '25 hours'")
        other = await seeds.subscription()
        one = finish(seeds)
        await kept(seeds, [one, one._replace(claimed=one.claimed._replace(subscription_id=other))])
        since = datetime.now(UTC) - timedelta(hours=24)
        assert (await read(seeds, None, since)).attempts == 2
        assert (await read(seeds, None)).attempts == 4
        assert (await read(seeds, seeds.subscription_id, since)).attempts == 1
        assert (await read(seeds, other)).attempts == 1
        stranger = await stats.figures(seeds.driver, uuid4(), None, LONG_AGO)
        assert stranger == Figures(0, 0, 0, 0, 0, 0, None, None)
        for rate in (stranger.delivery_success_rate, stranger.retry_success_rate, stranger.average_ms):
            assert rate is None

    seeded(database_url, run)


@pytest.mark.parametrize(
    ("delivered", "dead", "expected"),
    [
        *((1, 0, 100.0), (0, 1, 0.0), (5988, 12, 99.8), (999_988, 12, 99.9), (1, 999_999, 0.1), (2, 1, 66.7)),
    ],
)
def test_only_all_is_100_and_only_none_is_0(delivered: int, dead: int, expected: float) -> None:
    assert Figures(0, delivered, 0, dead, 0, 0, None, None).delivery_success_rate == expected


def test_figures_read_one_range_of_the_primary_key_however_much_there_is(database_url: str) -> None:
    async def run(seeds: Seeds) -> str:
        await seeds.driver.execute(
            """
            INSERT INTO delivery_stats (organization_id, subscription_id, minute, error_kind, attempts)
            SELECT o.id, s.id, date_trunc('minute', now()) - m * interval '1 minute', '', 1
            FROM (VALUES ($1::uuid), (gen_random_uuid())) AS o(id),
                (SELECT $2::uuid AS id UNION ALL SELECT gen_random_uuid() FROM generate_series(1, 50)) AS s,
                generate_series(1, 500) AS m
            """,
            seeds.organization_id,
            WHOLE,
        )
        await seeds.driver.execute("ANALYZE delivery_stats")
        lines = await seeds.driver.fetch(
            "EXPLAIN (ANALYZE, BUFFERS OFF, COSTS OFF, TIMING OFF, SUMMARY OFF) " + totals._FIGURES,
            *(seeds.organization_id, WHOLE, datetime.now(UTC) - timedelta(minutes=100)),
        )
        return "\n".join(line[0] for line in lines)

    plan = seeded(database_url, run)
    assert "using pk_delivery_stats" in plan or "on pk_delivery_stats" in plan, plan
    assert "Filter:" not in plan, plan
    assert "Rows Removed" not in plan, plan


# --- of the whole installation -------------------------------------------------------------------------------------


def test_the_installation_is_the_sum_of_all_and_keeps_what_an_erased_organization_added(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        other = await organization(seeds)
        one = finish(seeds, EXHAUSTED)
        await kept(
            seeds,
            [
                *[finish(seeds, ms=ms) for ms in (40, 90)],
                one,
                one._replace(claimed=one.claimed._replace(organization_id=other, subscription_id=uuid4())),
            ],
        )
        tally = Tally()
        tally.accept({seeds.organization_id: 3, other: 4})
        tally.accept({other: 1})
        await tally.flush(seeds.driver)
        everything = await stats.figures(seeds.driver, INSTALLATION, None, LONG_AGO)
        assert (everything.attempts, everything.delivered, everything.dead, everything.accepted) == (4, 2, 2, 8)
        assert (await stats.figures(seeds.driver, other, None, LONG_AGO)).accepted == 5
        assert (await read(seeds, seeds.subscription_id)).accepted == 0

        await seeds.driver.execute("UPDATE organizations SET deleted_at = now() WHERE id = $1", other)
        await kept(seeds, [one._replace(claimed=one.claimed._replace(organization_id=other))])
        assert (await stats.figures(seeds.driver, other, None, LONG_AGO)).attempts == 1, "nothing comes for it any more"
        erased = await erasure.advance(seeds.database, NoBreakers(), late_s=0.0, work_s=20.0)
        assert erased == other
        assert await seeds.driver.fetchval("SELECT count(*) FROM organizations") == 1
        gone = await stats.figures(seeds.driver, other, None, LONG_AGO)
        assert (gone.attempts, gone.accepted) == (0, 0)
        after = await stats.figures(seeds.driver, INSTALLATION, None, LONG_AGO)
        assert (after.attempts, after.accepted) == (5, 8)
        assert (await read(seeds, None)).attempts == 3

    seeded(database_url, run)


async def organization(seeds: Seeds) -> UUID:
    organization_id = ids.new_id()
    await seeds.driver.execute("INSERT INTO organizations (id, name) VALUES ($1, 'Other')", organization_id)
    return organization_id


def test_histograms_of_several_flushes_add_up(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        await kept(seeds, [finish(seeds, ms=ms) for ms in (1, 60, 60)])
        await kept(seeds, [finish(seeds, EXHAUSTED, ms=20_000)])
        await kept(seeds, [finish(seeds, ms=ms) for ms in (4, 9_000, 29_000)])
        for whom in (seeds.subscription_id, None):
            found = await read(seeds, whom)
            assert (sum(found.durations), found.durations[0], found.durations[5]) == (6, 2, 2)
            assert found.taken_ms(0.5) == 62, "half way through those of 50 to 75 ms"
            assert found.taken_ms(0.95) == 24_000
        stored = {row["error_kind"]: row["durations"] for row in await rows(seeds)}
        assert stored["status"] is None, "only successes count"
        assert len(stored[""]) == durations.BUCKETS - 1, "zeros at its end are not stored"

    seeded(database_url, run)


def test_what_was_accepted_is_kept_when_the_database_was_away(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        class Away:
            async def execute(self, *_: Any) -> None:
                raise asyncpg.ConnectionDoesNotExistError

        tally = Tally()
        tally.accept({seeds.organization_id: 2})
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await tally.flush(Away())
        tally.accept({seeds.organization_id: 1})
        await tally.flush(seeds.driver)
        await tally.flush(seeds.driver)
        assert (await read(seeds, None)).accepted == 3

    seeded(database_url, run)


def test_a_keeper_flushes_by_itself_and_once_more_when_it_is_closed(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        tally = Tally()
        keeper = Keeper(seeds.database, tally, every_s=0.05)
        keeper.start()
        tally.accept({seeds.organization_id: 1})

        async def kept_one() -> bool:
            return (await read(seeds, None)).accepted == 1

        await eventually(kept_one, what="a flush")
        await keeper.close()
        late = Keeper(seeds.database, tally, every_s=3600)
        late.start()
        tally.accept({seeds.organization_id: 1})
        await late.close()
        assert (await read(seeds, None)).accepted == 2

    seeded(database_url, run)


# --- series --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [stats.LAST_HOUR, stats.LAST_DAY, stats.LAST_WEEK])
def test_a_span_begins_at_a_step_and_ends_now(span: stats.Span) -> None:
    for now in (datetime(2026, 1, 28, 10, 17, 31, tzinfo=UTC), datetime(2026, 1, 28, tzinfo=UTC)):
        since = span.since(now)
        last = since + (span.points - 1) * span.step
        assert last <= now < last + span.step
        assert (since.minute % max(1, span.step // timedelta(minutes=1)), since.second) == (0, 0)


def test_a_history_has_a_point_a_step_and_the_figures_of_all(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        now = await seeds.driver.fetchval("SELECT now()")
        await kept(seeds, [finish(seeds, ms=200), finish(seeds, LATER, kind=ErrorKind.DNS)])
        tally = Tally()
        tally.accept({seeds.organization_id: 5})
        await tally.flush(seeds.driver)
        hour_ago = (now - timedelta(hours=1)).replace(second=0, microsecond=0)
        await seeds.driver.execute("UPDATE delivery_stats SET minute = $1", hour_ago)
        await kept(
            seeds,
            [finish(seeds, ms=20), finish(seeds, LATER, 1), finish(seeds, EXHAUSTED, 2), untried(seeds, UNTRIED)],
        )
        for whose in (seeds.organization_id, INSTALLATION):
            found = await stats.history(seeds.driver, whose, stats.LAST_DAY, now)
            assert len(found.points) == 96
            assert found.points[-1].at <= now < found.points[-1].at + timedelta(minutes=15)
            happened = [one for one in found.points if one.delivered or one.failed]
            first, second = happened
            assert (first.delivered, first.failed, first.dead, first.accepted) == (1, 1, 0, 5)
            assert first.at <= hour_ago < first.at + timedelta(minutes=15)
            assert (second.delivered, second.failed, second.dead, second.accepted) == (1, 2, 2, 0)
            assert [(one.error_kind, one.attempts, one.dead) for one in found.errors] == [
                ("status", 2, 1),
                ("dns", 1, 0),
            ]
            assert found.errors[1].last_at == hour_ago
            assert found.figures == await stats.figures(seeds.driver, whose, None, found.points[0].at)
        of_one = await stats.history(seeds.driver, seeds.organization_id, stats.LAST_HOUR, now, seeds.subscription_id)
        assert (of_one.figures.attempts, of_one.figures.accepted) == (3, 0)
        none = await stats.history(seeds.driver, uuid4(), stats.LAST_WEEK, now)
        assert (len(none.points), none.figures.attempts, none.errors) == (168, 0, [])

    seeded(database_url, run)


def minute_of(now: datetime, minutes_ago: int) -> datetime:
    return now.replace(second=0, microsecond=0) - timedelta(minutes=minutes_ago)


def test_a_history_is_read_again_only_where_it_can_have_changed(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        now = datetime.now(UTC)
        asked: list[datetime] = []

        class Noting:
            async def fetch(self, statement: str, *values: Any) -> Any:
                asked.append(values[2])
                return await seeds.driver.fetch(statement, *values)

        histories = Histories(most=2)

        async def same(at: datetime, span: stats.Span = stats.LAST_DAY) -> None:
            found = await histories.of(Noting(), seeds.organization_id, span, at)
            assert found == await stats.history(seeds.driver, seeds.organization_id, span, at)

        for minutes_ago in (0, 3, 6, 17, 60, 200, 1430):
            for kind in ("", "dns"):
                await seeds.driver.execute(
                    "INSERT INTO delivery_stats (organization_id, subscription_id, minute, error_kind, attempts, dead)"
                    " VALUES ($1, $2, $3, $4, $5, 1)",
                    *(seeds.organization_id, WHOLE, minute_of(now, minutes_ago), kind, minutes_ago + 1),
                )
        await same(now)
        since, step = stats.LAST_DAY.since(now), stats.LAST_DAY.step
        assert asked == [since]
        for later in (timedelta(0), timedelta(seconds=40), timedelta(minutes=31), timedelta(hours=5)):
            asked.clear()
            await seeds.driver.execute(
                "UPDATE delivery_stats SET attempts = attempts + 1 WHERE minute > $1",
                now + later - timedelta(minutes=4),
            )
            await same(now + later)
            assert len(asked) == 1
            assert asked[0] >= stats.LAST_DAY.begin_of(now) - step, "what is long over is not read again"
        asked.clear()
        await same(now)  # a clock that went back
        await same(now + timedelta(days=3))
        assert asked == [since, stats.LAST_DAY.since(now + timedelta(days=3))]

        asked.clear()
        await same(now, stats.LAST_HOUR)
        await same(now, stats.LAST_WEEK)
        await same(now + timedelta(days=3))
        spans = (stats.LAST_HOUR, stats.LAST_WEEK)
        assert asked == [*(one.since(now) for one in spans), stats.LAST_DAY.since(now + timedelta(days=3))], (
            "only so many are remembered"
        )

    seeded(database_url, run)


def test_sparklines_of_many_come_with_one_statement_a_point_an_hour(database_url: str) -> None:
    async def run(seeds: Seeds) -> None:
        other = await seeds.subscription()
        await kept(seeds, [finish(seeds), finish(seeds), finish(seeds, LATER), finish(seeds, EXHAUSTED)])
        await seeds.driver.execute("UPDATE delivery_stats SET minute = minute - interval '3 hours'")
        await kept(seeds, [finish(seeds)])
        now = await seeds.driver.fetchval("SELECT now()")
        asked = [(seeds.organization_id, seeds.subscription_id), (seeds.organization_id, other)]
        found = await stats.sparklines(seeds.driver, asked, now - timedelta(hours=24))
        assert list(found) == [seeds.subscription_id, other]
        points = found[seeds.subscription_id]
        assert len(points) == 24
        assert points[-1].at <= now < points[-1].at + timedelta(hours=1)
        assert {b.at - a.at for a, b in pairwise(points)} == {timedelta(hours=1)}
        counts = [(one.delivered, one.failed, one.dead) for one in points]
        assert counts == [(0, 0, 0)] * 20 + [(2, 2, 1), (0, 0, 0), (0, 0, 0), (1, 0, 0)]
        assert [(one.delivered, one.failed) for one in found[other]] == [(0, 0)] * 24
        stranger = await stats.sparklines(seeds.driver, [(uuid4(), seeds.subscription_id)], now - timedelta(hours=24))
        assert not any(one.delivered for one in stranger[seeds.subscription_id])
        assert await stats.sparklines(seeds.driver, [], now) == {}

    seeded(database_url, run)


# --- counting what waits -------------------------------------------------------------------------------------------


def test_a_state_is_counted_up_to_a_bound(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MOST_COUNTED", 3)

    async def run(seeds: Seeds) -> None:
        other = await seeds.subscription()
        for _ in range(5):
            await seeds.delivery(State.DEAD)
        for _ in range(2):
            await seeds.delivery(State.PENDING)
        await seeds.delivery(State.PENDING, subscription_id=other)
        counts = [
            await stats.count(seeds.driver, seeds.subscription_id, state) for state in (State.DEAD, State.PENDING)
        ]
        assert counts == [3, 2]
        assert await stats.count(seeds.driver, other, State.DEAD) == 0

    seeded(database_url, run)


def test_a_count_that_takes_too_long_is_none_and_the_connection_stays_whole(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "COUNT_TIMEOUT_MS", 20)
    monkeypatch.setitem(
        counts._COUNT, State.DEAD, "SELECT count(*) FROM pg_sleep(30) WHERE $1::uuid IS NOT NULL OR $2::int = 0"
    )

    async def run(seeds: Seeds) -> None:
        assert await stats.count(seeds.driver, seeds.subscription_id, State.DEAD) is None
        assert await seeds.driver.fetchval("SHOW statement_timeout") == "0"

    seeded(database_url, run)


# --- retention -----------------------------------------------------------------------------------------------------


def test_what_is_older_than_the_retention_goes_batch_by_batch(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PRUNE_BATCH", 7)

    async def run(seeds: Seeds) -> None:
        await seeds.driver.execute(
            "INSERT INTO delivery_stats (organization_id, subscription_id, minute)"
            " SELECT $1, $1, now() - make_interval(days => 30, mins => m) FROM generate_series(-20, 29) AS m",
            seeds.organization_id,
        )
        await stats.prune(seeds.driver, 30)
        left = await seeds.driver.fetch("SELECT now() - minute AS age FROM delivery_stats")
        assert len(left) == 20
        assert all(row["age"] < timedelta(days=30) for row in left)

    seeded(database_url, run)
