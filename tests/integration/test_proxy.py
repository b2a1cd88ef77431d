"""An egress proxy and a client certificate, against a real proxy and receivers that demand one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from cli.commands import check
from core import settings
from core.egress import EgressPolicy
from core.failures import ErrorKind
from core.storage.checks import Fault
from tests.api import FAST
from tests.certificates import Certificates
from tests.integration.test_transport import StubResolver, post
from tests.platform import environment, platform
from tests.receiver import Receiver
from worker.connector import EgressConnector
from worker.send_errors import SendError
from worker.transport import EgressTransport

LOCAL = EgressPolicy(allow=["127.0.0.0/8", "::1/128"], allow_http=True)


class Proxy:
    """A CONNECT proxy in the test's own loop. `said` is what it answers; "" answers nothing."""

    def __init__(self, said: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> None:
        self.said = said
        self.refused: set[str] = set()  # authorities that it answers 502
        self.heads: list[str] = []
        self.connections = 0
        self._serving: list[asyncio.Task[None]] = []

    @property
    def asked(self) -> list[str]:
        return [head.split(" ")[1] for head in self.heads]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving.append(cast("asyncio.Task[None]", asyncio.current_task()))
        async with AsyncExitStack() as ends:
            ends.enter_context(contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError))
            ends.push_async_callback(_end, writer)
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("ascii"))
            if self.asked[-1] in self.refused:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            elif self.said.startswith(b"HTTP/1.1 200 "):
                host, _, port = self.asked[-1].rpartition(":")
                far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
                ends.push_async_callback(_end, far_writer)
                writer.write(self.said)
                await asyncio.gather(_pipe(reader, far_writer), _pipe(far_reader, writer))
            elif self.said:
                writer.write(self.said)
            else:
                await reader.read()


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
    writer.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[Receiver]:
    with Receiver(ssl_context=certificates.server_context()) as it:
        yield it


@asynccontextmanager
async def through(proxy: Proxy, policy: EgressPolicy = LOCAL, **options: Any) -> AsyncIterator[EgressTransport]:
    transport = EgressTransport(policy, **{"proxy_url": proxy.url, **options})
    try:
        yield transport
    finally:
        await transport.aclose()
        assert not transport._connector._acquired


async def failed(transport: EgressTransport, url: str, deadline_s: float = 5) -> SendError:
    with pytest.raises(SendError) as caught:
        await post(transport, url, deadline_s)
    return caught.value


