"""Name servers that fail, keep silent, lie, or answer too much, through the whole platform."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from structlog.testing import capture_logs

from core.failures import ErrorKind
from tests.faults.scene import SLACK_S
from tests.faults.test_network import POLICY, TIMEOUT_S, TRIES, all_is_given_back
from tests.platform import Platform, eventually, platform
from tests.receiver import Receiver
from worker import connector, transport
from worker.connector import RESOLVER_THREADS, EgressConnector

ALLOWED = "127.0.0.2"  # stands for a partner's public address; all else of loopback is denied
EVENTS = 4

Answer = list[str] | OSError | None  # None: no answer, ever


class Names(AbstractResolver):
    """Each name's answers in turn, and then from the start again."""

    answers: dict[str, list[Answer]] = {}

    def __init__(self) -> None:
        self._asked: defaultdict[str, int] = defaultdict(int)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = self.answers[host]
        answer = answers[self._asked[host] % len(answers)]
        self._asked[host] += 1
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, OSError):
            raise answer
        families = [socket.AF_INET6 if ":" in it else socket.AF_INET for it in answer or []]
        return [
            ResolveResult(hostname=host, host=it, port=port, family=of, proto=0, flags=0)
            for it, of in zip(answer or [], families, strict=True)
        ]

    async def close(self) -> None:
        pass


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


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(host="0.0.0.0") as it:
        yield it


