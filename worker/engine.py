"""The heart of a worker: takes deliveries under a lease, sends them side by side, records what came of them.

A delivery is claimed only when there is room to send it now, so whatever waits, waits in the database, where every
worker sees it. Room is given back once the outcome is recorded, so a database that does not answer slows sending
down instead of piling up results.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import structlog

from core import deliveries, events
from core.database import CONTENTION, Database, is_unreachable
from core.deliveries import Claimed, Finish, Verdict
from core.group_commit import GroupCommit
from core.models import SubscriptionStatus
from core.payloads import StoredEvent
from core.states import PendingReason, State
from worker.plans import Plan, Plans
from worker.sending import Transport, attempt

MAX_CLAIM = 250  # deliveries one claim takes
MAX_WANTED = 1_000  # deliveries that hints named and this worker has not claimed yet
CLAIM_PAUSE_S = 0.5
MAX_RECORD = 500  # outcomes one transaction records
FAULT_DELAY_S = 60.0
STALE_DELAY_S = 1.0  # a claim that took too long is not followed by the same claim at once
RECORD_RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # then every 2 s
GIVE_UP_RECORDING_S = 120.0
ENTANGLED_RETRY_S = 0.5
CLOSE_S = 2.0  # of a stop, for recording

log = structlog.get_logger(__name__)


class Engine:
    """Delivers. `margin_s`: how long a lease lasts beyond the subscription's timeout."""

    def __init__(
        self, database: Database, transport: Transport, plans: Plans, *, max_in_flight: int, margin_s: float
    ) -> None:
        self._database = database
        self._transport = transport
        self._plans = plans
        self._margin_s = margin_s
        self._room = max_in_flight
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._claiming: set[asyncio.Task[int]] = set()
        self._wanted: deque[UUID] = deque()
        self._sweep_wanted = False
        self._something_wanted = asyncio.Event()
        self._wants_more = asyncio.Event()
        self._wants_more.set()
        self._stopping = False
        self._give_up_at = math.inf  # when a stop can't wait for the database any longer
        self._recorder: GroupCommit[Finish, bool | None] = GroupCommit(
            self._record, max_batch=MAX_RECORD, max_waiting=max_in_flight * 2
        )

    def start(self) -> None:
        self._recorder.start()
        self._claimer = asyncio.create_task(self._claim_wanted())

    async def take(self, delivery_ids: Sequence[UUID]) -> None:
        """Will claim those of `delivery_ids` that are due, as room allows, and send them.

        Returns at once, unless `MAX_WANTED` wait already: then what is behind them had better go to another worker.
        What comes in while one claim is under way shares the next.
        """
        while len(self._wanted) >= MAX_WANTED:
            await self._wants_more.wait()
        self._wanted.extend(delivery_ids)
        self._note_wanted()

    def sweep(self) -> None:
        """Will claim what is due, whoever's hint was lost, and send it. Takes turns with hints, so that neither waits
        for the other when there is more of both than room."""
        self._sweep_wanted = True
        self._note_wanted()

    async def stop(self, timeout_s: float) -> None:
        """Sends nothing more; lets what is under way finish for `timeout_s`, then hands the rest back."""
        self._stopping = True
        self._claimer.cancel()
        clock = asyncio.get_running_loop().time
        end = clock() + timeout_s
        self._give_up_at = end + CLOSE_S
        while (self._tasks or self._claiming) and clock() < end:
            # A claim under way may still add tasks, which hand back; it ends by itself.
            await asyncio.wait([*self._tasks, *self._claiming], timeout=min(0.1, end - clock()))
        for task in self._tasks:
            task.cancel()
        try:
            async with asyncio.timeout_at(self._give_up_at):
                while self._tasks or self._claiming:
                    await asyncio.wait([*self._tasks, *self._claiming])
                await self._recorder.close()
        except TimeoutError:
            # Their leases end, and other workers take them up.
            log.warning("the database does not answer; outcomes stay unrecorded", outcomes=len(self._tasks))

    # --- claiming ---

    def _note_wanted(self) -> None:
        (self._something_wanted.set if self._wanted or self._sweep_wanted else self._something_wanted.clear)()
        (self._wants_more.set if len(self._wanted) < MAX_WANTED else self._wants_more.clear)()

    async def _claim_wanted(self) -> None:
        sweeping = False
        while True:
            await self._something_wanted.wait()
            await self._has_room.wait()
            sweeping = self._sweep_wanted and not (sweeping and self._wanted)
            try:
                await (self._claim_due() if sweeping else self._claim_hinted())
            except Exception as error:
                # The next sweep finds these. A pause, so that an outage is not met by claim upon claim.
                log.warning("deliveries could not be claimed; the sweep will", error=repr(error))
                await asyncio.sleep(CLAIM_PAUSE_S)

    async def _claim_hinted(self) -> None:
        size = self._reserve(min(len(self._wanted), MAX_CLAIM))
        part = [self._wanted.popleft() for _ in range(size)]
        self._note_wanted()
        await self._claim_and_send(size, part)

    async def _claim_due(self) -> None:
        size = self._reserve(MAX_CLAIM)
        self._sweep_wanted = False
        self._note_wanted()
        if await self._claim_and_send(size, None) == size:
            self.sweep()  # there may be more

    def _reserve(self, wanted: int) -> int:
        size = min(wanted, self._room)
        self._give_back(-size)
        return size

    def _give_back(self, size: int) -> None:
        self._room += size
        if self._room > 0:
            self._has_room.set()
        else:
            self._has_room.clear()

    async def _claim_and_send(self, size: int, delivery_ids: Sequence[UUID] | None) -> int:
        """Fills `size` reserved slots with what can be claimed and gives the others back. Returns how many it claimed.

        A task of its own: were a claim cut off by a stop, what it had committed would wait for the lease to end.
        """
        task = asyncio.create_task(self._claim(size, delivery_ids))
        self._claiming.add(task)
        task.add_done_callback(self._claiming.discard)
        return await asyncio.shield(task)

    async def _claim(self, size: int, delivery_ids: Sequence[UUID] | None) -> int:
        started = 0
        try:
            claimed_at = asyncio.get_running_loop().time()
            async with self._database.driver() as driver:
                claims = (
                    await deliveries.claim_due(driver, size, margin_s=self._margin_s)
                    if delivery_ids is None
                    else await deliveries.claim(driver, delivery_ids, margin_s=self._margin_s)
                )
                live = [one for one in claims if one.subscription_status != SubscriptionStatus.PAUSED]
                stored = await events.stored(driver, list({one.event_id for one in live})) if live else {}
            plans = await self._plans.at({(one.subscription_id, one.subscription_version) for one in live})
            for claimed in live:
                event, plan = stored.get(claimed.event_id), plans.get(claimed.subscription_id)
                task = asyncio.create_task(self._deliver(claimed, event, plan, claimed_at))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
                started += 1
            held = [one for one in claims if one.subscription_status == SubscriptionStatus.PAUSED]
            if held:  # last, so that whatever becomes of it keeps no other subscription waiting
                async with self._database.driver() as driver:
                    await deliveries.hold(driver, held)
            return len(claims)
        finally:
            self._give_back(size - started)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._give_back(1)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its lease ends and the sweep takes it up again; but this should not happen, so say it.
            log.error("a delivery could not be handled", exc_info=error)

    # --- sending ---

    async def _deliver(self, claimed: Claimed, event: StoredEvent | None, plan: Plan | None, claimed_at: float) -> None:
        verdict = deliveries.verdict_without_sending(claimed)
        if verdict is not None:
            finish = Finish(claimed, verdict)
        elif event is None or plan is None:
            # A fault on our side, which spends no attempt. The log says which; others are not held up.
            finish = Finish(claimed, Verdict(State.PENDING, PendingReason.RETRY, FAULT_DELAY_S))
        elif self._stopping:
            finish = Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, 0.0))
        elif asyncio.get_running_loop().time() - claimed_at > self._margin_s / 2:
            # This process stood still since the claim. Sending now could outlast the lease, so don't.
            finish = Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, STALE_DELAY_S))
        else:
            finish = await attempt(self._transport, plan, claimed, event)
        await self._keep(finish)

    # --- recording ---

    async def _keep(self, finish: Finish) -> None:
        """Stores the outcome, however long it takes, for what was sent should be known, or it would be sent again."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + GIVE_UP_RECORDING_S
        while (moved := await self._submit(finish)) is None:
            if clock() > min(give_up_at, self._give_up_at):
                raise TimeoutError("others held what this outcome changes for too long")
            await asyncio.sleep(ENTANGLED_RETRY_S)
        if not moved:
            log.warning("a lease was lost before its outcome was recorded", delivery=str(finish.claimed.id))

    async def _submit(self, finish: Finish) -> bool | None:
        try:
            # Shielded: a stop may cut the sending short, but not the outcome of what was sent.
            return await asyncio.shield(self._recorder.submit(finish))
        except Exception as error:
            if finish.tried is None or is_unreachable(error):
                raise
            # Something in this answer can't be stored. The outcome matters more than what the receiver said.
            log.exception("an attempt could not be recorded whole", delivery=str(finish.claimed.id))
            bare = replace(finish.tried, response_headers=None, response_body=None, error_message=None)
            return await self._recorder.submit(replace(finish, tried=bare))

    async def _record(self, finishes: list[Finish]) -> list[bool | None]:
        """Whether each delivery moved; None where somebody else holds what the outcome changes besides."""
        outcomes: dict[int, bool | None] = {}
        plain = [at for at, one in enumerate(finishes) if not deliveries.is_entangled(one)]
        entangled = [at for at, one in enumerate(finishes) if deliveries.is_entangled(one)]
        if plain:
            outcomes.update(zip(plain, await self._record_patiently([finishes[at] for at in plain]), strict=True))
        if entangled:
            try:
                moved = await self._record_patiently([finishes[at] for at in entangled], until=CONTENTION)
                outcomes.update(zip(entangled, moved, strict=True))
            except CONTENTION as error:
                log.warning("outcomes wait for what others hold", outcomes=len(entangled), error=repr(error))
        return [outcomes.get(at) for at in range(len(finishes))]

    async def _record_patiently(
        self, finishes: list[Finish], *, until: tuple[type[BaseException], ...] = ()
    ) -> list[bool]:
        """Waits out a database that is away."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + GIVE_UP_RECORDING_S
        tries = 0
        while True:
            try:
                async with self._database.driver() as driver:
                    return await deliveries.finish(driver, finishes)
            except Exception as error:
                if isinstance(error, until) or not is_unreachable(error):
                    raise
                if clock() > min(give_up_at, self._give_up_at):
                    raise
                if tries == 0:
                    log.warning(
                        "the database does not answer; outcomes wait", outcomes=len(finishes), error=repr(error)
                    )
                await asyncio.sleep(RECORD_RETRY_S[min(tries, len(RECORD_RETRY_S) - 1)])
                tries += 1
