"""The disk under PostgreSQL's tables is full (a small tmpfs, mounted for that process alone), or fails."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import Harm

Play = Callable[[Scenario], None]

FILL = "INSERT INTO filler SELECT repeat('x', 2000) FROM generate_series(1, $1::integer)"

FAILING_DISK = """
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF random() < 0.2 THEN
        RAISE EXCEPTION 'could not read block 0: I/O error' USING ERRCODE = '58030';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER failing AFTER INSERT ON event_keys FOR EACH STATEMENT EXECUTE FUNCTION fail();
CREATE TRIGGER failing AFTER INSERT ON attempts FOR EACH STATEMENT EXECUTE FUNCTION fail();
"""


def test_a_full_disk_refuses_events_until_there_is_room(play: Play) -> None:
    _need_mounts()

    async def scenario(fleet: Fleet) -> None:
        async with fleet.parts.on_small_disk(fleet.database_url):
            try:
                await _run(fleet)
            finally:
                await fleet.end()

    play(scenario)


async def _run(fleet: Fleet) -> None:
    web, worker = await fleet.start()
    await fleet.subscribe("/slow/0.02")
    producer = Producer(fleet.url, fleet.key, fleet.rng)
    async with producer.producing(), fleet.session() as other:
        await fleet.pause(0.4, 1.0)
        began = time.monotonic()
        await _fill(other)
        # Pages that have room still take some, so not each answer is a refusal at once.
        await producer.refused(50)
        tries = producer.since(began)
        assert {one.status for one in tries} <= {200, 202, 503}
        assert all(one.retry_after for one in tries if one.status == 503)
        assert await fleet.why_not("/healthz") is None
        await other.execute("DROP TABLE filler")
        free_at = time.monotonic()
        await producer.accepts(20)
        print(f"accepts again after {time.monotonic() - free_at:.2f} s")
        fleet.harms.append(Harm(began, time.monotonic()))
    print(await settle(fleet, producer))
    assert "DiskFull" in fleet.logs()
    assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])


async def _fill(session: Any) -> None:
    """What an insert had written before it failed stays on the disk until its table goes."""
    await session.execute("CREATE UNLOGGED TABLE filler (text text STORAGE PLAIN)")
    for rows in (1_000, 100, 10, 1):
        try:
            while True:
                await session.execute(FILL, rows)
        except asyncpg.DiskFullError:
            continue


def test_a_disk_that_fails_now_and_then(play: Play, seed: int) -> None:
    """What PostgreSQL says then (58030) comes from a trigger here; what the platform makes of it is real."""

    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing(), fleet.session() as operator:
            await operator.execute(FAILING_DISK)
            await producer.refused(5)
            await producer.accepts(20)
        ledger = await settle(fleet, producer)
        print(ledger)
        assert ledger.repeats == 0, "outcomes wait until they can be recorded"
        assert all(one.retry_after for one in producer.tries() if one.status == 503)
        assert "I/O error" in fleet.log_of(worker)
        assert (web.exit_code, worker.exit_code, fleet.errors()) == (None, None, [])

    play(scenario)


def _need_mounts() -> None:
    enter = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    done = subprocess.run(
        [*enter, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    why = f"this user can't mount a tmpfs in a namespace of its own: {done.stderr.strip()}"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
