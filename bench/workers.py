"""Several worker processes: what each adds, where it finds a free core.

All parts share the cores of one machine, and a worker that is not bounded takes one for itself. So each gets a share of
a core and no more, small enough that all together leave the rest free: what two deliver then is what two could on cores
of their own, for as long as PostgreSQL and the receiver keep up. Of the last quarter one worker may hold most hints
while another has none left, so it is told apart.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench import scenarios
from bench.children import Receiver
from bench.load import Order
from bench.platform import BenchError, Platform
from bench.quota import bounded
from bench.scenarios import Scenario

EVENTS_EACH = 4_000
WARM_UP = 500  # the first statements of each connection are planned


async def several(most: int, share: float, parent: Path | None) -> bool:
    """Lets 1, 2, 4 and so on up to `most` workers deliver what waits. Whether each ledger is exact."""
    print(f"\nseveral workers, each with {share:.0%} of a core; what waits is delivered to a cheap receiver")
    exact = True
    alone = alone_whole = 0.0
    count = 1
    while count <= most:
        with tempfile.TemporaryDirectory(prefix="hookwright-bench-") as folder:
            async with Receiver() as receiver, Platform(count, parent) as platform:
                warm = Scenario("warm", events=WARM_UP * count)
                load = Scenario("waiting", events=EVENTS_EACH * count, workers_stopped=True)
                await scenarios.run(warm, platform, receiver, Path(folder), Order.payload_bytes)
                with bounded(platform.pids["worker"], share):
                    result = await scenarios.run(load, platform, receiver, Path(folder), Order.payload_bytes)
        assert result.ledger is not None  # nosec B101 # for the type checker
        if not result.figures.get("delivered_per_s"):
            raise BenchError(f"{count} workers delivered nothing; {result.ledger.line()}")
        rate, whole = result.figures["most_delivered_per_s"], result.figures["drained_per_s"]
        alone, alone_whole = alone or rate, alone_whole or whole
        exact &= result.ledger.exact
        print(
            f"  {count}: {rate:7,.0f} delivered/s of the first three quarters, {rate / alone:4.2f} × one;"
            f" {whole:7,.0f} of all, {whole / alone_whole:4.2f} ×; {result.ledger.line()}",
            flush=True,
        )
        count *= 2
    return exact
