"""Retries through the real worker: when the attempts come, and what ends them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from core import settings
from core.retry import STANDARD_SCHEDULE_S
from tests.platform import Platform, environment, eventually, platform
from tests.receiver import Receiver
from worker import main as worker

SWEEP_S = 0.05
PATIENT = {"failure_threshold": 1000}  # a breaker that stays out of the way
LATE_S = 2.0  # a busy machine's share; early is what must never happen


def delivering(
    database_url: str, redis_url: str, test: Callable[[Platform, Receiver], Awaitable[None]], **more: str
) -> None:
    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, SWEEP_INTERVAL_S=str(SWEEP_S), **more) as p:
            await test(p, receiver)

    with Receiver() as receiver:
        asyncio.run(run(receiver))


async def failed(p: Platform, attempts: int) -> dict[str, Any]:
    """The one delivery's row, once that many attempts are recorded."""

    async def there() -> dict[str, Any] | None:
        [row] = await p.sql("SELECT * FROM deliveries")
        done = row["attempt_count"] == attempts and row["state"] != "sending"
        return dict(row) if done else None

    row: dict[str, Any] = await eventually(there, what=f"attempt {attempts}")
    return row


def delay_s(row: dict[str, Any]) -> float:
    """Both times are of the moment of recording."""
    seconds: float = (row["due_at"] - row["updated_at"]).total_seconds()
    return seconds


async def make_due(p: Platform) -> None:
    await p.sql("UPDATE deliveries SET due_at = now() WHERE state = 'pending'")


def test_the_default_schedule_is_kept_within_its_jitter_until_the_dead_letter(
    database_url: str, redis_url: str
) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/status/500"), circuit_breaker=PATIENT)
        await p.send()
        for number, nominal_s in enumerate(STANDARD_SCHEDULE_S, start=1):
            row = await failed(p, number)
            assert (row["state"], row["reason"]) == ("pending", "retry")
            assert nominal_s * 0.9 <= delay_s(row) <= nominal_s * 1.1, number
            assert len(receiver.requests) == number
            await make_due(p)
        row = await failed(p, 10)
        assert (row["state"], row["reason"], row["due_at"]) == ("dead", "exhausted", None)
        assert (row["status_code"], row["error_kind"]) == (500, "status")
        assert len({request.header("webhook-id") for request in receiver.requests}) == 1
        shown = await p.sql("SELECT number FROM attempts ORDER BY id")
        assert [one["number"] for one in shown] == list(range(1, 11))

    delivering(database_url, redis_url, test)


POLICIES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "exponential": ({"backoff_strategy": "exponential", "base_delay_ms": 100, "max_attempts": 4}, [0.1, 0.2, 0.4]),
    "linear": ({"backoff_strategy": "linear", "base_delay_ms": 100, "max_attempts": 4}, [0.1, 0.2, 0.3]),
    "fixed": ({"backoff_strategy": "fixed", "base_delay_ms": 150, "max_attempts": 3}, [0.15, 0.15]),
    "schedule": ({"backoff_strategy": "schedule", "schedule": [0.1, 0.3]}, [0.1, 0.3]),
    "capped": (
        {"backoff_strategy": "exponential", "base_delay_ms": 100, "max_delay_ms": 150, "max_attempts": 4},
        [0.1, 0.15, 0.15],
    ),
}


@pytest.mark.parametrize("name", POLICIES)
def test_attempts_come_at_the_policys_times(database_url: str, redis_url: str, name: str) -> None:
    policy, nominal = POLICIES[name]

    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/status/503"), retry_policy=policy)
        await p.send()
        [dead] = await p.settled(1, "dead")
        assert (dead["reason"], dead["attempt_count"]) == ("exhausted", len(nominal) + 1)
        times = [request.monotonic for request in receiver.requests]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert len(gaps) == len(nominal)
        for gap, nominal_s in zip(gaps, nominal, strict=True):
            assert nominal_s * 0.9 <= gap <= nominal_s * 1.1 + SWEEP_S + LATE_S, gaps

    delivering(database_url, redis_url, test)


