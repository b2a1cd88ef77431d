"""Many small writes in one transaction.

On two cores PostgreSQL commits some 555 deliveries a second one by one, and 15,300 a second a hundred at a time. So
whoever has something to store hands it in and waits; while one batch commits, the next gathers. There is no timer: a
single item on an idle system is written at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import structlog

from core.errors import HookwrightError, Unavailable
from core.storage.database import is_contention, is_unreachable

Item = TypeVar("Item")
Result = TypeVar("Result")

Entry = tuple[Item, asyncio.Future[Result]]

LANES = 3  # items tried alone at a time; it leaves connections to everything else

log = structlog.get_logger(__name__)


class GroupCommit(Generic[Item, Result]):
    """Gathers items and writes them with `flush`, which returns a result or an exception for each, in order.

    `weight` tells how much of `max_batch` one item takes. Where a whole batch fails for a reason in the data, each of
    its items is tried alone, so that one bad item fails only itself. So it is where another transaction was in the
    way: what can't have met it (not `may_contend`) is written together, the others alone and apart from the batches
    that come next, for each may wait for that transaction again.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | HookwrightError]]],
        *,
        max_batch: int,
        max_waiting: int,
        flushers: int = 1,
        weight: Callable[[Item], int] = lambda _: 1,
        may_contend: Callable[[Item], bool] = lambda _: True,
    ) -> None:
        self._flush = flush
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._flushers = flushers
        self._weight = weight
        self._may_contend = may_contend
        self._waiting: deque[Entry[Item, Result]] = deque()
        self._something = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._apart: set[asyncio.Task[None]] = set()
        self._lanes = asyncio.Semaphore(LANES)
        self._contending = 0  # items of `_apart`

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._flushers)]

    async def close(self) -> None:
        """Writes what still waits, then stops."""
        self._closing = True
        self._something.set()
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*self._apart)

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """A future of the item's result.

        Raises `Unavailable` when more is waiting than could be written in a reasonable time, or after `close`, when
        nobody would write it any more. Cancelling the future withdraws the item if its batch has not begun.
        """
        if self._closing:
            raise Unavailable("This process is stopping; try again")
        if len(self._waiting) + self._contending >= self._max_waiting:
            raise Unavailable("More is waiting to be stored than the database takes; slow down and try again")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._something.set()
        return future

    async def _run(self) -> None:
        while True:
            await self._something.wait()
            batch = self._take()
            if batch:
                await self._write(batch)
                del batch  # or an idle process would keep what it wrote last
            elif self._closing:
                return
            else:
                self._something.clear()

    def _take(self) -> list[Entry[Item, Result]]:
        batch: list[Entry[Item, Result]] = []
        room = self._max_batch
        while self._waiting and (room > 0 or not batch):
            item, future = self._waiting.popleft()
            if not future.done():  # its caller may have given up meanwhile
                batch.append((item, future))
                room -= self._weight(item)
        return batch

    async def _write(self, batch: list[Entry[Item, Result]]) -> None:
        error = await self._try(batch)
        if error is None:
            return
        if len(batch) > 1 and is_contention(error):
            await self._divide(batch, error)
        elif len(batch) > 1 and not is_unreachable(error):
            log.warning("a batch failed; writing its items one by one", items=len(batch), error=repr(error))
            await self._write_one_by_one(batch)
        else:
            _fail(batch, error)

    async def _divide(self, batch: list[Entry[Item, Result]], error: Exception) -> None:
        """After another transaction was in the way of some of them."""
        suspects = [entry for entry in batch if self._may_contend(entry[0])]
        others = [entry for entry in batch if not self._may_contend(entry[0])]
        if not suspects:  # then it is in the way of each
            _fail(batch, error)
            return
        log.warning("a batch met another transaction; writing its items alone", items=len(suspects), error=repr(error))
        self._contending += len(suspects)
        task = asyncio.create_task(self._write_apart(suspects))
        self._apart.add(task)
        task.add_done_callback(self._apart.discard)
        if others:
            await self._write(others)

    async def _write_apart(self, suspects: list[Entry[Item, Result]]) -> None:
        try:
            await asyncio.gather(*(self._write_alone(entry) for entry in suspects))
        finally:
            self._contending -= len(suspects)

    async def _write_alone(self, entry: Entry[Item, Result]) -> None:
        async with self._lanes:
            if not entry[1].done():  # its caller may have given up meanwhile
                await self._write([entry])

    async def _write_one_by_one(self, batch: list[Entry[Item, Result]]) -> None:
        for index, entry in enumerate(batch):
            if entry[1].done():  # its caller may have given up meanwhile
                continue
            error = await self._try([entry])
            if error is None:
                continue
            if is_unreachable(error):  # then the rest need not each wait for the same
                _fail(batch[index:], error)
                return
            _fail([entry], error)

    async def _try(self, batch: list[Entry[Item, Result]]) -> Exception | None:
        """Writes the batch and gives each its result; or returns why nothing was written."""
        try:
            results = await self._flush([item for item, _ in batch])
        except Exception as error:
            return error
        if len(results) != len(batch):
            # A fault of ours. They may well be written, so they are not tried again.
            _fail(batch, RuntimeError(f"{len(batch)} items were written and {len(results)} results came back"))
            return None
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, HookwrightError):
                future.set_exception(result)
            else:
                future.set_result(result)
        return None


def _fail(batch: list[Entry[Item, Result]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
