"""`hookwright up` in a data folder of its own: what is measured is what users run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import asyncpg
import httpx

from bench import usage
from cli.embedded import find_running
from cli.embedded.paths import SOCKET_BASE, folder_id
from cli.process import Command, Process, log_tail

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0  # it promises 10
OURSELVES = (sys.executable, "-P", "-m", "cli")
# The receiver is on this machine and speaks plain HTTP.
SETTINGS = {
    "HOOKWRIGHT_EGRESS_ALLOW": "127.0.0.0/8",
    "HOOKWRIGHT_EGRESS_ALLOW_HTTP": "true",
    "HOOKWRIGHT_LOG_LEVEL": "warning",
    "HOOKWRIGHT_RATE_LIMIT_DEFAULT": "off",  # it looks often
}


class BenchError(Exception):
    """The run can't go on. The message says why."""


def own_environment() -> dict[str, str]:
    """Ours without any HOOKWRIGHT_ setting: a run measures the defaults, on embedded services."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOOKWRIGHT_")}


class Platform:
    """Use it as an async context manager; afterwards nothing of it is left, neither process nor file."""

    def __init__(self, workers: int, parent: Path | None = None) -> None:
        self._workers = workers
        self._parent = parent
        self.url = ""
        self.key = ""

    async def __aenter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="hookwright-bench-", dir=self._parent))
        self.folder.chmod(0o711)  # as root the database runs as another user, who must get through
        self.data_dir = self.folder / "data"
        self.log = self.folder / "up.log"
        argv = (*OURSELVES, "up", "--port", "0", "--data-dir", str(self.data_dir), "--workers", str(self._workers))
        self._up = Process.spawn(
            Command(
                "up",
                argv,
                env=own_environment() | SETTINGS,
                log=self.log,
                parent_death_signal=signal.SIGTERM,
            )
        )
        try:
            self.url = await self._ready()
            await self._find_parts()
            _, self.key = await self.make_tenant("bench")
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.signal_workers(signal.SIGCONT)
        await self._up.stop(STOP_WITHIN_S)
        sockets = SOCKET_BASE.glob(f"hookwright-*-{folder_id(self.data_dir)}")
        for folder in (*sockets, self.folder):
            shutil.rmtree(folder, ignore_errors=True)

    # --- its parts ---

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pids(self) -> dict[str, list[int]]:
        """By part: web, worker, postgres, valkey."""
        found: dict[str, list[int]] = {}
        for pid in usage.children(self._up.pid):
            argv = usage.command(pid)
            name = Path(argv[0]).name if argv else ""
            for part, belongs in {
                "web": "cli" in argv and "web" in argv,
                "worker": "cli" in argv and "worker" in argv,
                "postgres": name == "postgres",
                "valkey": name == "valkey-server",
            }.items():
                if belongs:
                    found.setdefault(part, []).append(pid)
        return found

    def cpu_s(self) -> dict[str, float]:
        return {part: sum(map(usage.cpu_s, pids)) for part, pids in self.pids.items()}

    def peak_mb(self) -> dict[str, float]:
        """Of one process; where there are several workers, of the largest."""
        pids = self.pids
        return {part: max(map(usage.memory_mb, pids[part])) for part in ("web", "worker") if part in pids}

    def signal_workers(self, signum: signal.Signals) -> None:
        for pid in self.pids.get("worker", []):
            os.kill(pid, signum)

    # --- what is asked of it ---

    async def query(self, statement: str, *values: Any) -> list[Any]:
        connection = await asyncpg.connect(self.database_url)
        try:
            rows: list[Any] = await connection.fetch(statement, *values)
            return rows
        finally:
            await connection.close()

    async def subscribe(self, urls: list[str], event_type: str) -> None:
        for url in urls:
            await self.call("POST", "/v1/webhooks/subscriptions", {"url": url, "events": [event_type]})

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's `data`. Raises `BenchError` on anything but success."""
        headers = {"X-API-Key": self.key}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, trust_env=False) as client:
            answer = await client.request(method, path, json=body)
        if not answer.is_success:
            raise BenchError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()["data"] if answer.content else None

    async def make_tenant(self, name: str) -> tuple[str, str]:
        """A new organization, and a key that may do everything in it."""
        organization = await self.command("org", "create", name)
        return organization, await self.command("key", "create", "--org", organization)

    async def command(self, *argv: str) -> str:
        """What `hookwright` prints. Raises `BenchError` where it fails."""
        process = await asyncio.create_subprocess_exec(
            *OURSELVES,
            *argv,
            "--data-dir",
            str(self.data_dir),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=own_environment(),
        )
        out, err = await process.communicate()
        if process.returncode != 0:
            raise BenchError(f"`hookwright {' '.join(argv)}` failed: {err.decode('utf-8', 'replace')}")
        return out.decode().strip()

    # --- starting ---

    async def _ready(self) -> str:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            found = re.search(r"^ready (http\S+)$", self.log.read_text("utf-8", "replace"), re.MULTILINE)
            if found:
                return found[1]
            if self._up.exit_code is not None or time.monotonic() > deadline:
                raise BenchError(f"`hookwright up` did not become ready:\n{log_tail(self.log)}")
            await asyncio.sleep(0.05)

    async def _find_parts(self) -> None:
        running = find_running(self.data_dir)
        if running is None or running.database_owner_url is None:
            raise BenchError("the embedded database can't be found")
        self.database_url = running.database_owner_url.replace("postgresql+asyncpg://", "postgresql://")
        fsync = (await self.query("SHOW fsync"))[0][0]
        if fsync != "on":
            raise BenchError(f"PostgreSQL runs with fsync {fsync}; figures would mean nothing")
