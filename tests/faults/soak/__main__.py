"""`python -m tests.faults.soak --minutes 60 --rate 200 --seed 7`: see the package. The exit code is 1 when the ledger
is not exact, or when the run could not do what it was to do."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.scene import until
from tests.faults.soak import books
from tests.faults.soak.plan import SHORT_S, Fault, digest, draw
from tests.faults.soak.producer import SoakProducer
from tests.faults.soak.report import Report, say
from tests.faults.soak.stage import BACK_WITHIN_S, Stage

QUIET_WITHIN_S = 120.0  # a burst of what an outage held up, a lease, and the longest pause between two attempts


async def run(seconds: float, rate: float, seed: int, folder: Path) -> bool:
    """Whether the ledger is exact."""
    faults = draw(seed, seconds)
    say(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {seconds:g} s, {rate:g} events a second, seed {seed}")
    say(f"{len(faults)} faults, scenario {digest(faults)}; logs in {folder}")
    async with Stage.make(folder, seed) as stage:
        producer = SoakProducer(stage.fleet.url, stage.fleet.key, rate, seed)
        report = Report(stage, producer)
        exact = False
        try:
            await _load(stage, producer, report, faults, seconds)
            exact = await _close(stage, producer, report, seconds)
        finally:
            (folder / "faults.txt").write_text("\n".join(stage.diary) + "\n")
            if not exact and seconds < SHORT_S:
                say(stage.fleet.logs())
        return exact


async def _load(stage: Stage, producer: SoakProducer, report: Report, faults: list[Fault], seconds: float) -> None:
    stage.began = time.monotonic()
    reporting = [
        asyncio.create_task(report.every(min(60.0, seconds / 4))),
        asyncio.create_task(report.watch_memory(min(5.0, seconds / 40))),
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for signum in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(signum, _end_early, stage, producer)
            group.create_task(stage.play(faults))
            group.create_task(producer.run(seconds, accepted_within_s=BACK_WITHIN_S))
    finally:
        for task in reporting:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*reporting)


def _end_early(stage: Stage, producer: SoakProducer) -> None:
    say("asked to end: no more load, no more faults")
    stage.ending.set()
    producer.ending.set()


async def _close(stage: Stage, producer: SoakProducer, report: Report, seconds: float) -> bool:
    stopped_at = time.monotonic()

    async def quiet() -> bool:
        counts = await stage.look()
        left = await stage.fleet.query("SELECT 1 FROM replays WHERE status <> 'completed' LIMIT 1")
        return counts is not None and not counts.get("pending") and not counts.get("sending") and not left

    with contextlib.suppress(AssertionError):  # then the books say what is left
        await until(quiet, QUIET_WITHIN_S, "quiet", every_s=0.2)
    say(await report.line())
    say(f"quiet {time.monotonic() - stopped_at:.1f} s after the last fault and the last event")
    found = await books.close(stage, producer)
    say("")
    say("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(stage.done.items())))
    if stage.left_out:
        say(f"left out: {stage.left_out} faults whose turn came too late, for this machine is slow")
    say("answers to the producer: " + ", ".join(f"{name} {count:,}" for name, count in producer.answers.most_common()))
    stalled_s = max((ended - began for began, ended in stage.receiver.stalls), default=0.0)
    say(f"longest that the receiver itself stood still: {stalled_s:.1f} s")
    say(f"longest from an event's first try to its acceptance: {producer.slowest_s:.1f} s")
    say("memory while no process was ended:\n    " + "\n    ".join(report.growth(seconds)))
    say(str(found))
    return not found.faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Mixed faults under load.")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--rate", type=float, default=200, help="events a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="only print which fault comes when")
    given = parser.parse_args()
    seconds = given.seconds or given.minutes * 60
    if given.plan:
        say("\n".join(map(str, draw(given.seed, seconds))))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="hookwright-soak-"))
    exact = asyncio.run(run(seconds, given.rate, given.seed, folder))
    if exact:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
