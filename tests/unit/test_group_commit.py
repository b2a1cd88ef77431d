"""Many small writes in one: batching, order, and who fails when something fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import pytest

from core.errors import Conflict, HookwrightError, Unavailable
from core.storage.group_commit import GroupCommit


class Disk:
    """Where batches go. Holds back until `go`; fails a batch for which `fault` gives an error."""

    def __init__(self, fault: Callable[[list[str]], Exception | None] = lambda _: None) -> None:
        self.batches: list[list[str]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.reached = asyncio.Event()
        self._fault = fault

    async def write(self, items: list[str]) -> Sequence[str | HookwrightError]:
        self.batches.append(items)
        self.reached.set()
        await self.go.wait()
        if error := self._fault(items):
            raise error
        return [Conflict(item) if item.startswith("refused") else item.upper() for item in items]


def grouped(
    test: Callable[[GroupCommit[str, str], Disk], Awaitable[None]],
    fault: Callable[[list[str]], Exception | None] = lambda _: None,
    **options: Any,
) -> None:
    async def run() -> None:
        disk = Disk(fault)
        chosen = {"max_batch": 100, "max_waiting": 1000} | options
        group: GroupCommit[str, str] = GroupCommit(disk.write, **chosen)
        group.start()
        async with asyncio.timeout(10):
            await test(group, disk)
            disk.go.set()
            await group.close()

    asyncio.run(run())


async def busy(group: GroupCommit[str, str], disk: Disk) -> asyncio.Future[str]:
    """Occupies the writer with one item, so that what follows gathers."""
    disk.go.clear()
    disk.reached.clear()
    first = group.submit("first")
    await disk.reached.wait()
    return first


def test_a_single_item_is_written_at_once() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        assert await group.submit("a") == "A"
        assert disk.batches == [["a"]]

    grouped(test)


def test_what_comes_while_a_batch_is_written_makes_the_next_batch() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        first = await busy(group, disk)
        rest = [group.submit(f"item {n}") for n in range(50)]
        disk.go.set()
        assert await first == "FIRST"
        assert await asyncio.gather(*rest) == [f"ITEM {n}" for n in range(50)]
        assert disk.batches == [["first"], [f"item {n}" for n in range(50)]]

    grouped(test)


def test_a_batch_takes_no_more_than_its_weight() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest = [group.submit(item) for item in ("aaa", "bbb", "ccc", "dddddddd", "e")]
        disk.go.set()
        await asyncio.gather(*rest)
        # The item that fills the batch still belongs to it, and one heavier than a whole batch goes all the same.
        assert disk.batches[1:] == [["aaa", "bbb"], ["ccc", "dddddddd"], ["e"]]

    grouped(test, max_batch=5, weight=len)


def test_each_caller_gets_its_own_result_or_refusal() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest = [group.submit(item) for item in ("a", "refused b", "c")]
        disk.go.set()
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert outcomes[0] == "A"
        assert isinstance(outcomes[1], Conflict)
        assert outcomes[2] == "C"
        assert len(disk.batches) == 2

    grouped(test)


def test_one_bad_item_fails_alone() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest = [group.submit(item) for item in ("a", "poison", "c")]
        disk.go.set()
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert [outcomes[0], outcomes[2]] == ["A", "C"]
        assert isinstance(outcomes[1], ValueError)

    grouped(test, lambda items: ValueError("NUL") if "poison" in items else None)


def test_an_unreachable_database_fails_the_batch_without_trying_each_item() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        first = await busy(group, disk)
        rest = [group.submit(f"item {n}") for n in range(50)]
        disk.go.set()
        outcomes = await asyncio.gather(first, *rest, return_exceptions=True)
        assert all(isinstance(outcome, ConnectionRefusedError) for outcome in outcomes)
        assert len(disk.batches) == 2

    grouped(test, lambda _: ConnectionRefusedError("no server"))


def test_a_database_lost_while_items_are_tried_alone_fails_the_rest_at_once() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest = [group.submit(item) for item in ("a", "poison", "lost", "d", "e")]
        disk.go.set()
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert outcomes[0] == "A"
        assert [type(outcome) for outcome in outcomes[1:]] == [ValueError, *[ConnectionRefusedError] * 3]
        assert ["d"] not in disk.batches

    def fault(items: list[str]) -> Exception | None:
        if "poison" in items:
            return ValueError("NUL")
        return ConnectionRefusedError("no server") if "lost" in items else None

    grouped(test, fault)


def test_where_another_transaction_is_in_the_way_only_what_it_holds_fails() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest = [group.submit(item) for item in ("plain a", "held", "free", "plain b")]
        disk.go.set()
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert [outcomes[at] for at in (0, 2, 3)] == ["PLAIN A", "FREE", "PLAIN B"]
        assert isinstance(outcomes[1], asyncpg.LockNotAvailableError)
        assert sorted(disk.batches[2:]) == [["free"], ["held"], ["plain a", "plain b"]]

    grouped(test, _held, may_contend=lambda item: "plain" not in item)


def test_what_waits_for_another_transaction_holds_up_no_later_batch() -> None:
    async def run() -> None:
        gone, waiting = asyncio.Event(), asyncio.Event()  # the other transaction, and one of ours for it
        written: list[list[str]] = []

        async def flush(items: list[str]) -> list[str | HookwrightError]:
            written.append(items)
            if len(items) == 1 and "held" in items[0]:
                waiting.set()
                await gone.wait()
            if error := _held(items):
                raise error
            return [item.upper() for item in items]

        group: GroupCommit[str, str] = GroupCommit(flush, max_batch=100, max_waiting=100)
        group.start()
        async with asyncio.timeout(10):
            held = [group.submit(f"held {n}") for n in range(20)]
            await waiting.wait()
            assert await group.submit("later") == "LATER"
            assert not any(one.done() for one in held)
            gone.set()
            outcomes = await asyncio.gather(*held, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {asyncpg.LockNotAvailableError}
            await group.close()
        assert len(written) == 22

    asyncio.run(run())


def test_a_transaction_in_the_way_of_all_fails_all_at_once() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest = [group.submit(f"held {n}") for n in range(20)]
        disk.go.set()
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {asyncpg.LockNotAvailableError}
        assert len(disk.batches) == 2

    grouped(test, _held, may_contend=lambda _: False)


def _held(items: list[str]) -> Exception | None:
    return asyncpg.LockNotAvailableError("canceling") if any("held" in item for item in items) else None


def test_a_wrong_number_of_results_fails_the_batch_and_the_next_one_is_written() -> None:
    async def run() -> None:
        written: list[list[str]] = []

        async def flush(items: list[str]) -> list[str | HookwrightError]:
            written.append(items)
            return [item.upper() for item in items if item != "swallowed"]

        group: GroupCommit[str, str] = GroupCommit(flush, max_batch=10, max_waiting=10)
        group.start()
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(group.submit("a"), group.submit("swallowed"), return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {RuntimeError}
            assert await group.submit("next") == "NEXT"
            await group.close()
        assert written == [["a", "swallowed"], ["next"]]  # what may have been written is not written again

    asyncio.run(run())


def test_after_a_failure_the_next_batch_is_written() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        with pytest.raises(ConnectionRefusedError):
            await group.submit("while it is down")
        assert await group.submit("afterwards") == "AFTERWARDS"

    grouped(test, lambda items: ConnectionRefusedError() if "while it is down" in items else None)


def test_a_caller_that_gives_up_withdraws_its_item() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        withdrawn, kept = group.submit("withdrawn"), group.submit("kept")
        withdrawn.cancel()
        disk.go.set()
        assert await kept == "KEPT"
        assert disk.batches[1:] == [["kept"]]

    grouped(test)


def test_a_caller_that_gives_up_too_late_harms_no_other() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        first = await busy(group, disk)
        kept = group.submit("kept")
        first.cancel()  # its batch has begun
        disk.go.set()
        assert await kept == "KEPT"

    grouped(test)


def test_a_caller_that_gives_up_is_not_tried_alone_after_a_failure() -> None:
    rest: list[asyncio.Future[str]] = []

    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        rest.extend(group.submit(item) for item in ("poison", "b", "c"))
        disk.go.set()
        outcomes = await asyncio.gather(*rest, return_exceptions=True)
        assert outcomes[2] == "C"
        assert disk.batches[2:] == [["poison"], ["c"]]

    def fault(items: list[str]) -> Exception | None:
        if items == ["poison", "b", "c"]:
            rest[1].cancel()
        return ValueError("NUL") if "poison" in items else None

    grouped(test, fault)


def test_what_is_too_much_is_refused_rather_than_piled_up() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await busy(group, disk)
        waiting = [group.submit(f"item {n}") for n in range(3)]
        with pytest.raises(Unavailable):
            group.submit("one too many")
        disk.go.set()
        await asyncio.gather(*waiting)
        assert await group.submit("room again") == "ROOM AGAIN"

    grouped(test, max_waiting=3)


def test_closing_writes_what_waits() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        first = await busy(group, disk)
        rest = [group.submit(f"item {n}") for n in range(10)]
        closing = asyncio.create_task(group.close())
        disk.go.set()
        await closing
        assert await first == "FIRST"
        assert [future.result() for future in rest] == [f"ITEM {n}" for n in range(10)]

    grouped(test, max_batch=3)


def test_what_comes_after_closing_is_refused_rather_than_forgotten() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        await group.close()
        with pytest.raises(Unavailable):
            group.submit("late")

    grouped(test)


def test_two_writers_share_the_work() -> None:
    async def test(group: GroupCommit[str, str], disk: Disk) -> None:
        first = await busy(group, disk)
        disk.reached.clear()
        second = group.submit("second")
        await disk.reached.wait()  # although the first batch is still being written
        disk.go.set()
        assert await asyncio.gather(first, second) == ["FIRST", "SECOND"]

    grouped(test, flushers=2)
