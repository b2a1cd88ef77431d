"""`hookwright up` alone: any of its processes is killed under load, and nobody does anything."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import usage
from cli.embedded import find_running
from cli.embedded.paths import SOCKET_BASE, folder_id
from cli.process import Command, Process
from tests.commands import HOOKWRIGHT
from tests.faults.fleet import without_settings
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import LEASE_MARGIN_S, SWEEP_S, Harm, Scene, until
from tests.platform import SECRET_KEY
from tests.receiver import Receiver
from tests.services import make_data_dir

READY_WITHIN_S = 120.0
BACK_WITHIN_S = 60.0
SETTINGS = {
    "HOOKWRIGHT_SECRET_KEYS": SECRET_KEY,
    "HOOKWRIGHT_EGRESS_ALLOW": "127.0.0.0/8",
    "HOOKWRIGHT_EGRESS_ALLOW_HTTP": "true",
    "HOOKWRIGHT_RATE_LIMIT_DEFAULT": "off",
    "HOOKWRIGHT_LEASE_MARGIN_S": str(LEASE_MARGIN_S),
    "HOOKWRIGHT_SWEEP_INTERVAL_S": str(SWEEP_S),
}
# What their command lines hold, in the order in which they die; the seed shuffles it.
VICTIMS = ("/valkey-server", "cli\0web", "cli\0worker", "/postgres\0")


def test_every_process_is_killed_once_and_nobody_helps(seed: int, tmp_path: Path) -> None:
    asyncio.run(_run(seed, tmp_path))


async def _run(seed: int, tmp_path: Path) -> None:
    async with _up(tmp_path / "up.log") as (up, url, data_dir):
        running = find_running(data_dir)
        assert running is not None
        assert running.database_url is not None
        with Receiver() as receiver:
            scene = Scene(url, running.database_url, receiver, seed)
            await scene.make_tenant()
            await scene.subscribe("/slow/0.02")
            producer = Producer(url, scene.key, scene.rng)
            try:
                async with producer.producing():
                    for victim in scene.rng.sample(VICTIMS, len(VICTIMS)):
                        await scene.pause(0.2, 0.6)
                        began = time.monotonic()
                        await _kill_and_wait_for_another(up.pid, victim)
                        await producer.accepts(10, within_s=BACK_WITHIN_S)
                        scene.harms.append(Harm(began, time.monotonic()))
                print(await settle(scene, producer))
            except BaseException:
                print(_said(tmp_path / "up.log"))
                raise
            finally:
                scene.close()


@asynccontextmanager
async def _up(log: Path) -> AsyncIterator[tuple[Process, str, Path]]:
    """A platform with a data folder of its own: its process, its URL, the folder."""
    data_dir = make_data_dir()
    env = without_settings() | SETTINGS
    argv = (*HOOKWRIGHT, "up", "--port", "0", "--data-dir", str(data_dir))
    up = Process.spawn(Command("up", argv, env=env, log=log, parent_death_signal=signal.SIGTERM))
    try:

        async def ready() -> bool:
            assert up.exit_code is None, _said(log)
            return _ready_url(log) is not None

        await until(ready, READY_WITHIN_S, "`hookwright up` is ready")
        url = _ready_url(log)
        assert url is not None
        yield up, url, data_dir
        up.send(signal.SIGTERM)
        assert await asyncio.wait_for(up.wait(), 12) == 0
    finally:
        await up.stop(12)
        for folder in (*SOCKET_BASE.glob(f"hookwright-*-{folder_id(data_dir)}"), data_dir.parent):
            shutil.rmtree(folder, ignore_errors=True)


def _said(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-10_000:]


def _ready_url(log: Path) -> str | None:
    found = re.search(r"^ready (\S+)$", log.read_text("utf-8", "replace"), re.MULTILINE)
    return found[1] if found else None


async def _kill_and_wait_for_another(up: int, victim: str) -> None:
    [pid] = _children(up, victim)
    os.kill(pid, signal.SIGKILL)

    async def another() -> bool:
        return any(one != pid for one in _children(up, victim))

    await until(another, BACK_WITHIN_S, f"the supervisor starts another {victim!r}")


def _children(parent: int, victim: str) -> list[int]:
    return [pid for pid in usage.children(parent) if victim in "\0".join(usage.command(pid))]
