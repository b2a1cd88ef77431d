"""Outcomes, committed together, however long that takes: what was sent should be known, or it would be sent again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from itertools import chain, repeat

import structlog

from core import deliveries
from core.deliveries import Finish
from core.stats import Tally
from core.storage.database import CONTENTION, Database, is_unreachable
from core.storage.group_commit import GroupCommit

MAX_RECORD = 500  # outcomes one transaction records
RETRY_S = (0.1, 0.2, 0.5, 1.0, 2.0)  # then every 2 s
GIVE_UP_S = 120.0
HELD_RETRY_S = (0.05, 0.1, 0.2, 0.5)  # then every 0.5 s

log = structlog.get_logger(__name__)


class Recorder:
    """Records the ends of claims, and counts them in `tally`. `most`: how many may wait at once."""

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._plain: GroupCommit[Finish, bool | None] = GroupCommit(
            self._record, max_batch=MAX_RECORD, max_waiting=most
        )
        # What changes more than its delivery, and may find somebody else there, keeps no other outcome waiting.
        self._entangled: GroupCommit[Finish, bool | None] = GroupCommit(
            self._record_entangled, max_batch=MAX_RECORD, max_waiting=most
        )
        self.tally = Tally()
        self.give_up_at = math.inf  # by the loop's clock: when a stop can't wait for the database any longer

    def start(self) -> None:
        self._plain.start()
        self._entangled.start()

    async def close(self) -> None:
        await asyncio.gather(self._plain.close(), self._entangled.close())

    async def keep(self, finish: Finish) -> None:
        """Returns once it is stored, or its lease was lost. Raises when the database is away for too long.

        To be cancelled by nobody who cares for the outcome: what waits for its batch would be withdrawn.
        """
        group = self._entangled if deliveries.is_entangled(finish) else self._plain
        pauses: Iterator[float] | None = None
        while True:
            try:
                moved = await group.submit(finish)
            except Exception as error:
                if finish.tried is None or is_unreachable(error):
                    raise
                # Something in this answer can't be stored. The outcome matters more than what the receiver said.
                log.exception("an attempt could not be recorded whole", delivery=str(finish.claimed.id))
                bare = finish.tried._replace(response_headers=None, response_body=None, error_message=None)
                finish = finish._replace(tried=bare)
                moved = await group.submit(finish)
            if moved is not None:
                break
            pauses = pauses or self._pauses()
            await asyncio.sleep(next(pauses))
        if moved:
            self.tally.add(finish)
        else:
            log.warning("a lease was lost before its outcome was recorded", delivery=str(finish.claimed.id))

    def _pauses(self) -> Iterator[float]:
        """Between tries, while others hold what an outcome changes."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + GIVE_UP_S
        for pause_s in chain(HELD_RETRY_S, repeat(HELD_RETRY_S[-1])):
            if clock() > min(give_up_at, self.give_up_at):
                raise TimeoutError("others held what this outcome changes for too long")
            yield pause_s

    async def _record_entangled(self, finishes: list[Finish]) -> list[bool | None]:
        """Whether each delivery moved; None where somebody else holds what the outcome changes besides."""
        try:
            return await self._record(finishes, until=CONTENTION)
        except CONTENTION as error:
            log.warning("outcomes wait for what others hold", outcomes=len(finishes), error=repr(error))
            return [None] * len(finishes)

    async def _record(
        self, finishes: list[Finish], *, until: tuple[type[BaseException], ...] = ()
    ) -> list[bool | None]:
        """Whether each delivery moved; None where somebody else holds it. Waits out a database that is away, but not
        what is in `until`."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + GIVE_UP_S
        tries = 0
        while True:
            try:
                async with self._database.driver() as driver:
                    return await deliveries.finish(driver, finishes, wait=False)
            except Exception as error:
                if isinstance(error, until) or not is_unreachable(error):
                    raise
                if clock() > min(give_up_at, self.give_up_at):
                    raise
                if tries == 0:
                    log.warning(
                        "the database does not answer; outcomes wait", outcomes=len(finishes), error=repr(error)
                    )
                await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
                tries += 1