def test_a_receiver_that_recovers_gets_it(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        receiver.script("/hook", [500, 503, 200])
        policy = {"backoff_strategy": "fixed", "base_delay_ms": 20}
        await p.subscribe(receiver.url("/hook"), retry_policy=policy)
        await p.send()
        [delivered] = await p.settled(1, "delivered")
        assert (delivered["attempt_count"], delivered["status_code"], delivered["error"]) == (3, 200, None)

    delivering(database_url, redis_url, test)


def test_one_attempt_may_be_all(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url("/status/500"), retry_policy={"max_attempts": 1})
        await p.send()
        [dead] = await p.settled(1, "dead")
        assert (dead["reason"], dead["attempt_count"], len(receiver.requests)) == ("exhausted", 1, 1)

    delivering(database_url, redis_url, test)


# --- what a receiver asks ------------------------------------------------------------------------------------------

FIXED = {"backoff_strategy": "fixed", "base_delay_ms": 4000, "jitter": 0}


@asynccontextmanager
async def answering(*headers: str, status: str = "503 Service Unavailable") -> AsyncIterator[str]:
    """A receiver for headers that the other can't be asked for by a path. Yields its URL."""
    answer = "\r\n".join([f"HTTP/1.1 {status}", *headers, "Content-Length: 0", "Connection: close", "", ""])

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    finally:
        server.close()


@pytest.mark.parametrize(("asked_s", "low_s", "high_s"), [(90, 90, 90), (1, 4, 4), (999_999, 86_400, 86_400)])
def test_retry_after_in_seconds_is_honoured_within_bounds(
    database_url: str, redis_url: str, asked_s: int, low_s: float, high_s: float
) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        await p.subscribe(receiver.url(f"/retry-after/{asked_s}"), retry_policy=FIXED)
        await p.send()
        assert low_s <= delay_s(await failed(p, 1)) <= high_s

    delivering(database_url, redis_url, test)


def test_retry_after_as_a_date_is_honoured(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, _: Receiver) -> None:
        date = (datetime.now(UTC) + timedelta(seconds=120)).replace(microsecond=0)  # HTTP's dates have whole seconds
        async with answering(f"Retry-After: {format_datetime(date, usegmt=True)}") as url:
            await p.subscribe(url, retry_policy=FIXED)
            await p.send()
            row = await failed(p, 1)
        [tried] = await p.sql("SELECT started_at FROM attempts")
        assert delay_s(row) == pytest.approx((date - tried["started_at"]).total_seconds(), abs=0.001)
        assert row["due_at"] >= date

    delivering(database_url, redis_url, test)


@pytest.mark.parametrize("path", ["/gone", "/directive/disable"])
def test_a_receiver_that_is_gone_is_not_called_again(database_url: str, redis_url: str, path: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        receiver.script("/hook", [500])
        created = await p.subscribe(receiver.url("/hook"))
        await p.send()
        waiting = (await failed(p, 1))["id"]
        await p.call("PATCH", f"/v1/webhooks/subscriptions/{created['id']}", {"url": receiver.url(path)})
        await p.send()
        [dead] = await p.settled(1, "dead")
        assert (dead["reason"], dead["attempt_count"]) == ("gone", 1)
        subscription = (await p.call("GET", f"/v1/webhooks/subscriptions/{created['id']}"))["data"]
        assert (subscription["status"], subscription["status_reason"]) == ("disabled", "the receiver asked for it")
        # What was pending ends without being sent when it comes due; what comes later is not even created.
        calls = len(receiver.requests)
        assert (await p.send())["matched_subscriptions"] == 0
        await make_due(p)
        await p.settled(2, "dead")
        [row] = await p.sql("SELECT * FROM deliveries WHERE id = $1", waiting)
        assert (row["state"], row["reason"], row["attempt_count"]) == ("dead", "subscription_disabled", 1)
        assert row["error_kind"] == "status"  # of the attempt that was made
        assert len(receiver.requests) == calls

    delivering(database_url, redis_url, test)


def test_a_message_that_the_receiver_refuses_ends_alone(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        created = await p.subscribe(receiver.url("/directive/abort-message"))
        await p.send()
        [dead] = await p.settled(1, "dead")
        assert (dead["reason"], dead["attempt_count"]) == ("aborted", 1)
        subscription = (await p.call("GET", f"/v1/webhooks/subscriptions/{created['id']}"))["data"]
        assert subscription["status"] == "active"

    delivering(database_url, redis_url, test)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_is_not_followed(database_url: str, redis_url: str, status: int) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        async with answering(f"Location: {receiver.url('/ok')}", status=f"{status} Elsewhere") as url:
            await p.subscribe(url, retry_policy={"max_attempts": 1})
            await p.send()
            [dead] = await p.settled(1, "dead")
        assert (dead["status_code"], dead["error"], dead["reason"]) == (status, "status", "exhausted")
        assert receiver.requests == []

    delivering(database_url, redis_url, test)


def test_an_address_that_policy_forbids_is_never_called(database_url: str, redis_url: str) -> None:
    """It was allowed when the subscription was made; the worker asks again."""

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url, with_worker=False) as p:
            await p.subscribe(receiver.url("/ok"))
            await p.send()
            denying = settings.load(environment(database_url, redis_url, EGRESS_DENY="127.0.0.0/8"))
            async with worker.working(denying):
                [dead] = await p.settled(1, "dead")
            assert (dead["reason"], dead["error"], dead["status_code"]) == ("rejected", "blocked_address", None)
            assert receiver.connections == 0

    with Receiver() as receiver:
        asyncio.run(run(receiver))


def test_a_policy_that_changed_holds_from_the_next_attempt(database_url: str, redis_url: str) -> None:
    async def test(p: Platform, receiver: Receiver) -> None:
        created = await p.subscribe(receiver.url("/status/500"))
        await p.send()
        await failed(p, 1)
        path = f"/v1/webhooks/subscriptions/{created['id']}"
        await p.call("PATCH", path, {"retry_policy": {"max_attempts": 2, "backoff_strategy": "fixed"}})
        await make_due(p)
        [dead] = await p.settled(1, "dead")
        assert dead["attempt_count"] == 2

    delivering(database_url, redis_url, test)
