"""The transport against a real receiver on loopback that misbehaves in every way we know."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import gc
import inspect
import os
import socket
import ssl
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.client_exceptions
import aiohttp.http_exceptions
import httpx
import pytest
import uvloop
from aiohttp.abc import AbstractResolver, ResolveResult

from core.egress import EgressPolicy
from core.failures import ErrorKind
from tests import hostile
from tests.certificates import Certificates
from tests.receiver import Receiver
from worker import transport as module
from worker.connector import EgressConnector, tls_context
from worker.send_errors import SendError, send_error_from
from worker.transport import MAX_BODY_BYTES, Answer, EgressTransport, header_lines

LOOPBACK = EgressPolicy(allow=["127.0.0.0/8"], allow_http=True)
DEADLINE_S = 0.5  # of what must time out
PATIENT_S = 10.0  # of what must not, however busy the machine
BODY = b'{"event_id": "evt_1", "data": {"n": 1}}'

Use = Callable[[EgressTransport], Awaitable[Any]]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as it:
        yield it


@pytest.fixture(autouse=True)
def _forget(receiver: Receiver) -> None:
    receiver.clear()


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that sockets were made for."""
    addresses: list[str] = []
    make = EgressConnector._make_socket

    def note(self: EgressConnector, info: Any) -> socket.socket:
        addresses.append(info[4][0])
        return make(self, info)

    monkeypatch.setattr(EgressConnector, "_make_socket", note)
    return addresses


def run(use: Use, policy: EgressPolicy = LOOPBACK, **options: Any) -> Any:
    """The result of `use` with a transport, on a loop of its own; nothing may be left behind."""

    async def main() -> Any:
        transport = EgressTransport(policy, **options)
        try:
            return await use(transport)
        finally:
            await transport.aclose()
            assert not transport._connector._acquired

    return asyncio.run(main())


async def post(
    transport: EgressTransport,
    url: str,
    deadline_s: float = DEADLINE_S,
    *,
    headers: Iterable[tuple[str, str]] = (("Content-Type", "application/json"),),
    body: bytes = BODY,
) -> Answer:
    return await transport.post(transport._policy.check_url(url), header_lines(headers), body, deadline_s)


def send(url: str, policy: EgressPolicy = LOOPBACK, deadline_s: float = PATIENT_S, **options: Any) -> Answer:
    answer: Answer = run(lambda transport: post(transport, url, deadline_s), policy, **options)
    return answer


def failure(url: str, policy: EgressPolicy = LOOPBACK, deadline_s: float = PATIENT_S, **options: Any) -> SendError:
    with pytest.raises(SendError) as caught:
        send(url, policy, deadline_s, **options)
    return caught.value


def header(answer: Answer, name: str) -> str | None:
    return next((value.decode() for given, value in answer.headers if given.decode().lower() == name), None)


# --- what is sent ---


def test_the_request_is_byte_for_byte_what_was_asked_for(receiver: Receiver) -> None:
    body = bytes(range(256)) + "ünïcode".encode()
    path = "/ok?a=%2F%2f&b=~!$&'()*+,;=:@/?c"

    async def use(transport: EgressTransport) -> None:
        headers = [("X-ZULU", "1"), ("x-alpha", "2"), ("Content-Type", "application/json"), ("X-Mixed", "a, b")]
        answer = await post(transport, receiver.url(path), headers=headers, body=body)
        assert answer.status == 200

    run(use)
    [request] = receiver.wait_for(1)
    assert request.body == body
    assert (
        request.head
        == (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{receiver.port}\r\nAccept-Encoding: identity\r\n"
            f"Content-Length: {len(body)}\r\nX-ZULU: 1\r\nx-alpha: 2\r\nContent-Type: application/json\r\n"
            "X-Mixed: a, b\r\n"
        ).encode()
    )


@pytest.mark.parametrize("path", ["/ok/../ok", "/ok//x/./y", "/OK%7e%7E", "/ok;p=1", "/ok?", "/?x=http://10.0.0.1/"])
def test_the_path_is_never_rewritten(receiver: Receiver, path: str) -> None:
    send(receiver.url(path))
    assert receiver.wait_for(1)[0].path == path


