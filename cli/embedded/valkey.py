"""Valkey 9 of our own, on a Unix socket. It holds only hints: losing all of it loses no event."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from pathlib import Path

from cli.embedded.binaries import valkey_server
from cli.embedded.leftovers import Stage, end_leftovers
from cli.embedded.paths import (
    FolderLock,
    make_data_dir,
    make_socket_dir,
    remove_socket_dir,
    socket_dir_path,
    verify_socket_dir,
)
from cli.process import Command, Process
from cli.service import EndedEarlyError, Service

SOCKET_NAME = "valkey.sock"
LOCK_FILE = "valkey.lock"
APPEND_ONLY_DIR = "appendonlydir"  # Valkey's own name for it

logger = logging.getLogger("hookwright.embedded")


class EmbeddedValkey(Service):
    name = "valkey"

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self.data_dir = data_dir.resolve()
        self._lock: FolderLock | None = None

    @property
    def url(self) -> str:
        return _url(self.socket)

    @property
    def socket(self) -> Path:
        return socket_dir_path(self.data_dir, os.geteuid()) / SOCKET_NAME

    @property
    def folder(self) -> Path:
        return self.data_dir / "valkey"

    @property
    def log(self) -> Path:
        return self.data_dir / "logs" / "valkey.log"

    async def prepare(self) -> None:
        self.data_dir = make_data_dir(self.data_dir)
        self._lock = FolderLock(self.data_dir / LOCK_FILE)
        self._lock.take("Valkey")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            make_socket_dir(self.data_dir)
        except BaseException:
            self.close()
            raise

    async def before_launch(self) -> None:
        # It must be gone before the next one starts: as it ends it removes the socket by its name.
        await end_leftovers(
            os.geteuid(),
            "valkey-server",
            (f"--dir {self.folder} --",),
            (Stage(None, 0.1), Stage(signal.SIGTERM, 5), Stage(signal.SIGKILL, 2)),
        )
        make_socket_dir(self.data_dir)

    def command(self) -> Command:
        options = {
            "dir": str(self.folder),
            "port": "0",  # the socket alone
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "daemonize": "no",
            "set-proc-title": "no",  # its command line tells whose it is, see leftovers
            "logfile": "",  # stdout, which is our log file
            "appendonly": "yes",
            "appendfsync": "everysec",  # up to a second of hints may go; the sweep finds what they pointed at
            "aof-load-truncated": "yes",  # a power cut may cut the last entry
            "save": "",  # the append-only file is enough
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",  # a queue must not lose entries to make room
        }
        argv = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Command(
            name=self.name,
            argv=(str(valkey_server()), *argv),
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            log=self.log,
            parent_death_signal=signal.SIGTERM,
        )

    async def launch(self) -> Process:
        try:
            return await super().launch()
        except EndedEarlyError:
            # A power cut can leave zeros at the end of the file, which Valkey refuses to load.
            if not self._put_data_aside():
                raise
            return await super().launch()

    async def why_not_ready(self) -> str | None:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_unix_connection(str(self.socket))
                try:
                    writer.write(b"PING\r\n")
                    answer = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as fault:
            return str(fault) or type(fault).__name__
        return None if answer == b"+PONG\r\n" else answer.decode("utf-8", "replace").strip() or "it hung up"

    def close(self) -> None:
        if self._lock is not None:
            if self._lock.held:
                remove_socket_dir(self.data_dir, os.geteuid())
            self._lock.release()
            self._lock = None

    def _put_data_aside(self) -> bool:
        data = self.folder / APPEND_ONLY_DIR
        if not data.exists():
            return False
        aside = self.folder / f"{APPEND_ONLY_DIR}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        data.rename(aside)
        logger.warning("valkey could not load its data, which is put aside in %s; it starts empty", aside)
        return True


def running_valkey_url(data_dir: Path) -> tuple[Path, str] | None:
    """The socket and the URL, whether or not anything listens. Changes nothing."""
    folder = data_dir / "valkey"
    if not folder.exists():
        return None
    uid = folder.stat().st_uid
    sockets = socket_dir_path(data_dir, uid)
    if not sockets.exists():
        return None
    verify_socket_dir(sockets, uid)
    return sockets / SOCKET_NAME, _url(sockets / SOCKET_NAME)


def _url(path: Path) -> str:
    return f"unix://{path}?db=0"  # the path is of /tmp and hexadecimal digits: nothing to escape
