"""Receivers that misbehave on the wire, through the whole platform: each failure gets its kind, each attempt its row,
and whoever is healthy beside them does not notice."""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import ids
from core.failures import ErrorKind
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.scene import SLACK_S, until
from tests.platform import HANGS_S, Platform, eventually, platform
from tests.receiver import Receiver
from worker.engine import Engine
from worker.transport import EgressTransport

Play = Callable[[Scenario], None]

EVENTS = 3  # of each fault, at once
TRIES = 2
POLICY = {"backoff_strategy": "fixed", "base_delay_ms": 100, "max_attempts": TRIES}
TIMEOUT_S = 1.0  # of what must time out
UNSENT = f"No connection within {TIMEOUT_S:g} s"
PATIENT_S = 10.0  # of what must not, however busy the machine
METADATA = "http://169.254.169.254/latest/meta-data/"


@dataclass(frozen=True)
class Fault:
    """What a receiver does, and what must come of it: a kind of error, or delivered where that is None."""

    url: str  # or a path of the receiver
    kind: ErrorKind | None
    status: int | None = None
    seen: bool = True  # the receiver got the whole request

    @property
    def state(self) -> str:
        return "delivered" if self.kind is None else "dead"


TIMEOUT, RESET, PROTOCOL = ErrorKind.TIMEOUT, ErrorKind.RESET, ErrorKind.PROTOCOL
TOO_LARGE, TLS = ErrorKind.TOO_LARGE_HEADER, ErrorKind.TLS

FAULTS = {
    "reset": Fault("/reset", RESET),
    "close": Fault("/close", RESET),
    "hang": Fault("/hang", TIMEOUT),
    "late": Fault("/slow/1.3", TIMEOUT),
    "hang-head": Fault("/hang-head", TIMEOUT),
    "drip-head": Fault("/drip-head", TIMEOUT),
    "hang-body": Fault("/hang-body", TIMEOUT),
    "drip": Fault("/drip", TIMEOUT),
    "endless-headers": Fault("/endless-headers", TOO_LARGE),
    "huge-header": Fault("/huge-header", TOO_LARGE),
    "many-headers": Fault("/many-headers", TOO_LARGE),
    "endless": Fault("/endless", None, 200),
    "large": Fault("/large/3000000", None, 200),
    "gzip-bomb": Fault("/gzip-bomb", None, 200),
    "endless-1xx": Fault("/endless-1xx", PROTOCOL),
    "drip-1xx": Fault("/drip-1xx", PROTOCOL),
    "early-hints": Fault("/early-hints", None, 200),
    "switch": Fault("/switch", PROTOCOL),
    "garbage": Fault("/garbage", PROTOCOL),
    "status-word": Fault("/status-line/HTTP%2F1.1%20abc", PROTOCOL),
    "status-long": Fault("/status-line/HTTP%2F1.1%202000%20OK", PROTOCOL),
    "status-zero": Fault("/status-line/HTTP%2F1.1%20000%20No", PROTOCOL),
    "status-name": Fault("/status-line/ICY%20200%20OK", PROTOCOL),
    "status-version": Fault("/status-line/HTTP%2F9.9%20200%20OK", PROTOCOL),
    "status-blank": Fault("/status-line/%20", PROTOCOL),
    "status-nul": Fault("/status-line/HTTP%2F1.1%20200%20%00%FF", None, 200),
    "nul-header": Fault("/nul-header", PROTOCOL),
    "latin-header": Fault("/latin-header", None, 200),
    "nul-body": Fault("/nul", None, 200),
    "body-too-short": Fault("/lying-length", None, 200),
    "body-too-long": Fault("/short-length", None, 200),
    "two-lengths": Fault("/two-lengths", PROTOCOL),
    "negative-length": Fault("/wrong-length/-1", PROTOCOL),
    "vast-length": Fault("/wrong-length/99999999999999999999999", PROTOCOL),
    "bad-chunk": Fault("/bad-chunk", None, 200),
    "late-reset": Fault("/late-reset", None, 200),
    "body-on-204": Fault("/body-on-204", None, 204),
    "unsolicited": Fault("/unsolicited", None, 200),
    "redirect": Fault(f"/redirect?to={METADATA}", ErrorKind.STATUS, 302),
    "redirect-home": Fault("/redirect?to=/redirected", ErrorKind.STATUS, 302),
    "no-tls": Fault("tls:/ok", TLS, seen=False),
}


def in_flight(engine: Engine) -> int:
    """Slots that are taken."""
    return engine.under_way


def transport_of(engine: Engine) -> EgressTransport:
    assert isinstance(engine._sender._transport, EgressTransport)
    return engine._sender._transport


MAX_IN_FLIGHT = 512


# --- listeners that do not get as far as HTTP ---


@contextmanager
def refusing() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def full_backlog() -> Iterator[int]:
    """A port whose queue is full: a SYN gets no answer at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        queue = []
        try:
            for _ in range(4):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                queue.append(one)
            yield port
        finally:
            for one in queue:
                one.close()


@contextmanager
def mute() -> Iterator[int]:
    """The connection stands, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield listener.getsockname()[1]