@pytest.fixture
def play(database_url: str, redis_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Subscribes to each name, sends some events to all at once, and gives what came of them to `check`."""
    monkeypatch.setattr(transport, "ThreadResolver", Names)
    monkeypatch.setattr(connector, "DNS_CACHE_S", 0)

    async def run(names: dict[str, list[Answer]], path: str, check: Callable[..., Awaitable[None]]) -> None:
        Names.answers = names | {"healthy.example.com": [[ALLOWED]]}
        async with platform(database_url, redis_url, EGRESS_ALLOW=f"{ALLOWED}/32") as it:
            assert it.engine is not None
            for name in Names.answers:
                url = receiver.url("/ok" if name.startswith("healthy") else path, host=name)
                timeout_s = TIMEOUT_S if None in Names.answers[name] else 10
                await it.subscribe(
                    url,
                    ["*"],
                    retry_policy=POLICY,
                    timeout_ms=round(timeout_s * 1000),
                    circuit_breaker={"failure_threshold": 1000},
                )
            began = time.monotonic()
            await asyncio.gather(*(it.send() for _ in range(EVENTS)))
            rows = await _ended(it, EVENTS * len(Names.answers))
            print(f"ended after {time.monotonic() - began:.1f} s")
            by_host: dict[str, list[Any]] = defaultdict(list)
            for row in rows:
                by_host[row["url"].split("/")[2].partition(":")[0]].append(row)
            assert outcome(by_host["healthy.example.com"]) == {DELIVERED}
            await check(by_host)
            await all_is_given_back(it.engine)

    return lambda names, path, check: asyncio.run(run(names, path, check))


async def _ended(it: Platform, count: int) -> list[Any]:
    async def all_ended() -> list[Any] | None:
        rows = await it.sql(
            "SELECT s.url, d.state, d.reason, d.error_kind, d.attempt_count,"
            " (SELECT count(*) FROM attempts a WHERE a.delivery_id = d.id) AS attempts"
            " FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id"
            " WHERE state IN ('delivered', 'dead')"
        )
        return rows if len(rows) >= count else None

    found: list[Any] = await eventually(all_ended, what=f"{count} deliveries have ended")
    return found


def outcome(rows: list[Any]) -> set[tuple[Any, ...]]:
    assert len(rows) == EVENTS
    return {(row["state"], row["reason"], row["error_kind"], row["attempts"]) for row in rows}


DEAD_OF_DNS = ("dead", "exhausted", ErrorKind.DNS, TRIES)
DEAD_OF_TIME = ("dead", "exhausted", ErrorKind.TIMEOUT, TRIES)
REJECTED = ("dead", "rejected", ErrorKind.BLOCKED_ADDRESS, 1)
DELIVERED = ("delivered", None, None, 1)


def test_a_name_server_that_fails_keeps_silent_or_recovers(play: Callable[..., None], receiver: Receiver) -> None:
    unknown, again = socket.gaierror(socket.EAI_NONAME, "x"), socket.gaierror(socket.EAI_AGAIN, "x")
    names: dict[str, list[Answer]] = {
        "unknown.example.com": [unknown],
        "again.example.com": [again],
        "silent.example.com": [None],
        "broken.example.com": [OSError(5, "x")],
    }

    async def check(by_host: dict[str, list[Any]]) -> None:
        for name in ("unknown", "again", "broken"):
            assert outcome(by_host[f"{name}.example.com"]) == {DEAD_OF_DNS}, name
        assert outcome(by_host["silent.example.com"]) == {DEAD_OF_TIME}
        assert len(receiver.requests) == EVENTS  # the healthy one's

    play(names, "/ok", check)


def test_a_fault_of_ours_while_sending_is_counted_and_ends(play: Callable[..., None], receiver: Receiver) -> None:
    """No resolver answers with no address at all, and aiohttp stumbles over it in a way that the transport does not
    foresee. Were such an attempt not recorded, its delivery would come back at each end of its lease, for ever."""

    async def check(by_host: dict[str, list[Any]]) -> None:
        assert outcome(by_host["nonsense.example.com"]) == {("dead", "exhausted", ErrorKind.PROTOCOL, TRIES)}

    with capture_logs() as logged:
        play({"nonsense.example.com": [[]]}, "/ok", check)
    said = [one for one in logged if one["event"] == "an attempt failed in an unforeseen way"]
    assert len(said) == EVENTS * TRIES


def test_a_name_that_changes_its_mind_never_leads_inside(
    play: Callable[..., None], receiver: Receiver, dialled: list[str]
) -> None:
    """Its answers alternate, and each connection is closed after use, so every attempt asks anew.

    What a real name server can answer: tests/integration/test_resolving.py.
    """
    inner = "169.254.169.254"
    names: dict[str, list[Answer]] = {
        "rebinding.example.com": [[ALLOWED], [inner]],
        "mixed.example.com": [[ALLOWED, inner]],
        "inner.example.com": [[inner]],
    }

    async def check(by_host: dict[str, list[Any]]) -> None:
        assert set(dialled) == {ALLOWED}
        assert outcome(by_host["rebinding.example.com"]) <= {DELIVERED, REJECTED}
        for name in ("mixed", "inner"):
            assert outcome(by_host[f"{name}.example.com"]) == {REJECTED}, name
        hosts = {str(one.header("host")).partition(":")[0] for one in receiver.requests}
        assert hosts <= {"rebinding.example.com", "healthy.example.com"}

    play(names, "/close-after-response", check)


def test_a_thousand_addresses_that_refuse_are_not_all_dialled(
    play: Callable[..., None], receiver: Receiver, dialled: list[str]
) -> None:
    names: dict[str, list[Answer]] = {"refusing.example.com": [[ALLOWED] * 1000]}
    with socket.socket() as bound:
        bound.bind((ALLOWED, 0))  # nobody listens, and nobody else can take it

        async def check(by_host: dict[str, list[Any]]) -> None:
            assert outcome(by_host["refusing.example.com"]) == {("dead", "exhausted", ErrorKind.REFUSED, TRIES)}
            mine = len(dialled) - EVENTS
            print(f"{mine} connections tried for {EVENTS * TRIES} attempts")
            assert mine <= EVENTS * TRIES * 40

        genuine = receiver.url
        receiver.url = lambda path="/ok", host=None: (  # type: ignore[method-assign]
            f"http://{host}:{bound.getsockname()[1]}/ok" if host == "refusing.example.com" else genuine(path, host=host)
        )
        play(names, "/ok", check)


def test_names_that_hang_in_the_systems_resolver_stall_nobody_else(
    database_url: str, redis_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The genuine resolver on its threads; a lookup can't be cancelled, so each silent name holds one thread. There is
    one for each of many tenants' silent names, however many deliveries wait for it."""
    silent = RESOLVER_THREADS - 4
    released = threading.Event()
    genuine = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name.startswith("silent"):
            released.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "x")
        return genuine(ALLOWED if name.endswith("example.com") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)

    async def run() -> None:
        async with platform(database_url, redis_url, EGRESS_ALLOW=f"{ALLOWED}/32") as it:
            assert it.engine is not None
            once = {"max_attempts": 1}
            for n in range(silent):
                url = receiver.url(host=f"silent{n}.example.com")
                await it.subscribe(url, ["*"], retry_policy=once, timeout_ms=1000)
            await it.subscribe(receiver.url(host="healthy.example.com"), ["*"], retry_policy=once)
            await asyncio.gather(*(it.send() for _ in range(2)))
            await it.settled(2, "delivered", within_s=SLACK_S)
            rows = await _ended(it, 2 * (silent + 1))
            assert {row["error_kind"] for row in rows if "silent" in row["url"]} == {ErrorKind.TIMEOUT}
            await it.send()  # while every one of those lookups still hangs
            await it.settled(3, "delivered", within_s=SLACK_S)
            await all_is_given_back(it.engine)
            released.set()

    try:
        asyncio.run(run())
    finally:
        released.set()