def test_framing_routing_and_cookies_are_not_the_requests_to_choose(receiver: Receiver) -> None:
    smuggled = {
        "Host": "evil.example.com",
        "Content-Length": "9999",
        "Transfer-Encoding": "chunked",
        "Connection": "close",
        "Accept-Encoding": "gzip",
        "Expect": "100-continue",
        "Cookie": "a=b",
        "Proxy-Authorization": "Basic x",
    }
    run(lambda transport: post(transport, receiver.url(), headers=smuggled.items()))
    [request] = receiver.wait_for(1)
    assert request.headers == [
        ("Host", f"127.0.0.1:{receiver.port}"),
        ("Accept-Encoding", "identity"),
        ("Content-Length", str(len(BODY))),
    ]
    assert request.body == BODY


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b"])
def test_a_line_break_in_a_header_never_leaves(value: str) -> None:
    for headers in ([("X-A", value)], [(value, "a")], [("X-B", "b"), ("X-A", value)]):
        with pytest.raises(SendError) as caught:
            header_lines(headers)
        assert caught.value.kind is ErrorKind.PROTOCOL


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_bodies_of_any_size_have_a_length(receiver: Receiver, size: int) -> None:
    run(lambda transport: post(transport, receiver.url(), body=b"x" * size, deadline_s=5))
    [request] = receiver.wait_for(1)
    assert len(request.body) == size
    assert request.header("content-length") == str(size)


def test_no_cookie_is_kept_and_no_proxy_taken_from_the_environment(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")

    async def use(transport: EgressTransport) -> None:
        assert (await post(transport, receiver.url("/cookie"))).status == 200
        assert (await post(transport, receiver.url("/ok"))).status == 200

    run(use)
    requests = receiver.wait_for(2)
    assert [it.header("cookie") for it in requests] == [None, None]
    assert requests[0].connection == requests[1].connection


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_not_followed(receiver: Receiver, dialled: list[str], status: int) -> None:
    with Receiver() as inner:
        for to in (
            inner.url(),
            "http://169.254.169.254/latest/meta-data/",
            "//169.254.169.254/",
            "/ok",
            "file:///etc/passwd",
        ):
            answer = send(receiver.url(f"/redirect/{status}?to={to}"))
            assert answer.status == status
            assert header(answer, "location") == to
        assert inner.connections == 0
    assert {it.path.partition("?")[0] for it in receiver.requests} == {f"/redirect/{status}"}
    assert receiver.count == 5
    assert set(dialled) == {"127.0.0.1"}


# --- what comes back ---


@pytest.mark.parametrize("status", [200, 201, 204, 301, 304, 400, 404, 410, 429, 500, 503, 599, 999])
def test_a_status_is_an_answer(receiver: Receiver, status: int) -> None:
    assert send(receiver.url(f"/status/{status}")).status == status


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/hang", ErrorKind.TIMEOUT),
        ("/slow/30", ErrorKind.TIMEOUT),
        ("/drip", ErrorKind.TIMEOUT),
        ("/drip-head", ErrorKind.TIMEOUT),
        ("/reset", ErrorKind.RESET),
        ("/close", ErrorKind.RESET),
        ("/garbage", ErrorKind.PROTOCOL),
        ("/switch", ErrorKind.PROTOCOL),
        ("/endless-1xx", ErrorKind.PROTOCOL),
        ("/endless-headers", ErrorKind.TOO_LARGE_HEADER),
        ("/huge-header", ErrorKind.TOO_LARGE_HEADER),
        ("/many-headers", ErrorKind.TOO_LARGE_HEADER),
    ],
)
@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_each_misbehaviour_has_its_kind(receiver: Receiver, path: str, kind: ErrorKind, loop: Any) -> None:
    async def main() -> SendError:
        transport = EgressTransport(LOOPBACK)
        with pytest.raises(SendError) as caught:
            await post(transport, receiver.url(path), DEADLINE_S if kind is ErrorKind.TIMEOUT else PATIENT_S)
        assert (await post(transport, receiver.url("/ok"), PATIENT_S)).status == 200  # nothing is left of it
        await transport.aclose()
        return caught.value

    error = loop(main())
    assert error.kind is kind
    assert error.status == (200 if path == "/drip" else None)
    assert "127.0.0.1" not in error.message
    assert len(error.message) < 200
    assert "Error" not in error.message


def test_informational_answers_are_passed_over(receiver: Receiver) -> None:
    answer = send(receiver.url("/early-hints"))
    assert (answer.status, answer.body) == (200, b"ok")
    assert header(answer, "link") is None


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/lying-length", 200, b"0123456789"),
        ("/bad-chunk", 200, None),
        ("/body-on-204", 204, b""),
    ],
)
def test_a_complete_head_decides_although_the_body_breaks(
    receiver: Receiver, path: str, status: int, body: bytes | None
) -> None:
    answer = send(receiver.url(path))
    assert answer.status == status
    assert answer.body == body or body is None
    assert answer.broken is (path != "/body-on-204")


