"""The web server against clients that send too much, too slowly or nothing: real sockets, on the loop it runs on."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import uvloop

from cli.serving import PIECE, Bounds, Server, Together, serve
from core import ids
from tests.commands import Running
from tests.platform import Platform, environment, eventually, platform
from tests.ports import free_port

WITHIN_S = 20.0  # far more than any bound here; what comes later comes never
# Short, and longer than a busy machine lets this process wait for its turn.
QUICK = Bounds(head_s=1.5, body_s=1.5, body_bytes_per_s=20_000, answer_s=1.5, linger_s=0.4, connections=40)
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


class Client:
    """A connection that sends what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._said = b""  # by the server, as far as it was looked at

    async def send(self, data: bytes) -> bool:
        """False once the server has begun to answer, or is gone."""
        if self._writer.is_closing():  # uvloop refuses to write then, before the reader has heard of it
            return False
        try:
            self._writer.write(data)
            async with asyncio.timeout(WITHIN_S):
                await self._writer.drain()
            async with asyncio.timeout(0):
                self._said += await self._reader.read(65_536)
        except TimeoutError:
            return True
        except OSError:
            self._said = self._said or b"reset"
        return False

    async def answer(self) -> bytes:
        """All that the server says until it closes."""
        async with asyncio.timeout(WITHIN_S):
            try:
                return self._said + await self._reader.read()
            except OSError:
                return self._said or b"reset"

    async def one_answer(self) -> bytes:
        """The status line of an answer, which is read to its end."""
        async with asyncio.timeout(WITHIN_S):
            while b"\r\n\r\n" not in self._said:
                piece = await self._reader.read(65_536)
                assert piece, "closed instead of an answer"
                self._said += piece
            head, _, body = self._said.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await self._reader.readexactly(length - len(body))
        self._said = b""
        return head.partition(b"\r\n")[0]

    async def until(self, end: bytes) -> None:
        async with asyncio.timeout(WITHIN_S):
            while end not in self._said:
                self._said += await self._reader.readexactly(1)

    async def take(self, size: int, seconds: float) -> int:
        """How much of an answer of `size` there was, read steadily so that it takes `seconds` at least."""
        taken, pieces = 0, max(1, size // 65_536)
        while piece := await self._reader.read(65_536):
            taken += len(piece)
            await asyncio.sleep(seconds / pieces * len(piece) / 65_536)
        return taken

    async def drip(self, start: bytes, drop: bytes) -> bytes:
        """What the server says to `start` and then a drop now and again, until it closes."""
        deadline = time.monotonic() + WITHIN_S
        await self.send(start)
        while not self._reader.at_eof() and self._reader.exception() is None:
            assert time.monotonic() < deadline, f"still connected after {WITHIN_S} s"
            await asyncio.sleep(0.03)
            await self.send(drop)
        return await self.answer()

    async def flood(self, start: bytes, piece: bytes) -> bytes:
        """What the server says to `start`, and then `piece` without end."""
        going = await self.send(start)
        for _ in range(20_000_000 // len(piece)):
            if not going:
                break
            going = await self.send(piece)
        else:
            pytest.fail("20 MB were taken")
        return await self.answer()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class Served:
    """A server, and the clients it has."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()

    async def at_most(self, count: int) -> None:
        """Waits until no more connections are open."""

        async def reached() -> bool:
            return len(self.server.server_state.connections) <= count

        await eventually(reached, WITHIN_S, f"at most {count} connections")


@asynccontextmanager
async def serving(app: Any, bounds: Bounds = QUICK) -> AsyncIterator[Served]:
    options = {"log_config": None, "log_level": "critical", "access_log": False, "timeout_graceful_shutdown": 2}
    server = serve(app, bounds, **options)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    run = asyncio.create_task(server._serve([listener]))  # as `serve`, which would take the signals of the tests

    async def started() -> bool:
        return server.started

    await eventually(started)
    served = Served(server, listener.getsockname()[1])
    try:
        yield served
    finally:
        await served.close()
        server.should_exit = True
        await run


def run(main: Callable[[], Awaitable[None]]) -> None:
    uvloop.run(main())


def key(p: Platform) -> bytes:
    return b"X-API-Key: " + p.key.encode() + b"\r\n"


def test_a_head_has_bounds_in_bytes_and_in_headers(database_url: str, redis_url: str) -> None:
    async def main() -> None:
        async with (
            platform(database_url, redis_url, with_worker=False) as p,
            serving(p.app, Bounds(linger_s=5.0)) as served,
        ):
            chunked = b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + key(p) + b"\r\n"
            for what, start, piece in [
                ("an endless header", GET + b"X: ", b"x" * 1_000),
                ("an endless name", GET, b"x" * 1_000),
                ("an endless URL", b"GET /", b"x" * 1_000),
                ("endless headers", GET, b"X: x\r\n"),
                ("endless empty lines", b"", b"\r\n" * 500),
                ("endless trailers", chunked + b"0\r\n", b"X: x\r\n"),
                ("an endless trailer", chunked + b"0\r\nX: ", b"x" * 1_000),
                ("bytes of a body that are hardly any", chunked, b"1;" + b"x" * 200 + b"\r\nx\r\n"),
            ]:
                client = await served.connect()
                answer = await client.flood(start, piece)
                assert answer.startswith(b"HTTP/1.1 431 ") or answer == b"reset", what
            # At once, as a client that waits for its answer sends them, which then gets it.
            for what, data in {
                "10,000 headers": GET + b"".join(b"X-%d: x\r\n" % n for n in range(10_000)) + b"\r\n",
                "100,000 bytes": GET + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
            }.items():
                client = await served.connect()
                await client.send(data)
                answer = await client.answer()
                assert answer.startswith(b"HTTP/1.1 431 "), what
                assert answer.count(b"HTTP/1.1") == 1, what
            client = await served.connect()
            await client.send(b"nonsense\r\n\r\n")
            assert (await client.answer()).startswith(b"HTTP/1.1 400 ")
            # Within the bounds, over one connection.
            headers = [(f"X-{n}", "x" * 300) for n in range(90)]
            url = f"http://127.0.0.1:{served.port}"
            async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": p.key}) as good:
                assert (await good.get("/healthz", headers=headers)).status_code == 200
                wanted = ",".join(ids.show(ids.DELIVERY, ids.new_id()) for _ in range(1_000))
                assert (await good.get(f"/v1/deliveries?filters[ids]={wanted}")).status_code == 200
                for size in (10, 70_000, 250_000):
                    body = {"event_type": "a", "data": {"text": "x" * size}}
                    assert (await good.post("/v1/events", json=body)).status_code == 202

                async def pieces() -> AsyncIterator[bytes]:
                    yield b'{"event_type": "a", "data": {"text": "'
                    for _ in range(20_000):
                        yield b"xxxxxxxxxx"
                    yield b'"}}'

                answer_ = await good.post("/v1/events", content=pieces(), headers={"Content-Type": "application/json"})
                assert answer_.status_code == 202, answer_.text

            await served.close()
            await served.at_most(0)

    run(main)


def test_whoever_drips_is_cut_off(database_url: str, redis_url: str) -> None:
    async def main() -> None:
        async with (
            platform(database_url, redis_url, with_worker=False) as p,
            serving(p.app) as served,
        ):
            post = b"POST /v1/events HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n"
            huge = post.replace(b"200000", b"2000000")
            chunked = post.replace(b"Content-Length: 200000", b"Transfer-Encoding: chunked")
            wrong = b"X-API-Key: sk_live_wrong\r\n\r\n"
            cases = {
                "a head": (GET + b"X: ", b"x", b"HTTP/1.1 408 "),
                "headers": (GET, b"X: x\r\n", b"HTTP/1.1 408 "),
                "empty lines": (b"", b"\r\n", b"HTTP/1.1 408 "),
                "a body": (post + key(p) + b"\r\n", b"x", b"HTTP/1.1 408 "),
                "a body in pieces": (chunked + key(p) + b"\r\n", b"1\r\nx\r\n", b"HTTP/1.1 408 "),
                "a body for nobody": (post + wrong, b"x", b"HTTP/1.1 401 "),
                "a body that is too large": (
                    huge + key(p) + b"\r\n",
                    b"x",
                    b"HTTP/1.1 413 ",
                ),
                "a body of a GET": (post.replace(b"POST", b"GET") + key(p) + b"\r\n", b"x", b"HTTP/1.1 200 "),
            }

            async def one(start: bytes, drop: bytes) -> bytes:
                return await (await served.connect()).drip(start, drop)

            began = time.monotonic()
            answers = await asyncio.gather(*(one(start, drop) for start, drop, _ in cases.values()))
            assert time.monotonic() - began < WITHIN_S
            for (what, (_, _, expected)), answer in zip(cases.items(), answers, strict=True):
                assert answer.startswith(expected) or answer == b"reset", f"{what}: {answer[:300]!r}"
                assert answer.count(b"HTTP/1.1") <= 1, what
            # Nothing at all: on a new connection, and after a request (uvicorn's keep-alive is another matter).
            client = await served.connect()
            assert await client.answer() == b""
            client = await served.connect()
            await client.send(GET + b"\r\n")
            assert await client.one_answer() == b"HTTP/1.1 200 OK"
            assert (await client.drip(GET, b"X: x\r\n")).startswith(b"HTTP/1.1 408 ")
            assert await p.sql("SELECT id FROM events") == []
            # Slow, but not too slow: some 80 kB/s, for longer than a body may take that is slower.
            client = await served.connect()
            body = b'{"event_type": "a", "data": {"text": "' + b"x" * 199_960 + b'"}}'
            assert len(body) >= 200_000
            await client.send(post.replace(b"200000", b"%d" % len(body)) + key(p) + b"\r\n")
            for start in range(0, len(body), 2_000):
                await client.send(body[start : start + 2_000])
                await asyncio.sleep(0.025)
            assert await client.one_answer() == b"HTTP/1.1 202 Accepted"
            await client.close()
            await served.at_most(0)

    run(main)


LARGE = 30_000_000


async def large(scope: Any, receive: Any, send: Any) -> None:
    """Answers more than the sockets' buffers hold, or not at all."""
    if scope["type"] != "http":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/never":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    if scope["path"] == "/read":
        while (await receive()).get("more_body"):
            pass
    if scope["path"] == "/halves":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20")]})
        await send({"type": "http.response.body", "body": b"first half", "more_body": True})
        await receive()
        if (await receive())["type"] == "http.disconnect":
            return
    body = b"x" * (LARGE if scope["path"] == "/large" else 2)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def test_whoever_does_not_read_its_answer_is_cut_off() -> None:
    async def main() -> None:
        async with serving(large) as served:
            clients = [await served.connect() for _ in range(2)]
            for client, more in zip(clients, (b"", b"Connection: close\r\n"), strict=True):
                await client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")

            async def all_there() -> bool:
                return served.server.server_state.total_requests == 2

            await eventually(all_there, WITHIN_S, "both answers")
            await served.at_most(0)
            # Whoever takes it steadily may need longer than `answer_s`.
            client = await served.connect()
            await client.send(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert await client.take(LARGE, 2 * QUICK.answer_s) > LARGE - 65_536

    run(main)


def test_few_requests_wait_behind_another_and_no_refusal_gets_into_an_answer() -> None:
    async def main() -> None:
        async with serving(large, Bounds(pipelined=8)) as served:
            get = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
            client = await served.connect()
            await client.send(get % b"/" * 8 + (get % b"/").replace(b"Host", b"Connection: close\r\nHost"))
            assert (await client.answer()).count(b"HTTP/1.1 200 OK") == 9
            client = await served.connect()
            await client.send(get % b"/never" + get % b"/" * 10_000)
            assert await client.answer() in (b"", b"reset")
            wrong = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"
            client = await served.connect()
            await client.send(get % b"/halves")
            await client.until(b"first half")
            await client.send(wrong)
            answer = await client.answer()
            assert answer.count(b"HTTP/1.1") <= 1, answer

            async def told() -> bool:
                return not served.server.server_state.tasks

            await eventually(told, WITHIN_S, "an end of what was under way")

    run(main)


class Writes:
    """What of a transport and of uvicorn's cycle is needed to see what is written."""

    response_started = False

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append(b"closed")


def test_the_head_of_an_answer_and_its_body_are_one_write() -> None:
    def written(*pieces: bytes, close: bool = False) -> list[bytes]:
        seen: Any = Writes()
        together = Together(seen, seen)
        together.write(b"100 Continue ")
        seen.response_started = True
        for piece in pieces:
            together.write(piece)
        together.flush()
        if close:
            together.close()
        return seen.written[1:]

    assert written(b"head ", b"body ", b"more ") == [b"head body ", b"more "]
    assert written(b"head ") == [b"head "], "an answer to HEAD"
    assert written(b"head ", b"") == [b"head "]
    assert written(b"head ", b"x" * PIECE + b"x") == [b"head ", b"x" * PIECE + b"x"], "not worth a copy"
    assert written(b"head ", close=True) == [b"head ", b"closed"]
    assert written() == []


async def answers(scope: Any, receive: Any, send: Any) -> None:
    """By its path: an answer with a body, without one, in two pieces, or one that breaks off after its head."""
    if scope["type"] != "http":
        await large(scope, receive, send)
        return
    path = scope["path"]
    if path == "/asks":
        while (await receive()).get("more_body"):
            pass
    length = {"/none": [], "/pieces": []}.get(path, [(b"content-length", b"4")])
    await send({"type": "http.response.start", "status": 204 if path == "/none" else 200, "headers": length})
    if path == "/breaks":
        return
    if path == "/pieces":
        await send({"type": "http.response.body", "body": b"bo", "more_body": True})
        await send({"type": "http.response.body", "body": b"dy"})
    else:
        await send({"type": "http.response.body", "body": b"" if path == "/none" else b"body"})


def test_answers_of_every_kind_arrive_whole() -> None:
    async def main() -> None:
        async with serving(answers) as served:
            for request, status, rest in (
                (b"GET /body", b"200 OK", b"body"),
                (b"HEAD /body", b"200 OK", b""),
                (b"GET /none", b"204 No Content", b""),
                (b"GET /pieces", b"200 OK", b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"),
                (b"GET /breaks", b"200 OK", b""),
            ):
                for more in (b"", b"Connection: close\r\n"):
                    client = await served.connect()
                    await client.send(request + b" HTTP/1.1\r\nHost: x\r\n" + more + b"\r\n")
                    if not more and request != b"GET /breaks":  # the connection is kept: another request closes it
                        await client.send(request + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    said = (await client.answer()).split(b"HTTP/1.1 ")[1:]
                    assert len(said) == (1 if more or request == b"GET /breaks" else 2), request
                    for answer in said:
                        head, _, body = answer.partition(b"\r\n\r\n")
                        assert (head.partition(b"\r\n")[0], body) == (status, rest), request
            client = await served.connect()
            ask = b"POST /asks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
            await client.send(ask)
            await client.until(b"100 Continue\r\n\r\n")
            await client.send(b"ok")
            await client.until(b"200 OK")
            await client.until(b"body")

    run(main)


def test_whoever_is_refused_is_not_asked_to_continue(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(answers) as served:
            caplog.set_level(logging.ERROR, "uvicorn.error")  # `serving` has silenced it
            client = await served.connect()
            head = b"POST /asks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.send(head + b"ZZ\r\n")
            answer = await client.answer()
            assert answer.startswith(b"HTTP/1.1 400")
            assert b"100 Continue" not in answer
            await served.at_most(0)

    run(main)
    assert not caplog.records


def test_idle_connections_make_room_and_those_at_work_do_not() -> None:
    async def main() -> None:
        async with serving(large, Bounds(connections=40)) as served:
            kept = await served.connect()
            await kept.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await kept.one_answer() == b"HTTP/1.1 200 OK"
            idle = [await served.connect() for _ in range(200)]
            for half in idle[::2]:
                await half.send(GET)

            await served.at_most(40)
            new = await served.connect()
            for client in (new, kept):  # one that had a request answered goes last
                await client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await client.one_answer() == b"HTTP/1.1 200 OK"
            await served.close()
            await served.at_most(0)
            busy = [await served.connect() for _ in range(40)]
            for client in busy:
                await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")

            async def all_busy() -> bool:
                return len(served.server.server_state.tasks) >= 40

            await eventually(all_busy, WITHIN_S, "40 requests under way")
            late = [await served.connect() for _ in range(120)]  # the refused have time to read why, and are no room
            for client in late:
                await client.send(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            answers = [await client.answer() for client in late]
            assert all(answer.startswith(b"HTTP/1.1 503 ") or answer in (b"", b"reset") for answer in answers)
            assert sum(answer.startswith(b"HTTP/1.1 503 ") for answer in answers) > 50
            assert sum(not task.done() for task in served.server.server_state.tasks) == 40

    run(main)


def test_clients_that_keep_us_waiting_make_room_where_nobody_is_idle() -> None:
    async def main() -> None:
        async with serving(large, Bounds(connections=40)) as served:

            async def fill(count: int, request: bytes) -> None:
                for client in [await served.connect() for _ in range(count)]:
                    await client.send(request)

            async def serves() -> bool:
                new = await served.connect()
                await new.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                return await new.one_answer() == b"HTTP/1.1 200 OK"

            async def busy() -> bool:
                return len(served.server.server_state.tasks) >= 38

            await fill(40, b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\na")
            await eventually(busy, WITHIN_S, "40 halves of a body")
            assert await serves()
            assert len(served.server.server_state.connections) > 35, "those that wait for longest, not all"
            await served.close()
            await served.at_most(0)
            await fill(2, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await fill(38, b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(busy, WITHIN_S, "38 at work")
            await eventually(serves, WITHIN_S, "room where an answer is not taken")
            assert sum(not task.done() for task in served.server.server_state.tasks) == 38

    run(main)


def test_hookwright_web_serves_within_these_bounds(database_url: str, redis_url: str) -> None:
    port = free_port()
    with Running("web", "--port", str(port), env=environment(database_url, redis_url)):

        async def answers() -> bool:
            with suppress(httpx.TransportError):
                async with httpx.AsyncClient(trust_env=False) as client:
                    return (await client.get(f"http://127.0.0.1:{port}/healthz")).is_success
            return False

        async def main() -> None:
            await eventually(answers, what="a web process")
            async with httpx.AsyncClient(trust_env=False) as client:
                headers = [(f"X-{n}", "x") for n in range(101)]
                answer = await client.get(f"http://127.0.0.1:{port}/healthz", headers=headers)
            assert (answer.status_code, answer.text) == (431, "Request Header Fields Too Large\n")

        asyncio.run(main())
