"""The heart of a worker: takes deliveries under a lease, sends them side by side, records what came of them.

A delivery is claimed only when there is room to send it now: a slot of this worker's, and room at its subscription's
gate (`worker.gates`). Whatever waits, waits in the database, where every worker sees it. A slot is free again once the
outcome is recorded, so a database that does not answer slows sending down instead of piling up results.

Three sources take turns, so that none waits for the others: what hints named, what is due (the sweep), and what is
parked for subscriptions that have room again. Slots are of two lanes, so that slow endpoints can't take the quick
ones'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice, zip_longest
from uuid import UUID

import structlog

from core import deliveries, events
from core.breaker import BreakerState
from core.breakers import Breakers
from core.database import Database
from core.deliveries import Choice, Claimed, Due, Finish, Park, Verdict
from core.failures import ErrorKind
from core.hints import Hint
from core.models import SubscriptionStatus
from core.payloads import StoredEvent
from core.states import PendingReason, State
from worker.circuits import Circuits
from worker.gates import Gate, Gates
from worker.membership import Membership
from worker.plans import Plan, Plans
from worker.ready import Admission, Ready
from worker.recorder import Recorder
from worker.sending import Transport, attempt

MAX_CLAIM = 250  # deliveries one claim takes
MAX_LOOK = 500  # due deliveries a sweep looks at
HINT_GRACE_S = 0.5  # new deliveries are left to their hint for so long before the sweep takes them
SWEEP_AGAIN_S = 0.1  # after another worker was found sweeping
PARKED_LOOK_S = 0.1  # how often rates and windows are looked at for what is parked
MAX_PARKED_SUBSCRIPTIONS = 200  # at a time
PARKED_LOOK_MOST_S = 2.0
CLAIM_PAUSE_S = 0.5
FAULT_DELAY_S = 60.0
STALE_DELAY_S = 1.0  # a claim that took too long is not followed by the same claim at once
CLOSE_S = 2.0  # of a stop, for recording

log = structlog.get_logger(__name__)


class Lane:
    """Slots: each holds one delivery from its claim until its outcome is recorded."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0

    @property
    def room(self) -> int:
        return self.size - self.used


