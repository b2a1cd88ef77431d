"""Many ask at once, and it is found out seldom, but never before it was asked for."""

from __future__ import annotations

import asyncio

import pytest

from app import shared
from app.shared import Shared


def test_whoever_asks_meanwhile_shares_the_next_answer() -> None:
    async def run() -> None:
        said: Shared[str, int] = Shared()
        count, going = 0, asyncio.Event()

        async def find() -> int:
            nonlocal count
            count += 1
            mine = count
            await going.wait()
            return mine

        first = asyncio.create_task(said.get("a", find))
        await asyncio.sleep(0)  # it has begun
        others = [asyncio.create_task(said.get("a", find)) for _ in range(9)]
        await asyncio.sleep(0)
        going.set()
        assert await first == 1
        assert await asyncio.gather(*others) == [2] * 9, "not what was begun before they asked"
        assert await said.get("a", find) == 3

    asyncio.run(run())


def test_what_fails_is_tried_again_and_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MOST_KEPT", 3)

    async def run() -> None:
        said: Shared[int, int] = Shared()

        async def fails() -> int:
            raise OSError

        async def works() -> int:
            return 1

        with pytest.raises(OSError):  # noqa: PT011 - the very one
            await said.get(0, fails)
        for key in range(9):
            assert await said.get(key, works) == 1
        assert list(said._found) == [6, 7, 8]

    asyncio.run(run())
