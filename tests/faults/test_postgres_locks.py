"""PostgreSQL makes transactions wait, or fail: locks of others, deadlocks, serialization failures, slow commits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import LONG, SLACK_S, Harm, Scene, until
from tests.platform import HANGS_S

Play = Callable[[Scenario], None]

LOCKED_S = 10.0 if LONG else 6.0  # longer than the platform's lock_timeout of 5 s, and than a lease
SLOW_S = 0.4
LOAD_S = 2.0
PATIENT_MS = 20_000

WAITS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"

# Once a transaction, when it commits. Only PostgreSQL itself knows that moment.
SLOW_COMMIT = f"""
CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('faults.slept', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
        PERFORM set_config('faults.slept', pg_current_xact_id()::text, true);
        PERFORM pg_sleep(random() * {2 * SLOW_S});
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow_acceptance AFTER INSERT ON event_keys DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION be_slow();
CREATE CONSTRAINT TRIGGER slow_recording AFTER INSERT ON attempts DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION be_slow();
"""


def test_a_table_that_someone_else_locks(play: Play) -> None:
    """Of `deliveries` both sides are in want: acceptance adds to it, workers claim from it and record into it."""

    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng, answer_within_s=LOCKED_S + SLACK_S)
        async with producer.producing(), fleet.session() as other:
            await fleet.pause(0.4, 1.0)
            began = time.monotonic()
            async with other.transaction():
                await other.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
                locked_at = time.monotonic()
                said = len(fleet.log_of(worker))
                await asyncio.sleep(LOCKED_S)
                waited = producer.since(locked_at)
                lines = fleet.log_of(worker)[said:].count("\n")
            freed_at = time.monotonic()
            await producer.accepts(20)
            print(f"accepts again after {time.monotonic() - freed_at:.2f} s")
            fleet.harms.append(Harm(began, time.monotonic()))
        assert waited
        assert {one.status for one in waited} == {503}
        assert all(one.retry_after for one in waited)
        assert lines < 40, f"the worker said {lines} lines meanwhile; does it spin?"
        ledger = await settle(fleet, producer)
        print(ledger)
        assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])

    play(scenario)


def test_an_acceptance_across_another_transaction_is_refused_and_then_one_event(play: Play) -> None:
    """Before PostgreSQL would look for a deadlock, acceptance gives way."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing(), fleet.session() as other:
            await fleet.pause(0.2, 0.6)
            [row] = await fleet.query("SELECT id FROM organizations")
            transaction = other.transaction()
            await transaction.start()
            # Acceptance takes these keys in order: x first, then y.
            await _take_key(other, row["id"], "y")
            posting = asyncio.create_task(_post_batch(fleet, "x", "y"))
            await _waits(fleet, "hookwright-web")
            await asyncio.wait_for(_take_key(other, row["id"], "x"), HANGS_S)
            status, retry_after = await posting  # before the rollback: a retry after it would be accepted
            await transaction.rollback()
            assert (status, retry_after is not None) == (503, True)
            await producer.accepts(10)
        assert await fleet.query("SELECT 1 FROM event_keys WHERE external_id IN ('x', 'y')") == []
        print(await settle(fleet, producer))
        status, _ = await _post_batch(fleet, "x", "y")
        assert status == 202
        assert len(await fleet.query("SELECT 1 FROM events WHERE external_id IN ('x', 'y')")) == 2

    play(scenario)


def test_outcomes_of_what_another_holds_are_recorded_later_and_the_others_at_once(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, worker = await fleet.start()
        subscription_id = await fleet.subscribe("/ok", timeout_ms=PATIENT_MS)
        names = [f"{number:02}" for number in range(20)]
        for round_ in range(4):  # until it takes so many at a time
            await _post_batch(fleet, *(f"{round_}-{name}" for name in names))
            await fleet.delivered((round_ + 1) * len(names))
        earlier = len(fleet.receiver.requests)
        total = earlier + len(names)
        await fleet.move(subscription_id, "/slow/0.7")
        async with fleet.session() as other:
            status, _ = await _post_batch(fleet, *names)
            assert status == 202
            await fleet.received(total)
            async with other.transaction():
                rows = await other.fetch(
                    "SELECT id FROM deliveries WHERE state = 'sending' ORDER BY id FOR UPDATE LIMIT 7"
                )
                await fleet.delivered(total - len(rows))
        await fleet.delivered(total)
        assert (worker.exit_code, fleet.errors()) == (None, [])
        assert len(fleet.receiver.requests) == total, "nothing was sent twice"
        [attempts] = await fleet.query("SELECT count(*) FROM attempts")
        assert attempts["count"] == total

    play(scenario)


def test_serialization_failures_under_load(play: Play, seed: int) -> None:
    """Where an operator made transactions stricter than the platform asks for."""

    async def scenario(fleet: Fleet) -> None:
        await _set(fleet, "default_transaction_isolation = 'serializable'")
        web, _ = await fleet.start()
        await fleet.start_worker()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)

        async def a_transaction_failed() -> bool:
            return fleet.said("could not serialize")

        async with producer.producing():
            await asyncio.sleep(LOAD_S)
            await until(a_transaction_failed, HANGS_S, "a transaction fails")
        ledger = await settle(fleet, producer)
        failures = sum(one.status == 503 for one in producer.tries())
        print(f"{ledger}; {failures} answers of 503")
        assert ledger.repeats == 0
        assert all(one.status in (200, 202) or one.retry_after for one in producer.tries())
        assert (web.exit_code, fleet.errors()) == (None, [])

    play(scenario)


def test_slow_commits_are_slow_and_nothing_else(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.subscribe("/slow/0.02")
        async with fleet.session() as operator:
            await operator.execute(SLOW_COMMIT)
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await asyncio.sleep(LOAD_S)
        ledger = await settle(fleet, producer)
        took = sorted(one.ended - one.began for one in producer.tries())
        print(f"{ledger}; an acceptance took {took[len(took) // 2]:.2f} s, {took[-1]:.2f} s at most")
        assert {one.status for one in producer.tries()} == {202}
        assert fleet.errors() == []
        assert took[len(took) // 2] > SLOW_S / 2, "commits were not slow"
        assert ledger.repeats == 0

    play(scenario)


async def _set(scene: Scene, setting: str) -> None:
    """For all sessions that begin from now on."""
    await scene.query(f'ALTER DATABASE "{scene.database_name}" SET {setting}')


async def _take_key(session: Any, organization_id: Any, external_id: str) -> None:
    await session.execute(
        "INSERT INTO event_keys (organization_id, external_id, event_id) VALUES ($1, $2, gen_random_uuid())",
        organization_id,
        external_id,
    )


async def _waits(scene: Scene, application: str) -> None:
    async def for_a_lock() -> bool:
        [row] = await scene.query(WAITS, application)
        return bool(row["count"])

    await until(for_a_lock, HANGS_S, f"{application} waits for a lock")


async def _post_batch(scene: Scene, *event_ids: str) -> tuple[int, str | None]:
    """Status and `Retry-After`."""
    events = [{"event_type": "order.paid", "event_id": one, "data": {}} for one in event_ids]
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": scene.key}) as client,
        client.post(f"{scene.url}/v1/events/batch", json={"events": events}) as answer,
    ):
        return answer.status, answer.headers.get("Retry-After")