@asynccontextmanager
async def hanging_up(*, reset: bool) -> AsyncIterator[int]:
    """FIN, or RST, after the first bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        if reset:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


# --- what must come of it ---


async def subscribe(it: Platform, receiver: Receiver, name: str, fault: Fault) -> dict[str, Any]:
    """Its URL names the fault, so that requests can be told apart."""
    if fault.url.startswith("/"):
        url = receiver.url(fault.url)
    elif fault.url.startswith("tls:"):
        url = receiver.url(fault.url[4:]).replace("http:", "https:")
    else:
        url = fault.url
    joined = "&" if "?" in url else "?"
    timeout_ms = round((TIMEOUT_S if fault.kind is TIMEOUT else PATIENT_S) * 1000)
    return await it.subscribe(
        f"{url}{joined}fault={name}",
        [f"fault.{name}"],
        retry_policy=POLICY,
        timeout_ms=timeout_ms,
        circuit_breaker={"failure_threshold": 1000},
    )


async def ended(it: Platform, count: int) -> list[Any]:
    async def all_ended() -> list[Any] | None:
        rows = await it.sql(
            "SELECT d.id, s.url, d.state, d.reason, d.error_kind, d.error_message, d.status_code,"
            " d.attempt_count"
            " FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id WHERE state IN ('delivered', 'dead')"
        )
        return rows if len(rows) >= count else None

    found: list[Any] = await eventually(all_ended, what=f"{count} deliveries have ended")
    return found


def test_each_misbehaviour_ends_in_its_kind_and_the_healthy_do_not_notice(database_url: str, redis_url: str) -> None:
    async def run(receiver: Receiver, faults: dict[str, Fault]) -> None:
        async with platform(database_url, redis_url) as it:
            assert it.engine is not None
            for name, fault in faults.items():
                await subscribe(it, receiver, name, fault)
            await it.subscribe(receiver.url("/ok?healthy"), ["*"])
            accepted_at: dict[str, float] = {}

            async def post(name: str) -> None:
                event = await it.send(f"fault.{name}")
                accepted_at[event["event_id"]] = time.monotonic()

            began = time.monotonic()
            await asyncio.gather(*(post(name) for name in faults for _ in range(EVENTS)))
            rows = await ended(it, 2 * EVENTS * len(faults))
            took_s = time.monotonic() - began
            await check(it, receiver, faults, rows)

            healthy = [one for one in receiver.requests if one.path == "/ok?healthy"]
            assert Counter(one.header("webhook-id") for one in healthy) == Counter(list(accepted_at))
            waited = [one.monotonic - accepted_at[str(one.header("webhook-id"))] for one in healthy]
            assert statistics.median(waited) < took_s / 2, "the healthy one waited for the others"
            assert max(waited) < 2 * SLACK_S, "the healthy one waited for the others"
            await all_is_given_back(it.engine)
            assert {one.path for one in receiver.requests} & {"/redirected", "/latest/meta-data/"} == set()

    async def main(receiver: Receiver) -> None:
        with refusing() as refused, full_backlog() as full, mute() as silent:
            async with hanging_up(reset=False) as fin, hanging_up(reset=True) as rst:
                faults = FAULTS | {
                    "refuse": Fault(f"http://127.0.0.1:{refused}/", ErrorKind.REFUSED, seen=False),
                    "hang-connect": Fault(f"http://127.0.0.1:{full}/", TIMEOUT, seen=False),
                    "hang-tls": Fault(f"https://127.0.0.1:{silent}/", TIMEOUT, seen=False),
                    "hang-unread": Fault(f"http://127.0.0.1:{silent}/", TIMEOUT, seen=False),
                    "fin-in-tls": Fault(f"https://127.0.0.1:{fin}/", TLS, seen=False),
                    "rst-in-tls": Fault(f"https://127.0.0.1:{rst}/", TLS, seen=False),
                    "rst-in-request": Fault(f"http://127.0.0.1:{rst}/", RESET, seen=False),
                }
                await run(receiver, faults)

    with Receiver() as receiver:
        asyncio.run(main(receiver))


async def check(it: Platform, receiver: Receiver, faults: dict[str, Fault], rows: list[Any]) -> None:
    attempts = await it.sql("SELECT delivery_id, number, error_kind, error_message, duration_ms FROM attempts")
    made = Counter(row["delivery_id"] for row in attempts)
    # A machine that stands still for a second lets the time of an attempt pass before anything of it is sent.
    unsent = Counter(row["delivery_id"] for row in attempts if row["error_message"] == UNSENT)
    seen = Counter(one.path.rpartition("fault=")[2] for one in receiver.requests)
    for name, fault in faults.items():
        mine = [row for row in rows if row["url"].endswith(f"fault={name}")]
        tries = 1 if fault.kind is None else TRIES
        got = {(row["state"], row["error_kind"], row["status_code"], row["attempt_count"]) for row in mine}
        assert got == {(fault.state, fault.kind, fault.status, tries)}, name
        assert [made[row["id"]] for row in mine] == [tries] * EVENTS, name
        sent = EVENTS * tries - sum(unsent[row["id"]] for row in mine)
        assert seen[name] == (sent if fault.seen else 0), f"{name}: requests are not attempts"
        shown = await it.call("GET", f"/v1/deliveries?limit=200&filters[event_type]=fault.{name}")
        assert len(shown["data"]) == 2 * EVENTS, f"{name}: what it answered can't be shown"
        for row in mine[:1]:
            await it.call("GET", f"/v1/deliveries/{shown_id(row['id'])}")
        assert name != "hang-connect" or {unsent[row["id"]] for row in mine} == {tries}
    [message] = {row["error_message"] for row in rows if row["url"].endswith("fault=hang-body")} - {UNSENT}
    assert message == "The answer began with status 200 and was not complete within 1 s"
    late = [row["duration_ms"] for row in attempts if row["error_kind"] == TIMEOUT]
    assert min(late) >= 950
    assert max(late) < (TIMEOUT_S + 2 * SLACK_S) * 1000, "an attempt outlived its deadline"


def shown_id(delivery_id: Any) -> str:
    return ids.show(ids.DELIVERY, delivery_id)


async def all_is_given_back(engine: Engine) -> None:
    """No slot and no connection in use stays behind."""

    async def free() -> bool:
        return in_flight(engine) == 0 and not transport_of(engine)._connector._acquired and not engine._claiming

    await eventually(free, SLACK_S, "slots and connections are given back")
    assert not engine._sender.tasks
    assert not engine._sender._attempts


# --- connections that close at the moment of reuse ---


def test_a_connection_closed_at_the_moment_of_reuse_neither_doubles_nor_hides_a_send(
    database_url: str, redis_url: str
) -> None:
    """Each address has its own connections. Where the receiver read a request, that is an attempt with a row, whether
    it answered or not; nothing is sent again behind the retry policy's back."""
    kinds = ("close-on-reuse", "reset-on-reuse", "close-soon/0.002", "close-soon/0.01", "close-after-response")
    count = 120
    rng = random.Random(1)

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as it:
            assert it.engine is not None
            patient = {"backoff_strategy": "fixed", "base_delay_ms": 20, "max_attempts": 60}
            for number, kind in enumerate(kinds):
                url = receiver.url(f"/{kind}", host=f"127.0.0.{number + 2}")
                await it.subscribe(
                    url, ["*"], retry_policy=patient, timeout_ms=5_000, circuit_breaker={"failure_threshold": 1000}
                )
            for _ in range(count):
                await it.send()
                await asyncio.sleep(rng.uniform(0, 0.015))
            rows = await ended(it, count * len(kinds))
            assert {row["state"] for row in rows} == {"delivered"}
            attempts = await it.sql(
                "SELECT a.url, a.delivery_id, a.error_kind FROM attempts a ORDER BY a.delivery_id, a.number"
            )
            requests = Counter((one.path[1:], one.header("webhook-id")) for one in receiver.requests)
            for kind in kinds:
                mine = [row for row in attempts if row["url"].endswith(kind)]
                broken = Counter(row["error_kind"] for row in mine if row["error_kind"])
                assert set(broken) <= {RESET}, kind
                assert len(mine) == count + broken[RESET]
                got = {webhook_id: n for (path, webhook_id), n in requests.items() if path == kind}
                assert len(got) == count
                if kind.endswith("on-reuse"):
                    assert broken[RESET] > 5, "no connection was used again: this proves nothing"
                    assert sum(got.values()) == len(mine), f"{kind}: requests are not attempts"
                else:  # what it closes on it has not read, so none came twice
                    assert set(got.values()) == {1}, kind
                print(kind, dict(broken))
            await all_is_given_back(it.engine)

    with Receiver(host="0.0.0.0") as receiver:
        asyncio.run(run(receiver))