def test_at_most_16_kib_of_body_are_read(receiver: Receiver) -> None:
    for path, truncated in (
        (f"/large/{MAX_BODY_BYTES}", False),
        (f"/large/{MAX_BODY_BYTES + 1}", True),
        ("/endless", True),
    ):
        answer = send(receiver.url(path))
        assert len(answer.body) == MAX_BODY_BYTES
        assert answer.truncated is truncated


def test_a_body_is_never_unpacked(receiver: Receiver) -> None:
    answer = send(receiver.url("/gzip-bomb"))
    assert header(answer, "content-encoding") == "gzip"
    assert answer.body[:2] == b"\x1f\x8b"
    assert len(answer.body) <= MAX_BODY_BYTES


def test_steering_headers_come_through(receiver: Receiver) -> None:
    assert header(send(receiver.url("/retry-after/7")), "retry-after") == "7"
    assert header(send(receiver.url("/directive/abort-message")), "webhook-delivery") == "abort-message"
    assert send(receiver.url("/gone")).status == 410


# --- behind an httpx client ---


def with_client(use: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> None:
    async def with_transport(transport: EgressTransport) -> None:
        await use(httpx.AsyncClient(transport=transport))  # no `async with`: that would close the transport

    run(with_transport)


def test_it_serves_an_httpx_client(receiver: Receiver) -> None:
    async def pieces() -> Any:
        yield b"{"
        yield b"}"

    async def use(client: httpx.AsyncClient) -> None:
        headers = [(b"X-ZULU", b"1"), (b"Cookie", b"a=b"), (b"x-alpha", "é".encode())]
        response = await client.post(receiver.url("/ok?x=1"), content=pieces(), headers=headers)
        assert (response.status_code, response.text) == (200, "ok")
        assert (await client.get(receiver.url("/gzip-bomb"))).content[:2] == b"\x1f\x8b"

    with_client(use)
    first, second = receiver.wait_for(2)
    assert (first.method, first.body, second.method, second.body) == ("POST", b"{}", "GET", b"")
    assert first.header("content-length") == "2"
    assert first.header("transfer-encoding") is None
    assert first.header("cookie") is None
    assert b"\r\nX-ZULU: 1\r\nx-alpha: \xc3\xa9\r\n" in first.head


def test_an_httpx_client_gets_what_came_and_what_is_missing(receiver: Receiver) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for path, truncated, broken in (
            ("/nul", False, False),
            ("/endless", True, False),
            ("/lying-length", False, True),
        ):
            response = await client.post(receiver.url(path))
            assert response.status_code == 200
            assert (response.extensions["truncated"], response.extensions["broken"]) == (truncated, broken)
        assert (await client.post(receiver.url("/nul"))).text.startswith("\0nul �")
        assert (await client.post(receiver.url("/retry-after/7"))).headers["Retry-After"] == "7"

    with_client(use)


def test_an_httpx_client_gets_the_same_errors_with_the_request_in_them(receiver: Receiver) -> None:
    async def endless() -> Any:
        await asyncio.Event().wait()
        yield b""

    async def use(client: httpx.AsyncClient) -> None:
        for path, kind, given in (
            ("/close", ErrorKind.RESET, {}),
            ("/hang", ErrorKind.TIMEOUT, {}),
            ("/ok", ErrorKind.TIMEOUT, {"content": endless()}),
            ("/ok", ErrorKind.PROTOCOL, {"headers": [("X-A", "a\r\nX-B: b")]}),
        ):
            with pytest.raises(SendError) as caught:
                await client.post(receiver.url(path), extensions={"deadline_s": DEADLINE_S}, **given)
            assert caught.value.kind is kind
            assert caught.value.request.url == receiver.url(path)

    with_client(use)
    assert [it.path for it in receiver.requests] == ["/close", "/hang"]


def test_an_httpx_client_is_held_to_the_url_rules_too(receiver: Receiver) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        for url in (f"http://localhost:{receiver.port}/ok", f"http://u:p@127.0.0.1:{receiver.port}/ok"):
            with pytest.raises(SendError) as caught:
                await client.post(url)
            assert caught.value.kind is ErrorKind.BLOCKED_ADDRESS

    with_client(use)
    assert receiver.count == 0


def test_a_target_that_was_checked_may_come_with_the_request(receiver: Receiver) -> None:
    async def use(client: httpx.AsyncClient) -> None:
        extensions = {"target": LOOPBACK.check_url(receiver.url("/ok?a=%2F"))}
        assert (await client.post("https://example.com/", extensions=extensions)).status_code == 200

    with_client(use)
    assert receiver.wait_for(1)[0].path == "/ok?a=%2F"


# --- connections ---


def test_a_connection_is_used_again_and_by_the_same_peer_only(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        for host in ("127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.1"):
            await post(transport, receiver.url(host=host))

    with Receiver(host="0.0.0.0") as everywhere:
        receiver = everywhere
        run(use)
        numbers = [it.connection for it in everywhere.wait_for(4)]
    assert numbers == [1, 1, 2, 1]


def test_a_connection_the_receiver_closed_while_idle_is_not_written_to(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        for _ in range(20):
            answer = await post(transport, receiver.url("/close-after-response"))
            assert answer.status == 200
            for idle in transport._connector._conns.values():
                assert all(handler._poll.poll(5000) for handler, _ in idle)  # the FIN is on its way

    run(use)
    assert len(receiver.wait_for(20)) == 20  # each exactly once


def test_a_fin_that_the_loop_has_not_seen_yet_is_seen(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        await post(transport, receiver.url("/ok"))
        [[(handler, _)]] = transport._connector._conns.values()
        handler.transport.pause_reading()  # as if the FIN came after the loop last looked
        receiver._loop.call_soon_threadsafe(lambda: [it.transport.close() for it in list(receiver._open)])
        assert handler._poll.poll(5000)
        assert handler.is_connected()
        assert (await post(transport, receiver.url("/ok"))).status == 200

    run(use)
    first, second = receiver.wait_for(2)
    assert first.connection != second.connection


def test_an_answer_that_nobody_asked_for_answers_no_later_request(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        for _ in range(5):
            assert (await post(transport, receiver.url("/unsolicited"))).status == 200

    run(use)
    assert len({it.connection for it in receiver.wait_for(5)}) == 5


def test_a_request_that_may_have_arrived_is_never_sent_twice(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        await post(transport, receiver.url("/ok"))
        for path in ("/close", "/reset"):
            await post(transport, receiver.url("/ok"))
            with pytest.raises(SendError) as caught:  # on a pooled connection, as the one before
                await post(transport, receiver.url(path))
            assert caught.value.kind is ErrorKind.RESET

    run(use)
    paths = [it.path for it in receiver.wait_for(5)]
    assert paths == ["/ok", "/ok", "/close", "/ok", "/reset"]


def test_an_old_connection_is_put_away(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTION_AGE_S", -1.0)

    async def use(transport: EgressTransport) -> None:
        for _ in range(3):
            await post(transport, receiver.url())

    run(use)
    assert [it.connection - receiver.requests[0].connection for it in receiver.wait_for(3)] == [0, 1, 2]


def test_idle_connections_are_bounded(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        await asyncio.gather(*[post(transport, receiver.url("/slow/0.05"), 5) for _ in range(20)])
        assert sum(map(len, transport._connector._conns.values())) <= 4

    run(use, max_idle=4)


def test_a_cancelled_request_leaves_no_connection(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        task = asyncio.ensure_future(post(transport, receiver.url("/hang"), 30))
        await asyncio.to_thread(receiver.wait_for, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not transport._connector._acquired
        assert not transport._connector._conns

    run(use)


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_stop_at_the_deadline_is_a_stop(receiver: Receiver, loop: Any) -> None:
    async def main() -> None:
        transport = EgressTransport(LOOPBACK)
        task = asyncio.ensure_future(post(transport, receiver.url("/hang"), 0.0))
        await asyncio.sleep(0)  # it has begun, and its deadline is passed
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not transport._connector._acquired
        await transport.aclose()

    loop(main())


def test_a_deadline_leaves_no_cancellation_behind(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        with pytest.raises(SendError):
            await post(transport, receiver.url("/hang"))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(use)


@pytest.mark.parametrize(
    "path", ["/close", "/reset", "/garbage", "/huge-header", "/lying-length", "/hang", "/drip", ""]
)
def test_a_failure_does_not_wait_for_the_garbage_collector(receiver: Receiver, path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/"

    async def main() -> list[str]:
        transport = EgressTransport(LOOPBACK)
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(SendError):
                await post(transport, receiver.url(path) if path else nobody)
            for _ in range(10):  # until the loop has let go of the connection
                await asyncio.sleep(0)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            # The receiver is in this process, so only what is ours counts.
            return [str(it) for it in gc.garbage if inspect.isframe(it) and "/worker/" in it.f_code.co_filename]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            await transport.aclose()

    assert uvloop.run(main()) == []


@pytest.mark.parametrize("options", [{"limit": 2}, {"limit_per_host": 2}], ids=str)
def test_connections_in_use_are_bounded(receiver: Receiver, options: dict[str, int]) -> None:
    async def use(transport: EgressTransport) -> None:
        for _ in range(2):  # dialled, then taken from the idle ones
            await asyncio.gather(*[post(transport, receiver.url("/slow/0.01"), 10) for _ in range(6)])
        assert not transport._connector._acquired_per_host

    run(use, **options)
    assert len({it.connection for it in receiver.wait_for(12)}) == 2


def test_a_connection_that_idled_too_long_is_put_away(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        for _ in range(3):
            await post(transport, receiver.url())

    run(use, keepalive_s=0.0)
    assert len({it.connection for it in receiver.wait_for(3)}) == 3


def test_many_at_once(receiver: Receiver) -> None:
    async def use(transport: EgressTransport) -> None:
        paths = ["/ok", "/status/503", "/close", "/slow/0.01", "/large/20000"] * 40
        answers = await asyncio.gather(*[post(transport, receiver.url(it), 10) for it in paths], return_exceptions=True)
        for path, answer in zip(paths, answers, strict=True):
            if path == "/close":
                assert isinstance(answer, SendError)
            else:
                assert isinstance(answer, Answer)
                assert answer.status == (503 if "503" in path else 200)

    run(use, limit=16)
    receiver.wait_for(200)


def test_nothing_listens(receiver: Receiver) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert failure(f"http://127.0.0.1:{port}/").kind is ErrorKind.REFUSED


# --- addresses ---


class StubResolver(AbstractResolver):
    """Answers from a table: a name's answers in turn, the last one repeating. An OSError is raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = {name.replace("_", "."): list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        given = self.answers[host]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, OSError):
            raise answer
        return [
            ResolveResult(hostname=host, host=it, port=port, family=socket.AF_INET, proto=0, flags=0) for it in answer
        ]

    async def close(self) -> None:
        pass


def test_a_literal_address_is_checked_when_it_is_dialled(receiver: Receiver, dialled: list[str]) -> None:
    target = LOOPBACK.check_url(receiver.url())  # accepted under another policy, long ago
    lax = EgressPolicy(allow=["0.0.0.0/0", "::/0"], allow_http=True)
    before = receiver.connections

    async def use(transport: EgressTransport) -> None:
        with pytest.raises(SendError) as caught:
            await transport.post(target, b"", b"", DEADLINE_S)
        assert caught.value.kind is ErrorKind.BLOCKED_ADDRESS
        assert caught.value.message == "127.0.0.1 is not called: loopback"
        for address in [it for group in hostile.ADDRESSES.values() for it in group]:
            shown = f"[{address}]" if ":" in address else address
            given = dataclasses.replace(
                lax.check_url(f"http://8.8.8.8:{receiver.port}/"), host=address, host_header=shown
            )
            with pytest.raises(SendError) as caught:
                await transport.post(given, b"", b"", DEADLINE_S)
            assert caught.value.kind is ErrorKind.BLOCKED_ADDRESS, address

    run(use, EgressPolicy(allow_http=True))
    assert dialled == []
    assert receiver.connections == before


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["fe80::1%eth0"],
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["2606:4700::1111", "::1"],
        ["example.org"],
    ],
    ids=str,
)
def test_no_address_of_a_name_is_dialled_when_one_is_denied(
    receiver: Receiver, dialled: list[str], answer: list[str]
) -> None:
    resolver = StubResolver(hooks_example_com=[answer])
    url = f"http://hooks.example.com:{receiver.port}/ok"
    assert failure(url, EgressPolicy(allow_http=True), resolver=resolver).kind is ErrorKind.BLOCKED_ADDRESS
    assert dialled == []
    assert receiver.count == 0


def test_a_name_is_resolved_once_and_that_answer_is_dialled(receiver: Receiver, dialled: list[str]) -> None:
    resolver = StubResolver(hooks_example_com=[["127.0.0.1"], ["169.254.169.254"]])

    async def use(transport: EgressTransport) -> None:
        for _ in range(3):
            assert (await post(transport, f"http://hooks.example.com:{receiver.port}/ok")).status == 200

    run(use, resolver=resolver)
    assert resolver.asked == ["hooks.example.com"]
    assert dialled == ["127.0.0.1"]
    assert receiver.wait_for(3)[0].header("host") == f"hooks.example.com:{receiver.port}"


def test_a_name_that_is_rebound_is_refused_on_the_next_connection(receiver: Receiver, dialled: list[str]) -> None:
    resolver = StubResolver(hooks_example_com=[["127.0.0.1"], ["10.0.0.1"]])

    async def use(transport: EgressTransport) -> None:
        url = f"http://hooks.example.com:{receiver.port}"
        await post(transport, url + "/ok")
        transport._connector.clear_dns_cache()
        assert (await post(transport, url + "/ok")).status == 200  # the pooled connection stands
        with pytest.raises(SendError):
            await post(transport, url + "/close")  # and now it does not
        with pytest.raises(SendError) as caught:
            await post(transport, url + "/ok")
        assert caught.value.kind is ErrorKind.BLOCKED_ADDRESS

    run(use, resolver=resolver)
    assert dialled == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["127.0.0.1", "hooks.example.com"])
def test_the_socket_itself_is_guarded_should_resolving_be_bypassed(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    async def unchecked(self: Any, host: str, port: int, traces: Any = None) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)]

    monkeypatch.setattr(EgressConnector, "_resolve_host", unchecked)
    target = LOOPBACK.check_url(f"http://{host}:{receiver.port}/ok")

    async def use(transport: EgressTransport) -> SendError:
        with pytest.raises(SendError) as caught:
            await transport.post(target, b"", b"", DEADLINE_S)
        return caught.value

    assert run(use, EgressPolicy(allow_http=True)).kind is ErrorKind.BLOCKED_ADDRESS
    assert receiver.count == 0


def test_a_second_address_is_tried_where_the_first_refuses(receiver: Receiver) -> None:
    resolver = StubResolver(hooks_example_com=[["127.9.9.9", "127.0.0.1"]])  # 127.9.9.9 listens nowhere
    assert send(f"http://hooks.example.com:{receiver.port}/ok", resolver=resolver).status == 200


@pytest.mark.parametrize(
    "answer",
    [socket.gaierror(socket.EAI_NONAME, "x"), socket.gaierror(socket.EAI_AGAIN, "x"), OSError(5, "x")],
    ids=repr,
)
def test_a_name_without_an_address_is_dns(receiver: Receiver, answer: Any) -> None:
    error = failure("http://hooks.example.com/", resolver=StubResolver(hooks_example_com=[answer]))
    assert error.kind is ErrorKind.DNS


def test_the_systems_resolver_and_its_failure() -> None:
    assert failure("http://no-such-name.invalid/", deadline_s=DEADLINE_S).kind in (ErrorKind.DNS, ErrorKind.TIMEOUT)


def test_the_deadline_covers_resolving() -> None:
    class Silent(StubResolver):
        async def resolve(self, *_: Any, **__: Any) -> list[ResolveResult]:
            await asyncio.Event().wait()
            raise AssertionError

    error = failure("http://hooks.example.com/", deadline_s=DEADLINE_S, resolver=Silent())
    assert error.kind is ErrorKind.TIMEOUT
    assert error.message == "No connection within 0.5 s"


def test_the_deadline_covers_connecting_and_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never says a word of TLS
        policy = EgressPolicy(allow=["127.0.0.0/8"])
        error = failure(f"https://127.0.0.1:{mute.getsockname()[1]}/", policy, DEADLINE_S)
    assert error.kind is ErrorKind.TIMEOUT
    assert error.message == "No connection within 0.5 s"


def test_the_deadline_covers_sending() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"

        async def use(transport: EgressTransport) -> None:
            with pytest.raises(SendError) as caught:
                await post(transport, url, body=b"x" * 8_000_000)
            assert caught.value.kind is ErrorKind.TIMEOUT

        run(use)


# --- TLS ---


NAMES = {"hooks_example_com": [["127.0.0.1"]], "other_example_com": [["127.0.0.1"]]}
TLS_LOOPBACK = EgressPolicy(allow=["127.0.0.0/8"])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[Receiver]:
    with Receiver(ssl_context=certificates.server_context()) as it:
        yield it


@pytest.mark.parametrize("host", ["hooks.example.com", "127.0.0.1"])
@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_tls_with_the_right_authority_and_name(
    secure: Receiver, certificates: Certificates, host: str, loop: Any
) -> None:
    async def main() -> None:
        transport = EgressTransport(TLS_LOOPBACK, ca_file=certificates.ca_file, resolver=StubResolver(**NAMES))
        for path, status in (("/ok", 200), ("/ok", 200), ("/endless", 200), ("/status/503", 503)):
            answer = await post(transport, secure.url(path, host=host), deadline_s=5)
            assert answer.status == status
        for path, kind in (("/close", ErrorKind.RESET), ("/hang", ErrorKind.TIMEOUT), ("/garbage", ErrorKind.PROTOCOL)):
            with pytest.raises(SendError) as caught:
                await post(transport, secure.url(path, host=host))
            assert caught.value.kind is kind
        await transport.aclose()

    loop(main())


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"from_h": -48, "until_h": -1}, "certificate has expired"),
        ({"from_h": 24, "until_h": 48}, "certificate is not yet valid"),
        ({"names": ["other.example.com"]}, "Hostname mismatch"),
        ({"names": ["*.com", "*.*.com", "*", "example.com"]}, "Hostname mismatch"),
        ({"names": []}, "hooks.example.com"),
        ({"self_signed": True}, "self-signed certificate"),
    ],
    ids=["expired", "not yet valid", "of another host", "of too wide a name", "of no host", "self-signed"],
)
def test_a_certificate_that_is_wrong_is_refused(certificates: Certificates, fault: dict[str, Any], says: str) -> None:
    with Receiver(ssl_context=certificates.server_context(**fault)) as receiver:
        options = {"ca_file": certificates.ca_file, "resolver": StubResolver(**NAMES)}
        error = failure(receiver.url(host="hooks.example.com"), TLS_LOOPBACK, **options)
        assert error.kind is ErrorKind.TLS
        assert says in error.message
        assert receiver.count == 0


def test_an_authority_that_is_not_trusted_is_refused(secure: Receiver) -> None:
    secure.clear()
    error = failure(secure.url(host="hooks.example.com"), TLS_LOOPBACK, resolver=StubResolver(**NAMES))
    assert error.kind is ErrorKind.TLS
    assert "certificate" in error.message
    assert secure.count == 0


def test_a_certificate_of_a_name_is_not_that_of_its_address(certificates: Certificates) -> None:
    with Receiver(ssl_context=certificates.server_context(names=["hooks.example.com"])) as receiver:
        error = failure(receiver.url(), TLS_LOOPBACK, ca_file=certificates.ca_file)
        assert error.kind is ErrorKind.TLS
        assert "IP address mismatch" in error.message
        assert receiver.count == 0


def _demanding(certificates: Certificates, newest: ssl.TLSVersion) -> ssl.SSLContext:
    context = certificates.server_context()
    context.maximum_version = newest
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates.ca_file)
    return context


@pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda it: it.name)
def test_a_receiver_that_asks_for_a_certificate_gets_ours(
    certificates: Certificates, newest: ssl.TLSVersion, loop: Any
) -> None:
    cert_file, key_file = certificates.client_files()

    async def main(url: str, **ours: str) -> Answer:
        transport = EgressTransport(TLS_LOOPBACK, ca_file=certificates.ca_file, **ours)
        try:
            return await post(transport, url, deadline_s=5)
        finally:
            await transport.aclose()

    with Receiver(ssl_context=_demanding(certificates, newest)) as receiver:
        assert loop(main(receiver.url(), client_cert_file=cert_file, client_key_file=key_file)).status == 200

    def refuse(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        with plain, plain.dup() as same:
            with contextlib.suppress(ssl.SSLError):
                _demanding(certificates, newest).wrap_socket(plain, server_side=True)
            same.shutdown(socket.SHUT_WR)
            same.settimeout(5)
            with contextlib.suppress(OSError):
                while same.recv(4096):  # a request left unread would make a RST of the end, and that may overtake
                    pass

    # uvloop's server closes without a word; this one says why. Of TLS 1.3 it does so only after the handshake.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        with pytest.raises(SendError) as caught:
            loop(main(f"https://127.0.0.1:{listener.getsockname()[1]}/"))
        thread.join(10)
    assert caught.value.kind is ErrorKind.TLS


def test_a_key_that_is_encrypted_is_an_error_and_no_question_at_the_terminal(certificates: Certificates) -> None:
    with pytest.raises(OSError, match=r"\[SSL\]|PEM|bad"):
        tls_context(None, *certificates.client_files(password=b"secret"))


def test_tls_older_than_1_2_is_refused(certificates: Certificates) -> None:
    assert tls_context().minimum_version is ssl.TLSVersion.TLSv1_2  # OpenSSL may be built with the same bound
    context = certificates.server_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():  # ssl warns of the versions that we mean to be refused
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Receiver(ssl_context=context) as old:
        assert failure(old.url(), TLS_LOOPBACK, ca_file=certificates.ca_file).kind is ErrorKind.TLS


def test_plain_http_where_tls_was_asked_for(receiver: Receiver) -> None:
    assert failure(receiver.url().replace("http:", "https:"), TLS_LOOPBACK).kind is ErrorKind.TLS


def test_a_key_log_from_the_environment_is_not_written(
    secure: Receiver, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert send(secure.url(), TLS_LOOPBACK, ca_file=certificates.ca_file).status == 200
    assert os.listdir(tmp_path) == []


# --- every exception has its kind ---


def _subclasses(cls: type[BaseException]) -> Iterator[type[BaseException]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _subclasses(sub)


def _upstream() -> set[type[BaseException]]:
    gc.collect()  # classes that other tests made and dropped
    roots = (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError)
    ours = ("aiohttp", "ssl", "socket", "builtins", "asyncio", "concurrent")
    return {
        it
        for root in roots
        for it in _subclasses(root)
        if it.__module__.partition(".")[0].lstrip("_") in ours
        and "WS" not in it.__name__  # websockets are not spoken
        and it is not aiohttp.ClientError  # raised by nobody; in the table it would hide a class that is new
    } | {asyncio.TimeoutError}


EXPECTED = {
    "ClientConnectorDNSError": ErrorKind.DNS,
    "gaierror": ErrorKind.DNS,
    "ClientConnectorCertificateError": ErrorKind.TLS,
    "ClientConnectorSSLError": ErrorKind.TLS,
    "ClientSSLError": ErrorKind.TLS,
    "ServerFingerprintMismatch": ErrorKind.TLS,
    "SSLError": ErrorKind.TLS,
    "SSLCertVerificationError": ErrorKind.TLS,
    "SSLEOFError": ErrorKind.TLS,
    "TimeoutError": ErrorKind.TIMEOUT,
    "ServerTimeoutError": ErrorKind.TIMEOUT,
    "ConnectionTimeoutError": ErrorKind.TIMEOUT,
    "SocketTimeoutError": ErrorKind.TIMEOUT,
    "ConnectionRefusedError": ErrorKind.REFUSED,
    "ConnectionResetError": ErrorKind.RESET,
    "BrokenPipeError": ErrorKind.RESET,
    "ConnectionAbortedError": ErrorKind.RESET,
    "ClientConnectionResetError": ErrorKind.RESET,
    "ServerDisconnectedError": ErrorKind.RESET,
    "ClientOSError": ErrorKind.RESET,
    "ClientPayloadError": ErrorKind.RESET,
    "ClientConnectorError": ErrorKind.REFUSED,
    "LineTooLong": ErrorKind.TOO_LARGE_HEADER,
    "BadStatusLine": ErrorKind.PROTOCOL,
    "BadHttpMessage": ErrorKind.PROTOCOL,
    "InvalidHeader": ErrorKind.PROTOCOL,
    "TransferEncodingError": ErrorKind.PROTOCOL,
    "ClientResponseError": ErrorKind.PROTOCOL,
}


@pytest.mark.parametrize("cls", sorted(_upstream(), key=lambda it: it.__name__), ids=lambda it: it.__name__)
def test_every_upstream_exception_has_one_kind(cls: type[BaseException]) -> None:
    error = cls.__new__(cls)
    if isinstance(error, aiohttp.ClientConnectorError):
        error._os_error = OSError()
        error._conn_key = None  # type: ignore[assignment]
        error._certificate_error = ssl.CertificateError()  # type: ignore[attr-defined]
    mapped = send_error_from(error)
    assert mapped is not None, f"{cls.__name__} has no kind: add it to the table in worker/send_errors.py"
    assert mapped.kind is EXPECTED.get(cls.__name__, mapped.kind)
    assert mapped.kind is not ErrorKind.STATUS


def test_the_walk_finds_what_it_should() -> None:
    names = {it.__name__ for it in _upstream()}
    assert set(EXPECTED) - names <= {"TimeoutError"}
    assert len(names) > 50


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ECONNREFUSED, ErrorKind.REFUSED),
        (errno.EHOSTUNREACH, ErrorKind.REFUSED),
        (errno.ENETUNREACH, ErrorKind.REFUSED),
        (errno.EMFILE, ErrorKind.REFUSED),
        (errno.ECONNRESET, ErrorKind.RESET),
        (errno.EPIPE, ErrorKind.RESET),
        (errno.ETIMEDOUT, ErrorKind.TIMEOUT),
    ],
    ids=lambda it: errno.errorcode[it] if isinstance(it, int) else str(it),
)
def test_the_number_of_an_os_error_decides_wrapped_or_not(number: int, kind: ErrorKind) -> None:
    bare = OSError(number, "x")
    wrapped = aiohttp.ClientConnectorError(None, bare)  # type: ignore[arg-type]
    for error in (bare, wrapped, aiohttp.ClientOSError(number, "x")):
        mapped = send_error_from(error)
        assert mapped is not None
        assert mapped.kind is kind


def test_a_bug_of_ours_is_not_dressed_up() -> None:
    assert send_error_from(KeyError("x")) is None
    assert send_error_from(asyncio.CancelledError()) is None
