"""What both commands do around their work: end cleanly by a signal, tell faults in a line, print progress."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

from bench.platform import BenchError
from cli.service import StartError


def finish(name: str, work: Coroutine[Any, Any, int]) -> int:
    """Runs `work` and returns the exit code. A signal cancels it, so that it removes what it made."""
    try:
        return uvloop.run(_until_signalled(work))
    except asyncio.CancelledError:
        say("stopped; nothing is left running")
        return 130
    except (BenchError, StartError, OSError) as fault:
        say(f"{name}: {fault}")
        return 1


async def _until_signalled(work: Coroutine[Any, Any, int]) -> int:
    task = asyncio.current_task()
    assert task is not None  # nosec B101 # the benchmark is wrong otherwise, and must not go on
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    return await work


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