# --- memory ---

GREEDY = ("/endless", "/endless-headers", "/endless-1xx", "/gzip-bomb", "/large/20000000", "/huge-header", "/drip")
GROWTH_MIB = 48


def test_receivers_that_pour_without_end_fill_neither_memory_nor_descriptors(play: Play) -> None:
    async def scenario(fleet: Fleet) -> None:
        _, worker = await fleet.start()
        for path in GREEDY:
            for n in range(8):  # one that fails is sent two at a time
                await fleet.subscribe(f"{path}?{n}", retry_policy={"max_attempts": 1})
        resident, descriptors = [], []
        for round_ in range(3):
            await asyncio.gather(*(fleet.post(f"{round_}-{n}") for n in range(3)))

            async def quiet() -> bool:
                states = await fleet.states()
                return not states.get("pending") and not states.get("sending")

            await until(quiet, HANGS_S, "quiet", every_s=0.1)
            resident.append(resident_mib(worker.pid))
            descriptors.append(open_descriptors(worker.pid))
        print(f"resident {resident} MiB, descriptors {descriptors}")
        assert resident[-1] - resident[0] < GROWTH_MIB
        assert descriptors[-1] <= descriptors[0] + 25
        assert worker.exit_code is None
        await fleet.subscribe("/ok")
        await fleet.post("after")
        fleet.receiver.wait_for(lambda them: any(one.path == "/ok" for one in them))

    play(scenario)


def resident_mib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS:"))


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
