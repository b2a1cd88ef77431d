"""`hookwright demo`: see a webhook delivered, retried, dead-lettered and replayed, with nothing set up."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import target
from cli.commands.up import children_env, judge
from cli.failures import explain
from cli.options import DEFAULT_HOST, DEFAULT_PORT, DataDir, Port
from cli.output import give, say
from cli.service import StartError
from cli.supervisor.platform import run_platform
from cli.supervisor.ports import free_port
from core.errors import HookwrightError

if TYPE_CHECKING:
    from cli.demo.receiver import Receiver

PORTS_TRIED = 100
# The receiver is on this machine and speaks plain HTTP, which production never calls.
EGRESS = {"HOOKWRIGHT_EGRESS_ALLOW": "127.0.0.0/8", "HOOKWRIGHT_EGRESS_ALLOW_HTTP": "true"}
# The story is what should be read here; and its retries, of half a second, should come on time.
TASTE = {"HOOKWRIGHT_LOG_LEVEL": "warning", "HOOKWRIGHT_SWEEP_INTERVAL_S": "0.1"}


def demo(
    port: Port = DEFAULT_PORT,
    data_dir: DataDir = Path("var/demo"),
    once: Annotated[bool, typer.Option("--once", help="Stop when the story has been told.")] = False,
) -> None:
    """Start the platform with a receiver and watch webhooks being delivered.

    Embedded services in a data folder of its own, whatever the settings say. Ctrl-C stops everything.
    """
    from cli.demo.receiver import Receiver

    for name in target.STAND_INS:
        os.environ.pop(name, None)
    chosen = _free_port(port)
    if chosen != port:
        say(f"Port {port} is taken, so the demo uses {chosen}.")
    with Receiver() as receiver:
        raise typer.Exit(asyncio.run(_run(chosen, data_dir, receiver, once)))


async def _run(port: int, data_dir: Path, receiver: Receiver, once: bool) -> int:
    """The exit code. The platform ends with the story if that fails or `once` is asked for, else with Ctrl-C."""
    from cli.demo.story import Story

    env = children_env(judge(data_dir), DEFAULT_HOST, port, data_dir)
    env |= EGRESS | {name: os.environ.get(name, value) for name, value in TASTE.items()}
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    give("Starting PostgreSQL, Valkey, a web process and a worker ...")
    platform = asyncio.create_task(
        run_platform(
            host=DEFAULT_HOST, port=port, data_dir=data_dir, workers=1, settings_env=env, on_ready=ready.set_result
        )
    )

    async def tell() -> bool:
        url = await ready
        give(f"ready {url}")
        story = Story(url, data_dir, receiver)
        as_expected = await story.tell()
        if not once:
            await story.watch()
        return as_expected

    telling = asyncio.create_task(tell())
    await asyncio.wait({platform, telling}, return_when=asyncio.FIRST_COMPLETED)
    return await _end(platform, telling)


async def _end(platform: asyncio.Task[int], telling: asyncio.Task[bool]) -> int:
    """Ends the one that still runs. A cancelled platform stops gracefully, as on Ctrl-C."""
    if not platform.done():
        platform.cancel()
    elif not telling.done():
        telling.cancel()
    told, ended = await asyncio.gather(telling, platform, return_exceptions=True)
    if isinstance(told, HookwrightError):
        say(f"The demo can't go on. {explain(told)}")
        return 1
    for outcome in (told, ended):
        if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
            raise outcome
    if isinstance(ended, int):
        return ended
    return 0 if told is True else 1


def _free_port(port: int) -> int:
    """The port, or the next one that is free."""
    for candidate in range(port, min(port + PORTS_TRIED, 65_535) + 1):
        try:
            return free_port(DEFAULT_HOST, candidate)
        except StartError as fault:
            if not isinstance(fault.__cause__, OSError) or fault.__cause__.errno != errno.EADDRINUSE:
                raise
    raise StartError(f"no port from {port} to {port + PORTS_TRIED} is free; choose one with --port")
