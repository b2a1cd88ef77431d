"""Between the platform and PostgreSQL: passes everything on, and on request swallows one answer.

The worst moment to lose a connection is after the server has committed and before the client hears of it. No kill
from outside hits it reliably; whoever reads the protocol can. `cut(needle)` waits for a statement whose text holds
`needle`, lets PostgreSQL finish it, and closes the connection in place of its answer.

    client ── Parse/Bind/Execute/Sync, or Query ──▶ server
    client ◀───────── …, ReadyForQuery ──────────── server      ReadyForQuery comes after the commit
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Self

from sqlalchemy.engine import make_url

from cli.embedded.postgres import PORT, SOCKET_NAME

FRONT_PARSE, FRONT_BIND, FRONT_QUERY, FRONT_SYNC = b"P", b"B", b"Q", b"S"
BACK_READY = b"Z"


class Cut:
    """An answer to be lost."""

    def __init__(self, needle: str) -> None:
        self.needle = needle
        self.done = asyncio.Event()


class PostgresProxy:
    """A Unix socket in front of the one in `database_url`. Use it as an async context manager."""

    def __init__(self, database_url: str) -> None:
        self._url = make_url(database_url)
        self._folder = Path(tempfile.mkdtemp(prefix="hwp-"))  # short: a socket's path ends at 107 bytes
        self._cuts: list[Cut] = []

    @property
    def url(self) -> str:
        """The same database, by way of this proxy."""
        query = {"host": str(self._folder), "port": str(PORT)}
        return self._url.set(query=query).render_as_string(hide_password=False)

    def cut(self, needle: str) -> Cut:
        """The next statement with `needle` in its text is done, and its answer lost."""
        cut = Cut(needle)
        self._cuts.append(cut)
        return cut

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self._folder / SOCKET_NAME)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        upstream = Path(str(self._url.query["host"])) / SOCKET_NAME
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            server_in, server_out = await asyncio.open_unix_connection(upstream)
            connection = _Connection(self._cuts)
            both = [
                asyncio.create_task(connection.forth(client_in, server_out)),
                asyncio.create_task(connection.back(server_in, client_out)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
                server_out.close()
        client_out.close()


class _Connection:
    def __init__(self, cuts: list[Cut]) -> None:
        self._cuts = cuts
        self._texts: dict[bytes, str] = {}  # of prepared statements, by name
        self._asked = ""  # what the client has sent since its last Sync
        self._cutting: Cut | None = None

    async def forth(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        [length] = struct.unpack("!I", head := await client.readexactly(4))  # the start-up message has no type
        server.write(head + await client.readexactly(length - 4))
        while True:
            kind, message = await _message(client)
            self._note(kind, message[5:])
            server.write(message)
            await server.drain()

    def _note(self, kind: bytes, body: bytes) -> None:
        if kind == FRONT_PARSE:
            name, text = body.split(b"\0", 2)[:2]
            self._texts[name] = text.decode("utf-8", "replace")
        elif kind == FRONT_BIND:
            self._asked += self._texts.get(body.split(b"\0", 2)[1], "")
        elif kind == FRONT_QUERY:
            self._asked = body.rstrip(b"\0").decode("utf-8", "replace")
        if kind in (FRONT_QUERY, FRONT_SYNC):
            self._cutting = next((one for one in self._cuts if one.needle in self._asked), None)
            if self._cutting is not None:
                self._cuts.remove(self._cutting)
            self._asked = ""

    async def back(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Returns when an answer has been swallowed; the connection is closed then."""
        while True:
            kind, message = await _message(server)
            if self._cutting is None:
                client.write(message)
                await client.drain()
            elif kind == BACK_READY:
                self._cutting.done.set()
                return


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    [length] = struct.unpack("!I", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)
