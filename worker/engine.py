"""The heart of a worker: takes deliveries under a lease, which its sender sends side by side.

A delivery is claimed only when there is room to send it now: a slot of this worker's, and room at its subscription's
gate (`worker.gates`). Whatever waits, waits in the database, where every worker sees it. A slot is free again once the
outcome is recorded, so a database that does not answer slows sending down instead of piling up results.

Three sources take turns, so that none waits for the others: what hints named, what is due (the sweep), and what is
parked for subscriptions that have room again. Where slots are plenty a sweep runs beside the others. Slots are of two
lanes, so that slow endpoints can't take the quick ones'.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import structlog

from core import deliveries
from core.deliveries import Choice, Claimed, Due, Park
from core.hints import Hint
from core.limiting.breakers import Breakers
from core.models import SubscriptionStatus
from core.storage.database import Database
from worker import room
from worker.breaker_changes import BreakerChanges
from worker.gates import Gate
from worker.grace import Grace
from worker.membership import Membership
from worker.plans import Plans
from worker.ready import Admission, Ready
from worker.recorder import Recorder
from worker.room import Room
from worker.sender import Sender
from worker.sending import Transport

SWEEP_AGAIN_S = 0.1  # after another worker was found sweeping
PARKED_LOOK_S = 0.1  # how often rates and windows are looked at for what is parked
PARKED_PAGE = 200
FIND_PARKED_S = 0.5  # of each second
CLAIM_PAUSE_S = 0.5
CLOSE_S = 2.0  # of a stop, for recording

Result = TypeVar("Result")

log = structlog.get_logger(__name__)


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
        self._plans = plans
        self._clock = asyncio.get_running_loop().time
        self.membership = membership or Membership()
        self._terms: dict[str, Any] = {"margin_s": margin_s, "worker_id": self.membership.id}  # of a lease
        self._something = asyncio.Event()
        self._room = Room(max_in_flight, clock=self._clock, members=self.membership, changed=self._something.set)
        self._gates, self._lanes, self._parked = self._room.gates, self._room.lanes, self._room.parked
        self._loops: list[asyncio.Task[None]] = []
        self._claiming: set[asyncio.Task[Any]] = set()
        self._in_turn = asyncio.Lock()  # held while what one claim took is set on its way
        self._first, self._replays = Ready(), Ready()
        self._grace = Grace()
        self._sweep_wanted = False
        self._sweeping = False  # beside what hints name
        self._find_parked_after = UUID(int=0)  # the subscription up to which they were looked for
        self._claim_after = 0.0  # by the loop's clock
        self._breaker_changes = BreakerChanges(self._clock)
        self._recorder = Recorder(database, 2 * (self._lanes.quick.size + self._lanes.slow.size))
        self._sender = Sender(database, transport, plans, self._room, self._recorder, margin_s=margin_s)

    def start(self) -> None:
        self._recorder.start()
        self._loops = [asyncio.create_task(self._claim_wanted()), asyncio.create_task(self._look_around())]

    @property
    def under_way(self) -> int:
        """Deliveries that hold a slot."""
        return self._lanes.used

    # --- what it is told ---

    async def take(self, hints: Iterable[Hint], *, replays: bool = False) -> dict[UUID, list[Hint]]:
        """Will claim these, if they are due, as there is room, and send them; replays after everything else. Returns
        those that another worker is to claim, by its id: of limits that are too small to be shared, it has all.

        What there is no room to remember, the sweep will find.
        """
        others: dict[UUID, list[Hint]] = {}
        hints = list(hints)
        try:
            await self._learn({hint.subscription_id for hint in hints})
        except Exception as error:
            log.warning("hints could not be looked up; the sweep will", error=repr(error), hints=len(hints))
            return others
        ready = self._replays if replays else self._first
        for hint in hints:
            gate = self._gates[hint.subscription_id]
            if self._gates.is_anothers(gate):
                others.setdefault(self.membership.first(gate.id), []).append(hint)
            elif most := self._room.remembers(gate, replay=replays):
                ready.add(hint, most)
        self._something.set()
        return others

    def sweep(self) -> None:
        """Will claim what is due, whoever's hint was lost, and send it."""
        self._sweep_wanted = True
        self._something.set()

    async def flush_statistics(self) -> None:
        async with self._database.driver() as driver:
            await self._recorder.tally.flush(driver)

    async def sync_breakers(self, store: Breakers) -> None:
        for subscription_id, breaker in await self._room.circuits.sync(store, self._urls_now):
            self._breaker_changes.note(subscription_id, breaker)
        self._something.set()

    async def _urls_now(self, subscription_ids: Sequence[UUID]) -> dict[UUID, str]:
        async with self._database.driver() as driver:
            rows = await driver.fetch("SELECT id, url FROM subscriptions WHERE id = ANY($1::uuid[])", subscription_ids)
        return {row["id"]: row["url"] for row in rows}

    async def flush_breaker_changes(self) -> None:
        await self._breaker_changes.flush(self._database)

    async def find_parked(self) -> None:
        """Looks which subscriptions something is parked for, and what they allow now. Those that are paused wait.

        Where they are very many it returns after `FIND_PARKED_S`, and goes on from there the next time."""
        until = self._clock() + FIND_PARKED_S
        while True:
            async with self._database.driver() as driver:
                found = await deliveries.parked_subscriptions(driver, self._find_parked_after, PARKED_PAGE)
            self._room.know(await self._plans.at({(one.id, one.version) for one in found}))
            for one in found:
                self._gates[one.id].sends = one.status == SubscriptionStatus.ACTIVE
                if one.status != SubscriptionStatus.PAUSED:
                    self._parked.found(one.organization_id, one.id, first=one.first)
            if found:
                self._something.set()
            was_last = len(found) < PARKED_PAGE
            self._find_parked_after = UUID(int=0) if was_last else found[-1].id
            if was_last or self._clock() > until:
                return

    async def stop(self, timeout_s: float) -> None:
        """Sends nothing more; lets what is under way finish for `timeout_s`, then hands the rest back."""
        self._sender.stopping = True
        for loop in self._loops:
            loop.cancel()
        end = self._clock() + timeout_s
        self._recorder.give_up_at = end + CLOSE_S
        while (self._sender.tasks or self._claiming) and self._clock() < end:
            # A claim under way may still add tasks, which hand back; it ends by itself.
            await asyncio.wait([*self._sender.tasks, *self._claiming], timeout=min(0.1, end - self._clock()))
        self._sender.cut_short()
        try:
            async with asyncio.timeout_at(self._recorder.give_up_at):
                while self._sender.tasks or self._claiming:
                    await asyncio.wait([*self._sender.tasks, *self._claiming])
                await self._recorder.close()
        except TimeoutError:
            # Their leases end, and other workers take them up.
            log.warning("the database does not answer; outcomes stay unrecorded", outcomes=len(self._sender.tasks))

    # --- limits ---

    async def _learn(self, subscription_ids: set[UUID]) -> None:
        """The limits of those that this worker does not know yet."""
        unknown = [one for one in subscription_ids if self._gates[one].version == 0]
        if unknown:
            self._room.know(await self._plans.at({(one, 0) for one in unknown}))

    async def _look_around(self) -> None:
        """A few times a second: who is slow by now, who may be sent more of what is parked, is there room for what was
        left behind?"""
        while True:
            await asyncio.sleep(PARKED_LOOK_S)
            try:
                if self._room.look_around():
                    self.sweep()
            except Exception:
                log.exception("endpoints could not be looked at; they will be again")
            if self._room.awaits_time():
                self._something.set()

    # --- claiming ---

    async def _claim_wanted(self) -> None:
        sources = (self._claim_hinted, self._claim_due, self._claim_parked)
        others_first = (self._claim_due, self._claim_parked, self._claim_hinted)
        turn = 1  # only those in which something was done count, or the same would be first each time
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                # In turns, until none finds anything to do; what they can't do now, an event tells them to try again.
                # Where slots are scarce the first takes them all: three times of four those are new deliveries. Where
                # they are not, a sweep has its own time.
                working = True
                while working:
                    if self._claim_after > self._clock():
                        await asyncio.sleep(self._claim_after - self._clock())
                    ordered = others_first if self._is_scarce() and turn % 4 == 0 else sources
                    working = any([await source() for source in ordered])
                    turn += working
            except Exception as error:
                log.warning("deliveries could not be claimed; the sweep will", error=repr(error))
                self._pause()
                self._something.set()

    def _is_scarce(self) -> bool:
        """Whether what is claimed at one moment might take all the slots there are."""
        return self._lanes.free <= 2 * room.MAX_CLAIM

    def _pause(self) -> None:
        """So that an outage is not met by claim upon claim."""
        self._claim_after = self._clock() + CLAIM_PAUSE_S

    async def _claim_hinted(self) -> bool:
        most = min(room.MAX_CLAIM, self._lanes.free)
        if not most:
            return False
        reserved: dict[UUID, Gate] = {}

        def admit(subscription_id: UUID, delivery_id: UUID) -> Admission:
            return self._room.admit(subscription_id, delivery_id, reserved)

        def admit_replay(subscription_id: UUID, delivery_id: UUID) -> Admission:
            return self._room.admit(subscription_id, delivery_id, reserved, replay=True)

        wanted = self._first.take(most, admit)
        is_full = len(wanted) == most
        if not is_full:
            self._grace.end()
            wanted += self._replays.take(most - len(wanted), admit_replay)
        if not wanted:
            return False

        async def claim() -> list[Claimed]:
            async with self._database.driver() as driver:
                claims = await deliveries.claim(driver, wanted, **self._terms)
            if is_full:
                self._grace.note(claims)
            return claims

        await self._claim_and_send(claim, reserved)
        return True

    async def _claim_due(self) -> bool:
        if not self._sweep_wanted or not self._lanes.free or self._sweeping:
            return False
        self._sweep_wanted = False
        if self._is_scarce():
            return await self._sweep()
        # A sweep that has hundreds to put aside takes ten times as long as the claim of a few that were hinted.
        self._sweeping = True
        self._claiming_task(self._sweep_beside())
        return False

    async def _sweep_beside(self) -> None:
        try:
            if not self._sender.stopping:
                await self._sweep()
        except Exception as error:
            log.warning("what is due could not be claimed; the next sweep will", error=repr(error))
            self._pause()
        finally:
            self._sweeping = False
            self._something.set()

    async def _sweep(self) -> bool:
        """Whether there may be more that is due."""
        reserved: dict[UUID, Gate] = {}
        more: bool | None = False

        async def choose(due: Sequence[Due]) -> list[Choice | Park]:
            await self._learn({one.subscription_id for one in due})
            return self._room.choose(due, reserved)

        async def claim() -> list[Claimed]:
            nonlocal more
            async with self._database.driver() as driver:
                swept = await deliveries.sweep(
                    driver, room.MAX_LOOK, choose, grace_s=self._grace.seconds, **self._terms
                )
            more = swept.more
            for one in swept.parked:
                self._parked.add(one.organization_id, one.subscription_id, first=one.rank == 0)
            return swept.claims

        await self._claim_and_send(claim, reserved)
        if more is None:
            asyncio.get_running_loop().call_later(SWEEP_AGAIN_S, self.sweep)
        elif more:
            self._sweep_wanted = True
        return bool(more)

    async def _claim_parked(self) -> bool:
        wanted = self._room.for_parked()
        if not wanted:
            return False
        reserved: dict[UUID, Gate] = {}

        async def claim() -> list[Claimed]:
            async with self._database.driver() as driver:
                claims = await deliveries.claim_parked(driver, [want for _, want in wanted], **self._terms)
            found = Counter(one.subscription_id for one in claims)
            for claimed in claims:
                gate = self._gates[claimed.subscription_id]
                reserved[claimed.id] = gate
                self._room.take_slot(gate, claimed.id)
            for organization_id, want in wanted:
                if found[want.subscription_id] < want.size:
                    self._parked.discard(organization_id, want.subscription_id)  # that was all
            return claims

        return await self._claim_and_send(claim, reserved) > 0

    async def _claim_and_send(self, claim: Callable[[], Awaitable[list[Claimed]]], reserved: dict[UUID, Gate]) -> int:
        """Sends what `claim` claims, and gives the reserved slots of the others back. Returns how many it claimed, once
        they are and those before are on their way: one batch is sent while the next is claimed.

        Tasks of their own: were a claim cut off by a stop, what it had committed would wait for the lease to end.
        """
        return await asyncio.shield(self._claiming_task(self._claim(claim, reserved)))

    def _claiming_task(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._claiming.add(task)
        task.add_done_callback(self._claiming.discard)
        return task

    async def _claim(self, claim: Callable[[], Awaitable[list[Claimed]]], reserved: dict[UUID, Gate]) -> int:
        claimed_at = self._clock()
        try:
            claims = await claim()
        except BaseException:
            self._room.give_back(reserved)
            raise
        await self._in_turn.acquire()  # or claims could outrun this, and their reads take all connections
        self._claiming_task(self._send(claims, reserved, claimed_at))
        return len(claims)

    async def _send(self, claims: Sequence[Claimed], reserved: dict[UUID, Gate], claimed_at: float) -> None:
        """Lets the next batch have its turn once these are on their way."""
        try:
            await self._sender.send(claims, reserved, claimed_at)
        except Exception as error:
            log.warning("what was claimed could not be sent; it will be once its leases end", error=repr(error))
            self._pause()
        finally:
            self._room.give_back(reserved)
            self._in_turn.release()
