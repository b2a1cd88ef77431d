"""How Redis is reached, and in which order workers are told of what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from core import hints
from core.hints import Hint, Hints
from core.ids import new_id
from tests.certificates import Certificates
from tests.platform import eventually


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


def hinting(redis_url: str, test: Callable[[Hints, Any], Awaitable[None]]) -> None:
    async def run() -> None:
        reader = hints.connect(redis_url)
        sender = Hints(hints.connect(redis_url))
        try:
            await test(sender, reader)
        finally:
            await sender.close()
            await reader.aclose(close_connection_pool=True)

    asyncio.run(run())


async def queued(redis: Any, batches: int) -> list[list[Hint]]:
    """What is in the lists, in the order in which workers take it, once there are so many batches."""
    found: list[bytes] = []

    async def there() -> bool:
        nonlocal found
        found = [one for name in hints.LISTS for one in await redis.lrange(name, 0, -1)]
        return len(found) == batches

    await eventually(there, what=f"{batches} batches")
    return [hints.unpack(one) for one in found]


def some(organization_id: UUID, number: int) -> list[Hint]:
    subscription_id = new_id()
    return [Hint(organization_id, subscription_id, new_id()) for _ in range(number)]


def test_the_first_goes_at_once_and_what_comes_meanwhile_in_one_batch(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "PACE_S", 1.0)

    async def test(sender: Hints, redis: Any) -> None:
        each = some(new_id(), 31)
        sender.send(each[:1])
        assert await queued(redis, 1) == [each[:1]]
        for one in each[1:]:
            sender.send([one])
        assert await queued(redis, 2) == [each[:1], each[1:]]

    hinting(redis_url, test)


def test_what_an_organization_creates_beyond_its_share_stands_behind_others(redis_url: str) -> None:
    async def test(sender: Hints, redis: Any) -> None:
        flood, other = some(new_id(), hints.MAX_PROMPT + 250), some(new_id(), 1)
        sender.send(flood)
        sender.send(other)
        batches = await queued(redis, -(-(hints.MAX_PROMPT + 1) // hints.MAX_IDS) + 3)
        in_order = [one for batch in batches for one in batch]
        assert in_order == [*flood[: hints.MAX_PROMPT], *other, *flood[hints.MAX_PROMPT :]]
        later = some(new_id(), 1)
        sender.send(later)
        batches = await queued(redis, len(batches) + 1)
        left = [batches.index(batch) for batch in batches if set(batch) <= set(flood[hints.MAX_PROMPT :])]
        assert batches.index(later) < min(left), "what is new now stands before what is left of the flood"

    hinting(redis_url, test)


def test_what_goes_on_coming_keeps_nothing_behind_it_from_workers(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints, "PACE_S", 0.05)  # longer than the pause between two looks

    async def test(sender: Hints, redis: Any) -> None:
        flood = some(new_id(), hints.MAX_PROMPT + 1)
        sender.send(flood)

        async def is_there() -> bool:
            sender.send(some(new_id(), 1))  # of another organization each time
            return bool(await redis.llen(hints.BULK))

        await eventually(is_there, what="what is beyond the share")
        assert hints.unpack((await redis.lrange(hints.BULK, 0, -1))[0]) == flood[hints.MAX_PROMPT :]

    hinting(redis_url, test)


def test_a_share_is_for_a_second(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(sender: Hints, _: Any) -> None:
        now = [100.2]
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])
        organization_id = new_id()
        sender.send(some(organization_id, hints.MAX_PROMPT + 1))
        assert (len(sender._prompt), len(sender._bulk)) == (hints.MAX_PROMPT, 1)
        now[0] = 101.0
        sender.send(some(organization_id, 1))
        assert (len(sender._prompt), len(sender._bulk)) == (hints.MAX_PROMPT + 1, 1)
        monkeypatch.undo()

    hinting(redis_url, test)


def test_what_nobody_reads_is_bounded_and_ends(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "MAX_BATCHES", 3)
    monkeypatch.setattr(hints, "PACE_S", 0.0)

    async def test(sender: Hints, redis: Any) -> None:
        each = some(new_id(), 5 * hints.MAX_IDS)
        sender.send(each)
        await eventually(lambda: _is_done(sender), what="all sent")
        assert await queued(redis, 3) == [each[at : at + hints.MAX_IDS] for at in (200, 300, 400)]
        assert 0 < await redis.ttl(hints.PROMPT) <= hints.EXPIRES_S

    hinting(redis_url, test)


async def _is_done(sender: Hints) -> bool:
    return sender._sender is not None and sender._sender.done()


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"{not json",
        b"[" * 100_000,
        b"7",
        b"[7]",
        b'[["a"]]',
        b'[["a", "b", "c"]]',
        b"[[1, 2, 3]]",
        b"[[null, {}]]",
    ],
)
def test_what_is_no_batch_is_said_to_be_none(batch: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        hints.unpack(batch)