class Engine:
    """Delivers. `max_in_flight`: the slots of the quick lane; the slow lane has half as many. `margin_s`: how long a
    lease lasts beyond the subscription's timeout."""

    def __init__(
        self,
        database: Database,
        transport: Transport,
        plans: Plans,
        *,
        max_in_flight: int,
        margin_s: float,
        membership: Membership | None = None,
    ) -> None:
        self._database = database
        self._transport = transport
        self._plans = plans
        self._margin_s = margin_s
        self._quick, self._slow = Lane(max_in_flight), Lane(slow_lane(max_in_flight))
        self.membership = membership or Membership()
        self.circuits = Circuits()
        self._clock = asyncio.get_running_loop().time
        self._gates = Gates(
            clock=self._clock, share=self.membership.share, circuit=self.circuits.state, move=self._move
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming: set[asyncio.Task[int]] = set()
        self._first, self._replays = Ready(), Ready()
        self._sweep_wanted = False
        self._left_behind = False  # something due found no slot
        self._parked: dict[UUID, None] = {}  # subscriptions that something is parked for, longest unserved first
        self._something = asyncio.Event()
        self._stopping = False
        self._recorder = Recorder(database, 2 * (self._quick.size + self._slow.size))

    def start(self) -> None:
        self._recorder.start()
        self._loops = [asyncio.create_task(self._claim_wanted()), asyncio.create_task(self._look_around())]

    @property
    def under_way(self) -> int:
        """Deliveries that hold a slot."""
        return self._quick.used + self._slow.used

    # --- what it is told ---

    async def take(self, hints: Iterable[Hint], *, replays: bool = False) -> None:
        """Will claim these, if they are due, as there is room, and send them; replays after everything else.

        What there is no room to remember, the sweep will find.
        """
        hints = list(hints)
        try:
            await self._learn({hint.subscription_id for hint in hints})
        except Exception as error:
            log.warning("hints could not be looked up; the sweep will", error=repr(error), hints=len(hints))
            return
        ready = self._replays if replays else self._first
        for hint in hints:
            gate = self._gates[hint.subscription_id]
            if not self._gates.is_held_up(gate) or self._gates.room(gate) > 0:
                ready.add(hint)
        self._something.set()

    def sweep(self) -> None:
        """Will claim what is due, whoever's hint was lost, and send it."""
        self._sweep_wanted = True
        self._something.set()

    async def flush_statistics(self) -> None:
        async with self._database.driver() as driver:
            await self._recorder.tally.flush(driver)

    async def sync_breakers(self, store: Breakers) -> None:
        await self.circuits.sync(store)
        self._something.set()

    async def find_parked(self) -> None:
        """Looks which subscriptions something is parked for, and what they allow now. Those that are paused wait."""
        after, until = UUID(int=0), self._clock() + PARKED_LOOK_MOST_S
        while True:
            async with self._database.driver() as driver:
                found = await deliveries.parked_subscriptions(driver, after, MAX_PARKED_SUBSCRIPTIONS)
            await self._plans.at({(one.id, one.version) for one in found})
            self._configure(one.id for one in found)
            for one in found:
                self._gates[one.id].sends = one.status == SubscriptionStatus.ACTIVE
                if one.status != SubscriptionStatus.PAUSED:
                    self._parked.setdefault(one.id)
            if found:
                self._something.set()
            if len(found) < MAX_PARKED_SUBSCRIPTIONS or self._clock() > until:
                return
            after = found[-1].id

    async def stop(self, timeout_s: float) -> None:
        """Sends nothing more; lets what is under way finish for `timeout_s`, then hands the rest back."""
        self._stopping = True
        for loop in self._loops:
            loop.cancel()
        end = self._clock() + timeout_s
        self._recorder.give_up_at = end + CLOSE_S
        while (self._tasks or self._claiming) and self._clock() < end:
            # A claim under way may still add tasks, which hand back; it ends by itself.
            await asyncio.wait([*self._tasks, *self._claiming], timeout=min(0.1, end - self._clock()))
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout_at(self._recorder.give_up_at):
                while self._tasks or self._claiming:
                    await asyncio.wait([*self._tasks, *self._claiming])
                await self._recorder.close()
        except TimeoutError:
            # Their leases end, and other workers take them up.
            log.warning("the database does not answer; outcomes stay unrecorded", outcomes=len(self._tasks))

    # --- lanes and gates ---

    def _lane(self, gate: Gate) -> Lane:
        return self._slow if gate.slow else self._quick

    def _move(self, slots: int, slow: bool) -> bool:
        """What an endpoint has under way changes the lane with it. False where the slow lane is more than full: then
        it stays where it is, or there would be no bound to what is under way."""
        if slow and self._slow.used and self._slow.used + slots > 2 * self._slow.size:
            return False
        (self._slow if slow else self._quick).used += slots
        (self._quick if slow else self._slow).used -= slots
        self._something.set()
        return True

    def _reserve(self, gate: Gate, delivery_id: UUID) -> bool:
        """Takes a slot and room at the gate, if there is."""
        lane = self._lane(gate)
        if self._is_crowded_out(gate):
            return False
        if lane.room <= 0 or delivery_id in gate.started or self._gates.room(gate) <= 0:
            return False
        lane.used += 1
        self._gates.start(gate, delivery_id)
        return True

    def _is_crowded_out(self, gate: Gate) -> bool:
        """Half of the quick lane is for those that are known to answer."""
        return not gate.slow and not gate.proven and self._gates.unproven_slots >= max(1, self._quick.size // 2)

    def _release(self, gate: Gate) -> None:
        (self._slow if self._gates.release(gate) else self._quick).used -= 1
        self._something.set()

    async def _learn(self, subscription_ids: set[UUID]) -> None:
        """The limits of those that this worker does not know yet."""
        unknown = [one for one in subscription_ids if self._gates[one].version == 0]
        if unknown:
            await self._plans.at({(one, 0) for one in unknown})
            self._configure(unknown)

    def _configure(self, subscription_ids: Iterable[UUID]) -> None:
        for one in subscription_ids:
            plan = self._plans.cached(one)
            if plan is not None:
                self._gates.configure(self._gates[one], plan.version, plan.limits, plan.breaker)

    async def _look_around(self) -> None:
        """A few times a second: who is slow by now, who may be sent more of what is parked, is there room for what was
        left behind?"""
        while True:
            await asyncio.sleep(PARKED_LOOK_S)
            self._gates.watch()
            if self._left_behind:
                self._left_behind = False
                self.sweep()
            if self._parked:
                self._something.set()

    # --- claiming ---

    async def _claim_wanted(self) -> None:
        sources = (self._claim_hinted, self._claim_due, self._claim_parked)
        others_first = (self._claim_due, self._claim_parked, self._claim_hinted)
        turn = 0
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                # In turns, until none finds anything to do; what they can't do now, an event tells them to try again.
                # Where slots are scarce the first takes them all: three times of four those are new deliveries.
                working = True
                while working:
                    turn += 1
                    working = any([await source() for source in (sources if turn % 4 else others_first)])
            except Exception as error:
                # The next sweep finds these. A pause, so that an outage is not met by claim upon claim.
                log.warning("deliveries could not be claimed; the sweep will", error=repr(error))
                await asyncio.sleep(CLAIM_PAUSE_S)
                self._something.set()

    async def _claim_hinted(self) -> bool:
        most = min(MAX_CLAIM, max(0, self._quick.room) + max(0, self._slow.room))
        if not most or not (self._first or self._replays):
            return False
        reserved: dict[UUID, Gate] = {}

        def admit(subscription_id: UUID, delivery_id: UUID) -> Admission:
            gate = self._gates[subscription_id]
            if delivery_id in reserved or delivery_id in gate.started:
                return Admission.SKIP
            if self._reserve(gate, delivery_id):
                reserved[delivery_id] = gate
                return Admission.YES
            self._left_behind = True
            if self._gates.is_held_up(gate):
                return Admission.FORGET
            return Admission.CROWD if self._is_crowded_out(gate) else Admission.WAIT

        wanted = self._first.take(most, admit)
        wanted += self._replays.take(most - len(wanted), admit)
        if not wanted:
            return False

        async def claim() -> list[Claimed]:
            async with self._database.driver() as driver:
                return await deliveries.claim(driver, wanted, margin_s=self._margin_s)

        await self._claim_and_send(claim, reserved)
        return True

    async def _claim_due(self) -> bool:
        if not self._sweep_wanted or (self._quick.room <= 0 and self._slow.room <= 0):
            return False
        self._sweep_wanted = False
        reserved: dict[UUID, Gate] = {}
        more: bool | None = False

        async def choose(due: Sequence[Due]) -> list[Choice | Park]:
            await self._learn({one.subscription_id for one in due})
            choices: dict[UUID, Choice | Park] = {one.id: self._choose(one, reserved) for one in _mixed(due)}
            return [choices[one.id] for one in due]

        async def claim() -> list[Claimed]:
            nonlocal more
            async with self._database.driver() as driver:
                swept = await deliveries.sweep(driver, MAX_LOOK, choose, margin_s=self._margin_s, grace_s=HINT_GRACE_S)
            more = swept.more
            self._parked |= dict.fromkeys(swept.parked)
            return swept.claims

        await self._claim_and_send(claim, reserved)
        if more is None:
            asyncio.get_running_loop().call_later(SWEEP_AGAIN_S, self.sweep)
        elif more:
            self._sweep_wanted = True
        return bool(more)

    def _choose(self, due: Due, reserved: dict[UUID, Gate]) -> Choice | Park:
        gate = self._gates[due.subscription_id]
        if len(reserved) < MAX_CLAIM and self._reserve(gate, due.id):
            reserved[due.id] = gate
            return Choice.CLAIM
        if due.id in gate.started:
            return Choice.LEAVE
        if self._gates.room(gate) > 0 and not gate.slow:
            self._left_behind = True
            return Choice.LEAVE  # it waits for a slot of this worker, not for its subscription
        if gate.circuit is BreakerState.CLOSED:
            return Park(PendingReason.RATE_LIMITED, 0.0)
        return Park(PendingReason.BREAKER_OPEN, self.circuits.opens_in_s(gate.id, gate.breaker))

    async def _claim_parked(self) -> bool:
        room: dict[UUID, int] = {}
        lanes = {True: self._slow.room, False: self._quick.room}
        left = MAX_CLAIM
        for one in list(islice(self._parked, MAX_PARKED_SUBSCRIPTIONS)):
            self._parked[one] = self._parked.pop(one)  # to the end: others come first next time
            gate = self._gates[one]
            size = min(self._gates.room(gate), lanes[gate.slow], left)
            if size > 0:
                room[one] = size
                lanes[gate.slow] -= size
                left -= size
        if not room:
            return False
        reserved: dict[UUID, Gate] = {}

        async def claim() -> list[Claimed]:
            async with self._database.driver() as driver:
                claims = await deliveries.claim_parked(driver, room, margin_s=self._margin_s)
            found = dict.fromkeys(room, 0)
            for claimed in claims:
                found[claimed.subscription_id] += 1
                gate = self._gates[claimed.subscription_id]
                reserved[claimed.id] = gate
                self._lane(gate).used += 1
                self._gates.start(gate, claimed.id)
            for one, size in room.items():
                if found[one] < size:
                    self._parked.pop(one, None)  # that was all
            return claims

        return await self._claim_and_send(claim, reserved) > 0

    async def _claim_and_send(self, claim: Callable[[], Awaitable[list[Claimed]]], reserved: dict[UUID, Gate]) -> int:
        """Sends what `claim` claims, and gives the reserved slots of the others back. Returns how many it claimed.

        A task of its own: were a claim cut off by a stop, what it had committed would wait for the lease to end.
        """
        task = asyncio.create_task(self._claim(claim, reserved))
        self._claiming.add(task)
        task.add_done_callback(self._claiming.discard)
        return await asyncio.shield(task)

    async def _claim(self, claim: Callable[[], Awaitable[list[Claimed]]], reserved: dict[UUID, Gate]) -> int:
        try:
            claimed_at = self._clock()
            claims = await claim()
            live = [one for one in claims if one.subscription_status != SubscriptionStatus.PAUSED]
            stored: dict[UUID, StoredEvent] = {}
            if live:
                async with self._database.driver() as driver:
                    stored = await events.stored(driver, list({one.event_id for one in live}))
            plans = await self._plans.at({(one.subscription_id, one.subscription_version) for one in live})
            self._configure({one.subscription_id for one in live})
            for claimed in live:
                event, plan = stored.get(claimed.event_id), plans.get(claimed.subscription_id)
                gate = reserved.pop(claimed.id)
                task = asyncio.create_task(self._deliver(gate, claimed, event, plan, claimed_at))
                self._tasks.add(task)
                task.add_done_callback(partial(self._ended, gate))
            held = [one for one in claims if one.subscription_status == SubscriptionStatus.PAUSED]
            if held:  # last, so that whatever becomes of it keeps no other subscription waiting
                for one in held:
                    self._gates[one.subscription_id].sends = False
                async with self._database.driver() as driver:
                    await deliveries.hold(driver, held)
            return len(claims)
        finally:
            for delivery_id, gate in reserved.items():
                self._gates.withdraw(gate, delivery_id)
                self._release(gate)

    def _ended(self, gate: Gate, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._release(gate)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its lease ends and the sweep takes it up again; but this should not happen, so say it.
            log.error("a delivery could not be handled", exc_info=error)

    # --- sending ---

    async def _deliver(
        self, gate: Gate, claimed: Claimed, event: StoredEvent | None, plan: Plan | None, claimed_at: float
    ) -> None:
        try:
            finish = self._unsent(gate, claimed, event, plan, claimed_at)
            if finish is None:
                assert event is not None and plan is not None  # noqa: S101, PT018 - for the type checker
                self._gates.send(gate, claimed.id)
                finish = await attempt(self._transport, plan, claimed, event)
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
        if self._stopping:
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
        if tried is None or tried.error_kind == ErrorKind.BLOCKED_ADDRESS or self._stopping:
            return
        current = self._plans.cached(claimed.subscription_id)
        if current is not None and current.url != tried.url:
            return  # it was meanwhile moved
        ok = tried.error_kind is None
        status = tried.status_code
        stalls = not ok and (status is None or status == 429 or status >= 500)
        self._gates.end(gate, claimed.id, ok=ok, stalls=stalls)
        self.circuits.record(claimed.subscription_id, gate.breaker, ok=ok)


def slow_lane(max_in_flight: int) -> int:
    """How many slots the slow lane has beside so many of the quick one. It may be overfull by as many again."""
    return max(1, max_in_flight // 2)


def _mixed(due: Sequence[Due]) -> list[Due]:
    """First attempts first; but where room is scarce, every fourth place is a retry's or a replay's in turn, or a long
    backlog would keep them waiting for ever."""
    first, retries, replays = ([one for one in due if one.rank == rank] for rank in range(3))
    later = [one for pair in zip_longest(retries, replays) for one in pair if one is not None]
    mixed: list[Due] = []
    for at in range(0, max(len(first), 3 * len(later)), 3):
        mixed += first[at : at + 3]
        mixed += later[at // 3 : at // 3 + 1]
    return mixed