LOOPS = pytest.mark.parametrize("loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
NAMES = {"hooks_example_com": [["127.0.0.1"]], "other_example_com": [["127.0.0.1"]]}


@LOOPS
def test_the_proxy_is_asked_for_the_address_and_tls_is_the_receivers(
    secure: Receiver, certificates: Certificates, loop: Callable[..., None]
) -> None:
    secure.clear()

    async def main() -> None:
        async with Proxy().running() as proxy:
            options = {"ca_file": certificates.ca_file, "resolver": StubResolver(**NAMES)}
            async with through(proxy, **options) as transport:
                for _ in range(2):
                    answer = await post(transport, secure.url(host="hooks.example.com"), 5)
                    assert (answer.status, answer.body) == (200, b"ok")
                authority = f"127.0.0.1:{secure.port}"
                assert proxy.heads == [f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"]  # used twice
                error = await failed(transport, secure.url(host="other.example.com"))
                assert error.kind is ErrorKind.TLS
                assert "other.example.com" in error.message
                for path, kind in (("/hang", ErrorKind.TIMEOUT), ("/close", ErrorKind.RESET)):
                    assert (await failed(transport, secure.url(path), 0.5)).kind is kind

    loop(main())
    assert [it.header("host") for it in secure.requests[:2]] == [f"hooks.example.com:{secure.port}"] * 2
    assert [it.path for it in secure.requests] == ["/ok", "/ok", "/hang", "/close"]


def test_what_is_denied_is_not_asked_of_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy stands inside, and could reach all of it."""

    async def main() -> None:
        answers = [["169.254.169.254"], ["8.8.8.8", "10.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["64:ff9b::a00:1"]]
        async with Proxy(b"HTTP/1.1 403 Forbidden\r\n\r\n").running() as proxy:
            strict = EgressPolicy(allow_http=True)
            resolver = StubResolver(**{f"n{number}_example_com": [answer] for number, answer in enumerate(answers)})
            async with through(proxy, strict, resolver=resolver) as transport:
                for number in range(len(answers)):
                    assert (await failed(transport, f"http://n{number}.example.com/")).kind is ErrorKind.BLOCKED_ADDRESS
                inner = EgressPolicy(allow=["0.0.0.0/0"], allow_http=True).check_url("http://169.254.169.254/")
                for bypassed in (False, True):
                    if bypassed:  # the second guard, should the first be passed by

                        async def unchecked(self: Any, host: str, port: int, traces: Any = None) -> list[Any]:
                            return [{"hostname": host, "host": host, "port": port, "family": 2, "proto": 0, "flags": 0}]

                        monkeypatch.setattr(EgressConnector, "_resolve_host", unchecked)
                    with pytest.raises(SendError) as caught:
                        await transport.post(inner, b"", b"", 5)
                    assert caught.value.kind is ErrorKind.BLOCKED_ADDRESS
            assert proxy.connections == 0

    asyncio.run(main())


@LOOPS
def test_a_proxy_that_fails_is_no_connection_and_said_to_be_ours(loop: Callable[..., None]) -> None:
    answers = {
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno": "made no connection (status 403)",
        b"HTTP/1.0 407 Proxy Authentication Required\r\n\r\n": "made no connection (status 407)",
        b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n": "made no connection (status 302)",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n": "no answer that could be read",
        b"HTTP/1.1 204": "no answer that could be read",
        b"HTTP/1.1 204 X\r\nX: " + b"x" * 65536: "no answer that could be read",
        b"HTTP/1.1 204 Fine\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": "sent more than its answer",
    }

    async def main() -> None:
        async with Proxy().running() as proxy, through(proxy) as transport:
            for said, message in answers.items():
                proxy.said = said
                error = await failed(transport, "http://127.0.0.1:8080/")
                assert error.kind is ErrorKind.REFUSED
                assert error.message.startswith("The sender's proxy")
                assert message in error.message
            await failed(transport, "http://[::1]:8080/")
            assert proxy.asked[-1] == "[::1]:8080"
            proxy.said = b""
            error = await failed(transport, "http://127.0.0.1:8080/", 0.3)
            assert (error.kind, error.message) == (ErrorKind.TIMEOUT, "No connection within 0.3 s")
        async with through(proxy) as transport:  # nobody listens there any more
            error = await failed(transport, "http://127.0.0.1:8080/")
            assert (error.kind, error.message) == (ErrorKind.REFUSED, "The sender's proxy can't be reached")

    loop(main())


def test_plain_http_credentials_and_a_second_address() -> None:
    async def main() -> None:
        with Receiver(host="0.0.0.0") as receiver:
            async with Proxy().running() as proxy:
                proxy.refused = {f"127.0.0.2:{receiver.port}"}
                url = f"http://user:p%40ss@127.0.0.1:{proxy.port}"
                resolver = StubResolver(hooks_example_com=[["127.0.0.2", "127.0.0.3"]])
                async with through(proxy, proxy_url=url, resolver=resolver) as transport:
                    assert (await post(transport, receiver.url(host="hooks.example.com"), 5)).status == 200
                assert proxy.asked == [f"127.0.0.2:{receiver.port}", f"127.0.0.3:{receiver.port}"]
                assert all("\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n" in head for head in proxy.heads)
            assert receiver.requests[0].header("proxy-authorization") is None

    asyncio.run(main())


def test_the_platform_delivers_through_a_proxy_to_a_receiver_that_demands_a_certificate(
    database_url: str, redis_url: str, certificates: Certificates
) -> None:
    cert_file, key_file = certificates.client_files()
    context = certificates.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates.ca_file)

    async def main(receiver: Receiver) -> None:
        async with Proxy().running() as proxy:
            chosen = {
                "EGRESS_PROXY_URL": proxy.url,
                "EGRESS_CA_FILE": certificates.ca_file,
                "EGRESS_CLIENT_CERT_FILE": cert_file,
                "EGRESS_CLIENT_KEY_FILE": key_file,
            }
            async with platform(database_url, redis_url, **chosen) as p:
                await p.subscribe(receiver.url(), retry_policy=FAST)
                event = await p.send()
                await p.settled(1, "delivered")
                assert receiver.requests[0].header("webhook-id") == event["event_id"]
                assert proxy.asked == [f"127.0.0.1:{receiver.port}"]
            loaded = settings.load(environment(database_url, redis_url, **chosen))
            assert await check.look_at_ca_file(loaded) == f"certificate authorities of {certificates.ca_file}"
            assert await check.look_at_client_certificate(loaded) == f"client certificate of {cert_file}"
            assert await check.look_at_proxy(loaded) == f"egress proxy at 127.0.0.1:{proxy.port}"
        with pytest.raises(Fault, match="EGRESS_PROXY_URL: nothing answers at 127"):
            await check.look_at_proxy(loaded)

    with Receiver(ssl_context=context) as receiver:
        asyncio.run(main(receiver))


def test_certificates_that_cannot_be_used_are_named(
    certificates: Certificates, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("")
    cert_file, _ = certificates.client_files(password=b"secret")
    for wrong in (
        {"EGRESS_CLIENT_CERT_FILE": cert_file},  # the key is in another file
        {
            "EGRESS_CLIENT_CERT_FILE": cert_file,
            "EGRESS_CLIENT_KEY_FILE": cert_file.replace(".pem", ".key"),
        },  # encrypted
        {"EGRESS_CLIENT_CERT_FILE": str(tmp_path / "none.pem")},
        {"EGRESS_CA_FILE": str(tmp_path / "empty.pem")},
    ):
        loaded = settings.load(environment(database_url, redis_url, **wrong))
        with pytest.raises(Fault, match=f"HOOKWRIGHT_{next(iter(wrong))} .* can't be used"):
            asyncio.run(_both(loaded))


async def _both(loaded: settings.Settings) -> None:
    await check.look_at_ca_file(loaded)
    await check.look_at_client_certificate(loaded)
