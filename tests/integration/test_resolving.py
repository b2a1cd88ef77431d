"""A name server that lies, over the wire, through the system's resolver and a whole worker: it never leads inside."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest

from core.failures import ErrorKind
from tests import hostile
from tests.api import FAST
from tests.dials import watched
from tests.name_server import AAAA, NXDOMAIN, SERVFAIL, A, Answer, NameServer
from tests.platform import Platform, eventually, platform
from tests.receiver import Receiver
from worker import connector

ALLOWED = "127.0.0.2"  # this and 127.8.0.0/16 stand for public addresses; all else of loopback is denied
MANY = [f"127.8.{n // 250}.{n % 250 + 1}" for n in range(1000)]
METADATA = "169.254.169.254"
CHAIN = [f"alias{n}.example.net" for n in range(12)]
SILENT_TIMEOUT_MS = 2_000  # the system's resolver gives up after 3 s
TIMEOUT_MS = 15_000
SLACK_MS = 3_000

DELIVERED = ("delivered", None, None)
REJECTED = ("dead", "rejected", ErrorKind.BLOCKED_ADDRESS)
NO_NAME = ("dead", "exhausted", ErrorKind.DNS)
TIMEOUT = ("dead", "exhausted", ErrorKind.TIMEOUT)

# A name's answers in turn, and what becomes of the deliveries of two events, one after the other.
NAMES: dict[str, tuple[Sequence[Answer], list[tuple[Any, ...]]]] = {
    "healthy": ([[ALLOWED]], [DELIVERED] * 2),
    "flips": ([[ALLOWED], [METADATA]], [DELIVERED, REJECTED]),
    "flips-home": ([[ALLOWED], ["127.0.0.1"]], [DELIVERED, REJECTED]),
    "flips-back": ([["10.0.0.1"], [ALLOWED]], [REJECTED, DELIVERED]),
    "mixed": ([[ALLOWED, "10.0.0.1"]], [REJECTED] * 2),
    "mixed-first": ([[METADATA, ALLOWED]], [REJECTED] * 2),
    "two": ([[ALLOWED, "127.8.0.1"]], [DELIVERED] * 2),
    "thousand": ([MANY], [DELIVERED] * 2),
    "thousand-and-one": ([[*MANY, METADATA]], [REJECTED] * 2),
    "thousand-inside": ([[it.replace("127.8.", "10.0.") for it in MANY]], [REJECTED] * 2),
    "chain": ([[*CHAIN, ALLOWED]], [DELIVERED] * 2),
    "chain-inside": ([[*CHAIN, METADATA]], [REJECTED] * 2),
    "chain-to-localhost": ([["localhost", "127.0.0.1"]], [REJECTED] * 2),
    "chain-of-nothing": ([CHAIN], [NO_NAME] * 2),
    "nothing": ([[]], [NO_NAME] * 2),
    "unknown": ([NXDOMAIN], [NO_NAME] * 2),
    "failing": ([SERVFAIL], [NO_NAME] * 2),
    "silent": ([None], [TIMEOUT, TIMEOUT]),
} | {
    f"inner{n}": ([[inner]], [REJECTED] * 2)
    for n, inner in enumerate(["127.0.0.1", "0.0.0.0", METADATA, "100.100.100.200", "224.0.0.1", "255.255.255.255"])
}  # fmt: skip

# A public address, and beside it one that is seen only where the machine has IPv6 of its own, for else nobody asks.
SIX = {
    f"six{n}": [[ALLOWED, inner]]
    for n, inner in enumerate(["::1", f"::ffff:{METADATA}", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"])
}


@pytest.fixture
def receiver() -> Any:
    with Receiver(host="0.0.0.0") as it:
        yield it


def test_no_answer_of_a_name_server_leads_inside(
    database_url: str, redis_url: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connector, "DNS_CACHE_S", 0)  # each connection asks anew
    answers: dict[str, Sequence[Answer]] = {f"{it}.example.com": given for it, (given, _) in NAMES.items()}
    answers |= {f"{it}.example.com": given for it, given in SIX.items()}
    answers |= {it: [[inner]] for it, inner in hostile.INNER_NAMES.items()}

    async def main() -> None:
        with watched() as dials:
            async with platform(database_url, redis_url, EGRESS_ALLOW=f"{ALLOWED}/32,127.8.0.0/16") as p:
                for name in answers:
                    await p.subscribe(
                        receiver.url("/close-after-response", host=name),
                        retry_policy=FAST,
                        timeout_ms=SILENT_TIMEOUT_MS if name.startswith("silent") else TIMEOUT_MS,
                    )
                services = set(dials)
                for event in (1, 2):
                    await p.send()
                    rows = await _ended(p, len(answers) * event)
        _check(rows, server)
        allowed = {f"{it}:{receiver.port}" for it in (ALLOWED, *MANY)}
        assert set(dials) - services <= allowed
        assert f"{ALLOWED}:{receiver.port}" in dials
        assert len([it for it in dials if it.startswith("127.8.")]) <= 10  # of a thousand, the first

    with NameServer(answers) as server, server.used():
        asyncio.run(main())
    assert server.asked("thousand.example.com", A, "tcp")  # it did not fit into a datagram
    # One question for each attempt: no second answer that could be another.
    assert {server.asked(f"{it}.example.com", A) for it in NAMES if it.startswith("flips")} == {2}


def _check(rows: list[Any], server: NameServer) -> None:
    ends: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows:
        name = row["url"].split("/")[2].partition(":")[0]
        end = (row["state"], row["reason"], row["error_kind"])
        # The second waits for the first one's question as well, and learns of its end.
        ends[name].append(TIMEOUT if name.startswith("silent") and ends[name] and end == NO_NAME else end)
        limit_ms = SILENT_TIMEOUT_MS if name.startswith("silent") else TIMEOUT_MS
        assert row["duration_ms"] < limit_ms + SLACK_MS
    for name, (_, wanted) in NAMES.items():
        assert ends[f"{name}.example.com"] == wanted, name
    for name in SIX:
        seen = server.asked(f"{name}.example.com", AAAA)
        assert ends[f"{name}.example.com"] == [REJECTED if seen else DELIVERED] * 2, name
    for name in hostile.INNER_NAMES:
        assert ends[name] == [REJECTED] * 2, name
    # Who has nothing to do with the name server that keeps silent does not wait for it.
    first_ended = {row["url"].split("/")[2].partition(".")[0]: row["ended_at"] for row in reversed(rows)}
    assert max(first_ended[it] for it in ("healthy", "two", "chain", "mixed")) < first_ended["silent"]


async def _ended(p: Platform, count: int) -> list[Any]:
    async def all_ended() -> list[Any] | None:
        rows = await p.sql(
            "SELECT s.url, d.state, d.reason, d.error_kind, a.duration_ms,"
            " a.started_at + a.duration_ms * interval '1 ms' AS ended_at"
            " FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id"
            " JOIN attempts a ON a.delivery_id = d.id WHERE d.state IN ('delivered', 'dead') ORDER BY d.id"
        )
        return rows if len(rows) >= count else None

    found: list[Any] = await eventually(all_ended, what=f"{count} deliveries have ended")
    assert len(found) == count
    return found
