"""The books, once all is quiet: what was accepted, what came of it, what the receiver got.

| must hold | or else |
|---|---|
| every event that was answered with 2xx is stored, once, under the id in the answer | lost, or doubled |
| every stored event was sent by the producer | made up |
| every delivery is delivered, or dead where the scenario allows it; none is `sending` | stuck |
| everything delivered was received, everything received was accepted | a lie |
| a webhook that came twice had its first copy in the air, or unrecorded, when a process was harmed | sloppy |
| attempts recorded ≥ requests received less the explained repeats | unrecorded |
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from core import ids
from tests.faults.producer import Producer
from tests.faults.scene import LEASE_S, SLACK_S, Scene
from tests.receiver import Recorded

# Between a receipt and the commit of its outcome: a request that hangs until its timeout, and one batch, on a busy
# machine.
UNRECORDED_S = 6.0
ALL_WITHIN_S = 120  # however slow the machine


@dataclass(frozen=True)
class Ledger:
    accepted: int
    delivered: int
    dead: int
    requests: int
    repeats: int  # requests beyond the first for each webhook-id and its recorded timeouts, all of them explained

    def __str__(self) -> str:
        return (
            f"accepted {self.accepted} = delivered {self.delivered} + dead {self.dead}; "
            f"{self.requests} requests, {self.repeats} of them repeats after a kill"
        )


async def settle(scene: Scene, producer: Producer, *, within_s: float = LEASE_S + 2 * SLACK_S) -> Ledger:
    """Waits until nothing is pending or sending, then checks the books of one subscription that takes everything.

    `within_s`: in which something must come to its end; how long all of it takes depends on the machine.
    """
    await _quiet(scene, within_s)
    stored = await scene.query("SELECT id, external_id FROM events")
    deliveries = await scene.query("SELECT event_id, state FROM deliveries")
    [attempts] = await scene.query("SELECT count(*) FROM attempts")

    shown = {row["external_id"]: ids.show(ids.EVENT, row["id"]) for row in stored}
    assert len(stored) == len(shown), "an event_id was stored twice"
    assert shown == {one.event_id: one.shown_id for one in producer.accepted}, "stored is not what was accepted"
    by_event = {ids.show(ids.EVENT, row["event_id"]): row["state"] for row in deliveries}
    assert len(deliveries) == len(by_event) == len(stored), "an event has not exactly one delivery"
    delivered = {one for one, state in by_event.items() if state == "delivered"}
    dead = {one for one, state in by_event.items() if state == "dead"}
    assert len(delivered) + len(dead) == len(by_event), f"neither delivered nor dead: {await scene.states()}"

    received = _received(scene)
    assert delivered <= set(received), "delivered, it says, and never received"
    assert set(received) <= set(by_event), "received and never accepted"
    failed = await scene.query(
        "SELECT d.event_id, count(*) AS n, count(*) FILTER (WHERE a.error_kind = 'timeout') AS late"
        " FROM attempts a JOIN deliveries d ON d.id = a.delivery_id WHERE a.error_kind IS NOT NULL GROUP BY 1"
    )
    retries = {ids.show(ids.EVENT, row["event_id"]): row["n"] for row in failed}
    late = {ids.show(ids.EVENT, row["event_id"]): row["late"] for row in failed}  # on a busy machine, any may be
    repeats = sum(max(0, len(copies) - 1 - late.get(one, 0)) for one, copies in received.items())
    unexplained = [one for one, copies in received.items() if _unexplained(scene, copies) > retries.get(one, 0)]
    assert not unexplained, f"{len(unexplained)} came twice and no kill explains it, such as {unexplained[:3]}"
    requests = len(scene.receiver.requests)
    assert attempts["count"] >= requests - repeats, "requests were made that no attempt tells of"
    return Ledger(len(producer.accepted), len(delivered), len(dead), requests, repeats)


async def _quiet(scene: Scene, within_s: float) -> None:
    began = ended = time.monotonic()
    left = await _unfinished(scene)
    while left:
        await asyncio.sleep(0.05)
        before, left = left, await _unfinished(scene)
        now = time.monotonic()
        if left < before:
            ended = now
        assert now - ended < within_s, f"none of {left} unfinished came to its end in {within_s:.1f} s"
        assert now - began < ALL_WITHIN_S, f"{left} unfinished after {ALL_WITHIN_S} s"


async def _unfinished(scene: Scene) -> int:
    states = await scene.states()
    return int(states.get("pending", 0) + states.get("sending", 0))


def _received(scene: Scene) -> dict[str, list[Recorded]]:
    found: dict[str, list[Recorded]] = defaultdict(list)
    for request in scene.receiver.requests:
        webhook_id = request.header("webhook-id")
        assert webhook_id is not None
        found[webhook_id].append(request)
    return found


def _unexplained(scene: Scene, copies: list[Recorded]) -> int:
    """How many of the repeats no recorded harm explains. Each needs a failed attempt in the history instead, such as
    one that the receiver, on a busy machine, answered after the deadline."""
    times = sorted(one.monotonic for one in copies)
    return sum(
        not any(harm.began - UNRECORDED_S <= earlier <= harm.ended and harm.began <= later for harm in scene.harms)
        for earlier, later in pairwise(times)
    )
