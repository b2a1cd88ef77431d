"""A real PostgreSQL and a real Valkey for the test run, made by the same classes that `hookwright up` uses."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import asyncpg
from sqlalchemy.engine import make_url

from cli.embedded import EmbeddedPostgres, EmbeddedValkey

MEMORY = Path("/dev/shm")
MEMORY_NEEDED = 4 << 30
IN_MEMORY = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_NEEDED


def make_data_dir(*, on_disk: bool = False) -> Path:
    """An empty folder, with a space in its name. pytest's own temporary folders are closed to other users, and
    as root the database runs as one.

    In memory, where there is enough: a new database for every test makes and removes so many files that on a disk the
    whole run takes twice as long."""
    folder = Path(tempfile.mkdtemp(prefix="hookwright test ", dir=MEMORY if IN_MEMORY and not on_disk else None))
    folder.chmod(0o711)
    return folder / "data"


async def eventually(condition: Callable[[], bool], within_s: float = 60) -> None:
    """Polls, so that a test waits no longer than it must; TimeoutError when it never comes true."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what it looks at happens in other processes
            await asyncio.sleep(0.02)


def plain_url(url: str) -> str:
    """For asyncpg itself, which does not know SQLAlchemy's name for the driver."""
    return url.replace("postgresql+asyncpg://", "postgresql://")


async def as_owner(owner_url: str, *statements: str) -> None:
    """What the platform's own role may not do."""
    connection = await asyncpg.connect(plain_url(owner_url))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


class Services:
    """Start it once for the session, from the main thread: the servers end with the thread that started them."""

    def __init__(self) -> None:
        self._data_dir = make_data_dir()
        self._postgres = EmbeddedPostgres(self._data_dir)
        self._valkey = EmbeddedValkey(self._data_dir)

    @property
    def database_url(self) -> str:
        """Of the database that every other is made from, as the owner; tests use `create_database`."""
        return self._postgres.owner_url

    @property
    def redis_url(self) -> str:
        return self._valkey.url

    @property
    def postgres_log(self) -> Path:
        """What the server itself writes down."""
        return self._postgres.log

    def start(self) -> None:
        asyncio.run(self._start())

    def stop(self) -> None:
        asyncio.run(self._stop())
        for folder in (self._postgres.socket_dir, self._valkey.socket.parent):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self._data_dir.parent)

    def create_database(self, template: str | None = None) -> str:
        """A new database's URL, as the owner; `template` is the URL or the name of one that nobody is connected to."""
        name = f"test_{secrets.token_hex(6)}"
        # Through the WAL each page is written twice; copying files waits for the disk, and memory has none.
        strategy = "file_copy" if IN_MEMORY else "wal_log"
        source = f' TEMPLATE "{_name(template)}" STRATEGY {strategy}' if template else ""
        self._execute(f'CREATE DATABASE "{name}"{source}')
        return make_url(self.database_url).set(database=name).render_as_string(hide_password=False)

    def application_url(self, owner_url: str) -> str:
        """The same database by the role that the platform has, which must have been granted what it needs."""
        ours = make_url(self._postgres.url)
        return ours.set(database=make_url(owner_url).database).render_as_string(hide_password=False)

    def drop_database(self, database: str) -> None:
        """By its URL or its name; connections to it are ended."""
        self._execute(f'DROP DATABASE IF EXISTS "{_name(database)}" WITH (FORCE)')

    async def _start(self) -> None:
        await self._postgres.start()
        try:
            await self._valkey.start()
        except BaseException:
            await self._postgres.stop()
            raise

    async def _stop(self) -> None:
        await asyncio.gather(self._postgres.stop(), self._valkey.stop())

    def _execute(self, statement: str) -> None:
        asyncio.run(as_owner(self.database_url, statement))


def _name(database: str) -> str:
    return (make_url(database).database or "") if "://" in database else database
