"""`hookwright up`: the services, the migrations, the web process and the workers, as one."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.embedded import EmbeddedPostgres, EmbeddedValkey, ensure_secret_keys
from cli.process import Command, describe_exit, run_to_end
from cli.service import POLL_S, Program, Service, StartError
from cli.supervisor.ports import base_url, free_port, reachable_host, why_not_200
from cli.supervisor.supervisor import Supervisor

DATABASE_URL = "HOOKWRIGHT_DATABASE_URL"
OWNER_URL = "HOOKWRIGHT_DATABASE_OWNER_URL"
REDIS_URL = "HOOKWRIGHT_REDIS_URL"
SECRET_KEYS = "HOOKWRIGHT_SECRET_KEYS"  # nosec B105 # noqa: S105 - a variable's name

READY_WITHIN_S = 90.0  # an old or busy machine imports for many seconds; what ends before is noticed at once
STOP_WITHIN_S = 10.0
# A web process or worker that dies this often before the platform was ever ready won't get better by waiting.
HOPELESS_DEATHS = 3
SERVICES, PROGRAMS = 0, 1  # stages

# -P: the folder that we were started in must not offer its own package named `cli`.
OURSELVES = (sys.executable, "-P", "-m", "cli")

logger = logging.getLogger("hookwright.supervisor")


@dataclass(frozen=True)
class Programs:
    """What the platform runs beside the services; tests put their own here."""

    migrate: tuple[str, ...] = (*OURSELVES, "migrate")
    web: tuple[str, ...] = (*OURSELVES, "web")  # --host and --port are added
    worker: tuple[str, ...] = (*OURSELVES, "worker")


async def run_platform(
    *,
    host: str,
    port: int,
    data_dir: Path,
    workers: int,
    settings_env: Mapping[str, str],
    on_ready: Callable[[str], None],
    programs: Programs = Programs(),
) -> int:
    """Runs until SIGINT, SIGTERM or SIGHUP, then stops all of it within 10 s; a second signal kills.

    Returns the exit code: 0 after a stop that was asked for, 1 if something could not start (the reason is
    logged). `on_ready` gets the URL once the web process says that it is ready. Call it from the main thread.
    """
    logging.basicConfig(level=logging.INFO, format="hookwright: %(message)s", stream=sys.stderr)
    supervisor = Supervisor()
    stopping = _stop_on_signals(supervisor)
    run = asyncio.create_task(
        _start(supervisor, host, port, data_dir, workers, {**os.environ, **settings_env}, programs)
    )
    asked = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({run, asked}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            on_ready(run.result())
            await asked
        return 0
    except (StartError, OSError) as fault:
        logger.error("%s", fault)  # noqa: TRY400 - what happened is said; where in our code does not help
        return 1
    finally:
        asked.cancel()
        await _cancel(run)
        await supervisor.stop(STOP_WITHIN_S)


async def _start(
    supervisor: Supervisor,
    host: str,
    port: int,
    data_dir: Path,
    workers: int,
    env: dict[str, str],
    programs: Programs,
) -> str:
    """Returns the URL when all of it is ready."""
    port = free_port(host, port)
    await _start_services(supervisor, data_dir, env)
    code = await run_to_end(Command("migrate", programs.migrate, env=env))
    env = {name: value for name, value in env.items() if name != OWNER_URL}  # whoever serves need not know it
    if code != 0:
        raise StartError(f"the database can't be brought up to date: migrate ended ({describe_exit(code)})")
    listen = ("--host", host, "--port", str(port))
    await supervisor.start_together(
        Program(Command("web", (*programs.web, *listen), env=env)),
        *(Program(Command(f"worker {n}", programs.worker, env=env)) for n in range(1, workers + 1)),
        stage=PROGRAMS,
    )
    await _wait_ready(supervisor, host, port)
    return base_url(host, port)


async def _start_services(supervisor: Supervisor, data_dir: Path, env: dict[str, str]) -> None:
    """Starts what is not configured elsewhere and adds its URL to `env`."""
    embedded: dict[str, EmbeddedPostgres | EmbeddedValkey] = {}
    if not env.get(DATABASE_URL):
        embedded[DATABASE_URL] = EmbeddedPostgres(data_dir)
    if not env.get(REDIS_URL):
        embedded[REDIS_URL] = EmbeddedValkey(data_dir)
    services: list[Service] = list(embedded.values())
    await supervisor.start_together(*services, stage=SERVICES)
    for variable, service in embedded.items():
        env[variable] = service.url
        if isinstance(service, EmbeddedPostgres):
            env[OWNER_URL] = service.owner_url
    # Only beside an embedded database: keys for a shared one must not come from this machine's disk.
    if DATABASE_URL in embedded and not env.get(SECRET_KEYS):
        env[SECRET_KEYS] = ensure_secret_keys(data_dir)


async def _wait_ready(supervisor: Supervisor, host: str, port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while (reason := await why_not_200(reachable_host(host), port, "/readyz")) is not None:
        hopeless = any(child.deaths >= HOPELESS_DEATHS for child in supervisor.children)
        if hopeless or time.monotonic() > deadline:
            parts = "; ".join(part for part in (supervisor.explain(), reason) if part)
            raise StartError(f"not ready{'' if hopeless else f' after {READY_WITHIN_S:g} s'}: {parts}")
        await asyncio.sleep(POLL_S)


def _stop_on_signals(supervisor: Supervisor) -> asyncio.Event:
    stopping = asyncio.Event()

    def received(signum: signal.Signals) -> None:
        if stopping.is_set():
            logger.warning("%s again: killing what still runs", signum.name)
            supervisor.kill()
        else:
            logger.info("%s: stopping", signum.name)
            stopping.set()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, received, signum)
    return stopping


async def _cancel(task: asyncio.Task[str]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # reported already, if there is one; asking for it tells asyncio so
