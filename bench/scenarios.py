"""What is run, and the figures that come of each run.

Every scenario has its own event type and its own subscriptions, so that its books are its own.
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import ledger
from bench.children import Heard, Receiver, generate
from bench.ledger import Ledger
from bench.load import Order, Outcome
from bench.platform import BenchError, Platform

DRAIN_WITHIN_S = 120.0
CONNECTIONS = 64
IDLE_AFTER_S = 3.0  # what a run leaves behind (checkpoint, vacuum) is not idleness
HANGING = 20  # endpoints that never answer
PARTS = ("web", "worker", "postgres")
SPAN_S = 2.0  # of a run, whose slowest are looked at by themselves


@dataclass(frozen=True)
class Scenario:
    """A load. Without `rate` a closed loop; with `window` one that waits for the receiver."""

    name: str
    fanout: int = 1
    events: int | None = None
    seconds: float | None = None
    rate: float | None = None
    window: int | None = None
    workers_stopped: bool = False  # while the load lasts


@dataclass
class Result:
    name: str
    figures: dict[str, float] = field(default_factory=dict)
    ledger: Ledger | None = None


async def run(
    scenario: Scenario,
    platform: Platform,
    receiver: Receiver,
    folder: Path,
    payload_bytes: int,
    *,
    drains: bool = True,
) -> Result:
    """`drains`: False where something else stays pending, so that only its own receipts are waited for."""
    event_type = f"bench.{scenario.name.replace('-', '_')}"
    await platform.subscribe(receiver.urls(scenario.name, scenario.fanout), event_type)
    order = Order(
        port=platform.port,
        key=platform.key,
        event_type=event_type,
        payload_bytes=payload_bytes,
        connections=CONNECTIONS,
        events=scenario.events,
        seconds=scenario.seconds,
        rate=scenario.rate,
        window=scenario.window,
        fanout=scenario.fanout,
        receiver_port=receiver.port,
        scenario=scenario.name,
    )
    before = platform.cpu_s()
    if scenario.workers_stopped:
        platform.signal_workers(signal.SIGSTOP)
    try:
        outcome = await generate(order, folder)
    finally:
        platform.signal_workers(signal.SIGCONT)
    resumed_at = time.monotonic()
    await _drained(platform, receiver, scenario, len(outcome.ids) * scenario.fanout, event_type if not drains else None)
    drained_at = time.monotonic()
    after = platform.cpu_s()
    heard = await receiver.dump(scenario.name)
    result = Result(scenario.name, _figures(scenario, outcome, heard))
    result.figures |= _cpu_figures(before, after, heard.distinct)
    if scenario.workers_stopped:
        result.figures["drained_per_s"] = heard.distinct / max(drained_at - resumed_at, 1e-9)
    result.figures |= {f"{part}_peak_mb": peak for part, peak in platform.peak_mb().items()}
    result.ledger = await ledger.settle(platform, event_type, scenario.fanout, outcome, heard)
    return result


async def _drained(
    platform: Platform, receiver: Receiver, scenario: Scenario, wanted: int, event_type: str | None
) -> None:
    """Until all is received and recorded, or nothing is to be hoped for; the ledger tells which."""
    own = "" if event_type is None else f" AND event_type = '{event_type}'"
    deadline = time.monotonic() + DRAIN_WITHIN_S
    while await receiver.count(scenario.name) < wanted and time.monotonic() < deadline:  # noqa: ASYNC110 - other processes
        await asyncio.sleep(0.02)
    while time.monotonic() < deadline:
        [row] = await platform.query(f"SELECT count(*) FROM deliveries WHERE state IN ('pending', 'sending'){own}")
        if row["count"] == 0:
            return
        await asyncio.sleep(0.02)


def _figures(scenario: Scenario, outcome: Outcome, heard: Heard) -> dict[str, float]:
    if not outcome.ids or not heard.distinct:
        return {}
    answered, received = sorted(outcome.answered_at), heard.times()
    started, ended = outcome.started_at, answered[-1]
    halfway = (started + ended) / 2

    def backlog(at: float) -> int:
        return bisect_right(answered, at) * scenario.fanout - bisect_right(received, at)

    figures = {
        "accepted": float(len(answered)),
        "accepted_per_s": len(answered) / (ended - started),
        "delivered_per_s": len(received) / (received[-1] - started),
        # From the last event on, and while the load lasted.
        "delivered_per_s_under_load": bisect_right(received, ended) / (ended - started),
        "backlog_halfway": float(backlog(halfway)),
        "backlog_at_end": float(max(0, backlog(ended))),
        "drain_s": max(0.0, received[-1] - ended),
        "late": float(outcome.late),
    }
    if scenario.workers_stopped:
        most = 3 * len(received) // 4  # until then every worker has enough to do
        figures["most_delivered_per_s"] = most / max(received[most] - received[0], 1e-9)
    answer_ms = [(b - a) * 1000 for a, b in zip(outcome.written_at, outcome.answered_at, strict=True)]
    figures |= _percentiles("answer_ms", answer_ms)
    if not scenario.workers_stopped:
        written = dict(zip(outcome.ids, outcome.written_at, strict=True))
        answered_at = dict(zip(outcome.ids, outcome.answered_at, strict=True))
        receipts = [(one, at) for of_path in heard.first_at.values() for one, at in of_path.items() if one in written]
        figures |= _percentiles("receipt_ms", [(at - written[one]) * 1000 for one, at in receipts])
        spans: dict[int, list[float]] = defaultdict(list)
        for one, at in receipts:
            spans[int((written[one] - started) / SPAN_S)].append((at - written[one]) * 1000)
        # Where the whole machine stands still for a moment, that moment's events decide the p99 of a run, but not this.
        figures["receipt_ms_p99_of_spans"] = statistics.median(
            _percentiles("", taken)["_p99"] for taken in spans.values()
        )
        # Negative where the webhook overtook the 202, which happens: both start with the commit.
        figures |= _percentiles("receipt_from_202_ms", [(at - answered_at[one]) * 1000 for one, at in receipts])
    return figures


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"{name}_p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 95, 99)}


def _cpu_figures(before: dict[str, float], after: dict[str, float], deliveries: int) -> dict[str, float]:
    if not deliveries:
        return {}
    return {f"{part}_cpu_us": (after[part] - before[part]) / deliveries * 1e6 for part in PARTS}


async def isolation(
    rate: float, seconds: float, platform: Platform, receiver: Receiver, folder: Path, payload_bytes: int
) -> list[Result]:
    """The same load twice: alone, and beside as much for endpoints that never answer."""
    alone = Scenario("alone", seconds=seconds, rate=rate)
    beside = replace(alone, name="beside")
    before = await run(alone, platform, receiver, folder, payload_bytes)
    stuck = [
        await platform.call(
            "POST",
            "/v1/webhooks/subscriptions",
            {"url": f"http://127.0.0.1:{receiver.port}/hanging/{number}", "events": [f"bench.hanging.{number}"]},
        )
        for number in range(HANGING)
    ]
    order = Order(
        port=platform.port,
        key=platform.key,
        event_type="bench.hanging",
        event_types=HANGING,
        payload_bytes=payload_bytes,
        seconds=seconds + IDLE_AFTER_S,
        rate=rate,
        scenario="hanging",
    )
    hanging = asyncio.create_task(generate(order, folder))
    await asyncio.sleep(IDLE_AFTER_S)  # from the first hanging request on until what was measured of them shows
    after = await run(beside, platform, receiver, folder, payload_bytes, drains=False)
    outcome = await hanging
    [row] = await platform.query("SELECT count(*) FROM deliveries WHERE event_type LIKE 'bench.hanging.%'")
    if row["count"] != len(outcome.ids) or after.ledger is None:
        raise BenchError(f"{len(outcome.ids)} events for endpoints that hang were accepted, {row['count']} are stored")
    for one in stuck:
        await platform.call("DELETE", f"/v1/webhooks/subscriptions/{one['subscription_id']}")
    return [before, after, Result("isolation", _ratios(before.figures, after.figures))]


def _ratios(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name in ("delivered_per_s", "receipt_ms_p50", "receipt_ms_p99", "receipt_ms_p99_of_spans"):
        figures[name] = after[name] / before[name]
        figures[f"{name}_alone"], figures[f"{name}_beside"] = before[name], after[name]
    return figures


async def idle(platform: Platform, seconds: float) -> Result:
    """What the platform uses when there is nothing to do: per cent of one core."""
    await asyncio.sleep(IDLE_AFTER_S)
    before, started = platform.cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    after, elapsed = platform.cpu_s(), time.monotonic() - started
    return Result("idle", {f"{part}_cpu_percent": (after[part] - before[part]) / elapsed * 100 for part in after})
