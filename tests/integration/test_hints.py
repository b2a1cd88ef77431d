"""How Redis is reached."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from core import hints
from tests.integration.test_transport import Certificates


async def answer_pong(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(4096):
        writer.write(b"+PONG\r\n" * piece.count(b"*"))
    writer.close()


def test_over_tls_the_certificate_must_be_for_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = Certificates(tmp_path)  # its server is hooks.example.com and 127.0.0.1
    monkeypatch.setenv("SSL_CERT_FILE", certificates.ca_file)

    async def ping(url: str) -> None:
        redis = hints.connect(url)
        try:
            assert await redis.ping()
        finally:
            await redis.aclose(close_connection_pool=True)

    async def work() -> None:
        server = await asyncio.start_server(answer_pong, "127.0.0.1", 0, ssl=certificates.server_context())
        async with server:
            port = server.sockets[0].getsockname()[1]
            await ping(f"rediss://127.0.0.1:{port}")
            with pytest.raises(RedisConnectionError, match="Hostname mismatch"):
                await ping(f"rediss://localhost:{port}")

    asyncio.run(work())


def test_what_is_percent_encoded_in_the_url_is_decoded() -> None:
    options = hints.connect("redis://a%40b:p%2Fw%25@cache.example.com/3").connection_pool.connection_kwargs
    assert (options["username"], options["password"], options["db"]) == ("a@b", "p/w%", 3)
