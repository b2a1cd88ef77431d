"""Whom this process connects to, as the interpreter itself says (PEP 578): below our code, aiohttp's and asyncio's.

uvloop connects without Python's sockets, so what is watched must run on asyncio's own loop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watching: list[list[str]] = []


def _note(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event == "socket.connect":
        address = args[1]
        for dials in _watching:
            dials.append(f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address))


sys.addaudithook(_note)  # for good: there is no way to remove one


@contextmanager
def watched() -> Iterator[list[str]]:
    """The addresses that were dialled within the block, as `host:port` or a path."""
    dials: list[str] = []
    _watching.append(dials)
    try:
        yield dials
    finally:
        _watching.remove(dials)
