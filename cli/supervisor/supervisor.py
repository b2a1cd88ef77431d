"""Keeps services running: starts again what dies, stops all within a deadline.

Services stand in stages. A later stage needs the earlier ones, so they stop in reverse order; the services of
one stage stop together.
"""

from __future__ import annotations

import asyncio
import logging
import time

from cli.process import Process, describe_exit
from cli.service import Service, StartError

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0
STEADY_AFTER_S = 30.0  # one that ran this long starts again at FIRST_BACKOFF_S
# Share of the remaining time that a stage gets while others wait behind it: of 10 s, 7 s for web and workers,
# then 3 s for the services.
STAGE_SHARE = 0.7

logger = logging.getLogger("hookwright.supervisor")


class Child:
    """A supervised service: its process now, and how it fared."""

    def __init__(self, service: Service, stage: int) -> None:
        self.service = service
        self.stage = stage
        self.process: Process | None = None
        self.deaths = 0
        self.last_exit: int | None = None
        self.keeper: asyncio.Task[None] | None = None
        self._backoff_s = FIRST_BACKOFF_S

    @property
    def name(self) -> str:
        return self.service.name

    async def keep(self) -> None:
        """Until cancelled: waits for its end, then starts it again."""
        while True:
            if self.process is not None:
                self.last_exit = await self.process.wait()
                self.deaths += 1
                if time.monotonic() - self.process.started_at >= STEADY_AFTER_S:
                    self._backoff_s = FIRST_BACKOFF_S
                logger.warning(
                    "%s ended (%s); starting it again in %.1f s",
                    self.name,
                    describe_exit(self.last_exit),
                    self._backoff_s,
                )
                self.process = None
            await asyncio.sleep(self._next_backoff_s())
            try:
                self.process = await self.service.launch()
            except (StartError, OSError) as fault:
                logger.warning("%s; trying again in %.1f s", fault, self._backoff_s)
            else:
                logger.info("%s runs again (process %d)", self.name, self.process.pid)

    async def stop(self, within_s: float) -> None:
        if self.process is not None:
            code = await self.process.stop(within_s)
            logger.debug("%s stopped (%s)", self.name, describe_exit(code))

    def _next_backoff_s(self) -> float:
        """0.5, 1, 2, 4, 8, 10, 10, …"""
        wait_s, self._backoff_s = self._backoff_s, min(self._backoff_s * 2, MAX_BACKOFF_S)
        return wait_s


class Supervisor:
    """Use it from the main thread's loop: see cli.process about parent-death signals."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._stopping = False

    async def start(self, service: Service, *, stage: int = 0) -> None:
        """Returns when it is ready; raises StartError if it can't be. From then on it is kept running."""
        child = Child(service, stage)
        self.children.append(child)  # before it is prepared, so that `stop` also closes one that failed
        await service.prepare()
        if self._stopping:
            raise StartError(f"{service.name} was not started: we are stopping")
        child.process = await service.launch()
        child.keeper = asyncio.create_task(child.keep(), name=f"keep {service.name}")

    async def start_together(self, *services: Service, stage: int = 0) -> None:
        """The first failure is raised when all of them have been tried."""
        results = await asyncio.gather(
            *(self.start(service, stage=stage) for service in services), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def stop(self, within_s: float = 10.0) -> None:
        """Ends every process, the last stage first, and closes every service."""
        self._stopping = True
        deadline = time.monotonic() + within_s
        await self._dismiss_keepers()
        stages = sorted({child.stage for child in self.children}, reverse=True)
        for stage in stages:
            remaining_s = max(0.0, deadline - time.monotonic())
            share = 1.0 if stage == stages[-1] else STAGE_SHARE
            await asyncio.gather(*(child.stop(remaining_s * share) for child in self.children if child.stage == stage))
        for child in self.children:
            child.service.close()
        self.children.clear()

    def kill(self) -> None:
        """Ends every process at once; a `stop` that waits for them then finishes."""
        self._stopping = True
        for child in self.children:
            if child.process is not None:
                child.process.kill()

    def explain(self) -> str:
        """Who does not run, for a message about a start that failed; empty when all do."""
        return "; ".join(
            f"{child.name} ended {child.deaths} times, last with {describe_exit(child.last_exit)}"
            for child in self.children
            if child.deaths and child.last_exit is not None
        )

    async def _dismiss_keepers(self) -> None:
        """So that nothing starts while we stop; one that was just starting something ends it again."""
        keepers = [child.keeper for child in self.children if child.keeper is not None]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
