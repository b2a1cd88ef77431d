"""Something that is started, becomes ready, and is kept running: what the supervisor supervises."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from cli.process import Command, Process, describe_exit, log_tail

POLL_S = 0.02
STOP_WITHIN_S = 10.0
HALF_STARTED_STOP_S = 3.0


class StartError(Exception):
    """A part can't run here. The message says what is wrong and, where we know, what would be right."""


class EndedEarlyError(StartError):
    """It ended by itself before it was ready"""


class Service(ABC):
    """Order of calls: `prepare` once, then `launch` for each start and restart, `close` at the very end."""

    name: str
    ready_within_s: float = 90.0  # on an old or busy machine

    def __init__(self) -> None:
        self._process: Process | None = None

    async def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Once, before the first start."""

    async def before_launch(self) -> None:  # noqa: B027
        """Before each start, so also after a crash: what must be put right first."""

    @abstractmethod
    def command(self) -> Command: ...

    async def why_not_ready(self) -> str | None:
        """None when it does its work."""
        return None

    def close(self) -> None:  # noqa: B027
        """After the last stop: releases what `prepare` took."""

    async def launch(self) -> Process:
        """Starts it and waits until it is ready."""
        await self.before_launch()
        try:
            process = Process.spawn(self.command())
        except OSError as fault:
            raise StartError(f"{self.name} can't be started: {fault}") from fault
        try:
            await self._wait_ready(process)
        except BaseException:
            await process.stop(HALF_STARTED_STOP_S)
            raise
        return process

    async def _wait_ready(self, process: Process) -> None:
        deadline = time.monotonic() + self.ready_within_s
        while (reason := await self.why_not_ready()) is not None:
            if (code := process.exit_code) is not None:
                raise EndedEarlyError(
                    f"{self.name} ended while starting ({describe_exit(code)})" + _end_of_log(process)
                )
            if time.monotonic() > deadline:
                raise StartError(
                    f"{self.name} is not ready after {self.ready_within_s:g} s: {reason}" + _end_of_log(process)
                )
            await asyncio.sleep(POLL_S)

    async def start(self) -> None:
        """All of it, for whoever wants this service alone, without a supervisor."""
        await self.prepare()
        try:
            self._process = await self.launch()
        except BaseException:
            await self.stop()
            raise

    async def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.stop(within_s)
        self.close()

    @property
    def pid(self) -> int | None:
        """The process that `start` started."""
        return None if self._process is None else self._process.pid


class Program(Service):
    """A service that is just a command, with a check if one is given."""

    def __init__(self, command: Command, why_not_ready: Callable[[], Awaitable[str | None]] | None = None) -> None:
        super().__init__()
        self.name = command.name
        self._command = command
        self._why_not_ready = why_not_ready

    def command(self) -> Command:
        return self._command

    async def why_not_ready(self) -> str | None:
        return None if self._why_not_ready is None else await self._why_not_ready()


def _end_of_log(process: Process) -> str:
    log = process.command.log
    return "" if log is None else f"\nThe end of {log}:\n{log_tail(log)}"
