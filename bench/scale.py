"""`python -m bench.scale`: what size costs. Each part runs where its option asks for it, on one real platform:

--rows N      builds a history of N deliveries (`bench.history`), then times every list, count and preview of the API on
              it, over HTTP; the plans of their statements go to `--plans`
--pages       with --rows: times every page on that history instead, as somebody who has signed in
--pending N   N more deliveries that are due, the worker stopped: the time of a claim
--writes N    what N deliveries cost PostgreSQL, by their three writes; `--without` compares without some indexes
--wide N      an event that N subscriptions want, and what another organization's events wait meanwhile
--outage N    N deliveries for endpoints that refuse, which then come back, and what new events of others wait meanwhile
--webs N      1, 2, 4 … up to N web processes on one database
--workers N   1, 2, 4 … up to N worker processes, each bounded to `--share` of a core (takes root)
--flood N     one organization posts N events as fast as it can; how long another's single events take
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import backlog, costs, history, scale_lists, scale_pages, several, workers
from bench.children import Receiver
from bench.platform import Platform
from bench.running import finish, say

PARTS = ("rows", "pending", "writes", "wide", "outage", "flood", "webs")  # on one platform with one worker


async def run(options: argparse.Namespace) -> int:
    fine = True
    if options.workers:
        fine &= await workers.several(options.workers, options.share, options.dir)
    if any(getattr(options, part) for part in PARTS):
        fine &= await _on_one_platform(options)
    return 0 if fine else 1


async def _on_one_platform(options: argparse.Namespace) -> bool:
    fine = True
    async with Platform(workers=1, parent=options.dir) as platform:
        say(f"platform up; data in {platform.data_dir}")
        if options.writes:
            await costs.writes(platform, options.writes, options.rounds, options.without)
        if options.wide:
            fine &= await costs.wide(platform, options.wide)
        if options.outage or options.flood or options.webs:
            with tempfile.TemporaryDirectory(prefix="hookwright-bench-") as folder:
                async with Receiver() as receiver:
                    if options.webs:
                        fine &= await several.webs(platform, receiver, options.webs, Path(folder))
                    if options.flood:
                        fine &= await backlog.flood(platform, receiver, options.flood, Path(folder))
                    if options.outage:
                        fine &= await backlog.outage(platform, receiver, options.outage, Path(folder))
        if options.rows:
            async with costs.connected(platform) as driver:
                made = await history.build(driver, options.rows, say)
            await costs.sizes(platform)
            fine &= await scale_lists.measure(platform, made, options.repeats, options.plans)
            if options.pages:
                fine &= await scale_pages.measure(platform, made, options.repeats)
        if options.pending:
            fine &= await costs.claims(platform, options.pending)
    return fine


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench.scale", description="What size costs, on a real platform.")
    parser.add_argument("--rows", type=int, default=0, help="deliveries of the history")
    parser.add_argument("--repeats", type=int, default=30, help="times each list or page is asked for (default 30)")
    parser.add_argument("--pages", action="store_true", help="time the pages too")
    parser.add_argument("--plans", type=Path, help="write the plans of all statements to this file")
    parser.add_argument("--pending", type=int, default=0, help="due deliveries to claim from")
    parser.add_argument("--writes", type=int, default=0, help="deliveries whose writes are measured, a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --writes, each with and without (default 3)")
    parser.add_argument("--without", default="", help="indexes, by commas, that every other round goes without")
    parser.add_argument("--wide", type=int, default=0, help="subscriptions that an event goes to")
    parser.add_argument("--outage", type=int, default=0, help="deliveries for endpoints that are down for a while")
    parser.add_argument("--flood", type=int, default=0, help="events that one organization posts at once")
    parser.add_argument("--webs", type=int, default=0, help="web processes at most")
    parser.add_argument("--workers", type=int, default=0, help="worker processes at most, each with a share of a core")
    parser.add_argument("--share", type=float, default=0.2, help="of a core, for each of --workers (default 0.2)")
    parser.add_argument("--dir", type=Path, help="where the data is put (default: the system's temporary folder)")
    options = parser.parse_args(argv)
    if not any(getattr(options, part) for part in (*PARTS, "workers")):
        parser.error(f"choose what to measure: {', '.join(f'--{part}' for part in (*PARTS, 'workers'))}")
    if not 0.1 <= options.share <= 1.0:  # of less, groups of version 1 give no part
        parser.error("--share is a part of a core, from 0.1 to 1")
    for part in ("pending", "pages"):
        if getattr(options, part) and not options.rows:
            parser.error(f"--{part} stands on a history: give --rows too")
    return options


def main() -> int:
    return finish("bench.scale", run(parse()))


if __name__ == "__main__":
    sys.exit(main())
