"""`python -m bench`: runs the scenarios, prints the table and the ledgers; exit code 1 when a ledger is not exact."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import orjson

from bench import floors, report, scenarios
from bench.children import Receiver
from bench.platform import Platform
from bench.running import finish, say
from bench.scenarios import Result, Scenario

ISOLATION_RATE = 300  # events a second to those that answer, and as many to those that hang
WINDOW = 1_000  # deliveries on their way, where the backlog is to stay flat
# Seconds of each load, of each floor and of idleness; and the events of the burst.
QUICK = (8.0, 3.0, 10.0, 15_000)
FULL = (40.0, 10.0, 30.0, 100_000)


def chosen(options: argparse.Namespace) -> list[Scenario]:
    seconds, _, _, burst = FULL if options.full else QUICK
    if options.seconds:
        seconds, burst = options.seconds, round(options.seconds * 2_000)
    events = options.events
    bounds: tuple[int | None, float | None] = (events, None) if events else (None, seconds)
    found = [
        Scenario("burst", events=events or burst, workers_stopped=True),
        Scenario("closed", events=bounds[0], seconds=bounds[1]),
        Scenario("sustained", events=bounds[0], seconds=bounds[1], window=WINDOW),
        Scenario("fan-out", options.fanout, events=bounds[0], seconds=bounds[1], window=WINDOW * 2),
        Scenario("latency-50", seconds=seconds, rate=50),
        Scenario("latency-1000", seconds=seconds, rate=1_000),
    ]
    if options.rate:
        found.append(Scenario("chosen", options.fanout, events=bounds[0], seconds=bounds[1], rate=options.rate))
    only = options.only.split(",") if options.only else None
    return [one for one in found if only is None or one.name in only]


async def run(options: argparse.Namespace) -> int:
    seconds, floor_s, idle_s, _ = FULL if options.full else QUICK
    results: list[Result] = []
    measured: dict[str, float] = {}
    wanted = options.only.split(",") if options.only else ["floors", "isolation", "idle"]
    with tempfile.TemporaryDirectory(prefix="hookwright-bench-") as temporary:
        folder = Path(temporary)
        async with Receiver() as receiver, Platform(options.workers, options.dir) as platform:
            say(f"platform up: 1 web, {options.workers} worker; data in {platform.data_dir}")
            if "floors" in wanted:
                say("floors …")
                measured = await floors.measure(platform, receiver, folder, options.payload_bytes, floor_s)
            for scenario in chosen(options):
                say(f"{scenario.name} …")
                result = await scenarios.run(scenario, platform, receiver, folder, options.payload_bytes)
                results.append(result)
                if result.ledger is not None:
                    say(f"  {result.ledger.line()}")
            if "isolation" in wanted:
                say("isolation …")
                results += await scenarios.isolation(
                    ISOLATION_RATE, seconds, platform, receiver, folder, options.payload_bytes
                )
                for result in results[-3:-1]:
                    say(f"  {result.name}: {result.ledger.line() if result.ledger else ''}")
            if results:
                peaks = platform.peak_mb().items()
                results.append(Result("memory", {f"{part}_peak_mb": peak for part, peak in peaks}))
            if "idle" in wanted:
                say("idle …")
                results.append(await scenarios.idle(platform, idle_s))
    return tell(results, measured, options)


def tell(results: Sequence[Result], measured: dict[str, float], options: argparse.Namespace) -> int:
    found = report.rows(results, measured)
    print(report.table(found, measured))
    ledgers = [result.ledger for result in results if result.ledger is not None]
    exact = all(ledger.exact for ledger in ledgers)
    print(f"ledger: {'exact' if exact else 'NOT EXACT'} in {len(ledgers)} runs")
    for result in results:
        if result.ledger is not None:
            print(f"  {result.name}: {result.ledger.line()}")
    if options.json:
        written = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        options.json.write_bytes(
            orjson.dumps(report.document(results, measured, written, found), option=orjson.OPT_INDENT_2)
        )
    return 0 if exact else 1


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench", description="Load and latency on a real platform, with a ledger.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="under 3 minutes (the default)")
    length.add_argument("--full", action="store_true", help="about 8 minutes")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--events", type=int, help="events of each load that is not paced")
    bound.add_argument("--seconds", type=float, help="seconds of each load")
    parser.add_argument("--fanout", type=int, default=10, help="subscriptions an event goes to (default 10)")
    parser.add_argument("--payload-bytes", type=int, default=1024, help="of an event's data (default 1024)")
    parser.add_argument("--rate", type=float, help="one more run, at this many events a second")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument(
        "--only",
        help="some of: floors, burst, closed, sustained, fan-out, latency-50, latency-1000, isolation, chosen, idle",
    )
    parser.add_argument(
        "--dir", type=Path, help="where the data folder is made (default: the system's temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args(argv)


def main() -> int:
    return finish("bench", run(parse()))


if __name__ == "__main__":
    sys.exit(main())
