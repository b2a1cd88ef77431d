"""`hookwright web`, `worker` and `migrate`: the parts, for a Procfile or containers, and for `hookwright up`."""

from __future__ import annotations

import gc
import signal
import sys

import structlog
import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DEFAULT_HOST, DEFAULT_PORT, DataDir, Host, Port
from cli.output import say
from cli.supervisor.ports import free_port
from core import logs
from core.settings import Settings, load

GRACE_S = 7  # of the 10 s that a stop may take: requests under way are answered, then connections are cut
# Longer than the pools of common clients and load balancers (60 s) keep a connection: the side that closes first
# must not be ours, or a POST may meet a closing connection.
KEEP_ALIVE_S = 65

log = structlog.get_logger(__name__)


def web(host: Host = DEFAULT_HOST, port: Port = DEFAULT_PORT) -> None:
    """Run a web process: the HTTP API."""
    settings = _start()
    _end_cleanly_on_signals()
    free_port(host, port)  # else uvicorn would start the application before it notices
    from app.main import create
    from cli.serving import bounds_of_this_process, serve

    log.info("web process starting", host=host, port=port)
    server = serve(
        create(settings),
        bounds_of_this_process(),
        host=host,
        port=port,
        loop="uvloop",
        log_config=None,  # ours is in place, and has no use for four lines at each start
        log_level=None if settings.log_level == "debug" else "warning",
        access_log=False,
        server_header=False,
        # Said either way: uvicorn would otherwise believe whatever comes from 127.0.0.1, and read a variable of its
        # own. Addresses stand in the audit log, and what is tried from each is counted.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    _collect_rarely(5_000)
    server.run()
    if not server.started:
        raise typer.Exit(1)


def worker() -> None:
    """Run a worker process: sends deliveries."""
    settings = _start()
    import uvloop

    from worker.main import run

    _collect_rarely(50_000)
    uvloop.run(run(settings))


def migrate(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Bring the database to the schema of this version."""
    settings = target.settings(data_dir, owner=True)
    logs.configure(settings.log_level, settings.log_format)
    import asyncio

    from core.storage import schema
    from core.storage.database import Database

    url = settings.database_owner_url or settings.database_url

    async def run() -> None:
        role = None if settings.database_owner_url is None else await target.role(settings)
        # To build an index takes as long as it takes.
        database = Database(url, pool_size=2, name="hookwright-migrate", command_timeout_s=None)
        try:
            await target.reach(database, url)
            before, _ = await schema.state(database)
            with target.database_faults(url):
                await schema.migrate(database, role)
            after, _ = await schema.state(database)
        finally:
            await database.close()
        if before != after:
            say(f"The database is at revision {after} now (before: {before or 'empty'}).")

    asyncio.run(run())


def _start() -> Settings:
    settings = load()
    target.sealer(settings)  # said here in one line, rather than by whatever meets a wrong key first
    logs.configure(settings.log_level, settings.log_format)
    return settings


def _collect_rarely(every: int) -> None:
    """Keeps the garbage collector from looking through what was imported, which stays, again and again (a twelfth of a
    worker's processor, in pauses of 80 ms); and through what is under way, which comes to more than the 700 objects
    that it waits for by default. `every`: new objects; what fails may leave a cycle that holds a whole request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(every)


def _end_cleanly_on_signals() -> None:
    """uvicorn raises the signal that stopped it once more when it is done; that is a stop as asked, so exit code 0."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: sys.exit(0))
