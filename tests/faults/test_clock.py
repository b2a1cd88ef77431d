"""Wall clocks jump by an hour, either way, in web and worker apart. The database's is right, and it alone counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from core import ids
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import SLACK_S, SWEEP_S

Play = Callable[[Scenario], None]
HOUR_S = 3_600
SIGN_OF_LIFE_S = 3.2  # a worker's sign of life in Redis is gone after that, unless it was renewed
RETRY_S = 3.0  # the clock jumps before it, even on a busy machine


class Clock:
    """The wall clock of one process, right at first."""

    def __init__(self, path: Path) -> None:
        self.off_by_s = 0
        self._path = path
        self.jump(0)

    @property
    def altered(self) -> dict[str, str]:
        return {"FAULTS_CLOCK": str(self._path)}

    def jump(self, off_by_s: int) -> None:
        self._path.write_text(f"{off_by_s:>8}")
        self.off_by_s = off_by_s


def test_jumping_under_load_nothing_is_lost_doubled_or_late(play: Play, seed: int, tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        webs, workers = Clock(tmp_path / "web"), Clock(tmp_path / "worker")
        await fleet.make_tenant()
        web, worker = await asyncio.gather(
            fleet.start_web(altered=webs.altered), fleet.start_worker(altered=workers.altered)
        )
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        jumps = [(clock, off_by_s) for clock in (webs, workers) for off_by_s in (HOUR_S, -HOUR_S)]
        began, logged, silent = time.monotonic(), fleet.lines_logged(), False
        async with producer.producing():
            for clock, off_by_s in [*fleet.rng.sample(jumps, len(jumps)), (webs, 0), (workers, 0)]:
                await fleet.pause(0.2, 0.6)
                if clock is workers and off_by_s < clock.off_by_s and not silent:
                    clock.jump(off_by_s)
                    silent = True  # were it so, it would show the first time
                    await asyncio.sleep(SIGN_OF_LIFE_S)
                clock.jump(off_by_s)
                await producer.accepts(10)
                await fleet.delivered(len(producer.accepted), within_s=SWEEP_S + 2 * SLACK_S)
                flowing_s = await fleet.hints_flow()
                print(f"web {webs.off_by_s:+} s, worker {workers.off_by_s:+} s: hints flow after {flowing_s:.1f} s")
        print(ledger := await settle(fleet, producer))
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert {one.status for one in producer.since(began)} == {202}
        assert (web.exit_code, worker.exit_code) == (None, None)
        assert fleet.lines_logged() - logged < 20
        _ids_are_in_order(producer)

    play(scenario)


def _ids_are_in_order(producer: Producer) -> None:
    """Whatever was answered before another was asked for has the lesser id."""
    answered = sorted((one.tries[-1].ended, one.shown_id) for one in producer.accepted if one.shown_id)
    greatest, done = "", 0
    for one in sorted(producer.accepted, key=lambda one: one.tries[0].began):
        while done < len(answered) and answered[done][0] < one.tries[0].began:
            greatest = max(greatest, answered[done][1])
            done += 1
        assert one.shown_id is not None
        assert one.shown_id > greatest, "an id went backwards"


def test_retries_come_by_the_databases_clock_and_are_signed_by_the_workers(play: Play, tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        clock = Clock(tmp_path / "worker")
        await fleet.make_tenant()
        await asyncio.gather(fleet.start_web(), fleet.start_worker(altered=clock.altered))
        await fleet.subscribe(
            "/failing",
            retry_policy={"backoff_strategy": "fixed", "base_delay_ms": int(RETRY_S * 1_000), "max_attempts": 3},
        )
        for number, off_by_s in enumerate((HOUR_S, -HOUR_S), start=1):
            fleet.receiver.script("/failing", [503, 200])
            await fleet.post(str(number))
            await fleet.received(2 * number - 1, within_s=SLACK_S)
            clock.jump(off_by_s)
            await fleet.delivered(number, within_s=RETRY_S + SWEEP_S + 2 * SLACK_S)
            first, second = fleet.receiver.requests[-2:]
            assert second.monotonic - first.monotonic >= RETRY_S / 2
            signed_at = int(second.header("webhook-timestamp") or 0)
            assert abs(signed_at - (second.wall + off_by_s)) < SLACK_S
        rows = await fleet.query("SELECT id, started_at FROM attempts ORDER BY id")
        assert len({ids.day_of(row["id"]) for row in rows}) <= 2
        assert len(rows) == 4

    play(scenario)
