"""Web and worker processes as `hookwright up` runs them, on services that the test may harm."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cli.process import Command, Process, log_tail
from cli.supervisor.ports import why_not_200
from core import hints
from tests.faults.parts import Parts
from tests.faults.scene import LEASE_MARGIN_S, SLACK_S, SWEEP_S, Harm, Scene, until
from tests.forks import ForkedProcess
from tests.platform import environment
from tests.ports import free_port
from tests.receiver import Receiver

START_WITHIN_S = 60.0
ALTERED = (sys.executable, "-P", str(Path(__file__).with_name("altered.py")))
# A pause of 2 s at most, then a connection, then jobs; and a sign of life each 2 s.
HINTS_WITHIN_S = 8.0 + SLACK_S


def without_settings() -> dict[str, str]:
    """Our environment less what would change the platform's behaviour."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOOKWRIGHT_")}


class Fleet(Scene):
    """See the module. Whoever makes one calls `end`."""

    def __init__(self, parts: Parts, database_url: str, receiver: Receiver, folder: Path, seed: int) -> None:
        self._port = free_port()
        super().__init__(f"http://127.0.0.1:{self._port}", database_url, receiver, seed)
        self.parts = parts
        self._folder = folder
        self._processes: list[Process] = []
        self._env = without_settings() | environment(
            database_url, parts.redis_url, LEASE_MARGIN_S=str(LEASE_MARGIN_S), SWEEP_INTERVAL_S=str(SWEEP_S)
        )

    async def start_web(
        self, *, port: int | None = None, altered: Mapping[str, str] | None = None, **settings: str
    ) -> Process:
        """`settings`, by their names without the prefix, are this process's alone. `port`: another than that of `url`.
        `altered`: what altered.py reads."""
        port = port or self._port
        process = self._spawn("web", "--host", "127.0.0.1", "--port", str(port), altered=altered, **settings)

        async def answers() -> bool:
            return await why_not_200("127.0.0.1", port, "/healthz") is None

        await self._started(process, answers)
        return process

    async def start_worker(self, *, altered: Mapping[str, str] | None = None, **settings: str) -> Process:
        process = self._spawn("worker", altered=altered, **settings)

        async def said_so() -> bool:
            return "worker started" in self.log_of(process)

        await self._started(process, said_so)
        return process

    async def start(self) -> tuple[Process, Process]:
        """One web and one worker process, and a tenant."""
        await self.make_tenant()
        web, worker = await asyncio.gather(self.start_web(), self.start_worker())
        return web, worker

    async def kill(self, process: Process, *, explains: bool = True) -> None:
        """SIGKILL. `explains`: a webhook that this process had sent and not recorded may come twice."""
        process.send(signal.SIGKILL)
        await process.wait()
        if explains:
            self.harms.append(Harm(time.monotonic(), time.monotonic()))

    async def hints_flow(self, within_s: float = HINTS_WITHIN_S) -> float:
        """Waits until, from now on, web processes write hints, workers take them, and /readyz is content. Needs load.
        Returns how long that took."""
        await self.parts.redis("CONFIG", "RESETSTAT")

        async def they_do() -> bool:
            said = await self.parts.redis("INFO", "commandstats") or {}
            written = said.get("cmdstat_rpush", {}).get("calls", 0)
            left = [await self.parts.redis("LLEN", name) for name in hints.LISTS]
            return written >= 5 and left == [0, 0] and await self.why_not("/readyz") is None

        return await until(they_do, within_s, "hints flow")

    def log_of(self, process: Process) -> str:
        log = process.command.log
        assert log is not None
        return log.read_text("utf-8", "replace")

    def lines_logged(self) -> int:
        """By all processes so far."""
        return sum(self.log_of(process).count("\n") for process in self._processes)

    async def end(self) -> None:
        self.close()
        for process in self._processes:
            process.send(signal.SIGCONT)
            process.kill()
        await asyncio.gather(*(process.wait() for process in self._processes))

    def said(self, text: str) -> bool:
        """Whether any process has logged `text`."""
        return any(text in path.read_text("utf-8", "replace") for path in self._folder.glob("*.log"))

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{log_tail(path, 40)}" for path in sorted(self._folder.glob("*.log")))

    def errors(self) -> list[str]:
        """What the processes have logged as errors, which is what they did not foresee. Not housekeeping's, which
        comes again an hour later."""
        said = "\n".join(path.read_text("utf-8", "replace") for path in self._folder.glob("*.log"))
        return [line for line in said.splitlines() if "[error" in line and "cron:keep_house" not in line]

    def _spawn(self, *argv: str, altered: Mapping[str, str] | None = None, **settings: str) -> Process:
        log = self._folder / f"{len(self._processes)}-{argv[0]}.log"
        env = self._env | {f"HOOKWRIGHT_{name}": value for name, value in settings.items()}
        if altered is None:
            process: Process = ForkedProcess(argv[0], *argv, env=env, log=log)
        else:  # before anything is imported
            process = Process.spawn(Command(argv[0], (*ALTERED, *argv), env=env | altered, log=log))
        self._processes.append(process)
        return process

    async def _started(self, process: Process, ready: Callable[[], Awaitable[bool]]) -> None:
        async def there() -> bool:
            assert process.exit_code is None, f"{process.command.name} ended while starting"
            return await ready()

        await until(there, START_WITHIN_S, f"{process.command.name} starts")
