"""From a claim to its outcome: each delivery is sent by a task of its own, and what came of it is recorded and heeded.

Whether it is sent at all is decided here, by what its subscription, its event and this process are by now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, cast
from uuid import UUID

import structlog

from core import deliveries, events
from core.deliveries import Claimed, Finish, Verdict
from core.failures import ErrorKind
from core.models import SubscriptionStatus
from core.payloads import StoredEvent
from core.states import DiscardReason, PendingReason, State
from core.storage.database import Database
from worker.gates import Gate
from worker.plans import Plan, Plans
from worker.recorder import Recorder
from worker.room import Room
from worker.sending import Transport, attempt

FAULT_DELAY_S = 60.0
STALE_DELAY_S = 1.0  # a claim that took too long is not followed by the same claim at once

log = structlog.get_logger(__name__)


class Sender:
    """`margin_s`: how long a lease lasts beyond the subscription's timeout."""

    def __init__(
        self,
        database: Database,
        transport: Transport,
        plans: Plans,
        room: Room,
        recorder: Recorder,
        *,
        margin_s: float,
    ) -> None:
        self._database = database
        self._transport = transport
        self._plans = plans
        self._room, self._gates = room, room.gates
        self._recorder = recorder
        self._margin_s = margin_s
        self._clock = asyncio.get_running_loop().time
        self.tasks: set[asyncio.Task[None]] = set()
        self._attempts: set[asyncio.Task[Any]] = set()  # those of them that may be cut short
        self.stopping = False  # what comes from now on is handed back

    def cut_short(self) -> None:
        """Ends all attempts; that they were made is recorded."""
        for task in self._attempts:
            task.cancel()

    async def send(self, claims: Sequence[Claimed], reserved: dict[UUID, Gate], claimed_at: float) -> None:
        """Sets them on their way, each out of `reserved`, where its slot stands. Raises what the database does."""
        live = [one for one in claims if one.subscription_status != SubscriptionStatus.PAUSED]
        stored: dict[UUID, StoredEvent] = {}
        if live:
            async with self._database.driver() as driver:
                stored = await events.stored(driver, list({one.event_id for one in live}))
        plans = await self._plans.at({(one.subscription_id, one.subscription_version) for one in live})
        self._room.know(plans)
        for claimed in live:
            event, plan = stored.get(claimed.event_id), plans.get(claimed.subscription_id)
            gate = reserved.pop(claimed.id)
            task = asyncio.create_task(self._deliver(gate, claimed, event, plan, claimed_at))
            self.tasks.add(task)
            task.add_done_callback(partial(self._ended, gate))
        held = [one for one in claims if one.subscription_status == SubscriptionStatus.PAUSED]
        if held:  # last, so that whatever becomes of it keeps no other subscription waiting
            for one in held:
                self._gates[one.subscription_id].sends = False
            async with self._database.driver() as driver:
                await deliveries.hold(driver, held)

    def _ended(self, gate: Gate, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._room.release(gate)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its lease ends and the sweep takes it up again; but this should not happen, so say it.
            log.error("a delivery could not be handled", exc_info=error)

    async def _deliver(
        self, gate: Gate, claimed: Claimed, event: StoredEvent | None, plan: Plan | None, claimed_at: float
    ) -> None:
        try:
            finish = self._unsent(gate, claimed, event, plan, claimed_at)
            if finish is None:
                assert event is not None and plan is not None  # nosec B101 # noqa: S101, PT018 - for the type checker
                self._gates.send(gate, claimed.id)
                task = cast("asyncio.Task[Any]", asyncio.current_task())
                # This alone is cut short by a stop: what comes before hands back, and what came of it is recorded.
                self._attempts.add(task)
                try:
                    finish = await attempt(self._transport, plan, claimed, event)
                finally:
                    self._attempts.discard(task)
                self._heed(gate, claimed, finish)
        finally:
            self._gates.withdraw(gate, claimed.id)
        await self._recorder.keep(finish)

    def _unsent(
        self, gate: Gate, claimed: Claimed, event: StoredEvent | None, plan: Plan | None, claimed_at: float
    ) -> Finish | None:
        """What becomes of one that is not to be sent; None when it is."""
        verdict = deliveries.verdict_without_sending(claimed)
        gate.sends = verdict is None
        if verdict is not None:
            return Finish(claimed, verdict)
        if event is None or plan is None:
            # A fault on our side, which spends no attempt. The log says which; others are not held up.
            return Finish(claimed, Verdict(State.PENDING, PendingReason.RETRY, FAULT_DELAY_S))
        if event.redacted:
            return Finish(claimed, Verdict(State.DISCARDED, DiscardReason.EVENT_REDACTED))
        if self.stopping:
            return Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, 0.0))
        if gate.id != claimed.subscription_id:
            return Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, 0.0))  # a hint that lied
        if self._clock() - claimed_at > self._margin_s / 2 or self._gates.is_overrun(gate):
            # This process stood still since the claim: sending now could outlast the lease. Or its limits are lower
            # than the gate knew, or it takes deliveries again that only passed through before.
            return Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, STALE_DELAY_S))
        return None

    def _heed(self, gate: Gate, claimed: Claimed, finish: Finish) -> None:
        """What an attempt says about its endpoint."""
        tried = finish.tried
        if tried is None or tried.error_kind == ErrorKind.BLOCKED_ADDRESS or self.stopping:
            return
        current = self._plans.cached(claimed.subscription_id)
        if current is not None and current.url != tried.url:
            return  # it was meanwhile moved
        ok = tried.error_kind is None
        status = tried.status_code
        stalls = not ok and (status is None or status == 429 or status >= 500)
        self._gates.end(gate, claimed.id, ok=ok, stalls=stalls)
        self._room.circuits.record(claimed.subscription_id, gate.breaker, tried.url, ok=ok)
