"""What many ask for at once and takes a while to find out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

MOST_KEPT = 32


class Shared(Generic[Key, Value]):
    """Finds out one thing at a time, so that pages which refresh themselves leave the database's connections to others.
    Whoever asked before that began has the same; nobody is given what is older than his question."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._found: dict[Key, tuple[float, Value]] = {}  # when it was begun

    async def get(self, key: Key, find: Callable[[], Awaitable[Value]]) -> Value:
        """What `find` returns for `key`, by this call or by another's. It raises what `find` raises."""
        asked = time.monotonic()
        async with self._turn:
            begun = time.monotonic()
            found = self._found.pop(key, None)
            if found is None or found[0] < asked:
                found = begun, await find()
            self._found[key] = found
            if len(self._found) > MOST_KEPT:
                del self._found[next(iter(self._found))]
            return found[1]
