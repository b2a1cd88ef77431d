"""PostgreSQL and Valkey of these tests alone, which they may kill."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError
from sqlalchemy.engine import make_url

from bench import usage
from cli.embedded import EmbeddedPostgres, EmbeddedValkey
from cli.process import Command, Process
from cli.service import Service
from core.storage import schema
from core.storage.database import Database
from tests.services import make_data_dir, plain_url

SMALL_DISK_MB = 48  # a fresh database takes some 15


class Part:
    """One service and its process. Start it from the main thread: it ends with the thread that started it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._process: Process | None = None

    async def start(self) -> None:
        self._process = await self.service.launch()

    async def kill(self) -> None:
        """SIGKILL. Returns once it is gone."""
        assert self._process is not None
        self._process.send(signal.SIGKILL)
        await self._process.wait()
        self._process = None

    def freeze(self) -> None:
        """SIGSTOP to it and to its children. Whoever is connected hears nothing any more, not even a reset."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)  # first, so that a stopped parent forks no more when its children are listed
        for child in usage.children(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signum)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def stop(self) -> None:
        if self._process is not None:
            if self.runs:
                self.thaw()
            await self._process.stop(10)
            self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.exit_code is None


class Postgres(EmbeddedPostgres):
    """With `small_disk`, it starts in a mount namespace of its own, where that folder is a file system of some
    megabytes. The namespace ends with the process, and the mount with the namespace."""

    small_disk: Path | None = None

    def command(self) -> Command:
        command = super().command()
        if self.small_disk is None:
            return command
        account = command.account
        uid, gid = (account.uid, account.gid) if account else (os.geteuid(), os.getegid())
        # A change of user makes the kernel forget the signal that comes with the parent's death.
        then = f"setpriv --pdeathsig {command.parent_death_signal.name.removeprefix('SIG')}"
        if account is not None:  # we are root; PostgreSQL must not be
            enter = ["unshare", "--mount"]
            owner = f",uid={uid},gid={gid}"
            then += f" --reuid {uid} --regid {gid} --clear-groups"
        else:
            enter = ["unshare", "--map-root-user", "--mount"]
            owner = ""
            then = f"unshare --user --map-user={uid} --map-group={gid} -- {then}"
        mount = f'mount -t tmpfs -o size={SMALL_DISK_MB}m,mode=0700{owner} tmpfs "$0"'
        script = f'{mount} && exec {then} -- "$@"'
        argv = (*enter, "/bin/sh", "-c", script, str(self.small_disk), *command.argv)
        env = {**(command.env or {}), "PATH": os.environ.get("PATH", os.defpath)}
        return replace(command, argv=argv, env=env, account=None)


class Parts:
    def __init__(self) -> None:
        self._data_dir = make_data_dir(on_disk=True)
        self._embedded_postgres = Postgres(self._data_dir)
        self._embedded_valkey = EmbeddedValkey(self._data_dir)
        self.postgres = Part(self._embedded_postgres)
        self.valkey = Part(self._embedded_valkey)
        self._template = ""

    async def start(self) -> None:
        await asyncio.gather(self._embedded_postgres.prepare(), self._embedded_valkey.prepare())
        await asyncio.gather(self.postgres.start(), self.valkey.start())
        self._template = await self._create_database("")
        database = Database(self._url(self._template))
        await schema.migrate(database)
        await database.close()

    async def stop(self) -> None:
        await asyncio.gather(self.postgres.stop(), self.valkey.stop())
        for part in (self._embedded_postgres, self._embedded_valkey):
            part.close()
        folders = [self._embedded_postgres.socket_dir, self._embedded_valkey.socket.parent, self._data_dir.parent]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def redis_url(self) -> str:
        return self._embedded_valkey.url

    @property
    def appended(self) -> Path:
        """What Valkey would read at its next start."""
        return self._embedded_valkey.folder / "appendonlydir"

    async def fresh(self) -> str:
        """A migrated database's URL, and an empty Valkey; both run again, whatever the test before did to them."""
        for part in (self.postgres, self.valkey):
            if not part.runs:
                await part.start()
        await self.redis("FLUSHALL")
        return self._url(await self._create_database(f' TEMPLATE "{self._template}"'))

    @property
    def hog_url(self) -> str:
        """For sessions that only take up connections."""
        return plain_url(self._embedded_postgres.owner_url)

    async def drop(self, url: str) -> None:
        if not self.postgres.runs:
            await self.postgres.start()
        self.postgres.thaw()
        await self._execute(f'DROP DATABASE IF EXISTS "{make_url(url).database}" WITH (FORCE)')

    async def restart_valkey_empty(self) -> None:
        shutil.rmtree(self.appended, ignore_errors=True)
        await self.valkey.start()

    @asynccontextmanager
    async def on_small_disk(self, url: str) -> AsyncIterator[None]:
        """Keeps the database, which nobody may use at either end of the block, on a disk that is soon full. The log of
        its transactions stays on the large one: where that is full, PostgreSQL itself ends."""
        name = make_url(url).database
        folder = self._embedded_postgres.place.home / "small"
        folder.mkdir(mode=0o700, exist_ok=True)
        await self._restart_postgres(folder)
        try:
            await self._execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
            await self._execute(f'ALTER DATABASE "{name}" SET TABLESPACE small')
            yield
        finally:
            await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            await self._execute("DROP TABLESPACE small")
            await self._restart_postgres(None)

    async def _restart_postgres(self, small_disk: Path | None) -> None:
        await self.postgres.stop()
        self._embedded_postgres.small_disk = small_disk
        await self.postgres.start()

    async def redis(self, *command: str | bytes | float, password: str | None = None) -> Any:
        """The answer to one command; None when Valkey does not answer, or refuses."""
        async with redis.asyncio.Redis.from_url(self.redis_url, socket_timeout=2, password=password) as client:
            try:
                return await client.execute_command(*command)
            except (RedisError, OSError):
                return None

    def _url(self, database: str) -> str:
        return make_url(self._embedded_postgres.owner_url).set(database=database).render_as_string(hide_password=False)

    async def _create_database(self, how: str) -> str:
        name = f"fault_{secrets.token_hex(6)}"
        await self._execute(f'CREATE DATABASE "{name}"{how}')
        return name

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.hog_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
